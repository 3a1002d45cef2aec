"""Localisation metrics of Task 2: AP, AR and Score, official or textbook, with breakdowns and
resampling.

Score = 1/8 sum AP@{0.5, 0.75, 0.9, 0.95} + 1/10 sum AR@{50, 30, 20, 10, 5}. Mode `official` equals
the challenge's evaluation package (avdeepfake1m 0.0.4), quirks included; mode `textbook` is what
the names promise. docs/official-metric.md sets them side by side. The overlap of two segments is
the length of their intersection over that of their hull, in float32.

Matching is done once and clip by clip. Every weighting of the clips (a bootstrap resample) then
costs one sum over the ranked proposals, for many weightings at once a sparse product.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from klassify.errors import KlassifyError
from klassify.grid.ragged import row_offsets
from klassify.grid.segments import Proposals, Truth
from klassify.metrics.clips import bootstrap
from klassify.metrics.matching import (
    AP_IOUS,
    AR_COUNTS,
    AR_IOUS,
    match_official,
    match_textbook,
    overlapping_pairs,
    rank_by_score,
)
from klassify.metrics.running import Strips

METRICS = (*(f"AP@{iou}" for iou in AP_IOUS), *(f"AR@{count}" for count in AR_COUNTS), "Score")
MODES = ("official", "textbook")
NUMBERS_AT_ONCE = 1 << 17  # hits times weightings: a megabyte, which stays in a core's cache
LENGTH_EDGES_S = (0.0, 0.16, 0.32, 0.64, np.inf)  # the published mean segment is 0.33 s


class Task2Result(NamedTuple):
    """ap: (4,) by AP_IOUS; ar: (5,) by AR_COUNTS; score; the counts they rest on (weighted, if
    weights are).

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
    """True positives at one overlap, best rank first.

    rank: (K,) among all proposals, from 0. segment: (K,) the segments hit.
    """

    rank: np.ndarray
    segment: np.ndarray


class _Placed(NamedTuple):
    """The hits of one overlap in strips: each one's place in the row of all hits, its segment and
    its clip.
    """

    strips: Strips
    place: np.ndarray
    segment: np.ndarray
    clip: np.ndarray


