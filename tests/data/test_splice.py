"""Training on self-made fakes: real clips alone are read, and no segment column."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klassify.augmentation import splice
from klassify.data.audio import AudioClips, AudioFrames
from klassify.data.audio_shares import AudioShares
from klassify.data.base import Examples
from klassify.grid.frames import IGNORE, encode_labels


@pytest.fixture
def sources(small_data):
    return small_data.sources


@pytest.fixture
def stripped(small_data, tmp_path):
    """The same data whose lists have no segment columns."""
    return small_data.without_segments(tmp_path).sources


@pytest.mark.parametrize(
    "kind, window", [(AudioClips, 16_000), (AudioFrames, 16_000), (AudioShares, 50)]
)
def test_self_supervision_reads_real_clips_and_no_segments(sources, stripped, kind, window):
    data = kind(window=window, stride=window, train_split="train", splice=0.6)
    assert data.supervision == "self"
    with_columns, without = (Examples(data, s, "train", seed=1) for s in (sources, stripped))
    table = sources.table("train")
    assert list(with_columns.files) == table["file"][table["modify_type"] == "real"].tolist()
    assert list(with_columns.files) == list(without.files)
    for index in range(len(without)):
        one, other = with_columns[0, index], without[0, index]
        assert one.keys() == other.keys()
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=0, atol=0, equal_nan=True)


def test_labels_of_spliced_examples_are_their_own_edits(sources):
    data = AudioFrames(window=32_000, stride=16_000, train_split="train", splice=0.5)
    wave = np.random.default_rng(0).normal(0, 0.1, 40_000).astype(np.float32)
    seen = []
    for seed in range(20):
        example = data.example(wave, (None, 0), np.random.default_rng(seed))
        labels = example["frame_label"].numpy()
        assert int(example["label"]) == int((labels == 1).any())
        seen.append(int(example["label"]))
        first = 640 * np.random.default_rng(seed).integers(63 - 50 + 1)
        crop = np.pad(wave, (0, 320))[first : first + 32_000]
        differs = (example["wave"].numpy() != crop).reshape(50, 640).any(axis=1)
        assert differs[labels == 1].all() and not differs[labels == IGNORE].any()
    assert 0.2 < np.mean(seen) < 0.8


def test_shares_of_spliced_frames_lie_within_their_own_edits():
    data = AudioShares(window=100, stride=50, splice=0.9)
    wave = np.random.default_rng(0).normal(0, 0.1, 40_000).astype(np.float32)
    for seed in range(10):
        example = data.example(wave, (None, 0), np.random.default_rng(seed))
        start = int(np.random.default_rng(seed).integers(40_000 - 32_080 + 1))
        differs = example["wave"].numpy() != wave[start : start + 32_080]
        fake = example["target"].numpy() > 0.5
        assert int(example["label"]) == int(fake.any())
        hops = differs[40:32_040].reshape(100, 320)
        assert (hops.mean(axis=1)[fake] > 0.3).all()


def test_clip_labels_follow_the_edits(monkeypatch):
    for fake in (np.zeros((0, 2)), np.array([[0.1, 0.4]])):
        monkeypatch.setattr(splice, "splice_wave", lambda wave, rng, share, fake=fake: (wave, fake))
        data = AudioClips(window=16_000, splice=0.5)
        example = data.example(np.ones(20_000, np.float32), 0, np.random.default_rng(0))
        assert int(example["label"]) == len(fake)
        frames = AudioFrames(window=16_000, stride=16_000, splice=0.5)
        example = frames.example(np.ones(16_000, np.float32), (None, 0), np.random.default_rng(0))
        np.testing.assert_array_equal(example["frame_label"], encode_labels(fake, 25))


def test_splice_is_a_share_below_one():
    assert AudioClips().supervision == "clip" and AudioFrames().supervision == "segment"
    for share in (1.0, -0.1, 1.5):
        with pytest.raises(ValueError, match="splice"):
            AudioClips(splice=share)


def test_unedited_training_draws_the_same_numbers():
    wave = np.random.default_rng(0).normal(0, 0.1, 100_000).astype(np.float32)
    example = AudioClips().example(wave, 1, np.random.default_rng(7))
    start = int(np.random.default_rng(7).integers(100_000 - 64_600 + 1))
    np.testing.assert_array_equal(example["wave"], wave[start : start + 64_600])
