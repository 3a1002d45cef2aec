"""Localisation metrics of Task 2: AP, AR and Score, official or textbook, with breakdowns and resampling.

Score = 1/8 sum AP@{0.5, 0.75, 0.9, 0.95} + 1/10 sum AR@{50, 30, 20, 10, 5}. Mode `official` equals the
challenge's evaluation package (avdeepfake1m 0.0.4), quirks included; mode `textbook` is what the names
promise. docs/official-metric.md sets them side by side. The overlap of two segments is the length of their
intersection over that of their hull, in float32.

Matching is done once and clip by clip; every weighting of the clips (a subset, a bootstrap resample) then
costs one cumulative sum over the ranked proposals.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from klassify import metrics
from klassify.errors import KlassifyError
from klassify.predictions import Proposals, Truth, row_numbers, row_offsets

AP_IOUS = (0.5, 0.75, 0.9, 0.95)
AR_IOUS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
AR_COUNTS = (50, 30, 20, 10, 5)
METRICS = (*(f"AP@{iou}" for iou in AP_IOUS), *(f"AR@{count}" for count in AR_COUNTS), "Score")
MODES = ("official", "textbook")
LENGTH_EDGES_S = (0.0, 0.16, 0.32, 0.64, np.inf)  # the published mean segment is 0.33 s
PAIRS_AT_ONCE = 500_000  # (segment, proposal) pairs whose overlap is computed at once: 30 MB


class Task2Result(NamedTuple):
    """ap: (4,) by AP_IOUS; ar: (5,) by AR_COUNTS; score; the counts they rest on (weighted, if weights are).

    Without any fake segment AP and Score are NaN, and AR is 0 (official) or NaN (textbook).
    """

    ap: np.ndarray
    ar: np.ndarray
    score: float
    n_segments: float
    n_clips: float

    def named(self) -> dict[str, float]:
        """The ten numbers by their names in METRICS."""
        return dict(zip(METRICS, [*self.ap.tolist(), *self.ar.tolist(), self.score]))


class Hits(NamedTuple):
    """True positives at one overlap, best rank first: rank (K,) among all proposals from 0, and the segment hit."""

    rank: np.ndarray
    segment: np.ndarray


@dataclasses.dataclass(frozen=True)
class Matches:
    """Proposals matched to the truth; made by `match`.

    clip_of: (M,) clip of each segment. levels: (M, 5) at how many of AR_IOUS each segment is recalled by the
    first AR_COUNTS proposals. hits: true positives by AP_IOUS. order: (N,) row of each proposal, best first.
    """

    mode: str
    truth: Truth
    offsets: np.ndarray
    clip_of: np.ndarray
    levels: np.ndarray
    hits: tuple[Hits, ...]
    order: np.ndarray

    @functools.cached_property
    def ranked_clip(self) -> np.ndarray:
        """(N,) clip of each proposal, best first."""
        clips = np.arange(len(self.offsets) - 1, dtype=np.int32)
        return np.repeat(clips, np.diff(self.offsets))[self.order]

    def score(self, weights: np.ndarray | None = None, among: np.ndarray | None = None) -> Task2Result:
        """The metrics, of all clips as they are or weighted.

        weights: (n,) >= 0, how often each clip counts. among: (M,) bool, the segments that count; a proposal
        that hits another one is then neither right nor wrong.
        """
        n_clips = len(self.truth.files)
        among = np.ones(len(self.clip_of), bool) if among is None else np.asarray(among, bool)
        if weights is None:
            ranked_weight, segment_weight = None, among.astype(float)
        else:
            weights = np.asarray(weights, float)
            n_clips = float(weights.sum())
            ranked_weight, segment_weight = np.cumsum(weights[self.ranked_clip]), weights[self.clip_of] * among
        n_segments = float(segment_weight.sum())
        ap = np.array([
            self._average_precision(hits, ranked_weight, weights, among, n_segments) for hits in self.hits
        ])  # fmt: skip
        if n_segments:
            ar = segment_weight @ self.levels / (len(AR_IOUS) * n_segments)
        else:
            ar = np.full(len(AR_COUNTS), 0.0 if self.mode == "official" else np.nan)
        return Task2Result(ap, ar, float(ap.sum() / 8 + ar.sum() / 10), n_segments, n_clips)

    def _average_precision(
        self,
        hits: Hits,
        ranked_weight: np.ndarray | None,
        weights: np.ndarray | None,
        among: np.ndarray,
        n_segments: float,
    ) -> float:
        """Area under the precision envelope over recall, all points."""
        if not n_segments:
            return float("nan")
        gain = np.ones(len(hits.rank)) if weights is None else weights[self.clip_of[hits.segment]]
        claimed = hits.rank + 1.0 if ranked_weight is None else ranked_weight[hits.rank]
        counts = among[hits.segment]
        claimed = claimed - np.cumsum(gain * ~counts)  # what hits another segment is not held against anyone
        counts &= gain > 0
        gain, claimed = gain[counts], claimed[counts]
        precision = np.maximum.accumulate((np.cumsum(gain) / claimed)[::-1])[::-1]
        area = float(gain @ precision) / n_segments
        if self.mode == "official" and len(gain) and claimed[0] == gain[0]:
            area -= min(1.0, gain[0]) * precision[0] / n_segments  # it never adds the first rank's step of recall
        return area


def score_task2(
    proposals: Proposals, truth: Truth, mode: str = "official", *, where: object = None
) -> Task2Result:
    """AP, AR and Score of proposals against the truth; see `match` for the arguments and errors."""
    return match(proposals, truth, mode, where=where).score()


def match(proposals: Proposals, truth: Truth, mode: str = "official", *, where: object = None) -> Matches:
    """Match proposals to fake segments, each at most once.

    official: segments in the order of the truth; each takes the first free proposal in file order with an
    overlap above the threshold. A segment is recalled if any of the first N proposals in file order overlaps it.
    textbook: proposals by descending score; each takes the free segment it overlaps most, at or above the
    threshold. A segment is recalled if its proposal is among the N best of its clip.
    Equal scores rank in the order of clips, then rows. Clips of `proposals` that `truth` lacks are ignored.
    where: names the proposals in errors. Raises KlassifyError for a clip without an entry.
    """
    if mode not in MODES:
        raise KlassifyError(f"There is no mode {mode!r}; there are {', '.join(MODES)}.")
    if not len(truth.files):
        raise KlassifyError("There are no labelled clips to evaluate on.", where=where)
    proposals = proposals.of(truth.files, where=where)
    if mode == "textbook":
        proposals = proposals.by_score()
    clip_of = np.repeat(np.arange(len(truth.files)), np.diff(truth.offsets))
    levels = np.zeros((len(clip_of), len(AR_COUNTS)), np.int8)
    matched: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in AP_IOUS]
    match_chunk = _match_official if mode == "official" else _match_textbook
    for pairs in _overlapping_pairs(proposals, truth, clip_of):
        for chunks, accepted in zip(matched, match_chunk(pairs, levels)):
            chunks.append((pairs.segment[accepted], pairs.proposal[accepted]))
    order, ranks = _rank(proposals.rows[:, 0], [np.concatenate([p for _, p in chunks]) for chunks in matched])
    hits = []
    for chunks, rank in zip(matched, ranks):
        by_rank = np.argsort(rank)
        hits.append(Hits(rank[by_rank], np.concatenate([s for s, _ in chunks])[by_rank]))
    return Matches(mode, truth, proposals.offsets, clip_of, levels, tuple(hits), order)


class _Pairs(NamedTuple):
    """Segments and proposals that overlap by half or more: indices, the proposal's row within its clip, overlap.

    Sorted by segment, then proposal.
    """

    segment: np.ndarray
    proposal: np.ndarray
    row: np.ndarray
    iou: np.ndarray


def _overlapping_pairs(proposals: Proposals, truth: Truth, clip_of: np.ndarray) -> Iterator[_Pairs]:
    """All pairs of a clip's segments and proposals that any threshold may accept, in chunks of whole clips."""
    n_pairs = np.diff(proposals.offsets)[clip_of]
    reach = np.append(0, np.cumsum(n_pairs))[truth.offsets]  # pairs before each clip
    clip = 0
    while clip < len(truth.files):
        stop = max(clip + 1, int(np.searchsorted(reach, reach[clip] + PAIRS_AT_ONCE, side="right")) - 1)
        segments = np.arange(truth.offsets[clip], truth.offsets[stop])
        segment = np.repeat(segments, n_pairs[segments])
        proposal = row_numbers(proposals.offsets, clip_of[segments])
        iou = overlap(truth.segments[segment], proposals.rows[proposal, 1:])
        near = np.flatnonzero(iou >= np.float32(AR_IOUS[0]))
        segment, proposal = segment[near], proposal[near]
        yield _Pairs(segment, proposal, proposal - proposals.offsets[clip_of[segment]], iou[near])
        clip = stop


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over hull (...,) of segments (..., 2) float32, NaN where both are one point.

    The hull is the union where segments meet; where they do not, the intersection is empty. Segments that
    end before they start are taken as they are.
    """
    start, end = first[..., 0], first[..., 1]
    other_start, other_end = second[..., 0], second[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        shared = np.maximum(np.minimum(end, other_end) - np.maximum(start, other_start), 0)
        return shared / (np.maximum(end, other_end) - np.minimum(start, other_start))


def _match_official(pairs: _Pairs, levels: np.ndarray) -> list[np.ndarray]:
    """Accepted pairs by AP_IOUS; fills the recall levels of the chunk's segments."""
    starts = np.flatnonzero(np.diff(pairs.segment, prepend=-1))
    for column, count in enumerate(AR_COUNTS if len(starts) else ()):
        best = np.maximum.reduceat(np.where(pairs.row < count, pairs.iou, 0), starts)
        # side="left" counts the thresholds strictly below
        levels[pairs.segment[starts], column] = np.searchsorted(np.float32(AR_IOUS), best, side="left")
    accepted = []
    for iou in AP_IOUS:
        left = np.flatnonzero(pairs.iou > np.float32(iou))
        accepted.append(left[_first_come(pairs.segment[left], pairs.proposal[left])])
    return accepted


