"""Frame scores -> proposals: which segments of a clip are fake, and how likely.

    found = propose(frames, "multi_threshold", levels=[0.3, 0.5, 0.7], nms_sigma=0.3)

| method | spans | score |
|---|---|---|
| threshold | runs above one level, near ones joined, short ones dropped | mean p_fake |
| multi_threshold | runs above each of several levels | mean inside minus mean around |
| boundary_pairs | each likely first frame with each likely last frame | sqrt(first * last) * mean |
| watershed | runs above several levels, joined step by step | mean inside minus mean around |
| viterbi | the most probable sequence of tags; needs a tag head | sqrt(first * last) * mean |
| proposed | the model's own; needs a model that proposes segments | the model's own |

Noisy scores can be smoothed first. All methods but `proposed` end alike (ENDING): edges between
frames, half a frame off on either side, soft-NMS, the best `cap`. There are no loops over clips:
77,000 take seconds.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, logit

from klassify.errors import KlassifyError
from klassify.grid.frames import FRAME_S
from klassify.grid.ragged import row_offsets
from klassify.grid.segments import Proposals, proposed_columns
from klassify.localisation import joining
from klassify.localisation.frame_scores import FrameScores, edge_times
from klassify.localisation.methods import METHODS, Spans, highest_runs
from klassify.localisation.soft_nms import soft_nms, top_per_clip
from klassify.settings import canonical_json

DEFAULT = "threshold"
PROPOSED = "proposed"
NAMES = (*METHODS, PROPOSED)
CANDIDATES_PER_CLIP = 200  # of them soft-NMS keeps at most 50
SHARED = 3  # results of each step that a proposer keeps
ENDING = {  # the settings that all methods but `proposed` have, with their defaults
    "smooth_s": 0.0,  # p_fake is first averaged over this long (an odd number of frames)
    # taken off on either side, because a frame that is only touched is labelled fake; at most half
    "debias_s": 0.02,
    "nms_sigma": 0.5,  # of Gaussian soft-NMS, 0 for none
    "cap": 50,  # most proposals per clip
    "min_score": 0.001,  # lower ones are dropped
    "at_least_one": False,  # a clip without a proposal gets the run around its highest frame
}
# the range of a setting in all methods; of each number if it is a list
RANGES = {
    "threshold": (0.001, 0.999),
    "levels": (0.001, 0.999),
    "tolerances": (0, 1),
    "context": (0, 10),
    "merge_s": (0, 10),
    "drop_s": (0, 10),
    "peaks": (1, 100),
    "floor": (0, 1),
    "max_s": (0.04, 1000),
    "smooth_s": (0, 2),
    "debias_s": (0, 0.02),
    "nms_sigma": (0, 100),
    "nms_t1": (0, 1),
    "nms_t2": (0, 1),
    "cap": (1, 50),
    "min_score": (0, 1),
    "weights": (0, 1),
    "join_iou": (0, 1),
    "edge_weights": (0, 1),
    "vote_iou": (0, 1),
    "clip_share": (0, 1),
    "snap_s": (0, 0.02),
}
PER_PART = ("weights", "edge_weights")  # lists that may be empty: 1 for every part


class Candidates(NamedTuple):
    """Proposed segments of many clips, each (N,): clip index, seconds, score in [0, 1]."""

    clip: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray
    score: np.ndarray

    def take(self, index: np.ndarray) -> Candidates:
        """Those at these places, in this order."""
        return Candidates(*(column[index] for column in self))

    def select(self, files: np.ndarray) -> Proposals:
        """As the evaluator takes them, best first within a clip. files: names of the clips."""
        rows = np.column_stack([self.score, self.start_s, self.end_s]).astype(np.float32)
        order = np.lexsort((-self.score, self.clip))
        counts = np.bincount(self.clip, minlength=len(files))
        return Proposals(np.asarray(files, dtype=object), row_offsets(counts), rows[order])


def propose(frames: FrameScores, method: str = DEFAULT, **settings: Any) -> Candidates:
    """The proposals of every clip, clips ascending, best first; 0 <= start < end <= duration.

    settings: the method's own (METHODS) and ENDING; of the method `proposed` those of `by_proposed`
    alone. KlassifyError for an unknown one.
    """
    return proposer(frames)(method, **settings)


def proposer(frames: FrameScores) -> Callable[..., Candidates]:
    """`propose` of these frame scores, for one choice after another, each of which may share
    smoothed scores, spans or thinned proposals with one of the last few.
    """
    smoothed = functools.lru_cache(SHARED)(frames.smoothed)

    @functools.lru_cache(SHARED)
    def spans_of(method: str, half: int, settings: str, min_score: float) -> Spans:
        found = METHODS[method](smoothed(half), **json.loads(settings))
        return _best(smoothed(half), found, min_score)

    @functools.lru_cache(SHARED)
    def thinned(method: str, half: int, settings: str, *ending: float) -> Candidates:
        debias_s, nms_sigma, cap, min_score = ending
        spans = spans_of(method, half, settings, min_score)
        found = _refine(smoothed(half), spans, debias_s)
        taken, score = soft_nms(*found, sigma=nms_sigma, cap=cap, min_score=min_score)
        return found.take(taken)._replace(score=score)

    def propose_by(method: str, **settings: Any) -> Candidates:
        settings = complete_settings(method, settings)
        if method == PROPOSED:
            return by_proposed(frames, **settings)
        smooth_s, *ending, at_least_one = (settings.pop(name) for name in ENDING)
        half = round(smooth_s / frames.hop_s) // 2
        found = thinned(method, half, canonical_json(settings), *ending)
        return _answered(smoothed(half), found, ending[0]) if at_least_one else found

    return propose_by


def _best(frames: FrameScores, spans: Spans, min_score: float = 0.0) -> Spans:
    """The best spans of each clip, CANDIDATES_PER_CLIP at most, clips ascending."""
    spans = spans.take(np.flatnonzero(spans.score >= min_score))
    return spans.take(top_per_clip(frames.clip_of(spans.first), spans.score, CANDIDATES_PER_CLIP))


def _answered(frames: FrameScores, found: Candidates, debias_s: float) -> Candidates:
    """`found`, and for each clip without a proposal the run around its highest frame."""
    unanswered = np.diff(frames.offsets) > 0
    unanswered[found.clip] = False
    lone = _best(frames, highest_runs(frames, np.flatnonzero(unanswered)))
    lone = _refine(frames, lone, debias_s)
    found = Candidates(*map(np.concatenate, zip(found, lone)))
    return found.take(np.argsort(found.clip, kind="stable"))


def by_proposed(
    frames: FrameScores,
    *,
    nms_sigma: float = 0.5,
    nms_t1: float = 0.0,
    nms_t2: float = 0.0,
    vote_iou: float = 0.0,
    cap: int = 50,
    min_score: float = 0.001,
    at_least_one: bool = False,
) -> Candidates:
    """The segments that the model itself proposes, cut to the clip, after soft-NMS.

    nms_t1, nms_t2: see soft_nms. vote_iou: edges are means of those of all segments with an IoU of
    at least this, weighted by their scores (0: none; joining.voted). at_least_one: as in ENDING.
    """
    if frames.proposed is None:
        raise KlassifyError(
            "The method proposed needs the scores of a model that proposes segments"
            f" ({', '.join(proposed_columns(1))})."
        )
    clip = np.repeat(np.arange(len(frames.files)), np.diff(frames.offsets))
    clip = np.repeat(clip, frames.proposed.shape[1])
    score, start_s, end_s = frames.proposed.reshape(-1, 3).T
    start_s, end_s = np.maximum(start_s, 0), np.minimum(end_s, frames.durations_s[clip])
    there = np.flatnonzero((start_s < end_s) & (score >= min_score))
    pool = Candidates(clip, start_s, end_s, score).take(there)
    thresholds = {"t1": nms_t1, "t2": nms_t2}
    taken, score = soft_nms(*pool, sigma=nms_sigma, cap=cap, min_score=min_score, **thresholds)
    found = pool.take(taken)._replace(score=score)
    if vote_iou:
        start_s, end_s = joining.voted(found[:3], pool[:3], pool.score, iou=vote_iou)
        found = found._replace(start_s=start_s, end_s=end_s)
    return _answered(frames, found, 0.0) if at_least_one else found


def _refine(frames: FrameScores, spans: Spans, debias_s: float) -> Candidates:
    """Spans with edges in seconds, without those of no length."""
    start_s, end_s = edge_times(frames, spans.first, spans.stop, spans.level, debias_s)
    found = Candidates(frames.clip_of(spans.first), start_s, end_s, spans.score)
    return found.take(np.flatnonzero(start_s < end_s))


def defaults(method: str, *, where: object = None) -> dict[str, Any]:
    """All settings of a method, or of JOINING one, with their default values; lists for tuples."""
    if isinstance(method, str) and method in JOINING:
        return _defaults(JOINING[method])
    if method == PROPOSED:
        return _defaults(by_proposed)
    if not isinstance(method, str) or method not in METHODS:
        raise KlassifyError(
            f"There is no method {method!r}; there are {', '.join(NAMES)}.", where=where
        )
    return _defaults(METHODS[method]) | ENDING


def _defaults(function: Callable) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    given = {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in given.items()
    }


def complete_settings(
    method: str, given: Mapping[str, Any], *, where: object = None
) -> dict[str, Any]:
    """A method's defaults with `given` values; KlassifyError for unknown or impossible ones."""
    settings = defaults(method, where=where)
    for name, value in given.items():
        if name not in settings:
            raise KlassifyError(
                f"{method} has no setting {name!r}; it has {', '.join(settings)}.", where=where
            )
        if problem := _problem(name, value, settings[name]):
            raise KlassifyError(f"{name}={value!r} of {method} should be {problem}.", where=where)
    return settings | dict(given)


