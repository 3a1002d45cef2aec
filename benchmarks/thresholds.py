"""How far thresholds miss their rate because the fusion was fitted on the same clips.

    python benchmarks/thresholds.py [--sources 100] [--draws 80]

Draws made-up log-odds of four systems, two of the sound and two of the picture, for val_fit and for
new clips like them. Calibrates, fuses (max-out, stack) and fits thresholds on val_fit as `klassify`
does, and prints the shares of new real clips above the upper threshold and of new fakes below the
lower one, with standard errors over the draws.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from klassify.metrics.decisions import tail_threshold
from klassify.systems import stack

MODALITIES = ["audio", "audio", "visual", "visual"]
RATES = (0.01, 0.05)
NEW = 3000  # sources


def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, ...]:
    """Probabilities (4, 4 n) of n sources, each in the four types; the labels (4 n,) of the clips,
    the systems' own (4, 4 n), and the sources (4 n,).
    """
    kind = np.tile(np.arange(4), n)
    own = np.stack([np.isin(kind, [1, 3])] * 2 + [np.isin(kind, [2, 3])] * 2)
    log_odds = 1.2 * (2 * own - 1) + rng.normal(0, 1.3, own.shape)
    return expit(log_odds), (kind > 0).astype(int), own, np.repeat(np.arange(n), 4)


def calibration(probability: np.ndarray, label: np.ndarray) -> list[float]:
    """a and b of Platt scaling."""
    model = LogisticRegression(C=1e6).fit(logit(probability)[:, None], label)
    return [-model.coef_[0, 0], -model.intercept_[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=int, default=100, help="of val_fit")
    parser.add_argument("--draws", type=int, default=80)
    args = parser.parse_args()
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for seed in range(args.draws):
        rng = np.random.default_rng(seed)
        fit, label, own, source = draw(rng, args.sources)
        new, new_label, *_ = draw(rng, NEW)
        platt = np.array([calibration(*one) for one in zip(fit, own)])
        weights, _ = stack.fit_weights(platt, [0, 2], fit, MODALITIES, label, source)
        for rule in ("max", "stack"):
            known, score = (stack.fused(weights, rule, x, MODALITIES, 0.75) for x in (fit, new))
            for rate in RATES:
                upper = tail_threshold(known[label == 0], rate)
                lower = -tail_threshold(-known[label == 1], rate)
                alarms = np.mean(score[new_label == 0] > upper)
                misses = np.mean(score[new_label == 1] < lower)
                found.setdefault((rule, rate), []).append((alarms, misses))
    for (rule, rate), shares in found.items():
        mean, error = np.mean(shares, axis=0), np.std(shares, axis=0) / np.sqrt(len(shares))
        cells = [f"{100 * m:.2f} % (+- {100 * e:.2f})" for m, e in zip(mean, error)]
        print(f"{rule:<6} at {rate:.0%}: false alarms {cells[0]}, misses {cells[1]}")


if __name__ == "__main__":
    main()
