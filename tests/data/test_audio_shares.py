"""AudioShares: targets in step with the samples, whole clips covered, trims."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klassify.data.audio import AudioClips
from klassify.data.audio_shares import AudioShares

RATE = 16_000


def ramp(n_samples):
    """Each sample holds its own number, exact in float32."""
    return np.arange(1, n_samples + 1, dtype=np.float32)


@pytest.mark.parametrize("trim_s", [0.0, 0.1])
def test_targets_are_counted_over_the_samples_of_a_frame(trim_s):
    data = AudioShares(window=50, stride=25, trim_s=trim_s)
    n_samples = 2 * RATE + 17
    fake = np.array([[0.3031, 0.41], [0.9, 1.3007]])
    is_fake = np.zeros(n_samples + 1, bool)
    for start, end in fake:
        is_fake[round(start * RATE) : round(end * RATE)] = True
    starts = set()
    for seed in range(20):
        example = data.example(ramp(n_samples), (fake, 1), np.random.default_rng(seed))
        number = example["wave"].long() - 1
        starts.add(int(number[0]))
        for t in range(50):
            inside = number[320 * t + 40 : 320 * t + 360].numpy()
            assert float(example["target"][t]) == pytest.approx(is_fake[inside].mean(), abs=0.004)
            centre = (inside[0] + 160) / RATE
            for name, i in (("start", 0), ("end", 1)):
                nearest = np.abs(fake[:, i] - centre).min()
                wanted = np.exp(-((nearest / 0.01) ** 2) / 2)
                assert float(example[name][t]) == pytest.approx(wanted, abs=1e-4)
    assert len(starts) > 10
    if trim_s:
        assert min(starts) >= 0 and max(starts) < n_samples


def test_padding_does_not_count():
    data = AudioShares(window=50, stride=25)
    n_samples = 320 * 7 + 200
    example = data.example(ramp(n_samples), (np.zeros((0, 2)), 0), np.random.default_rng(0))
    assert example["target"].isnan().tolist() == [False] * 8 + [True] * 42
    assert not example["start"].any() and not example["end"].any()
    assert (example["wave"] > 0).sum() == n_samples
    assert len(example["wave"]) == 49 * 320 + 400


@pytest.mark.parametrize("n_samples", [1, 399, 400, 6400, 12_345, 64_000])
def test_windows_cover_every_frame_of_the_clip(n_samples):
    data = AudioShares(window=50, stride=25)
    n_frames = data.frames_of(n_samples)
    assert 320 * (n_frames - 1) + 40 < max(n_samples, 41) <= 320 * n_frames + 40 or n_frames == 1
    covered = np.zeros(n_frames, bool)
    for window in data.cut(ramp(n_samples)):
        first = round((window.start_s - data.offset_s) / data.hop_s)
        wave = window.inputs["wave"]
        assert wave[0] == 320 * first + 1
        covered[first : first + (len(wave) - 400) // 320 + 1] = True
    assert covered.all()


def test_trims_stay_short_and_reach_their_most():
    data = AudioClips(trim_s=0.2)
    cuts = np.array([data.trimmed(RATE * 4, np.random.default_rng(seed)) for seed in range(300)])
    leading, trailing = cuts[:, 0], RATE * 4 - cuts[:, 1]
    for cut in (leading, trailing):
        assert cut.min() < 200 and 3000 < cut.max() <= 3200
    low, high = data.trimmed(100, np.random.default_rng(0))
    assert high - low >= 50
    assert AudioClips().trimmed(100, np.random.default_rng(0)) == (0, 100)


def test_trimmed_clips_are_parts_of_the_clip():
    data = AudioClips(window=4000, stride=2000, trim_s=0.1)
    wave = ramp(RATE)
    for seed in range(10):
        example = data.example(wave, 1, np.random.default_rng(seed))
        assert torch.equal(example["wave"].diff(), torch.ones(3999))
