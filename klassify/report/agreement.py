"""Do systems agree, and is it worth joining them? All scores are first calibrated alike, on
val_fit.

The calibration is Platt's on log-odds against the video's label (klassify.systems.calibrated).
Without labels of val, a system's own probabilities stand for calibrated ones, which is said.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import rankdata

from klassify.errors import KlassifyError
from klassify.lists import subsets
from klassify.metrics import clips
from klassify.report.entries import Entry
from klassify.report.sidebyside import with_ends
from klassify.scores.score_file import ScoreFile, align
from klassify.systems import calibrated as systems_calibrated
from klassify.systems.scores import as_probability

FLOOR = clips.PROBABILITY_FLOOR
RULES = ("max", "mean", "stacking")


class Calibrated(NamedTuple):
    """Probabilities (n,) of fake of the clips of a list, and of val_fit where it is known; how:
    in words.
    """

    name: str
    probability: np.ndarray
    on_fit: np.ndarray | None
    how: str


def calibrated(
    entry: Entry, split: str, files: Sequence[str], fit: pd.DataFrame | None
) -> Calibrated:
    """A system's probabilities, calibrated on val_fit (a labelled list) where that is possible."""
    scores = _in_order(entry, split, files)
    own = as_probability(scores)
    prior = entry.system.prior
    try:
        if fit is None:
            raise KlassifyError("no labels of val")
        on_val = entry.system.clip_scores("val")
        fitted = systems_calibrated.fit(
            on_val, fit["file"].tolist(), subsets.label(fit, "video"), input="log_odds"
        )
    except KlassifyError as error:
        return Calibrated(
            entry.name, np.where(np.isnan(own), prior, own), None, f"as it is ({error.what})"
        )

    def apply(some: ScoreFile) -> np.ndarray:
        table = systems_calibrated.apply(some, fitted.a, fitted.b, fitted.input)
        values = table["score"].to_numpy(float)
        return np.where(np.isnan(values), fitted.base_rate, values)

    return Calibrated(
        entry.name,
        apply(scores),
        apply(_in_order(entry, "val", fit["file"].tolist())),
        "Platt on val_fit",
    )


def _in_order(entry: Entry, split: str, files: Sequence[str]) -> ScoreFile:
    scores = entry.system.clip_scores(split)
    listed = ScoreFile(
        scores.header, scores.table[scores.table["file"].isin(set(files))].reset_index(drop=True)
    )
    return ScoreFile(scores.header, align(listed, list(files), where=entry.system.folder))


def agreement(entries: Sequence[Entry], given: Sequence[Calibrated]) -> pd.DataFrame:
    """One row a pair of systems: rank correlation (Spearman, ties at their mean rank), share of
    equal decisions.

    A decision is fake where the calibrated probability exceeds 0.5.
    """
    ranks = [rankdata(one.scored.score) for one in entries]
    decisions = [one.probability > 0.5 for one in given]
    rows = []
    for a, b in itertools.combinations(range(len(entries)), 2):
        spread = ranks[a].std() * ranks[b].std()
        together = ((ranks[a] - ranks[a].mean()) * (ranks[b] - ranks[b].mean())).mean()
        rows.append(
            {
                "a": entries[a].name,
                "b": entries[b].name,
                "rank_correlation": together / spread if spread else float("nan"),
                "equal_decisions": float((decisions[a] == decisions[b]).mean()),
            }
        )
    return pd.DataFrame(rows, columns=["a", "b", "rank_correlation", "equal_decisions"])


def disagreement(answers: Sequence[Calibrated]) -> np.ndarray:
    """(n,) how far apart the calibrated probabilities of several systems lie."""
    values = np.stack([one.probability for one in answers])
    return values.max(axis=0) - values.min(axis=0)


# ------------------------------------------------------------------------------ joining the recipes


def fused(answers: Sequence[Calibrated], fit: pd.DataFrame) -> dict[str, np.ndarray]:
    """{rule: (n,) probabilities} of joining calibrated answers; the stacking is fitted on val_fit
    alone.

    stacking: logistic regression on the calibrated log-odds, with a unit Gaussian prior on its
    weights.
    """
    from sklearn.linear_model import LogisticRegression

    values = np.stack([one.probability for one in answers])
    stacker = LogisticRegression(C=1.0).fit(
        _log_odds([one.on_fit for one in answers]), subsets.label(fit, "video")
    )
    stacked = expit(stacker.decision_function(_log_odds(values)))
    return {"max": values.max(axis=0), "mean": values.mean(axis=0), "stacking": stacked}


def _log_odds(probabilities: Sequence[np.ndarray]) -> np.ndarray:
    return logit(np.clip(np.stack(probabilities, axis=1), FLOOR, 1 - FLOOR))


def fusion_gain(
    answers: Sequence[Calibrated],
    frame: pd.DataFrame,
    fit: pd.DataFrame,
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row an answer alone and a rule that joins them all: AUC, EER, log-loss, and `gain` in AUC
    with interval.

    gain: over the answer alone that is best on val_fit, so that the rival was not chosen on these
    clips.
    """
    label, on_fit = subsets.label(frame, "video"), subsets.label(fit, "video")
    best = max(answers, key=lambda one: clips.roc_auc(on_fit, one.on_fit)).name
    scores = {one.name: one.probability for one in answers}
    joined = {f"{rule} of {len(answers)}": values for rule, values in fused(answers, fit).items()}
    scores |= joined
    rankings = {name: clips.Ranking(label, values) for name, values in scores.items()}

    def statistics(weights: np.ndarray) -> np.ndarray:
        return np.stack([ranking.auc_and_eer(weights)[0] for ranking in rankings.values()])

    drawn = np.full((len(scores), 1), np.nan)
    if n_bootstrap:
        drawn = clips.bootstrap(statistics, subsets.sources_of(frame), n=n_bootstrap, seed=seed)
    samples = dict(zip(scores, drawn))
    auc = {name: float(ranking.auc_and_eer()[0]) for name, ranking in rankings.items()}
    rows = []
    for name, values in scores.items():
        row = {
            "system": name,
            "joined": name in joined,
            **with_ends("auc", auc[name], samples[name]),
        }
        row |= {
            "eer": clips.eer(label, values),
            "log_loss": clips.log_loss(label, values),
            "versus": best,
        }
        if name != best:
            row |= with_ends("gain", auc[name] - auc[best], samples[name] - samples[best])
        rows.append(row)
    return pd.DataFrame(rows)
