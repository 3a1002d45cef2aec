"""Detection metrics of clips: AUC, EER, log-loss, reliability, intervals by bootstrap over sources.

Labels are 1 = fake, scores rise with "fake". Ties are exact: clips with equal scores count half in
the AUC and are accepted or rejected together in the EER. Every metric takes optional weights with
clips on the last axis, so that one call evaluates many bootstrap resamples.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import logit

from klassify.errors import KlassifyError, first_few
from klassify.files import read_json
from klassify.progress import Count

PROBABILITY_FLOOR = 1e-9  # score files hold nine digits, so no probability says more than this
CHUNK_ELEMENTS = 2_000_000  # weights held at once by the bootstrap: 16 MB


class Interval(NamedTuple):
    """A two-sided interval; both ends are NaN where too few resamples define the metric."""

    low: float
    high: float


class Ranking:
    """Scores sorted once, after which every weighting of the clips costs O(n).

    label: (n,) 0 or 1; score: (n,) finite. Weights are (..., n), none meaning one each. Real and
    fake clips are summed apart, and the EER is found by bisection. order: (n,) places by ascending
    score, where they are known.
    """

    def __init__(self, label: np.ndarray, score: np.ndarray, order: np.ndarray | None = None):
        label, score = np.asarray(label), np.asarray(score, dtype=float)
        if label.shape != score.shape or label.ndim != 1:
            raise ValueError(
                f"need one label and one score per clip, got shapes {label.shape} and {score.shape}"
            )
        if np.isnan(score).any():
            raise ValueError("a score is NaN; give clips without an answer their prior first")
        self.order = np.argsort(score) if order is None else order
        self.score = score[self.order]
        self.fake = label[self.order] == 1
        is_last = np.append(self.score[1:] != self.score[:-1], True)[: len(score)]
        self.last_of_tie = None if is_last.all() else np.flatnonzero(is_last)

    @property
    def thresholds(self) -> np.ndarray:
        """-inf and the distinct scores, ascending: a clip counts as fake above its threshold."""
        distinct = self.score if self.last_of_tie is None else self.score[self.last_of_tie]
        return np.append(-np.inf, distinct)

    def rejected(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Weight of the real and of the fake clips that lie at or below each distinct score.

        Returns two arrays (..., distinct scores + 1), both starting at 0 and ending at the class
        total.
        """
        if weights is None:
            weights = np.ones(len(self.score))
        weights = np.take(np.asarray(weights, dtype=float), self.order, axis=-1)
        total, fake = _from_zero(weights), _from_zero(weights * self.fake)
        if self.last_of_tie is not None:
            up_to = np.append(0, self.last_of_tie + 1)
            total, fake = np.take(total, up_to, axis=-1), np.take(fake, up_to, axis=-1)
        return total - fake, fake

    def error_rates(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """False-alarm and miss rate at each threshold, both (..., thresholds); NaN for no clips."""
        real, fake = self.rejected(weights)
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1 - real / real[..., -1:], fake / fake[..., -1:]

    def auc_and_eer(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """AUC and EER of each weighting, NaN where one class has no weight."""
        if not self.fake.any() or self.fake.all():
            undefined = np.full(() if weights is None else np.shape(weights)[:-1], np.nan)
            return undefined, undefined
        if weights is None:
            of_fake = np.ones(int(self.fake.sum()))
            real, fake = np.arange(len(self.fake) - len(of_fake) + 1.0), _from_zero(of_fake)
        else:
            weights = np.asarray(weights, float)
            of_real, of_fake = (np.take(weights, order, axis=-1) for order in self._by_class)
            real, fake = (_from_zero(one) for one in (of_real, of_fake))
        n_real, n_fake = real[..., -1], fake[..., -1]
        below, up_to = self._real_around_fake
        lower = np.take(real, below, axis=-1)
        if up_to is not below:  # equal scores count half
            lower = (lower + np.take(real, up_to, axis=-1)) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            auc = np.einsum("...i,...i->...", of_fake, lower) / (n_real * n_fake)
            return auc, self._eer(real, fake)

    @functools.cached_property
    def _by_class(self) -> tuple[np.ndarray, np.ndarray]:
        """The places of the real and of the fake clips, each by ascending score."""
        return self.order[~self.fake], self.order[self.fake]

    @functools.cached_property
    def _real_around_fake(self) -> tuple[np.ndarray, np.ndarray]:
        """For each fake clip, in order, how many real ones have a lower score, and how many a lower
        or equal one; the same array twice where no two classes tie.
        """
        real, fake = self.score[~self.fake], self.score[self.fake]
        below, up_to = (np.searchsorted(real, fake, side=side) for side in ("left", "right"))
        return (below, below) if np.array_equal(below, up_to) else (below, up_to)

    @functools.cached_property
    def _counts_up_to(self) -> tuple[np.ndarray, np.ndarray]:
        """Real and fake clips at or below each threshold; the first threshold is below all."""
        fake = np.cumsum(self.fake, dtype=np.int64)
        last = np.arange(len(fake)) if self.last_of_tie is None else self.last_of_tie
        fake = np.append(0, fake[last])
        return np.append(0, last + 1) - fake, fake

    def _eer(self, real: np.ndarray, fake: np.ndarray) -> np.ndarray:
        """Where the two rates cross on the straight line between the neighbouring thresholds.

        real, fake: (..., clips of the class + 1), weights of the lowest ones of each class.
        """
        real_up_to, fake_up_to = self._counts_up_to

        def rates(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """Miss rate at thresholds (..., k), and by how much it exceeds the false-alarm rate."""
            miss = np.take_along_axis(fake, fake_up_to[at], axis=-1) / fake[..., -1:]
            kept = np.take_along_axis(real, real_up_to[at], axis=-1) / real[..., -1:]
            return miss, miss - (1 - kept)

        # the difference rises from -1 to 1: the first threshold after 0 where it is not negative
        low = np.ones((*real.shape[:-1], 1), np.int64)
        high = np.full_like(low, len(real_up_to) - 1)
        while (low < high).any():
            middle = (low + high) // 2
            crossed = rates(middle)[1] >= 0
            low, high = np.where(crossed, low, middle + 1), np.where(crossed, middle, high)
            low = np.minimum(low, high)
        miss, gap = rates(np.concatenate([high - 1, high], axis=-1))
        share = gap[..., 0] / (gap[..., 1] - gap[..., 0])
        return miss[..., 0] - share * (miss[..., 1] - miss[..., 0])


def _from_zero(weights: np.ndarray) -> np.ndarray:
    """Running sums (..., n + 1) of weights (..., n), from 0 on."""
    sums = np.zeros((*weights.shape[:-1], weights.shape[-1] + 1))
    np.cumsum(weights, axis=-1, out=sums[..., 1:])
    return sums


def roc_auc(label: np.ndarray, score: np.ndarray) -> float:
    """Probability that a fake clip scores above a real one, ties counting half.

    NaN where only one class is present. Equals the challenge's AUC on probabilities; that one
    answers 0.0 for one class and bends scores outside [0, 1], see `official_auc`.
    """
    return float(Ranking(label, score).auc_and_eer()[0])


def eer(label: np.ndarray, score: np.ndarray) -> float:
    """Equal error rate in [0, 1], linear between neighbouring thresholds; NaN for one class."""
    return float(Ranking(label, score).auc_and_eer()[1])


def error_rates(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of the ROC and DET curves: threshold, false-alarm rate, miss rate.

    A clip counts as fake where its score is above the threshold; the first threshold is -inf.
    """
    ranking = Ranking(label, score)
    return ranking.thresholds, *ranking.error_rates()


def clip_log_loss(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """(n,) negative log-likelihood in nats; probabilities stay PROBABILITY_FLOOR from 0 and 1."""
    probability = np.clip(probability, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return -np.where(np.asarray(label) == 1, np.log(probability), np.log1p(-probability))


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Log-odds of probabilities, which stay PROBABILITY_FLOOR from 0 and 1."""
    return logit(np.clip(probability, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR))


def log_loss(label: np.ndarray, probability: np.ndarray) -> float:
    """Mean negative log-likelihood in nats; NaN for no clips."""
    return float(clip_log_loss(label, probability).mean()) if len(label) else float("nan")


def reliability(
    label: np.ndarray, probability: np.ndarray, n_bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Calibration curve over equal bins of [0, 1]: mean probability, share of fakes, clips."""
    bins = np.minimum((np.asarray(probability) * n_bins).astype(int), n_bins - 1)
    count = np.bincount(bins, minlength=n_bins)
    with np.errstate(divide="ignore", invalid="ignore"):
        predicted = np.bincount(bins, weights=probability, minlength=n_bins) / count
        observed = np.bincount(bins, weights=label, minlength=n_bins) / count
    return predicted, observed, count


def bootstrap(
    statistics: Callable[[np.ndarray], np.ndarray],
    source: Sequence[str],
    *,
    n: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Resample whole sources with replacement, so that versions of one original stay together.

    statistics: clip weights (B, clips) -> (..., B), for all metrics and systems at once:
    differences between their rows are then paired. source: one id per clip. Returns (..., n), the
    same for the same seed; n = 0 and a single source, which does not vary, give one undefined
    sample.
    """
    names, source_index = np.unique(np.asarray(source, dtype=str), return_inverse=True)
    if not n or len(names) < 2:
        return np.full_like(statistics(np.ones((1, len(source)))), np.nan)
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK_ELEMENTS // max(1, len(source_index)))
    parts = []
    with Count("bootstrap", n, unit="resample") as count:
        for start in range(0, n, chunk):
            times_drawn = [
                np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))
                for _ in range(min(chunk, n - start))
            ]
            weights = np.stack(times_drawn).astype(float).take(source_index, axis=1)
            parts.append(statistics(weights))
            count.add(len(times_drawn))
    return np.concatenate(parts, axis=-1)


def resampled(
    statistics: Callable[[np.ndarray], np.ndarray],
    source: Sequence[str],
    *,
    n: int = 1000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The statistics of all clips (...,), and of resamples (..., n) as `bootstrap` draws them."""
    points = statistics(np.ones((1, len(source))))[..., 0]
    return points, bootstrap(statistics, source, n=n, seed=seed)


def interval(samples: np.ndarray, level: float = 0.95) -> Interval:
    """Percentile interval of bootstrap samples (n,); NaN if fewer than half are defined."""
    defined = samples[~np.isnan(samples)]
    if not len(defined) or len(defined) < len(samples) / 2:
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def official_auc(
    prediction_txt: str | os.PathLike, metadata: str | os.PathLike | Sequence[Mapping[str, Any]]
) -> float:
    """The Task 1 AUC as the challenge's evaluation package (avdeepfake1m 0.0.4) computes it, quirks
    included.

    prediction_txt: `name;score` lines. metadata: the official JSON or its list of entries; a clip
    is fake when it has fake segments. Of repeated lines the last wins; other clips' lines and
    further columns are ignored. If any score lies outside [0, 1], or is missing, all go through a
    sigmoid, which ties large ones (and there parts some equal ones by a rounding error, which is
    not repeated here). A missing score ranks highest. One class only gives 0.0. Raises
    KlassifyError where the package fails.
    """
    import pandas as pd

    try:
        table = pd.read_csv(prediction_txt, sep=";", header=None)
    except (ValueError, OSError) as error:
        raise KlassifyError(
            f"This prediction file cannot be read: {error}.", where=prediction_txt
        ) from None
    if table.shape[1] < 2 or table[1].dtype.kind not in "fiu":
        raise KlassifyError(
            "Every line must read `name;score`, without a header.", where=prediction_txt
        )
    entries = read_json(metadata) if isinstance(metadata, (str, os.PathLike)) else metadata
    given = dict(zip(table[0], table[1].astype(float)))
    missing = [entry["file"] for entry in entries if entry["file"] not in given]
    if missing:
        raise KlassifyError(
            f"{len(missing)} clips have no line: {first_few(missing)}.", where=prediction_txt
        )
    score = np.array([given[entry["file"]] for entry in entries], dtype=float)
    label = np.array([len(entry["fake_segments"]) > 0 for entry in entries], dtype=int)
    if not ((score >= 0) & (score <= 1)).all():  # a NaN is outside as well
        score = 1 / (1 + np.exp(-np.clip(score, -700, 700)))
    score[np.isnan(score)] = np.inf
    auc = roc_auc(label, score)
    return 0.0 if np.isnan(auc) else auc
