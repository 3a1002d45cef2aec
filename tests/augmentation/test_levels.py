"""What the content audit measures says nothing about the label after augmentation."""

from __future__ import annotations

import numpy as np
import pytest

from klassify.augmentation import levels
from klassify.augmentation.sets import AudioAugment
from klassify.media.content import sound_traits
from klassify.metrics.clips import roc_auc

RATE = 16_000
N = 100


def waves(planted):
    """N seconds of noise whose second half has a planted property."""
    rng = np.random.default_rng(0)
    made = [rng.normal(0, 0.1, RATE // 2).astype(np.float32) for _ in range(N)]
    return made[: N // 2] + [planted(wave) for wave in made[N // 2 :]]


def muted(wave):
    wave[:640] = 0.0002
    return wave


LABEL = np.repeat([0, 1], N // 2)
PLANTED = {
    "silence_start_ms": muted,
    "silence_end_ms": lambda wave: muted(wave[::-1])[::-1],
    "loudness_db": lambda wave: 2 * wave,
    "dc_offset": lambda wave: wave + np.float32(0.02),
}


@pytest.mark.parametrize("trait", PLANTED)
def test_a_planted_shortcut_is_gone_after_augmentation(trait):
    given, augment = waves(PLANTED[trait]), AudioAugment("shortcuts")
    rng = np.random.default_rng(1)
    before, after = (
        [sound_traits(wave)[trait] for wave in some]
        for some in (given, [augment(wave, rng) for wave in given])
    )
    assert roc_auc(LABEL, np.array(before)) > 0.99
    assert abs(roc_auc(LABEL, np.array(after)) - 0.5) < 0.12


def test_levels_are_reached_whatever_the_clip_was_like():
    rng, wave = np.random.default_rng(2), np.random.default_rng(3).normal(0, 0.01, RATE)
    wave = wave.astype(np.float32) + np.float32(0.1)
    reached = [20 * np.log10(levels.loudness(wave, rng).std()) for _ in range(50)]
    low, high = levels.LOUDNESS_DB
    assert low <= min(reached) < low + 3 and high - 3 < max(reached) <= high
    assert abs(levels.offset(wave, rng).mean()) < 1e-6
    shares = [(np.abs(levels.clipping(wave, rng)) >= 0.999).mean() for _ in range(50)]
    assert max(shares) <= 0.0105 and np.mean(shares) > 0.003
