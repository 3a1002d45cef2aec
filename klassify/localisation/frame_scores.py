"""Frame scores of many clips as flat arrays, and the parts of proposals: runs, means, sub-frame
edges.

All frames of all clips are in one array, clip after clip; `offsets` says which are whose. A span is
[first, stop) in positions of that array and never crosses the end of its clip.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from klassify.errors import KlassifyError
from klassify.grid.frames import FRAME_S
from klassify.grid.ragged import row_numbers, row_offsets
from klassify.grid.segments import proposed_columns
from klassify.scores.frame_file import FrameFile, counted_blocks
from klassify.systems.scores import to_probability

TAG_COLUMNS = ["log_o", "log_b", "log_i", "log_l"]
CONTEXT = 0.25  # frames on either side that a span is compared with, as a share of its length


@dataclasses.dataclass(frozen=True)
class FrameScores:
    """A localiser's scores of each frame of n clips, F frames in all.

    files: (n,) names. offsets: (n + 1,); clip i has frames offsets[i] to offsets[i + 1], maybe
    none. p_fake: (F,) in [0, 1]. durations_s: (n,); a last, partial frame ends there. boundary:
    (F,) probability that a fake run begins or ends with the frame (BAM), or None. log_tags: (F, 4)
    log-probabilities of the tags O, B, I, L (TCN), or None. proposed: (F, K, 3) segments that the
    model itself proposes at each frame, score in [0, 1], start and end in seconds of the clip, or
    None; one of no length is none. unsmoothed: (F,) p_fake before `smoothed`, or None. hop_s,
    offset_s: seconds per frame, and where a clip's first one begins. shared: what has been computed
    of tags, which smoothed copies share. ValueError if scores have another shape or range.
    """

    files: np.ndarray
    offsets: np.ndarray
    p_fake: np.ndarray
    durations_s: np.ndarray
    boundary: np.ndarray | None = None
    log_tags: np.ndarray | None = None
    proposed: np.ndarray | None = None
    unsmoothed: np.ndarray | None = None
    hop_s: float = FRAME_S
    offset_s: float = 0.0
    shared: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        n_frames = self.offsets[-1]
        proposed = None if self.proposed is None else self.proposed[..., 0]
        for name, values, shape, low, high in (
            ("p_fake", self.p_fake, (n_frames,), 0, 1),
            ("boundary", self.boundary, (n_frames,), 0, 1),
            ("log_tags", self.log_tags, (n_frames, 4), -np.inf, 1e-6),
            ("proposed", proposed, (n_frames, *np.shape(proposed)[1:]), 0, 1),
        ):
            if values is None:
                continue
            if values.shape != shape or not ((values >= low) & (values <= high)).all():
                raise ValueError(
                    f"{name} has the shape {values.shape} or values outside [{low}, {high}]"
                )

    @functools.cached_property
    def begins(self) -> np.ndarray:
        """(F,) bool: the first frame of each clip."""
        first = np.zeros(len(self.p_fake), bool)
        first[self.offsets[:-1][np.diff(self.offsets) > 0]] = True
        return first

    @functools.cached_property
    def _summed(self) -> np.ndarray:
        return np.concatenate([[0.0], np.cumsum(self.p_fake, dtype=float)])

    def clip_of(self, frames: np.ndarray) -> np.ndarray:
        """The clips that frames belong to."""
        return np.searchsorted(self.offsets, frames, side="right") - 1

    def mean(self, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Mean p_fake of spans, at least one frame each."""
        return np.clip((self._summed[stop] - self._summed[first]) / (stop - first), 0, 1)

    def outer_mean(self, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Mean p_fake just outside of spans, CONTEXT of their length a side; 0 for a whole clip."""
        clip = self.clip_of(first)
        width = np.maximum(np.ceil(CONTEXT * (stop - first)).astype(np.int64), 1)
        low = np.maximum(first - width, self.offsets[clip])
        high = np.minimum(stop + width, self.offsets[clip + 1])
        total = self._summed[first] - self._summed[low] + self._summed[high] - self._summed[stop]
        return np.clip(total / np.maximum(high - low - (stop - first), 1), 0, 1)

    def previous(self, values: np.ndarray, fill: float) -> np.ndarray:
        """(F,) values of the frame before; `fill` for the first frame of a clip."""
        return np.where(self.begins, fill, np.roll(values, 1))

    def following(self, values: np.ndarray, fill: float) -> np.ndarray:
        """(F,) values of the frame after; `fill` for the last frame of a clip."""
        return np.where(np.roll(self.begins, -1), fill, np.roll(values, -1))

    def smoothed(self, half: int) -> FrameScores:
        """A copy with p_fake averaged over each frame and `half` neighbours a side, in the clip."""
        if not half:
            return self
        counts, k = np.diff(self.offsets), np.arange(len(self.p_fake))
        low = np.maximum(k - half, np.repeat(self.offsets[:-1], counts))
        high = np.minimum(k + half + 1, np.repeat(self.offsets[1:], counts))
        return dataclasses.replace(self, p_fake=self.mean(low, high), unsmoothed=self.p_fake)

    def take(self, clips: np.ndarray) -> FrameScores:
        """The clips with these indices, in this order."""
        frames = row_numbers(self.offsets, clips)
        offsets = row_offsets(np.diff(self.offsets)[clips])
        rest = (self.boundary, self.log_tags, self.proposed, self.unsmoothed)
        return FrameScores(
            self.files[clips],
            offsets,
            self.p_fake[frames],
            self.durations_s[clips],
            *(None if values is None else values[frames] for values in rest),
            self.hop_s,
            self.offset_s,
        )

    @classmethod
    def joined(cls, parts: Sequence[FrameScores]) -> FrameScores:
        """The clips of all parts, one after the other; parts have the same columns and grid."""

        def column(name: str) -> np.ndarray | None:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else np.concatenate(values)

        counts = np.concatenate([np.diff(part.offsets) for part in parts])
        names = ("p_fake", "durations_s", "boundary", "log_tags", "proposed", "unsmoothed")
        grid = (parts[0].hop_s, parts[0].offset_s)
        return cls(column("files"), row_offsets(counts), *map(column, names), *grid)


def read_frames(path: str | os.PathLike, *, label: str = "read frames") -> Iterator[FrameScores]:
    """The clips of a frames score file in file order, in parts of about a million frames; label:
    of the progress.

    KlassifyError for frames that are missing or off the grid, and for columns that are not
    probabilities.
    """
    source = FrameFile(path)
    tagged, bounded = TAG_COLUMNS[0] in source.columns, "boundary" in source.columns
    n_proposed = sum(name.startswith("proposed") for name in source.columns) // 3
    spans = proposed_columns(n_proposed)
    columns = ["score", *TAG_COLUMNS * tagged, *["boundary"] * bounded, *spans]
    for files in counted_blocks(source.files, label):
        rows = source.read(files, columns)
        values = {name: rows.values[:, at] for at, name in enumerate(columns)}
        proposed = rows.values[:, len(columns) - len(spans) :]
        try:
            yield FrameScores(
                files,
                rows.offsets,
                to_probability(values["score"], source.header.scale, where=path),
                rows.ends_s,
                values.get("boundary"),
                rows.values[:, 1 : 1 + len(TAG_COLUMNS)] if tagged else None,
                proposed.reshape(-1, n_proposed, 3) if n_proposed else None,
                hop_s=source.header.hop_s,
                offset_s=source.header.offset_s,
            )
        except ValueError as error:
            raise KlassifyError(f"These are not frame scores: {error}.", where=path) from None


def runs(above: np.ndarray, frames: FrameScores) -> tuple[np.ndarray, np.ndarray]:
    """Spans (first, stop) of the runs of true values of (F,) bool, none across clips."""
    first = np.flatnonzero(above & ~frames.previous(above, False))
    stop = np.flatnonzero(above & ~frames.following(above, False)) + 1
    return first, stop


def merge_gaps(
    first: np.ndarray, stop: np.ndarray, clip: np.ndarray, longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Join neighbouring spans of a clip with at most `longest` frames between them."""
    if not len(first):
        return first, stop
    apart = (clip[1:] != clip[:-1]) | (first[1:] - stop[:-1] > longest)
    return first[np.append(True, apart)], stop[np.append(apart, True)]


def edge_times(
    frames: FrameScores, first: np.ndarray, stop: np.ndarray, level: np.ndarray, debias_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Start and end in seconds of spans, where p_fake crosses `level` between the centres of two
    frames, or else at the frame's own edge.

    debias_s, at most half a frame, is then taken off on either side: a frame is labelled fake if
    any part of it is, so an edge is on average half a frame further in. An edge at an end of the
    clip stays there. Every span keeps at least half a frame before it is cut to the clip.
    """
    clip = frames.clip_of(first)
    begin, end = frames.offsets[clip], frames.offsets[clip + 1]
    opens, closes = first > begin, stop < end
    rise = _crossing(frames.p_fake, first, np.maximum(first - 1, begin), level)
    fall = _crossing(frames.p_fake, stop - 1, np.minimum(stop, end - 1), level)
    hop_s, offset_s, debias_s = frames.hop_s, frames.offset_s, min(debias_s, frames.hop_s / 2)
    start_s = (first - begin - np.where(opens, rise, 0)) * hop_s
    start_s = start_s + np.where(opens, offset_s + debias_s, 0)
    end_s = (stop - begin + np.where(closes, fall, 0)) * hop_s
    end_s = end_s + offset_s - np.where(closes, debias_s, 0)
    duration = frames.durations_s[clip]
    end_s = np.minimum(end_s, duration)
    centre, half = (start_s + end_s) / 2, np.maximum((end_s - start_s) / 2, hop_s / 4)
    return np.clip(centre - half, 0, duration), np.clip(centre + half, 0, duration)


def _crossing(p: np.ndarray, inner: np.ndarray, outer: np.ndarray, level: np.ndarray) -> np.ndarray:
    """How far p falls through `level` beyond the inner frame's edge, in frames, within 0.5."""
    p_inner, p_outer = p[inner].astype(float), p[outer].astype(float)
    crosses = (p_outer < level) & (p_inner >= level)
    drop = np.where(crosses, p_inner - p_outer, 1)
    return np.where(crosses, (p_inner - level) / drop - 0.5, 0)
