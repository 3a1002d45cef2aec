"""Which proposals hit which fake segments: overlaps, matching, ranking, for all clips at once.

Matching is greedy in two orders of priority, the official evaluator's and the textbook's; both are
one routine, `first_come`, that settles all clips of a chunk in a few vectorised rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from klassify.grid.ragged import row_numbers
from klassify.grid.segments import Proposals, Truth

AP_IOUS = (0.5, 0.75, 0.9, 0.95)
AR_IOUS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
AR_COUNTS = (50, 30, 20, 10, 5)
PAIRS_AT_ONCE = 500_000  # (segment, proposal) pairs whose overlap is computed at once: 30 MB


class Pairs(NamedTuple):
    """Segments and proposals that overlap by half or more, sorted by segment, then proposal.

    segment, proposal: (K,) indices. row: the proposal's row within its clip. iou: (K,) float32.
    """

    segment: np.ndarray
    proposal: np.ndarray
    row: np.ndarray
    iou: np.ndarray


def overlapping_pairs(proposals: Proposals, truth: Truth, clip_of: np.ndarray) -> Iterator[Pairs]:
    """All pairs that any threshold may accept, in chunks of whole clips.

    clip_of: (M,) clip of each segment. Memory is bounded, but for one clip of very many pairs.
    """
    n_pairs = np.diff(proposals.offsets)[clip_of]
    reach = np.append(0, np.cumsum(n_pairs))[truth.offsets]  # pairs before each clip
    segments_s = truth.segments.astype(np.float32)
    clip = 0
    while clip < len(truth.files):
        stop = max(
            clip + 1, int(np.searchsorted(reach, reach[clip] + PAIRS_AT_ONCE, side="right")) - 1
        )
        segments = np.arange(truth.offsets[clip], truth.offsets[stop])
        segment = np.repeat(segments, n_pairs[segments])
        proposal = row_numbers(proposals.offsets, clip_of[segments])
        iou = overlap(segments_s[segment], proposals.rows[proposal, 1:])
        near = np.flatnonzero(iou >= np.float32(AR_IOUS[0]))
        segment, proposal = segment[near], proposal[near]
        yield Pairs(segment, proposal, proposal - proposals.offsets[clip_of[segment]], iou[near])
        clip = stop


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over hull (...,) of segments (..., 2) float32, NaN where both are one point.

    The hull is the union where segments meet; where they do not, the intersection is empty.
    Segments that end before they start are taken as they are.
    """
    start, end = first[..., 0], first[..., 1]
    other_start, other_end = second[..., 0], second[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        shared = np.maximum(np.minimum(end, other_end) - np.maximum(start, other_start), 0)
        return shared / (np.maximum(end, other_end) - np.minimum(start, other_start))


def match_official(pairs: Pairs, levels: np.ndarray) -> list[np.ndarray]:
    """Accepted pairs by AP_IOUS; fills the recall levels of the chunk's segments."""
    starts = np.flatnonzero(np.diff(pairs.segment, prepend=-1))
    for column, count in enumerate(AR_COUNTS if len(starts) else ()):
        best = np.maximum.reduceat(np.where(pairs.row < count, pairs.iou, 0), starts)
        # side="left" counts the thresholds strictly below
        levels[pairs.segment[starts], column] = np.searchsorted(
            np.float32(AR_IOUS), best, side="left"
        )
    accepted = []
    for iou in AP_IOUS:
        left = np.flatnonzero(pairs.iou > np.float32(iou))
        accepted.append(left[first_come(pairs.segment[left], pairs.proposal[left])])
    return accepted


def match_textbook(pairs: Pairs, levels: np.ndarray) -> list[np.ndarray]:
    """Accepted pairs by AP_IOUS; fills the recall levels of the chunk's segments."""
    by_score = np.lexsort((pairs.segment, -pairs.iou, pairs.proposal))
    accepted = {}
    for iou in AR_IOUS:
        left = by_score[pairs.iou[by_score] >= np.float32(iou)]
        accepted[iou] = left[first_come(pairs.segment[left], pairs.proposal[left])]
        within = pairs.row[accepted[iou]][:, None] < np.array(AR_COUNTS)
        levels[pairs.segment[accepted[iou]]] += within  # a segment is accepted at most once
    return [accepted[iou] for iou in AP_IOUS]


def first_come(segment: np.ndarray, proposal: np.ndarray) -> np.ndarray:
    """Indices of the pairs that are accepted when pairs (K,) come in order and both sides serve
    once.

    In each round a pair wins that comes first for its segment and for its proposal: no earlier pair
    can take either from it. The rounds needed are the longest chain of rivals in one clip, not the
    number of pairs.
    """
    if not len(segment):
        return np.empty(0, np.int64)
    segment, proposal = segment - segment.min(), proposal - proposal.min()
    first_of_segment, first_of_proposal = (
        np.empty(side.max() + 1, np.int64) for side in (segment, proposal)
    )
    segment_taken, proposal_taken = (np.zeros(side.max() + 1, bool) for side in (segment, proposal))
    left, accepted = np.arange(len(segment)), []
    while len(left):
        s, p = segment[left], proposal[left]
        # of repeated indices the last assignment holds, hence backwards
        first_of_segment[s[::-1]] = left[::-1]
        first_of_proposal[p[::-1]] = left[::-1]
        wins = (first_of_segment[s] == left) & (first_of_proposal[p] == left)
        accepted.append(left[wins])
        segment_taken[s[wins]] = proposal_taken[p[wins]] = True
        left = left[~(segment_taken[s] | proposal_taken[p])]
    return np.concatenate(accepted)


def rank_by_score(
    score: np.ndarray, chosen: Sequence[np.ndarray]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The order of all proposals by descending score, and the ranks of some; twice as fast as
    argsort.

    score: (N,) float32; ties keep their order. chosen: index arrays. Returns (N,) uint32 and ranks
    from 0.
    """
    bits = (score + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    # IEEE floats compare like integers once the bits of negative ones are turned; here downwards
    falling = np.where(bits >> 31, bits, ~(bits | np.uint32(1 << 31)))
    keys = falling.astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(score), dtype=np.uint64)
    chosen_keys = [keys[index] for index in chosen]
    keys.sort()
    return keys.astype(np.uint32), [np.searchsorted(keys, some_keys) for some_keys in chosen_keys]
