"""Whether explanations are true of the models: deletion, insertion, and the true segments.

Deletion hides the parts of a clip, those with the highest contributions first, and insertion shows
them in that order, beginning with nothing (Petsiuk, Das and Saenko, 2018, for pictures). After each
tenth the model scores what is left. If the contributions are right, the probability of fake falls
early in deletion and rises early in insertion: its mean over the steps is lower, or higher, than
in random orders. With nothing left to score a probability counts as 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from klassify.explanation.answering import Answering
from klassify.explanation.axes import CELLS, Axis
from klassify.explanation.contributions import FRAME_SCORES, Contribution
from klassify.metrics import clips
from klassify.systems.scores import to_probability

STEPS = 10
RANDOM_ORDERS = 5


class Curves(NamedTuple):
    """Mean probabilities of fake over the steps of deletion and insertion, and of random orders,
    of which deletion and insertion have the same mean.
    """

    deletion: float
    insertion: float
    random: float


def curves(
    answering: Answering,
    axis: Axis,
    contribution: Contribution,
    rng: np.random.Generator,
    *,
    n_random: int = RANDOM_ORDERS,
) -> Curves:
    """Deletion and insertion of one clip in the order of contributions, and in random orders."""
    n = len(axis)
    order = np.argsort(-on_axis(contribution, axis), kind="stable")
    orders = [order, order[::-1], *(rng.permutation(n) for _ in range(n_random))]
    counts = np.unique(np.round(np.arange(1, STEPS) / STEPS * n).astype(int))
    counts = counts[(counts > 0) & (counts < n)]
    hidden = np.zeros((len(orders), len(counts), n), bool)
    for k, one in enumerate(orders):
        for j, count in enumerate(counts):
            hidden[k, j, one[:count]] = True
    scores = answering.scores(axis.without(row) for row in hidden.reshape(-1, n))
    probability = to_probability(scores, answering.data.scale)
    means = np.where(np.isnan(scores), 0.5, probability).reshape(len(orders), -1).mean(axis=1)
    # what hides the lowest first shows the highest longest: insertion, read backwards
    return Curves(float(means[0]), float(means[1]), float(means[2:].mean()))


def on_axis(contribution: Contribution, axis: Axis) -> np.ndarray:
    """(n,) the contributions to the parts of an axis: means over a piece of time, or a square; NaN
    as the lowest.
    """
    values = np.asarray(contribution.values, float)
    if values.ndim == 2:  # a picture
        size = (CELLS, CELLS)
        return cv2.resize(values, size, interpolation=cv2.INTER_LINEAR).ravel()
    if contribution.over != "time":
        return values
    lowest = np.nanmin(values, initial=0.0)
    return _means(np.nan_to_num(values, nan=lowest), contribution.edges, axis.edges)


def _means(values: np.ndarray, edges: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Means of piecewise constant values over other pieces of time; 0 outside of them."""
    integral = np.concatenate([[0.0], np.cumsum(values * np.diff(edges))])
    return np.diff(np.interp(wanted, edges, integral)) / np.diff(wanted)


def inside_share(contribution: Contribution, segments: np.ndarray) -> tuple[float, float]:
    """The share of what contributes over time that lies inside of segments (k, 2) in seconds, NaN
    if nothing does, and the share of the clip that they take.
    """
    edges, weights = contribution.edges, contribution.weights()
    length = np.diff(edges)
    covered = sum(
        np.clip(np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start), 0, None)
        for start, stop in segments
    )
    share = np.nan
    if contribution.method == FRAME_SCORES:
        weights = weights * length  # probabilities, not sums over their frames
    if weights.sum() > 0:
        share = float((weights * covered / length).sum() / weights.sum())
    return share, float(np.sum(covered) / (edges[-1] - edges[0]))


def mean_by_source(values: Sequence[float], source: Sequence[str]) -> tuple[float, float, float]:
    """The mean of what is known of n clips, and its 95 % interval over resampled sources."""
    values = np.asarray(values, float)
    known = ~np.isnan(values)
    values, source = values[known], np.asarray(source, object)[known]
    if not len(values):
        return np.nan, np.nan, np.nan

    def mean(weights: np.ndarray) -> np.ndarray:
        return weights @ values / weights.sum(axis=-1)

    point, samples = clips.resampled(mean, source)
    return (float(point), *clips.interval(samples))