@dataclasses.dataclass(frozen=True)
class Matches:
    """Proposals matched to the truth; made by `match`.

    clip_of: (M,) clip of each segment. levels: (M, 5) at how many of AR_IOUS each segment is
    recalled by the first AR_COUNTS proposals. hits: true positives by AP_IOUS. order: (N,) row of
    each proposal, best first.
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

    def of_clips(self, kept: np.ndarray) -> Matches:
        """The same without the proposals and segments of clips where kept (n,) is false."""
        ranked = kept[self.ranked_clip]
        rank = np.cumsum(ranked) - 1
        there = kept[self.clip_of]
        segment = np.cumsum(there) - 1
        hits = []
        for one in self.hits:
            mine = there[one.segment]
            hits.append(Hits(rank[one.rank[mine]], segment[one.segment[mine]]))
        counts = np.where(kept, np.diff(self.truth.offsets), 0)
        truth = Truth(self.truth.files, row_offsets(counts), self.truth.segments[there])
        return dataclasses.replace(
            self,
            truth=truth,
            clip_of=self.clip_of[there],
            levels=self.levels[there],
            hits=tuple(hits),
            order=self.order[ranked],
        )

    def score(
        self, weights: np.ndarray | None = None, among: np.ndarray | None = None
    ) -> Task2Result:
        """The metrics, of all clips as they are or weighted.

        weights: (n,) >= 0, how often each clip counts, whole numbers. among: (M,) bool, the
        segments that count; a proposal that hits another one is then neither right nor wrong.
        """
        if weights is not None:
            return self.scores(np.asarray(weights, float)[None], among)[0]
        whole = among is None or np.all(among)
        if self.mode != "official" or not whole or not len(self.clip_of):
            return self.scores(np.ones((1, len(self.truth.files))), among)[0]
        sizes = len(self.order), len(self.clip_of)
        ap = np.array([_published_average_precision(hits.rank, *sizes) for hits in self.hits])
        recalled = self.levels.sum(axis=0, dtype=float)
        return self._result(ap, recalled, float(len(self.clip_of)), float(len(self.truth.files)))

    def scores(self, weights: np.ndarray, among: np.ndarray | None = None) -> list[Task2Result]:
        """`score` of many weightings (B, n) of the clips."""
        n_clips = weights.shape[1]
        counted = slice(None) if among is None else np.asarray(among, bool)
        counting, levels = self.clip_of[counted], self.levels[counted].T
        n_segments = weights @ np.bincount(counting, minlength=n_clips)
        recalled = weights @ np.stack([np.bincount(counting, one, n_clips) for one in levels], 1)
        areas = self._areas(weights, None if among is None else counted)
        with np.errstate(divide="ignore", invalid="ignore"):
            ap = np.where(n_segments[:, None] > 0, areas / n_segments[:, None], np.nan)
        sizes = n_segments.tolist(), weights.sum(axis=1).tolist()
        return [self._result(*one) for one in zip(ap, recalled, *sizes)]

    @functools.cached_property
    def _by_hit(self) -> tuple[Strips, sparse.csr_array, list[_Placed]]:
        """The hits of any overlap in strips; (H, n) how many proposals of each clip are ranked from
        one of them to the next; and by AP_IOUS where its hits are among them.

        In float32, which is twice as fast and exact for weights that are whole numbers.
        """
        ranks = np.unique(np.concatenate([hits.rank for hits in self.hits]))
        strips, begins = Strips(len(ranks)), np.append(0, ranks + 1).astype(np.int32)
        clips = self.ranked_clip[: begins[-1]]
        ones = np.ones(len(clips), np.float32)
        shape = len(ranks), len(self.offsets) - 1
        proposals = sparse.csr_array((ones, clips, begins), shape)[strips.order]
        placed = []
        for hits in self.hits:
            own = Strips(len(hits.rank))
            place = strips.place(np.searchsorted(ranks, hits.rank[own.order]))
            segment = hits.segment[own.order]
            placed.append(_Placed(own, place, segment, self.clip_of[segment]))
        return strips, proposals, placed

    def _areas(self, weights: np.ndarray, among: np.ndarray | None) -> np.ndarray:
        """AP (B, 4) by AP_IOUS, times the number of segments."""
        strips, proposals, placed = self._by_hit
        between = (proposals @ np.ascontiguousarray(weights.T, np.float32)).T
        areas = np.zeros((len(weights), len(placed)))
        at_once = max(1, NUMBERS_AT_ONCE // max(1, len(strips.order)))
        for first in range(0, len(weights), at_once):
            some = slice(first, first + at_once)
            claimed = np.array(between[some], float, order="C")
            strips.sum_up(claimed)
            for at, hits in enumerate(placed):
                if not hits.strips.n:
                    continue
                gain = weights[some].take(hits.clip, axis=1)
                down_to = claimed.take(hits.place, axis=1)
                if among is not None:  # hits of other segments are no errors
                    others = gain * ~among[hits.segment]
                    gain -= others
                    hits.strips.sum_up(others)
                    down_to -= others
                first_step = self.mode != "official"
                areas[some, at] = _area(hits.strips, gain, down_to, first_step=first_step)
        return areas

    def _result(
        self, ap: np.ndarray, recalled: np.ndarray, n_segments: float, n_clips: float
    ) -> Task2Result:
        if n_segments:
            ar = recalled / (len(AR_IOUS) * n_segments)
        else:
            ar = np.full(len(AR_COUNTS), 0.0 if self.mode == "official" else np.nan)
        return Task2Result(ap, ar, float(ap.sum() / 8 + ar.sum() / 10), n_segments, n_clips)


def _area(strips: Strips, gain: np.ndarray, claimed: np.ndarray, *, first_step: bool) -> np.ndarray:
    """Area (R,) under the precision envelope over recall, all points, times the number of segments.

    gain, claimed: (R, places) of the hits. first_step: False leaves the step of a hit out that is
    ranked first of all, as the published evaluator does.
    """
    # a hit without weight lowers no precision, since the weight claimed never falls; before the
    # first one with weight both are 0
    precision = gain.copy()
    strips.sum_up(precision)
    first = np.count_nonzero(precision == 0, axis=1)
    precision /= np.maximum(claimed, np.finfo(float).tiny)
    strips.raise_to_highest_after(precision)
    area = np.einsum("ij,ij->i", gain, precision)
    if not first_step:
        at = np.arange(len(gain)), strips.place(np.minimum(first, strips.n - 1))
        leads = (gain[at] > 0) & (claimed[at] == gain[at])
        area -= np.where(leads, np.minimum(1.0, gain[at]) * precision[at], 0)
    return area


def _published_average_precision(rank: np.ndarray, n_proposals: int, n_segments: int) -> float:
    """AP from the ranks (K,) of the true positives, to the published evaluator's last digit.

    It works in float32 and adds from the last rank to the first in eight interleaved partial sums.
    Of 100,000 segments that is up to 1e-6 away from the exact sum, of a million 4e-6.
    """
    found = np.arange(1, len(rank) + 1, dtype=np.float32)
    precision = np.maximum.accumulate((found / (rank + 1).astype(np.float32))[::-1])[::-1]
    step = np.diff(found / np.float32(n_segments), prepend=np.float32(0))
    step[:1] *= rank[:1] > 0  # the first rank's step of recall is never added
    terms, lane = (step * precision)[::-1], (n_proposals - 1 - rank[::-1]) % 8
    sums = [
        np.cumsum(np.append(np.float32(0), terms[lane == k]), dtype=np.float32)[-1]
        for k in range(8)
    ]
    return float(np.cumsum([sums[k] + sums[k + 4] for k in range(4)], dtype=np.float32)[-1])


def score_task2(proposals: Proposals, truth: Truth, mode: str = "official") -> Task2Result:
    """AP, AR and Score of proposals against the truth; see `match` for the arguments and errors."""
    return match(proposals, truth, mode).score()


def match(proposals: Proposals, truth: Truth, mode: str = "official") -> Matches:
    """Match proposals to fake segments, each at most once.

    official: segments in the order of the truth; each takes the first free proposal in file order
    with an overlap above the threshold. A segment is recalled if one of the clip's first N
    proposals overlaps it. textbook: proposals by descending score; each takes the free segment it
    overlaps most, at or above the threshold. A segment is recalled if its proposal is among the N
    best of its clip. Equal scores rank in the order of clips, then rows. Clips of `proposals` that
    `truth` lacks are ignored. Raises KlassifyError for a clip without an entry.
    """
    if mode not in MODES:
        raise KlassifyError(f"There is no mode {mode!r}; there are {', '.join(MODES)}.")
    if not len(truth.files):
        raise KlassifyError("There are no labelled clips to evaluate on.")
    proposals = proposals.select(truth.files)
    if mode == "textbook":
        proposals = proposals.by_score()
    clip_of = np.repeat(np.arange(len(truth.files)), np.diff(truth.offsets))
    levels = np.zeros((len(clip_of), len(AR_COUNTS)), np.int8)
    matched: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in AP_IOUS]
    match_chunk = match_official if mode == "official" else match_textbook
    for pairs in overlapping_pairs(proposals, truth, clip_of):
        for chunks, accepted in zip(matched, match_chunk(pairs, levels)):
            chunks.append((pairs.segment[accepted], pairs.proposal[accepted]))
    segments, hitting = zip(
        *([np.concatenate(side) for side in zip(*chunks)] for chunks in matched)
    )
    order, ranks = rank_by_score(proposals.rows[:, 0], hitting)
    by_rank = [np.argsort(rank) for rank in ranks]
    hits = tuple(Hits(rank[i], segment[i]) for rank, segment, i in zip(ranks, segments, by_rank))
    return Matches(mode, truth, proposals.offsets, clip_of, levels, hits, order)


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


def by_length(
    matches: Matches, edges_s: Sequence[float] = LENGTH_EDGES_S
) -> dict[str, Task2Result]:
    """The metrics of segments by length, [low, high) s; hits of others do not count."""
    return {
        f"{low:g}-{high:g} s": matches.score(among=among)
        for low, high, among in length_groups(matches.truth, edges_s)
    }


def length_groups(
    truth: Truth, edges_s: Sequence[float] = LENGTH_EDGES_S
) -> list[tuple[float, float, np.ndarray]]:
    """(low, high, (M,) bool) for the segments of each range of lengths, [low, high) seconds."""
    start, end = truth.segments.T
    lengths = np.round(end - start, 6)  # 1.16 - 1.0 is 0.15999...99
    return [
        (low, high, (lengths >= low) & (lengths < high))
        for low, high in itertools.pairwise(edges_s)
    ]


def by_modality(
    proposals: Proposals, frame: pd.DataFrame, mode: str = "official"
) -> dict[str, Task2Result]:
    """The metrics against the fake segments of the sound and of the picture alone, on all clips.

    frame: a data list with its segment columns; a modality whose segments some clip lacks, or that
    has none, is left out. A detector of both cannot score full marks against one.
    """
    columns = {modality: f"{modality}_fake_segments" for modality in ("audio", "visual")}
    known = {
        name: column
        for name, column in columns.items()
        if frame[column].notna().all() and frame[column].str.len().any()
    }
    return {
        f"{modality} segments": score_task2(proposals, Truth.from_list(frame, column), mode)
        for modality, column in known.items()
    }


def bootstrap_task2(
    systems: Mapping[str, Matches], source: Sequence[str], *, n: int = 1000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Samples (10, n) of METRICS for each system over resampled sources, the same ones for all
    systems, so that differences between systems are paired.

    source: (n_clips,) ids of the originals.
    """

    def statistics(weights: np.ndarray) -> np.ndarray:
        values = [
            [list(one.named().values()) for one in matches.scores(weights)]
            for matches in systems.values()
        ]
        return np.array(values).transpose(0, 2, 1)

    return dict(zip(systems, bootstrap(statistics, source, n=n, seed=seed)))


def grid_ceiling(truth: Truth, hop_s: float, mode: str = "official") -> Task2Result:
    """What a perfect detector reaches whose segments are made of whole frames of `hop_s` seconds:
    each true segment widened to every frame it touches, at least one. Segments stay apart even if
    they share a frame.
    """
    edges = np.round(truth.segments / hop_s, 6)  # binary fractions, see segments.frame_spans
    first, stop = np.floor(edges[:, 0]), np.ceil(edges[:, 1])
    stop = np.maximum(stop, first + 1)
    rows = np.stack([np.ones(len(first)), first * hop_s, stop * hop_s], axis=1)
    proposals = Proposals(truth.files, truth.offsets, rows.astype(np.float32))
    return score_task2(proposals, truth, mode)
