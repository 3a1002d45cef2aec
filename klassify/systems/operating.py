"""Operating points of a system: thresholds on its clip scores, fitted on val_fit, and the verdicts
that follow from them.

At a false-alarm rate r there are two thresholds, so that of new clips like those of val_fit at most
a share r of the real ones lies above the upper one, and at most a share r of the fakes below the
lower one (klassify.metrics.decisions.tail_threshold, each source counted once). Above both a clip
is `fake`, below both it is `real`, and between them the answer is `cannot tell`. Too few sources of
real or of fake clips leave a rate without thresholds, and then there is no verdict.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError
from klassify.lists import subsets
from klassify.metrics import clips
from klassify.metrics.decisions import (
    ASVSPOOF_5,
    Cost,
    eer_threshold,
    min_cost,
    rate_with_interval,
    tail_threshold,
)
from klassify.scores.score_file import SCALES
from klassify.systems.base import System
from klassify.systems.scores import answered, scores_of

RATES = (0.01, 0.05)  # of false alarms, and of fakes that are called real
EQUAL, CHEAPEST = "equal error rate", "lowest cost"
FAKE, REAL, CANNOT_TELL, NO_VERDICT = "fake", "real", "cannot tell", ""
COUNTS = ("n_real", "n_fake", "real_sources", "fake_sources", "n_no_answer")
NUMBERS = ("rate", "fake_above", "real_below", "false_alarms", "misses")
INTERVALS = tuple(f"{name}_interval" for name in NUMBERS[1:])
Ends = tuple[float | None, float | None]


@dataclasses.dataclass(frozen=True)
class Point:
    """One operating point. Above fake_above a clip is fake, below real_below real.

    rate: the share of errors allowed, None where the point is not chosen by one; then both
    thresholds are the same. The false alarms and misses are those of val_fit: real clips above
    fake_above, and fake clips below real_below. *_interval: 95 %; of thresholds by bootstrap over
    sources, of rates as rate_with_interval has them. why_not: why there are no thresholds (None).
    """

    name: str
    rate: float | None = None
    fake_above: float | None = None
    fake_above_interval: Ends = (None, None)
    real_below: float | None = None
    real_below_interval: Ends = (None, None)
    false_alarms: float | None = None
    false_alarms_interval: Ends = (None, None)
    misses: float | None = None
    misses_interval: Ends = (None, None)
    why_not: str = ""

    def verdicts(self, score: np.ndarray) -> np.ndarray:
        """(n,) FAKE, REAL or CANNOT_TELL for each score."""
        if self.fake_above is None or self.real_below is None:
            return np.full(np.shape(score), NO_VERDICT, dtype=object)
        score = np.asarray(score, dtype=float)
        rest = REAL if self.fake_above == self.real_below else CANNOT_TELL
        below = np.where(score < self.real_below, REAL, rest)
        return np.where(score > self.fake_above, FAKE, below).astype(object)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """An answer at an operating point: fake, real, cannot tell, or "" for none.

    at: the point; note: how sure its threshold is, or why there is no verdict.
    """

    answer: str = NO_VERDICT
    at: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class OperatingPoints:
    """The operating points of a system's clip scores.

    scale: of the scores. n_*: clips of the fit with an answer, and those without; *_sources: their
    sources. cost: prior of fake, cost of a miss, cost of a false alarm.
    """

    scale: str
    n_real: int
    n_fake: int
    real_sources: int
    fake_sources: int
    n_no_answer: int
    cost: Cost
    points: tuple[Point, ...]

    def at(self, rate: float) -> Point:
        """The point of a false-alarm rate; KlassifyError, which names those there are."""
        found = [one for one in self.points if one.rate == rate]
        if not found:
            known = [f"{one.rate:g}" for one in self.points if one.rate is not None]
            wanted = ",".join([*known, f"{rate:g}"])
            raise KlassifyError(
                f"There is no threshold for a false-alarm rate of {rate:g} (known:"
                f" {', '.join(known)}).",
                fix=f"klassify detector ... --false-alarms {wanted} --force",
            )
        return found[0]

    def verdict(self, score: float, rate: float = RATES[0]) -> Verdict:
        """What a clip with this score is at a false-alarm rate, and how sure the threshold is."""
        point = self.at(rate)
        if point.why_not:
            return Verdict(NO_VERDICT, point.name, point.why_not)
        answer = str(point.verdicts(np.array([score]))[0])
        low, high = (percent(end) for end in point.false_alarms_interval)
        note = (
            f"thresholds from {self.n_real} real clips of {self.real_sources} sources of val; on"
            f" clips like them the false-alarm rate is between {low} and {high}"
        )
        return Verdict(answer, point.name, note)

    def described(self) -> dict[str, Any]:
        """Plain values for a YAML file."""
        return {
            "scale": self.scale,
            **{name: getattr(self, name) for name in COUNTS},
            "cost": dict(self.cost._asdict()),
            "points": [_without_empty(point) for point in self.points],
        }


def _without_empty(point: Point) -> dict[str, Any]:
    """The fields of a point that say something, intervals as lists."""
    fields = dataclasses.asdict(point).items()
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in fields}
    return {key: value for key, value in plain.items() if value not in (None, "", [None, None])}


def percent(share: float | None) -> str:
    """A share as text with two digits: 0.5 %, 12 %."""
    return "-" if share is None else f"{100 * share:.2g} %"


def fit(
    system: System,
    frame: pd.DataFrame,
    *,
    rates: Sequence[float] = RATES,
    cost: Cost = ASVSPOOF_5,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> OperatingPoints:
    """Fit the operating points of a system on the labelled clips of `frame` (val_fit).

    Clips without an answer get no verdict and are left out. KlassifyError without clip scores of
    val, or if only one class is left.
    """
    scores = scores_of(system, "val", frame["file"].tolist())
    has_answer = answered(scores)
    score = scores.table["score"].to_numpy(float)[has_answer]
    label = subsets.label(frame, "video")[has_answer]
    source = subsets.sources_of(frame)[has_answer]
    real, fake = np.flatnonzero(label == 0), np.flatnonzero(label == 1)
    if not len(real) or not len(fake):
        raise KlassifyError(
            f"Thresholds need real and fake clips; of {len(label)} clips with an answer"
            f" {len(fake)} are fake.",
            where=system.folder,
        )
    ranking = clips.Ranking(label, score)
    share = np.ones(len(label))  # of its source's clips of the same class
    for rows in (real, fake):
        _, place, size = np.unique(source[rows], return_inverse=True, return_counts=True)
        share[rows] = 1 / size[place]

    def thresholds(weights: np.ndarray) -> np.ndarray:
        found = []
        by_real, by_fake = (weights[:, rows] * share[rows] for rows in (real, fake))
        for rate in rates:
            of_real = tail_threshold(score[real], rate, by_real)
            of_fake = -tail_threshold(-score[fake], rate, by_fake)
            found += [np.maximum(of_real, of_fake), np.minimum(of_real, of_fake)]
        alike = [eer_threshold(ranking, weights), min_cost(ranking, cost, weights)[1]]
        return np.stack([*found, *np.repeat(alike, 2, axis=0)])

    values, samples = clips.resampled(thresholds, source, n=n_bootstrap, seed=seed)
    names = [(f"{100 * rate:g} % false alarms", rate) for rate in rates]
    counts = [len(real), len(fake), len(set(source[real])), len(set(source[fake]))]
    points = []
    for at, (name, rate) in enumerate([*names, (EQUAL, None), (CHEAPEST, None)]):
        upper, lower = values[2 * at : 2 * at + 2]
        if np.isnan(upper):
            points.append(Point(name, rate, why_not=_too_few(rate, *counts[2:])))
            continue
        alarms, of_alarms = rate_with_interval(score[real] > upper, source[real])
        is_miss = score[fake] < lower if lower < upper else score[fake] <= upper
        misses, of_misses = rate_with_interval(is_miss, source[fake])
        points.append(
            Point(
                name,
                rate,
                float(upper),
                _ends(clips.interval(samples[2 * at])),
                float(lower),
                _ends(clips.interval(samples[2 * at + 1])),
                alarms,
                _ends(of_alarms),
                misses,
                _ends(of_misses),
            )
        )
    return OperatingPoints(
        scores.header.scale, *counts, int((~has_answer).sum()), cost, tuple(points)
    )


def _too_few(rate: float, real_sources: int, fake_sources: int) -> str:
    needed = math.ceil(1 / rate - 1 - 1e-9)
    kind, n = ("real", real_sources) if real_sources < needed else ("fake", fake_sources)
    return f"val_fit has {kind} clips of {n} sources, {needed} are needed"


def _ends(interval: clips.Interval) -> Ends:
    low, high = (None if np.isnan(end) else round(float(end), 9) for end in interval)
    return low, high


def read_points(content: Any) -> OperatingPoints:
    """Operating points as a YAML file describes them; KlassifyError for anything else."""
    try:
        points = tuple(
            Point(**{key: tuple(x) if isinstance(x, list) else x for key, x in one.items()})
            for one in content["points"]
        )
        read = OperatingPoints(**content | {"cost": Cost(**content["cost"]), "points": points})
    except (AttributeError, KeyError, TypeError) as error:  # other keys, or no mapping
        raise KlassifyError(f"The operating points are incomplete: {error}.") from None
    if read.scale not in SCALES or not all(type(getattr(read, name)) is int for name in COUNTS):
        raise KlassifyError("The operating points have no known scale, or no counts.")
    cost_is_whole = set(content["cost"]) == set(Cost._fields)
    if not (cost_is_whole and all(map(_is_finite, read.cost)) and all(map(_is_sound, points))):
        raise KlassifyError("The cost or an operating point is incomplete, or not of numbers.")
    return read


def _is_sound(point: Point) -> bool:
    """Whether it is made of texts and numbers, with both thresholds or the reason for none."""
    intervals = [getattr(point, name) for name in INTERVALS]
    numbers = [getattr(point, name) for name in NUMBERS]
    lacks = [point.fake_above is None, point.real_below is None]
    return (
        isinstance(point.name, str)
        and isinstance(point.why_not, str)
        and lacks == [bool(point.why_not)] * 2
        and all(isinstance(ends, tuple) and len(ends) == 2 for ends in intervals)
        and all(x is None or _is_finite(x) for x in itertools.chain(numbers, *intervals))
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
