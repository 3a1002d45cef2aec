"""The range-based EER against milliseconds counted one by one, and by hand."""

import numpy as np
import pytest

from klassify.grid.ragged import FrameTable, row_offsets
from klassify.grid.segments import Truth
from klassify.metrics.clips import eer
from klassify.metrics.ranges import range_eer, timed_frames


def table(scores, hop_s, offset_s=0.0):
    """One array of scores for each clip."""
    files = np.array([f"{i}.wav" for i in range(len(scores))], object)
    offsets = row_offsets(np.array([len(clip) for clip in scores]))
    return FrameTable(files, offsets, np.concatenate(scores), hop_s, offset_s)


def random_clips(seed, hop_s, n_clips=25):
    """Frame scores with ties, overlapping segments in whole milliseconds, and lengths that no
    frame ends with.
    """
    rng = np.random.default_rng(seed)
    durations = rng.integers(300, 4000, n_clips) / 1000
    scores, cells = [], []
    for duration in durations:
        n_frames = max(int(duration / hop_s) + rng.integers(-1, 2), 1)
        scores.append(np.round(rng.normal(size=n_frames), 1))
        starts = rng.integers(0, int(1000 * duration), rng.integers(0, 4))
        ends = starts + rng.integers(1, 900, len(starts))
        cells.append((np.stack([starts, ends], axis=1) / 1000).tolist())
    return scores, cells, durations


def milliseconds(scores, cells, durations, hop_s, offset_s):
    """The score and the label of every millisecond, counted one by one."""
    all_scores, labels = [], []
    for clip, cell, duration in zip(scores, cells, durations):
        for ms in range(round(1000 * duration)):
            t = (ms + 0.5) / 1000
            frame = min(max(int((t - offset_s) // hop_s), 0), len(clip) - 1)
            all_scores.append(clip[frame])
            labels.append(int(any(start <= t < end for start, end in cell)))
    return np.array(labels), np.array(all_scores)


@pytest.mark.parametrize(("hop_s", "offset_s"), [(0.02, 0), (0.16, 0), (0.64, 0), (0.04, 0.013)])
def test_range_eer_equals_that_of_all_milliseconds(hop_s, offset_s):
    for seed in range(4):
        scores, cells, durations = random_clips(seed, hop_s)
        frames = table(scores, hop_s, offset_s)
        timed = timed_frames(frames, Truth.from_cells(frames.files, cells), durations)
        labels, every = milliseconds(scores, cells, durations, hop_s, offset_s)
        assert range_eer(timed) == pytest.approx(eer(labels, every), abs=1e-9)
        assert timed.fake.sum() == pytest.approx(labels.sum() / 1000)
        assert timed.real.sum() == pytest.approx((labels == 0).sum() / 1000)


def test_coarse_perfect_frames_err_by_the_time_they_add():
    """0.3 s of 1 s are fake; frames of 0.2 s that touch it are called fake: 0.1 s false alarm."""
    frames = table([np.array([0.0, 1, 1, 0, 0])], 0.2)
    truth = Truth.from_cells(frames.files, [[[0.2, 0.5]]])
    timed = timed_frames(frames, truth, np.array([1.0]))
    np.testing.assert_allclose(timed.fake, [0, 0.2, 0.1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(timed.real, [0.2, 0, 0.1, 0.2, 0.2], atol=1e-12)
    # (miss, false alarm) is (0, 1/7) at the right threshold and (1, 0) above both
    assert range_eer(timed) == pytest.approx(1 / 8)


def test_clips_without_frames_and_unknown_lengths():
    frames = table([np.array([0.0, 1.0])], 0.5)
    truth = Truth.from_cells(np.array(["no.wav", "0.wav"], object), [[[0, 9]], [[0.5, 2.0]]])
    timed = timed_frames(frames, truth, np.array([9.0, np.nan]))
    assert timed.clips.tolist() == [1] and timed.counts.tolist() == [2]
    assert timed.fake.tolist() == [0, 0.5] and timed.real.tolist() == [0.5, 0]
    assert range_eer(timed) == 0
    assert np.isnan(range_eer(timed_frames(frames, truth.take(np.array([0])), np.array([9.0]))))