def _problem(name: str, value: Any, default: Any) -> str:
    """What a setting should be, if `value` is not that; else ''."""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if name in ("platt", "clip_platt"):
        fits = value is None or (isinstance(value, list) and all(_is_pair(one) for one in value))
        return "" if fits else "pairs of numbers"
    low, high = RANGES[name]
    if isinstance(default, list):
        fits = isinstance(value, (list, tuple)) and (len(value) or name in PER_PART)
        fits = fits and all(_is_number(one, low, high) for one in value)
        return "" if fits else f"a list of numbers from {low} to {high}"
    whole = "whole " if isinstance(default, int) else ""
    fits = _is_number(value, low, high) and (isinstance(value, int) or not whole)
    return "" if fits else f"a {whole}number from {low} to {high}"


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether this is a finite number in [low, high]."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and low <= value <= high


def merge(
    parts: Sequence[Candidates],
    *,
    weights: Sequence[float] = (),
    platt: Sequence[Sequence[float]] | None = None,
    nms_sigma: float = 0.5,
    cap: int = 50,
    min_score: float = 0.001,
) -> tuple[Candidates, np.ndarray]:
    """The proposals of several systems on the same clips as one set, by soft-NMS.

    weights: one factor of the scores per part; none given: 1. platt: (a, b) of each part, which
    first turn its log-odds s into the probability 1 / (1 + exp(a s + b)) of being right. Returns
    the proposals, as `propose` orders them, and the row of each (M,) in the concatenated parts.
    """
    pool = _pooled(parts, weights, platt)
    taken, score = soft_nms(*pool, sigma=nms_sigma, cap=cap, min_score=min_score)
    return pool.take(taken)._replace(score=score), taken


