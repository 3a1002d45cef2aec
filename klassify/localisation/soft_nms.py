"""Soft-NMS of the proposals of many clips at once, and the best few of each clip.

Proposals are flat arrays with the clip of each. Clips are padded to the length of the fullest one
among clips of similar size, so that the steps of the greedy loop run over thousands of clips
together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

TINY_S = 1e-9  # shorter than any span
CELLS_AT_ONCE = 1 << 17  # padded proposals per step: a megabyte per array, which fits the cache


def top_per_clip(clip: np.ndarray, score: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k best proposals of each clip, clips ascending, best first, ties as given."""
    order = np.lexsort((-score, clip))
    return order[_places(clip[order]) < k]


def _places(clip: np.ndarray) -> np.ndarray:
    """Each proposal's place in its clip, from 0, of proposals sorted by clip."""
    index = np.arange(len(clip))
    new = np.append(True, clip[1:] != clip[:-1])[: len(clip)]
    return index - np.maximum.accumulate(np.where(new, index, 0))


def soft_nms(
    clip: np.ndarray,
    start_s: np.ndarray,
    end_s: np.ndarray,
    score: np.ndarray,
    *,
    sigma: float,
    cap: int,
    min_score: float = 0.0,
    t1: float = 0.0,
    t2: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian soft-NMS within each clip (Bodla et al., ICCV 2017).

    The best proposal is taken, and the score of every other one multiplied by exp(-iou^2 / sigma);
    then the best of the rest, until `cap` are taken or the best is below `min_score`. sigma = 0
    does not change scores. Of equal scores the earlier start, then the earlier row comes first.

    t1, t2: only scores of an IoU above t1 + (t2 - t1) * length in seconds of the one that is taken
    are multiplied (BA-TFD, AuViRe); 0, 0: all that overlap. Equal ones with a sigma of 1e-6 are
    hard NMS: what overlaps by more is dropped.

    clip: (N,) >= 0 in any order; start_s <= end_s; score >= 0. Returns indices (M,) of the
    proposals taken, clips ascending and scores descending, and their scores (M,).
    """
    order = np.lexsort((start_s, -score, clip))
    if sigma == 0:
        kept = order[(_places(clip[order]) < cap) & (score[order] >= min_score)]
        return kept, score[kept]
    taken, values = [np.empty(0, np.int64)], [np.empty(0)]
    for index, there in padded_clips(clip, order):
        padded = np.where(there, score[index], -1.0)
        spans = start_s[index], end_s[index]
        picks, value = _greedy(*spans, padded, sigma, cap, min_score, (t1, t2))
        kept = value >= min_score
        taken.append(np.take_along_axis(index, picks, axis=1)[kept])
        values.append(value[kept])
    taken, values = np.concatenate(taken), np.concatenate(values)
    by_clip = np.argsort(clip[taken], kind="stable")  # best first within a clip already
    return taken[by_clip], values[by_clip]


def padded_clips(clip: np.ndarray, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index arrays (clips, width) into the proposals of some clips of similar size, and which
    cells are there; each clip once. order: (N,) indices of the proposals, sorted by clip.
    """
    counts = np.unique(clip[order], return_counts=True)[1]
    firsts = np.cumsum(counts) - counts
    size = np.ceil(np.log2(np.maximum(counts, 1))).astype(int)
    for exponent in np.unique(size):
        column = np.arange(1 << exponent)
        group = np.flatnonzero(size == exponent)
        for some in np.array_split(group, -(-len(group) * len(column) // CELLS_AT_ONCE)):
            there = column < counts[some, None]
            yield order[np.where(there, firsts[some, None] + column, 0)], there


def overlap(
    start_s: np.ndarray, end_s: np.ndarray, start: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """IoU of spans, broadcast; of two spans of no length 0."""
    shared = np.maximum(np.minimum(end_s, end) - np.maximum(start_s, start), 0)
    return shared / np.maximum((end_s - start_s) + (end - start) - shared, TINY_S)


def _greedy(
    start_s: np.ndarray,
    end_s: np.ndarray,
    score: np.ndarray,
    sigma: float,
    cap: int,
    min_score: float,
    thresholds: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Columns taken and their scores, (clips, steps), from padded (clips, width) with score -1."""
    clips, steps = np.arange(len(score)), min(score.shape[1], cap)
    picks, values = np.zeros((len(score), steps), np.int64), np.full((len(score), steps), -1.0)
    t1, t2 = thresholds
    for step in range(steps):
        best = score.argmax(axis=1)
        value = score[clips, best]
        if (value < min_score).all() or (value < 0).all():
            break
        picks[:, step], values[:, step] = best, value
        start, end = start_s[clips, best, None], end_s[clips, best, None]
        iou = overlap(start_s, end_s, start, end)
        decay = np.exp(-(iou**2) / sigma)
        if t1 or t2:
            decay[iou <= t1 + (t2 - t1) * (end - start)] = 1.0
        score *= decay
        score[clips, best] = -1.0
    return picks, values
