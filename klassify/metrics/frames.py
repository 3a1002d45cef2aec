"""Frame-level AUC and EER of Task 2: how well frame scores tell fake from real time, at 20 to 640
ms.

Resolutions are grids from 0 s on; scores may be on another one. A frame is fake if any part of
it is, at every resolution. At a coarser one than the scores' own its score is the highest of those
that begin within (the more suspicious one, as PartialSpoof pools); at a finer one all parts of a
frame have its score. So systems of different hops are compared at one resolution, mostly 40 ms.

The multi-branch paper reports the AUC of segments of 10 frames: SEGMENT_MS.

Frames of all clips are pooled, so long clips weigh more; `clip_auc` does not. Coarse frames
flatter: the EER falls with the resolution though the same time is misjudged, so compare systems at
one resolution only.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from klassify.errors import KlassifyError
from klassify.grid.frames import FRAME_S
from klassify.grid.ragged import FrameTable, row_numbers, row_offsets
from klassify.grid.segments import Truth
from klassify.metrics.clips import Ranking

RESOLUTIONS_MS = (20, 40, 80, 160, 320, 640)
SEGMENT_MS = 400
CLIPS_AT_ONCE = 1024  # whose own AUCs are found together: some megabytes


@dataclasses.dataclass(frozen=True)
class LabelledFrames:
    """Scores and labels (F,) of the frames, at one resolution, of the clips of a truth that have
    any.

    clips: their places (n,) in the truth; counts: (n,) frames of each.
    """

    scores: np.ndarray
    labels: np.ndarray
    clips: np.ndarray
    counts: np.ndarray

    def of_clips(self, kept: np.ndarray) -> LabelledFrames:
        """The same without the frames of clips where kept (n,) is false."""
        rows = np.repeat(kept, self.counts)
        part = LabelledFrames(
            self.scores[rows], self.labels[rows], self.clips[kept], self.counts[kept]
        )
        # no second sort
        part.__dict__["order"] = (np.cumsum(rows) - 1)[self.order[rows[self.order]]]
        return part

    @functools.cached_property
    def order(self) -> np.ndarray:
        """(F,) the frames by ascending score."""
        return np.argsort(self.scores)


class WeightedFrames(NamedTuple):
    """Scores (F,) of frames with what each counts as real and as fake, (F,) both: a number of
    frames, or seconds.

    clips, counts: as in LabelledFrames.
    """

    scores: np.ndarray
    real: np.ndarray
    fake: np.ndarray
    clips: np.ndarray
    counts: np.ndarray


def weighted_frames(part: LabelledFrames) -> WeightedFrames:
    """Each frame counts once."""
    return WeightedFrames(part.scores, part.labels == 0, part.labels == 1, part.clips, part.counts)


def labelled_frames(frames: FrameTable, truth: Truth, resolution_ms: int) -> LabelledFrames:
    """Frame scores beside what they should say; clips of the truth without frames are left out."""
    place = {name: index for index, name in enumerate(frames.files)}
    clips = np.flatnonzero([name in place for name in truth.files])
    rows = np.fromiter((place[name] for name in truth.files[clips]), np.int64)
    scores, counts = frames.scores[row_numbers(frames.offsets, rows)], np.diff(frames.offsets)[rows]
    grid = (frames.hop_s, frames.offset_s)
    scores, counts = resample(scores, counts, resolution_ms, *grid)
    labels = frame_labels(truth.take(clips), counts, resolution_ms / 1000)
    return LabelledFrames(scores, labels, clips, counts)


class FrameResult(NamedTuple):
    """auc and eer: by resolution in ms, pooled, NaN where one class is missing. clip_auc: mean over
    the clips that have both classes, at 40 ms. own_auc: at 40 ms against the segments of one
    modality, NaN unless they were given. n_clips: clips evaluated; n_without: clips of the truth
    without a frame.
    """

    auc: dict[int, float]
    eer: dict[int, float]
    clip_auc: float
    own_auc: float
    n_clips: int
    n_without: int


def frame_metrics(
    frames: FrameTable,
    truth: Truth,
    resolutions_ms: tuple[int, ...] = RESOLUTIONS_MS,
    own: Truth | None = None,
    at: LabelledFrames | None = None,
) -> FrameResult:
    """AUC and EER of frame scores against the fake segments, of the clips that have frames.

    own: the segments of one modality of the same clips. at: labelled_frames at 40 ms, if there.
    """
    auc, eer = {}, {}
    for resolution in resolutions_ms:
        if resolution != 40:
            auc[resolution], eer[resolution] = exact(labelled_frames(frames, truth, resolution))
    at = labelled_frames(frames, truth, 40) if at is None else at
    if 40 in resolutions_ms:
        auc[40], eer[40] = exact(at)
    own_auc = np.nan
    if own is not None:
        labels = frame_labels(own.take(at.clips), at.counts, 0.04)
        own_auc = float(Ranking(labels, at.scores, at.order).auc_and_eer()[0])
    clip_auc = mean_clip_auc(at.labels, at.scores, at.counts)
    n_clips = len(at.clips)
    return FrameResult(auc, eer, clip_auc, own_auc, n_clips, len(truth.files) - n_clips)


def exact(part: LabelledFrames) -> tuple[float, float]:
    """AUC and EER of labelled frames, NaN where a class is missing."""
    auc, eer = Ranking(part.labels, part.scores, part.order).auc_and_eer()
    return float(auc), float(eer)


def resample(
    scores: np.ndarray,
    counts: np.ndarray,
    resolution_ms: int,
    hop_s: float = FRAME_S,
    offset_s: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of frames, `counts` (n,) a clip, at another resolution; returns scores and counts.

    A last frame that reaches beyond its clip has the scores that there are. KlassifyError for a
    resolution that neither divides hop_s nor is a multiple of it.
    """
    ratio = resolution_ms / 1000 / hop_s
    parts = max(round(1 / ratio), 1)  # of a frame
    if not np.isclose(ratio * parts, max(round(ratio), 1)):
        raise KlassifyError(
            f"A resolution of {resolution_ms} ms neither divides {1000 * hop_s:g} ms nor is a"
            " multiple of it."
        )
    if parts == 1 and np.isclose(ratio, 1) and not offset_s:
        return scores, counts
    scores, counts = np.repeat(scores, parts), counts * parts
    begins = np.arange(len(scores)) - np.repeat(row_offsets(counts)[:-1], counts)
    cell = np.floor((begins * hop_s / parts + offset_s) / (resolution_ms / 1000) + 1e-6)
    first = (np.diff(cell, prepend=-1) != 0) | (begins == 0)
    new_counts = np.add.reduceat(np.append(first, 0), row_offsets(counts)[:-1]) * (counts > 0)
    return np.maximum.reduceat(scores, np.flatnonzero(first)) if len(scores) else scores, new_counts