def _pooled(
    parts: Sequence[Candidates], weights: Sequence[float], platt: Sequence[Sequence[float]] | None
) -> Candidates:
    """All proposals in the order of the parts, with calibrated and weighted scores."""
    _check_per_part(parts, weights=weights, platt=platt)
    scores = [part.score for part in parts]
    if platt:
        scores = [calibrated(score, a, b) for score, (a, b) in zip(scores, platt)]
    if weights:
        scores = [score * weight for score, weight in zip(scores, weights)]
    return Candidates(*map(np.concatenate, zip(*parts)))._replace(score=np.concatenate(scores))


def _check_per_part(parts: Sequence[Candidates], **settings: Sequence[Any] | None) -> None:
    for name, values in settings.items():
        if values and len(values) != len(parts):
            raise KlassifyError(f"{len(parts)} systems need as many {name}, not {len(values)}.")


def union(
    parts: Sequence[Candidates],
    clip_log_odds: np.ndarray | None = None,
    *,
    weights: Sequence[float] = (),
    platt: Sequence[Sequence[float]] | None = None,
    clip_platt: Sequence[Sequence[float]] | None = None,
    clip_share: float = 0.0,
    join_iou: float = 0.8,
    edge_weights: Sequence[float] = (),
    vote_iou: float = 0.0,
    snap_s: float = 0.0,
    nms_sigma: float = 0.5,
    cap: int = 50,
    min_score: float = 0.001,
) -> tuple[Candidates, np.ndarray]:
    """As `merge`, but what several systems propose becomes one proposal.

    Each score becomes score^(1 - clip_share) * p^clip_share, where p is the highest calibrated
    probability that the clip is fake: clip_platt (a, b) of each part for clip_log_odds
    (parts, clips), NaN = unknown. Proposals of different parts whose IoU is above join_iou are
    joined (0: none; joining.clusters), with edge_weights of the parts. After soft-NMS, edges are
    voted on by all proposals with an IoU of at least vote_iou (0: none; joining.voted). Edges at
    most snap_s from where a video frame begins at 25 fps move there: a fake mouth is whole frames.
    """
    _check_per_part(parts, edge_weights=edge_weights, clip_platt=clip_platt)
    pool = _pooled(parts, weights, platt)
    if clip_share and clip_platt and clip_log_odds is not None:
        p_clip = _clip_probability(clip_log_odds, clip_platt)[pool.clip]
        pool = pool._replace(score=pool.score ** (1 - clip_share) * p_clip**clip_share)
    part = np.repeat(np.arange(len(parts)), [len(one.clip) for one in parts])
    edge = np.asarray(edge_weights or np.ones(len(parts)), float)
    rows, joined = np.arange(len(pool.clip)), pool
    if join_iou:
        rows, *columns = joining.clusters(*pool, part, edge, iou=join_iou)
        joined = Candidates(pool.clip[rows], *columns)
    taken, score = soft_nms(*joined, sigma=nms_sigma, cap=cap, min_score=min_score)
    found = joined.take(taken)._replace(score=score)
    if vote_iou:
        order = np.argsort(pool.clip, kind="stable")
        voters, weight = pool.take(order), (pool.score * edge[part])[order]
        start_s, end_s = joining.voted(found[:3], voters[:3], weight, iou=vote_iou)
        found = found._replace(start_s=start_s, end_s=end_s)
    if snap_s:
        found = _snapped(found, pool, snap_s)
    longer = np.flatnonzero(found.start_s < found.end_s)
    return found.take(longer), rows[taken][longer]


