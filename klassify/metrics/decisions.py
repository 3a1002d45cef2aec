"""Decisions about clips: thresholds, their error rates, detection cost, Cllr and the tandem EER.

Labels are 1 = fake, scores rise with "fake". A false alarm is a real clip called fake, a miss a
fake clip called real. Log-likelihood ratios (LLR) are in nats, positive for fake. Weights are as in
klassify.metrics.clips: clips on the last axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import logit

from klassify.metrics.clips import Interval, Ranking

ROUNDING = 1e-9  # of sums of weights that are fractions
GRID = 400  # thresholds of each detector that the tandem EER tries at most


class Cost(NamedTuple):
    """What errors cost: the share of fakes to expect, and the cost of each kind of error.

    The default is that of ASVspoof 5, in which the fakes to catch are rare and expensive.
    """

    prior: float = 0.05
    miss: float = 10.0
    false_alarm: float = 1.0

    def of(self, false_alarms: np.ndarray, misses: np.ndarray) -> np.ndarray:
        """Detection cost (DCF) of error rates; 1 is the better of calling all clips the same."""
        of_miss = self.prior * self.miss
        of_alarm = (1 - self.prior) * self.false_alarm
        return (of_miss * misses + of_alarm * false_alarms) / min(of_miss, of_alarm)

    @property
    def threshold(self) -> float:
        """The LLR above which calling a clip fake is cheaper, if LLRs mean what they say."""
        return float(np.log((1 - self.prior) * self.false_alarm / (self.prior * self.miss)))


ASVSPOOF_5 = Cost()


def tail_threshold(score: np.ndarray, rate: float, weights: np.ndarray | None = None) -> np.ndarray:
    """The lowest threshold that a new clip like these exceeds with a probability of at most `rate`.

    score: (n,) of one class. Of N clips, k = rate (N + 1) - 1, rounded down, lie above: the
    guarantee of split conformal prediction, over clips and thresholds, for clips that are drawn
    alike. It needs N >= 1 / rate - 1 and is NaN for fewer. With weights (..., n), N is their sum;
    1 / (clips of its source) for each clip counts sources.
    """
    score = np.asarray(score, dtype=float)
    weights = np.ones(len(score)) if weights is None else np.asarray(weights, dtype=float)
    total = weights.sum(axis=-1)
    above = np.floor(rate * (total + 1) + ROUNDING) - 1
    if not len(score):
        return np.full(total.shape, np.nan)
    order = np.argsort(-score, kind="stable")
    most = above[..., None] + ROUNDING
    looked_at = 1 + int(2 * rate * len(score))  # the rest can matter, but hardly ever does
    while True:
        summed = np.cumsum(np.take(weights, order[:looked_at], axis=-1), axis=-1)
        if looked_at >= len(score) or (summed[..., -1:] > most).all():
            break
        looked_at *= 4
    place = (summed <= most).sum(axis=-1)
    found = score[order][np.minimum(place, len(score) - 1)]
    return np.where(above < 0, np.nan, found)


def eer_threshold(ranking: Ranking, weights: np.ndarray | None = None) -> np.ndarray:
    """Threshold (...,) at which false-alarm and miss rate are closest to equal; NaN where one class
    has no weight.
    """
    false_alarms, misses = ranking.error_rates(weights)
    threshold = _between(ranking, np.argmax(misses >= false_alarms, axis=-1))
    return np.where(np.isnan(misses - false_alarms)[..., 0], np.nan, threshold)


def min_cost(
    ranking: Ranking, cost: Cost, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The lowest DCF of any threshold (min DCF), and that threshold; both (...,)."""
    costs = cost.of(*ranking.error_rates(weights))
    place = np.argmin(costs, axis=-1)
    lowest = np.take_along_axis(costs, place[..., None], axis=-1)[..., 0]
    threshold = np.where(np.isnan(lowest), np.nan, _between(ranking, place))
    return lowest, threshold


def _between(ranking: Ranking, place: np.ndarray) -> np.ndarray:
    """Halfway from a threshold to the next one, which no clip of these tells apart."""
    thresholds = ranking.thresholds
    lower = thresholds[place]
    upper = thresholds[np.minimum(place + 1, len(thresholds) - 1)]
    lower = np.where(np.isinf(lower), upper - 1, lower)  # everything is fake
    return (lower + upper) / 2


def actual_cost(
    label: np.ndarray, llr: np.ndarray, cost: Cost, weights: np.ndarray | None = None
) -> np.ndarray:
    """DCF of the decisions llr > cost.threshold (actual DCF); NaN where one class has no weight."""
    called_fake = np.asarray(llr) > cost.threshold
    false_alarms, found = _class_means(label, called_fake, weights)
    return cost.of(false_alarms, 1 - found)


