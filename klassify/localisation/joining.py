"""Proposals of several systems for the same fake: clusters of one proposal per system, and edges
that overlapping proposals vote on.
"""

from __future__ import annotations

import numpy as np

from klassify.localisation.soft_nms import overlap, padded_clips

PAIRS_AT_ONCE = 1 << 22


def clusters(
    clip: np.ndarray,
    start_s: np.ndarray,
    end_s: np.ndarray,
    score: np.ndarray,
    system: np.ndarray,
    edge_weights: np.ndarray,
    *,
    iou: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Join proposals of different systems within each clip.

    The best proposal takes from every other system the best one whose IoU with it is above `iou`;
    then the best of the rest, and so on. A cluster's score is 1 - product of (1 - score), its edges
    are means with the weights score * edge_weights[system]. Other proposals of a system stay.

    clip, start_s, end_s, score in [0, 1], system: (N,); edge_weights: (systems,). Returns of each
    of M clusters the row of its best proposal (M,), start_s, end_s and score (M,).
    """
    order = np.lexsort((start_s, -score, clip))
    parts = [(np.empty(0, np.int64), *np.empty((3, 0)))]
    for index, there in padded_clips(clip, order):
        spans = start_s[index], end_s[index]
        left = np.where(there, score[index], -1.0)
        parts += _clusters_of(index, *spans, left, system[index], edge_weights, iou)
    rows, start, end, joined = map(np.concatenate, zip(*parts))
    return rows, start, end, joined


def _clusters_of(
    index: np.ndarray,
    start_s: np.ndarray,
    end_s: np.ndarray,
    left: np.ndarray,
    system: np.ndarray,
    edge_weights: np.ndarray,
    iou: float,
) -> list[tuple[np.ndarray, ...]]:
    """Clusters of padded clips (clips, width), step by step; left: scores, -1 = taken."""
    found, clips = [], np.arange(len(left))
    while True:
        best = left.argmax(axis=1)
        at = clips, best
        going = left[at] >= 0
        if not going.any():
            return found
        start, end, first = start_s[at][:, None], end_s[at][:, None], system[at]
        near = (left >= 0) & (overlap(start_s, end_s, start, end) > iou)
        missed, weight = 1 - left[at], left[at] * edge_weights[first] + 1e-9
        sums = weight, weight * start_s[at], weight * end_s[at]
        left[at] = -1.0
        for other in range(len(edge_weights)):
            scores = np.where(near & (system == other), left, -1.0)
            member = scores.argmax(axis=1)
            there = going & (scores[clips, member] >= 0) & (first != other)
            p = np.where(there, scores[clips, member], 0.0)
            missed, weight = missed * (1 - p), p * edge_weights[other]
            columns = weight, weight * start_s[clips, member], weight * end_s[clips, member]
            sums = tuple(total + more for total, more in zip(sums, columns))
            left[clips[there], member[there]] = -1.0
        joined = sums[1] / sums[0], sums[2] / sums[0], 1 - missed
        found.append((index[at][going], *(column[going] for column in joined)))


def voted(
    kept: tuple[np.ndarray, np.ndarray, np.ndarray],
    voters: tuple[np.ndarray, np.ndarray, np.ndarray],
    weight: np.ndarray,
    *,
    iou: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Edges of proposals as weighted means of those of all voters in the clip with an IoU of at
    least `iou` (box voting, Gidaris and Komodakis, ICCV 2015).

    kept, voters: (clip, start_s, end_s), the clips ascending; every kept one is its own voter if no
    other is near enough. weight: (voters,). Returns start_s and end_s of the kept ones.
    """
    clip, start_s, end_s = kept
    low, high = (np.searchsorted(voters[0], clip, side=side) for side in ("left", "right"))
    starts, ends = start_s.copy(), end_s.copy()
    pairs = np.cumsum(high - low)
    # parts of about PAIRS_AT_ONCE pairs
    cuts = np.flatnonzero(np.diff(pairs // PAIRS_AT_ONCE)) + 1
    for some in np.split(np.arange(len(clip)), cuts):
        counts = (high - low)[some]
        mine = np.repeat(some, counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        voter = np.repeat(low[some], counts) + within
        near = overlap(voters[1][voter], voters[2][voter], start_s[mine], end_s[mine]) >= iou
        mine, voter = mine[near] - some[0] if len(some) else mine[near], voter[near]
        total = np.bincount(mine, weight[voter], minlength=len(some))
        there = some[total > 0]
        for values, column in ((starts, voters[1]), (ends, voters[2])):
            summed = np.bincount(mine, weight[voter] * column[voter], minlength=len(some))
            values[there] = (summed / np.maximum(total, 1e-12))[total > 0]
    return starts, ends
