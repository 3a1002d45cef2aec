"""Localisation metrics of Task 2: AP, AR and Score, official or textbook, with breakdowns and
resampling.

Score = 1/8 sum AP@{0.5, 0.75, 0.9, 0.95} + 1/10 sum AR@{50, 30, 20, 10, 5}. Mode `official` equals
the challenge's evaluation package (avdeepfake1m 0.0.4), quirks included; mode `textbook` is what
the names promise. docs/official-metric.md sets them side by side. The overlap of two segments is
the length of their intersection over that of their hull, in float32.

Matching is done once and clip by clip; every weighting of the clips (a subset, a bootstrap
resample) then costs one cumulative sum over the ranked proposals.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError
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

METRICS = (*(f"AP@{iou}" for iou in AP_IOUS), *(f"AR@{count}" for count in AR_COUNTS), "Score")
MODES = ("official", "textbook")
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

    def score(
        self, weights: np.ndarray | None = None, among: np.ndarray | None = None
    ) -> Task2Result:
        """The metrics, of all clips as they are or weighted.

        weights: (n,) >= 0, how often each clip counts. among: (M,) bool, the segments that count; a
        proposal that hits another one is then neither right nor wrong.
        """
        n_clips = len(self.truth.files)
        among = np.ones(len(self.clip_of), bool) if among is None else np.asarray(among, bool)
        if weights is None:
            ranked_weight, segment_weight = None, among.astype(float)
        else:
            weights = np.asarray(weights, float)
            n_clips = float(weights.sum())
            ranked_weight = np.cumsum(weights[self.ranked_clip])
            segment_weight = weights[self.clip_of] * among
        n_segments = float(segment_weight.sum())
        given = (ranked_weight, weights, among, n_segments)
        ap = np.array([self._average_precision(hits, *given) for hits in self.hits])
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
        if self.mode == "official" and weights is None and among.all():
            return _published_average_precision(hits.rank, len(self.order), len(among))
        gain = np.ones(len(hits.rank)) if weights is None else weights[self.clip_of[hits.segment]]
        claimed = hits.rank + 1.0 if ranked_weight is None else ranked_weight[hits.rank]
        counts = among[hits.segment]
        claimed = claimed - np.cumsum(gain * ~counts)  # hits of other segments are no errors
        counts &= gain > 0
        gain, claimed = gain[counts], claimed[counts]
        precision = np.maximum.accumulate((np.cumsum(gain) / claimed)[::-1])[::-1]
        area = float(gain @ precision) / n_segments
        if self.mode == "official" and len(gain) and claimed[0] == gain[0]:
            area -= min(1.0, gain[0]) * precision[0] / n_segments  # the step that it never adds
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


def score_task2(
    proposals: Proposals, truth: Truth, mode: str = "official", *, where: object = None
) -> Task2Result:
    """AP, AR and Score of proposals against the truth; see `match` for the arguments and errors."""
    return match(proposals, truth, mode, where=where).score()


def match(
    proposals: Proposals, truth: Truth, mode: str = "official", *, where: object = None
) -> Matches:
    """Match proposals to fake segments, each at most once.

    official: segments in the order of the truth; each takes the first free proposal in file order
    with an overlap above the threshold. A segment is recalled if one of the clip's first N
    proposals overlaps it. textbook: proposals by descending score; each takes the free segment it
    overlaps most, at or above the threshold. A segment is recalled if its proposal is among the N
    best of its clip. Equal scores rank in the order of clips, then rows. Clips of `proposals` that
    `truth` lacks are ignored. where: names the proposals in errors. Raises KlassifyError for a clip
    without an entry.
    """
    if mode not in MODES:
        raise KlassifyError(f"There is no mode {mode!r}; there are {', '.join(MODES)}.")
    if not len(truth.files):
        raise KlassifyError("There are no labelled clips to evaluate on.", where=where)
    proposals = proposals.select(truth.files, where=where)
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
            [list(m.score(each).named().values()) for each in weights] for m in systems.values()
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