def _match_textbook(pairs: _Pairs, levels: np.ndarray) -> list[np.ndarray]:
    """Accepted pairs by AP_IOUS; fills the recall levels of the chunk's segments."""
    by_score = np.lexsort((pairs.segment, -pairs.iou, pairs.proposal))
    accepted = {}
    for iou in AR_IOUS:
        left = by_score[pairs.iou[by_score] >= np.float32(iou)]
        accepted[iou] = left[_first_come(pairs.segment[left], pairs.proposal[left])]
        within = pairs.row[accepted[iou]][:, None] < np.array(AR_COUNTS)
        levels[pairs.segment[accepted[iou]]] += within  # a segment is accepted at most once
    return [accepted[iou] for iou in AP_IOUS]


def _first_come(segment: np.ndarray, proposal: np.ndarray) -> np.ndarray:
    """Indices of the pairs that are accepted when pairs (K,) come in order and both sides serve once.

    In each round a pair wins that comes first for its segment and for its proposal: no earlier pair can take
    either from it. The rounds needed are the longest chain of rivals in one clip, not the number of pairs.
    """
    if not len(segment):
        return np.empty(0, np.int64)
    segment, proposal = segment - segment.min(), proposal - proposal.min()
    first_of_segment, first_of_proposal = (np.empty(side.max() + 1, np.int64) for side in (segment, proposal))
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


