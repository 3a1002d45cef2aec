"""Cut a timeline into windows, and put what comes out of the windows back on the timeline.

The unit is whatever the caller counts in (samples, frames); every window is [start, start + size).

| branch          | unit   | as the data classes cut by default                               |
|-----------------|--------|------------------------------------------------------------------|
| mouth TCN       | frame  | 256 frames every 128, the last one anchored at the end           |
| Wav2Vec-AASIST  | sample | 64,600 samples every 16,000, the last one on the 320-sample grid |
| BAM             | frame  | 100 frames of 40 ms every 50, the last one anchored at the end   |

A timeline shorter than one window gets one window at 0, and the caller pads it as its model wants:
wrap-around for Wav2Vec-AASIST, zeros and a mask for the TCN. BAM counts whole 40 ms frames, so its
caller pads the waveform with zeros to a multiple of 640 samples first; no frame is then lost.

Back on the timeline: `overlap_mean` averages frames that several windows cover, `centre_fill`
spreads one value per window over the frames, `repeat_to` a coarse grid over a finer one, and
`aggregate_by_clip` makes one score per clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from klassify.errors import KlassifyError

if TYPE_CHECKING:
    import pandas

AGGREGATIONS = ("max", "mean", "topk", "logit-mean", "noisy-or")


def cut(length: int, size: int, hop: int, *, grid: int = 1) -> np.ndarray:
    """Starts of the windows that cover [0, length), ascending.

    Windows start at 0, hop, 2 hop, ... as long as they fit. If they leave a tail, one more starts
    at the last multiple of `grid` that fits, so that up to grid - 1 units at the end stay
    uncovered.
    """
    latest = max(length - size, 0)
    starts = np.arange(0, latest + 1, hop)
    latest -= latest % grid
    return np.append(starts, latest) if latest > starts[-1] else starts


def seams(starts: np.ndarray, size: int) -> np.ndarray:
    """Where each window's outputs begin to count, and last where the sequence ends, if of two that
    overlap each counts up to the middle of what they share.
    """
    return np.concatenate([starts[:1], (starts[:-1] + size + starts[1:]) // 2, starts[-1:] + size])


def triangle(size: int) -> np.ndarray:
    """Weights (size,) that fall off from a window's middle to its ends and never reach zero."""
    distance = np.abs(np.arange(size) - (size - 1) / 2)
    return 1 - distance / ((size + 1) / 2)


def overlap_mean(
    outputs: np.ndarray, starts: Sequence[int], length: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Weighted mean, at each of `length` frames, over the windows that cover it.

    outputs: (W, size, ...), frame outputs of each window; what lies beyond `length` is dropped.
    weights: (size,), a frame's weight by its place in the window; default: all equal. Returns
    (length, ...) float64.
    """
    size = outputs.shape[1]
    weights = np.ones(size) if weights is None else np.asarray(weights, float)
    column = weights.reshape(size, *[1] * (outputs.ndim - 2))
    total, mass = np.zeros((length, *outputs.shape[2:])), np.zeros(length)
    for start, window in zip(starts, outputs):
        kept = min(size, length - start)
        total[start : start + kept] += (window * column)[:kept]
        mass[start : start + kept] += weights[:kept]
    return total / mass.reshape(length, *[1] * (outputs.ndim - 2))


def centre_fill(values: np.ndarray, starts: Sequence[int], size: int, length: int) -> np.ndarray:
    """One value per window, held from the window's centre frame to the next window's centre.

    The centre of an even window is the later of its two middle frames (index 5 of 10). Frames
    before the first centre take the first value. values: (W, ...); returns (length, ...).
    """
    centres = np.asarray(starts) + size // 2
    source = np.searchsorted(centres, np.arange(length), side="right") - 1
    return np.asarray(values)[np.maximum(source, 0)]


def repeat_to(values: np.ndarray, factor: int, length: int) -> np.ndarray:
    """Spread a grid `factor` times coarser over `length` frames; the last value fills the rest."""
    return values[np.minimum(np.arange(length) // factor, len(values) - 1)]


def check_aggregate(how: str) -> None:
    """Raise KlassifyError unless `how` names an aggregation."""
    if how not in AGGREGATIONS:
        raise KlassifyError(
            f"{how!r} is not an aggregation of windows; there are {', '.join(AGGREGATIONS)}."
        )


def aggregate_by_clip(
    clips: Sequence, log_odds: np.ndarray, how: str = "max", *, k: int = 3
) -> pandas.Series:
    """Log-odds of each clip from the log-odds of its windows.

    clips: (W,), the clip of each window, in any order.
    how: "max" (one fake window makes a fake clip); "mean" of the window probabilities; "topk", the
        mean of the k highest window probabilities; "logit-mean" of the log-odds; "noisy-or", the
        probability that not every window is real, were the windows independent.
    Returns float64 indexed by clip, in order of first appearance. Probabilities are averaged by
    their logarithms, so that saturated windows do not end in a tie or in infinity.
    """
    import pandas as pd

    check_aggregate(how)
    log_odds = np.asarray(log_odds, float)
    codes, names = pd.factorize(np.asarray(clips))
    order = np.lexsort((-log_odds, codes))  # clip by clip, the highest window first
    codes, log_odds = codes[order], log_odds[order]
    if how == "topk":
        kept = np.arange(len(codes)) - np.searchsorted(codes, codes) < k
        codes, log_odds = codes[kept], log_odds[kept]
    first = np.searchsorted(codes, np.arange(len(names)))
    return pd.Series(_reduce(log_odds, first, how), index=names)


def _reduce(log_odds: np.ndarray, first: np.ndarray, how: str) -> np.ndarray:
    """Aggregate runs of windows that begin at `first`, each sorted in descending order."""
    if how == "max":
        return log_odds[first]
    if how == "logit-mean":
        return np.add.reduceat(log_odds, first) / np.diff(first, append=len(log_odds))
    log_fake, log_real = -np.logaddexp(0, -log_odds), -np.logaddexp(0, log_odds)
    if how == "noisy-or":
        all_real = np.add.reduceat(log_real, first)
        with np.errstate(divide="ignore"):  # all_real is 0 where every window is below about -745
            odds = np.log(-np.expm1(all_real)) - all_real  # log((1 - prod) / prod)
        return np.maximum(odds, log_odds[first])  # never below the highest window, in any precision
    # mean or topk: the window count divides both sums and cancels
    return np.logaddexp.reduceat(log_fake, first) - np.logaddexp.reduceat(log_real, first)
