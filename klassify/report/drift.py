"""Population stability index (PSI): how far the scores of a split have moved from those of val.

PSI = sum over bins of (p - q) ln(p / q), p and q the shares of clips of the split and of val in
bins that hold equal shares of val. The usual reading: below 0.1 stable, to 0.25 a shift worth a
look, above it a large one. Few clips raise it by chance: without a shift it is about
chi-square with B - 1 degrees of freedom times 1/n + 1/m (Yurdakul, 2018), whose 95 % quantile is
shown beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import chi2

BINS, CLIPS_A_BIN = 10, 8
SMALL, LARGE = 0.1, 0.25
SMOOTHING = 0.5  # clips added to every bin, so that an empty one does not make PSI infinite


class Drift(NamedTuple):
    """by_chance: 95 % of splits without any shift have a lower psi; reading: in words."""

    psi: float
    by_chance: float
    reading: str
    n: int
    n_val: int


def population_stability(score: np.ndarray, val: np.ndarray) -> Drift:
    """PSI of scores (n,) against those of val (m,), both without clips that have no answer."""
    n, m = len(score), len(val)
    if not n or not m:
        return Drift(float("nan"), float("nan"), "no scores to compare", n, m)
    bins = int(np.clip(min(n, m) // CLIPS_A_BIN, 2, BINS))
    edges = np.unique(np.quantile(val, np.linspace(0, 1, bins + 1)[1:-1]))
    shares = []
    for values in (score, val):
        bin_of = np.searchsorted(edges, values, side="right")
        counts = np.bincount(bin_of, minlength=len(edges) + 1) + SMOOTHING
        shares.append(counts / counts.sum())
    p, q = shares
    psi = float(((p - q) * np.log(p / q)).sum())
    by_chance = float((1 / n + 1 / m) * chi2.ppf(0.95, max(len(edges), 1)))
    return Drift(psi, by_chance, read(psi, by_chance), n, m)


def read(psi: float, by_chance: float) -> str:
    """The PSI in words."""
    if psi < SMALL:
        return "stable"
    if psi <= by_chance:
        return "within chance: few clips"
    if psi < LARGE:
        return "a shift: look before you submit"
    return "a large shift: what was fitted on val may not hold"