def cllr(label: np.ndarray, llr: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Cost of LLRs in bits, both classes weighted alike (Brümmer and du Preez, 2006).

    0 is perfect, 1 is what LLR = 0 for every clip has; a bad calibration exceeds 1.
    """
    sign = np.where(np.asarray(label) == 1, -1.0, 1.0)
    bits = np.logaddexp(0, sign * np.asarray(llr, dtype=float)) / np.log(2)
    return np.mean(_class_means(label, bits, weights), axis=0)


def min_cllr(label: np.ndarray, score: np.ndarray) -> float:
    """Cllr after the best monotone calibration of these clips (PAV): what the ranking allows."""
    from sklearn.isotonic import IsotonicRegression

    label = np.asarray(label)
    if len(set(label.tolist())) < 2:
        return float("nan")
    probability = IsotonicRegression(y_min=0, y_max=1).fit_transform(score, label)
    with np.errstate(divide="ignore"):
        return float(cllr(label, logit(probability) - logit(label.mean())))


def _class_means(
    label: np.ndarray, value: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means of a value over the real and over the fake clips, each (...,)."""
    label = np.asarray(label)
    weights = np.ones(len(label)) if weights is None else np.asarray(weights, dtype=float)
    means = []
    for is_of_class in (label == 0, label == 1):
        of_class = np.where(is_of_class, np.asarray(value, float), 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            means.append(weights @ of_class / (weights @ is_of_class.astype(float)))
    return means[0], means[1]


def rate_with_interval(
    is_error: np.ndarray, source: Sequence[str], level: float = 0.95
) -> tuple[float, Interval]:
    """Share of clips with an error, and its interval (Korn and Graubard, 1998).

    The interval is that of Clopper and Pearson for as many independent clips as these are worth:
    clips of one source count as fewer the more they agree. Without any error, or without any clip
    free of errors, each source counts once, so that 0 errors in 20 sources leave rates up to 17 %
    open.
    """
    is_error = np.asarray(is_error, dtype=float)
    from scipy.stats import beta, t  # takes half a second

    _, place, size = np.unique(
        np.asarray(source, dtype=str), return_inverse=True, return_counts=True
    )
    n, n_sources = len(is_error), len(size)
    if not n:
        return float("nan"), Interval(float("nan"), float("nan"))
    share = float(is_error.mean())
    if n_sources < 2:
        return share, Interval(0.0, 1.0)
    errors = np.bincount(place, weights=is_error, minlength=n_sources)
    worth = float(n_sources)
    if 0 < share < 1:
        variance = np.sum((errors - share * size) ** 2) / n**2 * n_sources / (n_sources - 1)
        few = (t.ppf((1 + level) / 2, n - 1) / t.ppf((1 + level) / 2, n_sources - 1)) ** 2
        worth = float(n)
        if variance > 0:
            worth = min(worth, few * n / (n - 1) * share * (1 - share) / variance)
    wrong, right = share * worth, (1 - share) * worth
    low = beta.ppf((1 - level) / 2, wrong, right + 1) if wrong > 0 else 0.0
    high = beta.ppf((1 + level) / 2, wrong + 1, right) if right > 0 else 1.0
    return share, Interval(float(low), float(high))


class Tandem:
    """Two detectors, one of the sound and one of the picture, with a threshold each: a clip is real
    if both say so.

    kind: (n,) of klassify.lists.data_list.TYPES; audio, visual: (n,) scores.
    """

    def __init__(self, kind: np.ndarray, audio: np.ndarray, visual: np.ndarray):
        self.place = np.zeros(len(kind), int)
        self.shape = ()
        for score in (np.asarray(audio, float), np.asarray(visual, float)):
            distinct = np.unique(score)
            if len(distinct) > GRID:
                distinct = np.unique(np.quantile(score, np.linspace(0, 1, GRID)))
            step = np.searchsorted(distinct, score)  # the first threshold that accepts the clip
            self.place = self.place * (len(distinct) + 1) + step + 1
            self.shape += (len(distinct) + 1,)
        kind = np.asarray(kind)
        self.rows = [
            np.flatnonzero(kind == name) for name in ("real", "audio_modified", "visual_modified")
        ]

    def eer(self, weights: np.ndarray | None = None) -> float:
        """The lowest e such that, with some pair of thresholds, the false-alarm rate, the misses of
        fakes in the sound alone and those of fakes in the picture alone are all at most e.

        After the tandem EER of Kinnunen et al. (2023), with these two kinds of fakes in place of
        impostors and spoofs: like their concurrent t-EER it does not depend on how frequent each
        kind is. The two scores of a clip are taken together, not as independent. NaN without clips
        of one of the three kinds. weights: (n,).
        """
        weights = np.ones(len(self.place)) if weights is None else weights
        accepted = []
        for rows in self.rows:
            total = weights[rows].sum()
            if not total:
                return float("nan")
            counts = np.bincount(self.place[rows], weights[rows], np.prod(self.shape))
            grid = counts.reshape(self.shape).cumsum(axis=0).cumsum(axis=1)
            accepted.append(grid / total)
        real, audio, visual = accepted
        return float(np.maximum(np.maximum(1 - real, audio), visual).min())
