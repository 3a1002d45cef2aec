"""Rows of many clips in one array: clip i has the rows offsets[i] to offsets[i + 1]."""

from __future__ import annotations

import dataclasses
from collections.abc import Container

import numpy as np

from klassify.errors import KlassifyError
from klassify.grid.frames import FRAME_S

TOP_SHARE = 0.1
POOLS = ("max", "top")


def row_offsets(counts: np.ndarray) -> np.ndarray:
    """Offsets (n + 1,) int64 of clips that have `counts` (n,) rows each."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def row_numbers(offsets: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """The numbers of all rows of `clips`, clip after clip."""
    counts = np.diff(offsets)[clips]
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(
        offsets[:-1][clips] - (ends - counts), counts
    )


def top_rows(scores: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The frames with the highest scores of each clip, TOP_SHARE of them, rounded down, and at
    least one.

    Returns their positions in scores (F,), clip after clip and best first, the earlier one of equal
    scores, and offsets (n + 1,) of the clips among these.
    """
    kept = n_top(np.diff(offsets))
    rows = np.flatnonzero(is_top(scores, offsets))
    owner = np.repeat(np.arange(len(kept)), kept)
    return rows[np.lexsort((-scores[rows], owner))], row_offsets(kept)


def n_top(counts: np.ndarray) -> np.ndarray:
    """How many frames `top_rows` takes of clips of `counts` (n,) frames."""
    return np.where(counts > 0, np.maximum((counts * TOP_SHARE + 1e-9).astype(np.int64), 1), 0)


def is_top(scores: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(F,) bool: the frames that `top_rows` takes."""
    counts = np.diff(offsets)
    kept = n_top(counts)
    lowest = np.empty(len(counts), scores.dtype)  # of those taken
    # clips of the same number of frames are the rows of one array, of which a partition finds the
    # k-th highest without sorting
    by_length = np.argsort(counts, kind="stable")
    lengths, first = np.unique(counts[by_length], return_index=True)
    for length, clips in zip(lengths.tolist(), np.split(by_length, first[1:])):
        if length:
            k = length - int(kept[clips[0]])
            rows = scores[offsets[clips][:, None] + np.arange(length)]
            lowest[clips] = np.partition(rows, k, axis=1)[:, k]
    limit = np.repeat(lowest, counts)
    above, equal = scores > limit, scores == limit
    # of the equal ones at the limit the first are taken
    begins = np.repeat(offsets[:-1], counts)
    n_above, n_equal = (np.append(0, np.cumsum(one)) for one in (above, equal))
    room = np.repeat(kept - (n_above[offsets[1:]] - n_above[offsets[:-1]]), counts)
    return above | (equal & (n_equal[1:] - n_equal[begins] <= room))


def pooled(scores: np.ndarray, offsets: np.ndarray, how: str = "max") -> np.ndarray:
    """Clip scores (n,) of frame scores (F,), NaN without frames.

    how: "max", or "top", the mean of the highest tenth.
    """
    if how not in POOLS:
        raise KlassifyError(f"unknown pooling {how!r} (known: {', '.join(POOLS)})")
    result = np.full(len(offsets) - 1, np.nan)
    if how == "top":
        rows, offsets = top_rows(scores, offsets)
        scores = scores[rows]
    counts = np.diff(offsets)
    there = counts > 0
    if there.any():
        reduce = np.maximum if how == "max" else np.add
        values = reduce.reduceat(np.asarray(scores, float), offsets[:-1][there])
        result[there] = values if how == "max" else values / counts[there]
    return result


@dataclasses.dataclass(frozen=True)
class FrameTable:
    """files: (n,) names. offsets: (n + 1,). scores: (F,) of the frames, clip after clip.

    hop_s, offset_s: seconds per frame, and where a clip's first one begins.
    """

    files: np.ndarray
    offsets: np.ndarray
    scores: np.ndarray
    hop_s: float = FRAME_S
    offset_s: float = 0.0

    def take(self, files: Container[str]) -> FrameTable:
        """Those clips that are among `files`."""
        clips = np.flatnonzero([name in files for name in self.files])
        scores = self.scores[row_numbers(self.offsets, clips)]
        offsets = row_offsets(np.diff(self.offsets)[clips])
        return dataclasses.replace(self, files=self.files[clips], offsets=offsets, scores=scores)