def frame_labels(truth: Truth, counts: np.ndarray, hop_s: float) -> np.ndarray:
    """Labels (sum of counts,) of all clips' frames of `hop_s` seconds: 1 where any part is fake.

    The same as `segments.encode_labels` clip by clip: each segment marks at least one frame.
    """
    n_frames = np.repeat(counts, np.diff(truth.offsets))
    edges = np.round(truth.segments / hop_s, 6)
    first, stop = np.floor(edges[:, 0]), np.ceil(edges[:, 1])
    stop = np.clip(np.maximum(stop, first + 1), 0, n_frames).astype(np.int64)
    first = np.clip(first, 0, n_frames).astype(np.int64)
    # one spare place after each clip takes the ends of segments that reach its last frame
    offsets = row_offsets(counts + 1)
    base = np.repeat(offsets[:-1], np.diff(truth.offsets))
    opened = np.zeros(offsets[-1], np.int16)  # segments that begin in a frame, less those that end
    np.add.at(opened, base + first, np.int16(1))
    np.subtract.at(opened, base + stop, np.int16(1))
    np.cumsum(opened, dtype=np.int16, out=opened)
    return np.delete(opened > 0, offsets[1:] - 1).astype(np.int8)


def mean_clip_auc(labels: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> float:
    """Mean AUC of the clips with frames of both classes, ties counting half; NaN for none."""
    offsets, total, n = row_offsets(counts), 0.0, 0
    for first in range(0, len(counts), CLIPS_AT_ONCE):
        of_block = counts[first : first + CLIPS_AT_ONCE]
        rows = slice(offsets[first], offsets[first + len(of_block)])
        found = _clip_aucs(labels[rows], scores[rows], of_block)
        total, n = total + found.sum(), n + len(found)
    return float(total / n) if n else float("nan")


def _clip_aucs(labels: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The AUC of each clip that has both classes."""
    order = np.argsort(scores)
    level = np.empty(len(scores), np.int64)  # equal scores share one
    level[order] = np.cumsum(np.diff(scores[order], prepend=scores[order[:1]]) > 0)
    # clip, score and label in one number, which sorts faster than three columns
    clip = np.repeat(np.arange(len(counts)), counts)
    keys = np.sort(((clip * (len(scores) + 1) + level) << 1) | labels)
    labels, tied = keys & 1, keys >> 1
    clip = tied // (len(scores) + 1)
    new_tie = np.append(True, tied[1:] != tied[:-1])[: len(tied)]
    tie = np.cumsum(new_tie) - 1
    first = np.flatnonzero(new_tie)
    middle = first + (np.diff(first, append=len(clip)) + 1) / 2  # mean rank of a tie, from 1
    rank = middle[tie] - row_offsets(counts)[clip]
    n_fake = np.bincount(clip, weights=labels, minlength=len(counts))
    n_real = counts - n_fake
    rank_sum = np.bincount(clip, weights=rank * labels, minlength=len(counts))
    both = (n_fake > 0) & (n_real > 0)
    return (rank_sum - n_fake * (n_fake + 1) / 2)[both] / (n_fake * n_real)[both]
