"""Range-based EER: errors of localisation in seconds of sound, not in frames.

Zhang et al., "Range-based equal error rate for spoof localization", Interspeech 2023. At a
threshold, every moment of a clip has the decision of the frame that it lies in. The miss rate is
the share of fake time that is called real, the false-alarm rate the share of real time that is
called fake; both are over the time of all clips. The EER is where they cross. Frames that hold
both real and fake time count with each part, so that scores of any resolution are measured against
the same exact times.

The published code searches for the threshold and compares annotations at each step. Here each frame
is split into its real and its fake seconds, which are the weights of one exact ranking.
"""

from __future__ import annotations

import numpy as np

from klassify.grid.ragged import FrameTable, row_numbers, row_offsets
from klassify.grid.segments import Truth
from klassify.metrics.clips import Ranking
from klassify.metrics.frames import WeightedFrames


def timed_frames(frames: FrameTable, truth: Truth, durations: np.ndarray) -> WeightedFrames:
    """Frame scores with the seconds of real and of fake time in each; clips of the truth without
    frames are left out.

    durations: (n,) seconds of the clips of the truth, NaN where unknown. The first frame begins
    with its clip and the last one ends with it: what a model leaves over at an end has the score
    of the nearest frame.
    """
    place = {name: index for index, name in enumerate(frames.files)}
    rows = np.array([place.get(name, -1) for name in truth.files], np.int64)
    counts = np.append(np.diff(frames.offsets), 0)[rows]
    clips = np.flatnonzero(counts > 0)
    rows, counts, truth = rows[clips], counts[clips], truth.take(clips)
    scores = frames.scores[row_numbers(frames.offsets, rows)]
    ends = frames.offset_s + counts * frames.hop_s
    durations = np.asarray(durations, float)[clips]
    durations = np.where(np.isnan(durations), ends, durations)
    first = row_offsets(counts)[:-1]
    number = np.arange(len(scores)) - np.repeat(first, counts)
    length = np.repeat(durations, counts)
    begins = np.clip(frames.offset_s + number * frames.hop_s, 0, length)
    begins[first] = 0
    stops = np.append(begins[1:], 0)
    stops[first + counts - 1] = durations
    fake_s = _fake_before(truth, durations, counts, stops)
    fake_s -= _fake_before(truth, durations, counts, begins)
    fake_s = np.clip(fake_s, 0, stops - begins)
    return WeightedFrames(scores, stops - begins - fake_s, fake_s, clips, counts)


def _fake_before(
    truth: Truth, durations: np.ndarray, counts: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """Seconds of fake time before each of `times` (F,) in its clip, of which `counts` (n,) belong
    to each clip, plus what the clips before have.
    """
    # the clips lie one after the other on one axis of time, with gaps
    begins = row_offsets(np.ones(len(durations))).astype(float)[:-1] + np.concatenate(
        [[0], np.cumsum(durations)[:-1]]
    )
    owner = np.repeat(np.arange(len(durations)), np.diff(truth.offsets))
    segments = np.clip(truth.segments, 0, durations[owner, None]) + begins[owner, None]
    segments = segments[np.argsort(segments[:, 0], kind="stable")]
    times = times + np.repeat(begins, counts)
    if not len(segments):
        return np.zeros(len(times))
    reach = np.maximum.accumulate(segments[:, 1])
    opens = np.append(True, segments[1:, 0] > reach[:-1])  # not joined with one before
    starts, ends = segments[opens, 0], reach[np.append(opens[1:], True)]
    before = np.concatenate([[0], np.cumsum(ends - starts)])
    knots = np.stack([starts, ends], axis=1).ravel()
    return np.interp(times, knots, np.stack([before[:-1], before[1:]], axis=1).ravel())


def range_eer(timed: WeightedFrames) -> float:
    """The range-based EER in [0, 1]; NaN where there is no real or no fake time."""
    label = np.repeat([0, 1], len(timed.scores))
    weights = np.concatenate([timed.real, timed.fake])
    return float(Ranking(label, np.tile(timed.scores, 2)).auc_and_eer(weights)[1])
