"""Frame-level AUC and EER of Task 2: how well frame scores tell fake from real time, at 20 to 640
ms.

Scores stand on the 40 ms grid; frame k of a clip covers [0.04 k, 0.04 (k + 1)) s. A frame is fake
if any part of it is, at every resolution. At a coarser one its score is the highest of the 40 ms
frames within (the more suspicious one, as PartialSpoof pools); at 20 ms both halves of a frame have
its score.

The multi-branch paper reports the AUC of segments of 10 frames: SEGMENT_MS.

Frames of all clips are pooled, so long clips weigh more; `clip_auc` does not. Coarse frames
flatter: the EER falls with the resolution though the same time is misjudged, so compare systems at
one resolution only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from klassify.errors import KlassifyError
from klassify.grid.ragged import FrameTable, row_numbers, row_offsets
from klassify.grid.segments import Truth
from klassify.metrics.clips import Ranking

RESOLUTIONS_MS = (20, 40, 80, 160, 320, 640)
SEGMENT_MS = 400


class LabelledFrames(NamedTuple):
    """Scores and labels (F,) of the frames, at one resolution, of the clips of a truth that have
    any.

    clips: their places (n,) in the truth; counts: (n,) frames of each.
    """

    scores: np.ndarray
    labels: np.ndarray
    clips: np.ndarray
    counts: np.ndarray


def labelled_frames(frames: FrameTable, truth: Truth, resolution_ms: int) -> LabelledFrames:
    """Frame scores beside what they should say; clips of the truth without frames are left out."""
    place = {name: index for index, name in enumerate(frames.files)}
    clips = np.flatnonzero([name in place for name in truth.files])
    rows = np.fromiter((place[name] for name in truth.files[clips]), np.int64)
    scores, counts = frames.scores[row_numbers(frames.offsets, rows)], np.diff(frames.offsets)[rows]
    scores, counts = resample(scores, counts, resolution_ms)
    labels = frame_labels(truth.take(clips), counts, resolution_ms / 1000)
    return LabelledFrames(scores, labels, clips, counts)


class FrameResult(NamedTuple):
    """auc and eer: by resolution in ms, pooled, NaN where one class is missing. clip_auc: mean over
    the clips that have both classes, at 40 ms. n_clips: clips evaluated; n_without: clips of the
    truth without a frame.
    """

    auc: dict[int, float]
    eer: dict[int, float]
    clip_auc: float
    n_clips: int
    n_without: int


def frame_metrics(
    frames: FrameTable, truth: Truth, resolutions_ms: tuple[int, ...] = RESOLUTIONS_MS
) -> FrameResult:
    """AUC and EER of frame scores against the fake segments, of the clips that have frames."""
    auc, eer = {}, {}
    for resolution in resolutions_ms:
        at = labelled_frames(frames, truth, resolution)
        both = Ranking(at.labels, at.scores).auc_and_eer() if len(at.labels) else (np.nan, np.nan)
        auc[resolution], eer[resolution] = (float(value) for value in both)
    at = labelled_frames(frames, truth, 40)
    clip_auc = mean_clip_auc(at.labels, at.scores, at.counts)
    return FrameResult(auc, eer, clip_auc, len(at.clips), len(truth.files) - len(at.clips))


def resample(
    scores: np.ndarray, counts: np.ndarray, resolution_ms: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of 40 ms frames, `counts` (n,) a clip, at another resolution; returns scores and
    counts.

    A last frame that reaches beyond its clip has the scores that there are.
    """
    per_frame = resolution_ms / 40
    if resolution_ms == 20:
        return np.repeat(scores, 2), counts * 2
    if per_frame != int(per_frame) or per_frame < 1:
        raise KlassifyError(
            f"A resolution of {resolution_ms} ms is neither 20 nor a multiple of 40."
        )
    new_counts = -(-counts // int(per_frame))
    offsets = row_offsets(new_counts)
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], new_counts)
    starts = np.repeat(row_offsets(counts)[:-1], new_counts) + within * int(per_frame)
    return (np.maximum.reduceat(scores, starts) if len(starts) else scores), new_counts


def frame_labels(truth: Truth, counts: np.ndarray, frame_s: float) -> np.ndarray:
    """Labels (sum of counts,) of all clips' frames of `frame_s` seconds: 1 where any part is fake.

    The same as `segments.encode_labels` clip by clip: each segment marks at least one frame.
    """
    n_frames = np.repeat(counts, np.diff(truth.offsets))
    edges = np.round(truth.segments / frame_s, 6)
    first, stop = np.floor(edges[:, 0]), np.ceil(edges[:, 1])
    stop = np.clip(np.maximum(stop, first + 1), 0, n_frames).astype(np.int64)
    first = np.clip(first, 0, n_frames).astype(np.int64)
    # one spare place after each clip takes the ends of segments that reach its last frame
    offsets = row_offsets(counts + 1)
    base = np.repeat(offsets[:-1], np.diff(truth.offsets))
    begins, ends = (np.bincount(base + edge, minlength=offsets[-1]) for edge in (first, stop))
    spare = offsets[1:] - 1
    return np.delete(np.cumsum(begins - ends) > 0, spare).astype(np.int64)


def mean_clip_auc(labels: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> float:
    """Mean AUC of the clips with frames of both classes, ties counting half; NaN for none."""
    clip = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((scores, clip))
    clip, scores, labels = clip[order], scores[order], labels[order]
    new_tie = np.append(True, (np.diff(clip) != 0) | (np.diff(scores) != 0))[: len(clip)]
    tie = np.cumsum(new_tie) - 1
    first = np.flatnonzero(new_tie)
    middle = first + (np.diff(first, append=len(clip)) + 1) / 2  # mean rank of a tie, from 1
    rank = middle[tie] - row_offsets(counts)[clip]
    n_fake = np.bincount(clip, weights=labels, minlength=len(counts))
    n_real = counts - n_fake
    rank_sum = np.bincount(clip, weights=rank * labels, minlength=len(counts))
    both = (n_fake > 0) & (n_real > 0)
    if not both.any():
        return float("nan")
    return float(((rank_sum - n_fake * (n_fake + 1) / 2)[both] / (n_fake * n_real)[both]).mean())