def _rank(score: np.ndarray, chosen: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The order of all proposals by descending score, and the ranks of some: several times faster than argsort.

    score: (N,) float32; ties keep their order. chosen: index arrays. Returns (N,) uint32 and ranks from 0.
    """
    bits = (score + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    # IEEE floats compare like integers once the bits of negative ones are turned; here downwards
    falling = np.where(bits >> 31, bits, ~(bits | np.uint32(1 << 31)))
    keys = falling.astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(score), dtype=np.uint64)
    chosen_keys = [keys[index] for index in chosen]
    keys.sort()
    return keys.astype(np.uint32), [np.searchsorted(keys, some_keys) for some_keys in chosen_keys]


# ------------------------------------------------------------------------------ breakdowns, resampling, ceiling


def by_modify_type(matches: Matches, modify_type: Sequence[str]) -> dict[str, Task2Result]:
    """The metrics of each kind of fake beside all real clips, whose false alarms count everywhere.

    modify_type: (n,) of the clips of the truth.
    """
    modify_type = np.asarray(modify_type, dtype=str)
    real = modify_type == "real"
    return {
        kind: matches.score(weights=(real | (modify_type == kind)).astype(float))
        for kind in np.unique(modify_type[~real]).tolist()
    }


def by_length(matches: Matches, edges_s: Sequence[float] = LENGTH_EDGES_S) -> dict[str, Task2Result]:
    """The metrics of segments by length, [low, high) seconds; hits of other segments count neither way."""
    segments = matches.truth.segments.astype(float)
    lengths = np.round(segments[:, 1] - segments[:, 0], 4)  # 1.16 - 1.0 is 0.16000...01
    return {
        f"{low:g}-{high:g} s": matches.score(among=(lengths >= low) & (lengths < high))
        for low, high in zip(edges_s[:-1], edges_s[1:])
    }


def by_modality(proposals: Proposals, frame: pd.DataFrame, mode: str = "official") -> dict[str, Task2Result]:
    """The metrics against the fake segments of the sound and of the picture alone, on all clips.

    frame: a data list with its segment columns. Nobody can score full marks on both, unless each row of
    `proposals` comes from a detector of that modality.
    """
    return {
        modality: score_task2(proposals, Truth.from_list(frame, f"{modality}_fake_segments"), mode)
        for modality in ("audio", "visual")
    }


def bootstrap_task2(
    systems: Mapping[str, Matches], source: Sequence[str], *, n: int = 1000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Samples (10, n) of METRICS for each system over resampled sources, the same ones for all systems.

    source: (n_clips,) ids of the originals. Differences between systems are thus paired; `metrics.interval`
    makes an interval of a row or of a difference of rows.
    """

    def statistics(weights: np.ndarray) -> np.ndarray:
        return np.stack([
            [list(matches.score(weights=each).named().values()) for each in weights] for matches in systems.values()
        ]).transpose(0, 2, 1)  # fmt: skip

    return dict(zip(systems, metrics.bootstrap(statistics, source, n=n, seed=seed)))


def grid_ceiling(truth: Truth, frame_s: float, rule: str = "touched", mode: str = "official") -> Task2Result:
    """What a perfect detector reaches whose segments begin and end on a grid of `frame_s` seconds.

    rule: "touched" widens each segment to every frame it touches, "nearest" moves both ends to the nearest
    edge; either leaves at least one frame. Segments stay apart even where they share a frame.
    """
    edges = np.round(truth.segments.astype(float) / frame_s, 4)  # float32 seconds hold four decimals of a frame
    if rule == "touched":
        first, stop = np.floor(edges[:, 0]), np.ceil(edges[:, 1])
    elif rule == "nearest":
        first, stop = np.floor(edges + 0.5).T
    else:
        raise KlassifyError(f"There is no rule {rule!r}; there are touched, nearest.")
    stop = np.maximum(stop, first + 1)
    rows = np.stack([np.ones(len(first)), first * frame_s, stop * frame_s], axis=1).astype(np.float32)
    return score_task2(Proposals(truth.files, truth.offsets, rows), truth, mode)
