"""Effects on mouth crops."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from klassify.augmentation.lips import LipAugment

NONE = LipAugment(0, 0, 0, 0, 0)


def crops():
    rng = np.random.default_rng(0)
    return rng.integers(60, 190, (3, 96, 96)).astype(np.uint8)


@pytest.mark.parametrize("effect", [field.name for field in dataclasses.fields(LipAugment)])
def test_each_effect_changes_all_frames_alike(effect):
    augment = dataclasses.replace(NONE, **{effect: 1.0})
    same = np.repeat(crops()[:1], 3, axis=0)
    changed = augment(same, np.random.default_rng(1))
    assert changed.shape == same.shape and changed.dtype == np.uint8
    apart = np.abs(changed.astype(int) - same).mean(axis=(1, 2))
    assert apart.min() > 0.5 and np.ptp(apart) < 0.2
    if effect != "noise":
        np.testing.assert_array_equal(changed[0], changed[2])


def test_without_effects_nothing_changes():
    np.testing.assert_array_equal(NONE(crops(), np.random.default_rng(0)), crops())


def test_shares_are_checked():
    with pytest.raises(ValueError, match="blur"):
        LipAugment(blur=1.5)
