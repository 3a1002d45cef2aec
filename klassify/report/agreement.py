"""Do systems agree, and does joining them help? All scores are first calibrated alike, on val_fit.

The calibration is Platt's on log-odds against the video's label (klassify.systems.calibrated).
Without labels of val, a system's own probabilities are used uncalibrated, which is said.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import rankdata

from klassify.errors import KlassifyError
from klassify.evaluation.tables import with_ends
from klassify.lists import subsets
from klassify.metrics import clips
from klassify.report.entries import Entry
from klassify.scores.score_file import ScoreFile
from klassify.systems import calibrated as systems_calibrated
from klassify.systems.scores import as_probability, scores_of


class Calibrated(NamedTuple):
    """Probabilities (n,) of the clips of a list, and of val_fit if known; how: in words; raw: the
    system's own, as it would be submitted; auc_on_fit: its AUC there.
    """

    name: str
    probability: np.ndarray
    on_fit: np.ndarray | None
    how: str
    raw: np.ndarray
    auc_on_fit: float = np.nan


def calibrated(
    entry: Entry, split: str, files: Sequence[str], fit: pd.DataFrame | None
) -> Calibrated:
    """A system's probabilities, calibrated on val_fit (a labelled list) if possible."""
    scores = scores_of(entry.system, split, files)
    own = as_probability(scores)
    raw = np.where(np.isnan(own), entry.system.prior, own)
    try:
        if fit is None:
            raise KlassifyError("no labels of val")
        fit_files, label = fit["file"].tolist(), subsets.label(fit, "video")
        on_val = entry.system.clip_scores("val")
        fitted = systems_calibrated.fit(on_val, fit_files, label, input="log_odds")
    except KlassifyError as error:
        return Calibrated(entry.name, raw, None, f"not calibrated ({error.what})", raw)

    def apply(given: ScoreFile) -> np.ndarray:
        table = systems_calibrated.apply(given, fitted.a, fitted.b, fitted.input)
        values = table["score"].to_numpy(float)
        return np.where(np.isnan(values), fitted.base_rate, values)

    on_fit = apply(scores_of(entry.system, "val", fit_files))
    auc = clips.roc_auc(label, on_fit)
    return Calibrated(entry.name, apply(scores), on_fit, "Platt on val_fit", raw, auc)


def agreement(entries: Sequence[Entry], given: Sequence[Calibrated]) -> pd.DataFrame:
    """One row per pair of systems: rank correlation (Spearman, ties at their mean rank), and the
    share of equal decisions.

    A decision is fake if the calibrated probability exceeds 0.5.
    """
    ranks = [rankdata(one.scored.score) for one in entries]
    decisions = [one.probability > 0.5 for one in given]
    rows = []
    for a, b in itertools.combinations(range(len(entries)), 2):
        varied = np.ptp(ranks[a]) and np.ptp(ranks[b])
        correlation = np.corrcoef(ranks[a], ranks[b])[0, 1] if varied else np.nan
        equal = float((decisions[a] == decisions[b]).mean())
        rows.append((entries[a].name, entries[b].name, correlation, equal))
    return pd.DataFrame(rows, columns=["a", "b", "rank_correlation", "equal_decisions"])


def fused(answers: Sequence[Calibrated], fit: pd.DataFrame) -> dict[str, np.ndarray]:
    """{rule: (n,) probabilities} of joining calibrated answers; the stacking is fitted on val_fit
    alone.

    stacking: logistic regression on the calibrated log-odds, with a unit Gaussian prior on its
    weights.
    """
    from sklearn.linear_model import LogisticRegression

    values = np.stack([one.probability for one in answers])
    stacker = LogisticRegression(C=1.0)
    stacker.fit(_log_odds([one.on_fit for one in answers]), subsets.label(fit, "video"))
    stacked = expit(stacker.decision_function(_log_odds(values)))
    return {"max": values.max(axis=0), "mean": values.mean(axis=0), "stacking": stacked}


def _log_odds(probabilities: Sequence[np.ndarray]) -> np.ndarray:
    return clips.log_odds(np.stack(probabilities, axis=1))


def fusion_gain(
    answers: Sequence[Calibrated],
    frame: pd.DataFrame,
    fit: pd.DataFrame,
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row for each answer alone and each rule that joins them all: AUC, EER, log-loss, and
    `gain` in AUC with interval.

    gain: over the answer that is best alone on val_fit, so that the rival was not chosen on these
    clips.
    """
    label, on_fit = subsets.label(frame, "video"), subsets.label(fit, "video")
    best = max(answers, key=lambda one: clips.roc_auc(on_fit, one.on_fit)).name
    joined = {f"{rule} of {len(answers)}": values for rule, values in fused(answers, fit).items()}
    scores = {one.name: one.probability for one in answers} | joined
    rankings = [clips.Ranking(label, values) for values in scores.values()]
    auc, drawn = clips.resampled(
        lambda weights: np.stack([one.auc_and_eer(weights)[0] for one in rankings]),
        subsets.sources_of(frame),
        n=n_bootstrap,
        seed=seed,
    )
    rival = list(scores).index(best)
    rows = []
    for at, (name, values) in enumerate(scores.items()):
        row = {"system": name, "joined": name in joined, **with_ends("auc", auc[at], drawn[at])}
        row["eer"] = clips.eer(label, values)
        row["log_loss"] = clips.log_loss(label, values)
        row["versus"] = best
        if at != rival:
            row |= with_ends("gain", auc[at] - auc[rival], drawn[at] - drawn[rival])
        rows.append(row)
    return pd.DataFrame(rows)