def _snapped(found: Candidates, pool: Candidates, snap_s: float) -> Candidates:
    """`found` with edges at most snap_s from a multiple of 40 ms moved to it, but never beyond the
    last edge of the clip's pool, since a clip may end between two multiples."""
    latest = np.zeros(pool.clip.max(initial=0) + 1)
    np.maximum.at(latest, pool.clip, pool.end_s)
    edges = np.stack([found.start_s, found.end_s])
    nearest = np.minimum(np.round(edges / FRAME_S) * FRAME_S, latest[found.clip])
    start_s, end_s = np.where(np.abs(nearest - edges) <= snap_s, nearest, edges)
    return found._replace(start_s=start_s, end_s=end_s)


def _clip_probability(log_odds: np.ndarray, platt: Sequence[Sequence[float]]) -> np.ndarray:
    """(parts, clips) -> (clips,) the highest calibrated probability, 1 where none is known."""
    known = [expit(-(a * one + b)) for one, (a, b) in zip(log_odds, platt)]
    highest = np.fmax.reduce(known)
    return np.where(np.isnan(highest), 1.0, highest)


JOINING = {"merge": merge, "union": union}


def calibrated(score: np.ndarray, a: float, b: float) -> np.ndarray:
    """Platt scaling of scores in [0, 1] by their log-odds."""
    return expit(-(a * log_odds(score) + b))


def log_odds(score: np.ndarray) -> np.ndarray:
    """Of scores in [0, 1], kept finite."""
    return logit(np.clip(score, 1e-6, 1 - 1e-6))


def random_proposals(
    lengths_s: np.ndarray, n_rows: np.ndarray, durations_s: np.ndarray, rng: np.random.Generator
) -> Candidates:
    """Guesses to compare with: n_rows (n,) proposals at random places in clips of durations_s
    (n,), with random scores, ordered as `propose` orders.

    lengths_s: true lengths, drawn with replacement and cut to the clip.
    """
    clip = np.repeat(np.arange(len(durations_s)), n_rows)
    duration = np.asarray(durations_s, float)[clip]
    length = np.minimum(rng.choice(np.asarray(lengths_s, float), len(clip)), duration)
    start_s = rng.uniform(0, 1, len(clip)) * (duration - length)
    end_s = np.minimum(start_s + length, duration)
    found = Candidates(clip, start_s, end_s, rng.uniform(0, 1, len(clip)))
    return found.take(np.lexsort((-found.score, clip)))
