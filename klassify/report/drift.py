"""Population stability index (PSI): how far the scores of a split have moved from those of val.

PSI = sum over bins of (p - q) ln(p / q), p and q the shares of clips of the split and of val in
bins that hold equal shares of val. The usual reading: below 0.1 stable, to 0.25 a shift worth a
look, above it a large one. Few clips raise it by chance: without a shift it is about
chi-square with B - 1 degrees of freedom times 1/n + 1/m (Yurdakul, 2018). Its 95 % quantile, or
that of shuffled sources where these are known, is shown beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import chi2

BINS, CLIPS_A_BIN = 10, 8
SHUFFLES = 200
SMALL, LARGE = 0.1, 0.25
SMOOTHING = 0.5  # clips added to every bin, so that an empty one does not make PSI infinite


class Drift(NamedTuple):
    """by_chance: 95 % of splits without any shift have a lower psi; reading: in words."""

    psi: float
    by_chance: float
    reading: str
    n: int
    n_val: int


def population_stability(
    score: np.ndarray, val: np.ndarray, sources: tuple[np.ndarray, np.ndarray] | None = None
) -> Drift:
    """PSI of scores (n,) against those of val (m,), both without clips that have no answer.

    sources: (n,) and (m,) ids, of the clips. Clips of one source have similar scores, so by_chance
    then comes from shuffled sources, else from the chi-squared distribution of single clips.
    """
    n, m = len(score), len(val)
    if not n or not m:
        return Drift(float("nan"), float("nan"), "no scores to compare", n, m)
    bins = int(np.clip(min(n, m) // CLIPS_A_BIN, 2, BINS))
    edges = np.unique(np.quantile(val, np.linspace(0, 1, bins + 1)[1:-1]))
    bin_of = np.searchsorted(edges, np.concatenate([score, val]), side="right")
    counts = [np.bincount(part, minlength=len(edges) + 1) for part in (bin_of[:n], bin_of[n:])]
    psi = _psi(*counts)
    if sources is None:
        by_chance = float((1 / n + 1 / m) * chi2.ppf(0.95, max(len(edges), 1)))
    else:
        names, place = np.unique(np.concatenate(sources), return_inverse=True)
        by_source = np.zeros((len(names), len(edges) + 1), int)
        np.add.at(by_source, (place, bin_of), 1)
        by_chance = _by_chance(by_source, len(np.unique(sources[0])))
    return Drift(psi, by_chance, read(psi, by_chance), n, m)


def _psi(counts: np.ndarray, val_counts: np.ndarray) -> float:
    """Of numbers of clips by bin, each (bins,)."""
    p, q = ((one + SMOOTHING) / (one + SMOOTHING).sum() for one in (counts, val_counts))
    return float(((p - q) * np.log(p / q)).sum())


def _by_chance(by_source: np.ndarray, n_sources: int) -> float:
    """The PSI that 95 % of random halves stay below, if n_sources of the sources are drawn.

    by_source: (sources, bins) clips.
    """
    rng, whole = np.random.default_rng(0), by_source.sum(axis=0)
    drawn = []
    for _ in range(SHUFFLES):
        half = by_source[rng.permutation(len(by_source))[:n_sources]].sum(axis=0)
        drawn.append(_psi(half, whole - half))
    return float(np.quantile(drawn, 0.95))


def read(psi: float, by_chance: float) -> str:
    """The PSI in words."""
    if psi < SMALL:
        return "stable"
    if psi <= by_chance:
        return "within chance: few clips"
    if psi < LARGE:
        return "a shift: look before you submit"
    return "a large shift: what was fitted on val may not hold"
