"""The rule `stack` of `klassify fuse`: a logistic regression over the clip scores of k systems.

It learns the video's label on val_fit. Of the features, the first two have hardly any penalty, so
that strong regularisation leaves max-out and equal weights instead of nothing:

| feature | number |
|---|---|
| smooth max-out: log-sum-exp over modalities of the mean calibrated log-odds of a modality | 1 |
| mean of the standardised log-odds z of the inputs that have an answer | 1 |
| z of each input, 0 without an answer | k |
| products of two z | k (k - 1) / 2 |
| 1 where an input has no answer, for inputs that miss some clip of val_fit | up to k |

The strength of the L2 penalty has the least log-loss in a cross-validation in which no source is on
both sides. The rival is max-out (klassify.systems.fused) of the best Platt-calibrated input of
sound and of the picture, by their log-loss on val_fit; of all inputs, the noisiest would decide.
val resembles train more than the test splits do, so the regression answers only where its AUC on
val_report is higher by a paired bootstrap over sources; otherwise the fusion is max-out.
system.yaml records which, and the interval.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, logsumexp

from klassify.errors import KlassifyError
from klassify.lists import subsets
from klassify.metrics import clips
from klassify.scores.score_file import ScoreFile
from klassify.settings import file_hash, settings_hash
from klassify.systems import calibrated
from klassify.systems.base import SYSTEM, Derived, System, derived_system, made_before, write_system
from klassify.systems.fused import fused_table, in_one_order, probabilities
from klassify.systems.scores import as_probability, listed

RULE = "stack"
MAX_OUT = "max"
FREE = 2  # features that are hardly penalised
FREE_SCALE = 100.0
LARGEST_Z = 4.0
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # C of scikit-learn, smaller = more penalty
FOLDS = 5
RESAMPLES = 1000


class Weights(NamedTuple):
    """What a stack computes with.

    platt: (k, 2) a and b of each input's calibration. mean, spread: (k,) of the inputs' log-odds on
    val_fit. missing: the inputs with an indicator. best: those of max-out. coefficients:
    (features,) and the intercept.
    """

    platt: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    missing: list[int]
    best: list[int]
    coefficients: np.ndarray
    intercept: float

    @classmethod
    def from_system(cls, system: System) -> Weights:
        """The weights in a system.yaml; KlassifyError for missing or unfit parameters."""
        given = system.parameters
        try:
            names = ("platt", "mean", "spread", "coefficients")
            arrays = {name: np.asarray(given[name], float) for name in names}
            missing, best = ([int(i) for i in given[name]] for name in ("missing", "best"))
        except (KeyError, TypeError, ValueError) as error:
            what = f"The parameters of {system.name} are incomplete: {error!r}."
            raise KlassifyError(what, where=SYSTEM) from None
        k = len(system.inputs)
        n_features = FREE + k + k * (k - 1) // 2 + len(missing)
        wanted = {"platt": (k, 2), "mean": (k,), "spread": (k,), "coefficients": (n_features,)}
        fits = all(array.shape == wanted[name] for name, array in arrays.items())
        if not fits or not best or not all(0 <= place < k for place in (*missing, *best)):
            raise KlassifyError(
                f"The parameters of {system.name} do not fit its {k} inputs.", where=SYSTEM
            )
        return cls(**arrays, missing=missing, best=best, intercept=system.number("intercept"))

    def calibrated(self, probability: np.ndarray) -> np.ndarray:
        """(k, n) probabilities of the inputs -> (k, n) calibrated log-odds, NaN = no answer."""
        a, b = self.platt.T[..., None]
        return -(a * probability + b)

    def features(self, probability: np.ndarray, modalities: Sequence[str]) -> np.ndarray:
        """(k, n) probabilities, NaN = no answer, some answer in each column -> (n, features)."""
        log_odds = self.calibrated(probability)
        groups = [log_odds[np.equal(modalities, one)] for one in dict.fromkeys(modalities)]
        largest = logsumexp([_mean(group, -np.inf) for group in groups], axis=0)
        z = standardised(probability, self.mean, self.spread)
        filled = np.nan_to_num(z)
        products = [filled[i] * filled[j] for i, j in itertools.combinations(range(len(z)), 2)]
        absent = np.isnan(probability)[self.missing].astype(float)
        return np.stack([largest, _mean(z, 0.0), *filled, *products, *absent], axis=1)

    def probability(self, probability: np.ndarray, modalities: Sequence[str]) -> np.ndarray:
        """(k, n) probabilities of the inputs -> (n,) of the stack."""
        return expit(self.features(probability, modalities) @ self.coefficients + self.intercept)

    def max_out(self, probability: np.ndarray) -> np.ndarray:
        """(k, n) probabilities of the inputs -> (n,) of max-out."""
        return expit(np.fmax.reduce(self.candidates(probability), axis=0))

    def candidates(self, probability: np.ndarray) -> np.ndarray:
        """(k, n) probabilities of the inputs -> (k, n) calibrated log-odds of those of max-out, NaN
        for others; of all inputs for a clip that the best have no answer for.
        """
        log_odds = self.calibrated(probability)
        best = np.full_like(log_odds, np.nan)
        best[self.best] = log_odds[self.best]
        return np.where(np.isnan(best).all(axis=0), log_odds, best)


def standardised(probability: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """(k, n) probabilities -> standardised log-odds within LARGEST_Z, NaN = no answer."""
    z = (clips.log_odds(probability) - mean[:, None]) / spread[:, None]
    return np.clip(z, -LARGEST_Z, LARGEST_Z)


def _mean(values: np.ndarray, empty: float) -> np.ndarray:
    """(m, n) -> (n,) mean of what is not NaN; `empty` where all is."""
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    return np.where(count, np.where(there, values, 0).sum(axis=0) / np.maximum(count, 1), empty)


class Stack(Derived):
    """A fusion of clip scores by the regression, or by max-out where that was not better."""

    def clip_table(self, inputs: Sequence[ScoreFile]) -> pd.DataFrame:
        """The fused clip table from the inputs' clip scores.

        A clip that no input has an answer for gets the prior, with `answered` 0.
        """
        weights, chosen = Weights.from_system(self), self.choice("chosen", (RULE, MAX_OUT))
        inputs = in_one_order(inputs, self.name)
        probability = probabilities(inputs)
        modalities = [one.modality for one in self.input_systems]
        score = fused(weights, chosen, probability, modalities, self.prior)
        return fused_table(inputs, score, ~np.isnan(probability))

    def deciding(self, scores: Mapping[str, ScoreFile]) -> list[str]:
        """Of max-out the input with the highest calibrated probability, of the regression all."""
        if self.choice("chosen", (RULE, MAX_OUT)) == RULE or not scores:
            return list(scores)
        names = [one.name for one in self.input_systems]
        probability = [
            as_probability(scores[name])[:1] if name in scores else [np.nan] for name in names
        ]
        candidates = Weights.from_system(self).candidates(np.array(probability))
        return [names[int(np.nanargmax(candidates[:, 0]))]]


def fused(
    weights: Weights, chosen: str, probability: np.ndarray, modalities: Sequence[str], prior: float
) -> np.ndarray:
    """(k, n) probabilities of the inputs -> (n,), the prior where no input has an answer."""
    some = ~np.isnan(probability).all(axis=0)
    score = np.full(probability.shape[1], prior)
    if chosen == RULE:
        score[some] = weights.probability(probability[:, some], modalities)
    else:
        score[some] = weights.max_out(probability[:, some])
    return score


def make_stack(
    out: Path,
    inputs: Sequence[System],
    labels: Path,
    *,
    scores_split: str = "val",
    subset: str = "val_fit",
    report: str = "val_report",
    prior: float | None = None,
    force: bool = False,
) -> System | None:
    """Write the folder of a stack; None if it is up to date.

    labels: folder of the data lists. subset, report: clips of scores_split to fit on and to compare
    with max-out on. prior: of a clip without any answer; None: the share of fakes in `subset`.
    """
    frame, other = (subsets.load_split(labels, name) for name in (subset, report))
    label, label_2 = (subsets.label(one, "video") for one in (frame, other))
    known = dict(zip([*frame["file"], *other["file"]], np.append(label, label_2).tolist()))
    made_with = {
        "rule": RULE,
        "inputs": [system.hash for system in inputs],
        "scores": [file_hash(one.path(scores_split, "clips")) for one in inputs],
        "labels": settings_hash(known),
        "subset": subset,
        "report": report,
        "prior": prior,
    }
    if made_before(out, made_with, force=force):
        return None
    scores = [system.clip_scores(scores_split) for system in inputs]
    own = [subsets.label(frame, subsets.known_label(frame, one.own_label)) for one in inputs]
    fits = [calibrated.fit(one, frame["file"], is_fake) for one, is_fake in zip(scores, own)]
    platt = np.array([[fit.a, fit.b] for fit in fits])
    modalities = [system.modality for system in inputs]
    best = best_of_each(modalities, [fit.log_loss_after for fit in fits])
    probability, probability_2 = (
        probabilities([listed(one, part["file"], where=one.header.system) for one in scores])
        for part in (frame, other)
    )
    weights, strength = fit_weights(
        platt, best, probability, modalities, label, subsets.sources_of(frame)
    )
    prior = float(label.mean()) if prior is None else prior
    answers = {
        rule: fused(weights, rule, probability_2, modalities, prior) for rule in (RULE, MAX_OUT)
    }
    compared = compare(answers[RULE], answers[MAX_OUT], label_2, subsets.sources_of(other))
    parameters = {
        "rule": RULE,
        "chosen": RULE if compared["gain_low"] > 0 else MAX_OUT,
        "prior": prior,
        **_plain(weights),
        "fit": {"subset": subset, "n": len(frame), "strength": strength},
        "report": {"subset": report, "n": len(other), **compared},
        "made_with": made_with,
    }
    system = derived_system(out, "fusion", inputs, "probability", parameters)
    write_system(out, system)
    return system


def _plain(weights: Weights) -> Mapping[str, Any]:
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in weights._asdict().items()
    }


def best_of_each(modalities: Sequence[str], losses: Sequence[float]) -> list[int]:
    """The inputs with the least loss of sound and of the picture; of those of both where there are
    no others.
    """
    single = [one for one in dict.fromkeys(modalities) if one != "both"]
    return [
        min((i for i, one in enumerate(modalities) if one == modality), key=losses.__getitem__)
        for modality in single or ["both"]
    ]


def fit_weights(
    platt: np.ndarray,
    best: list[int],
    probability: np.ndarray,
    modalities: Sequence[str],
    label: np.ndarray,
    source: np.ndarray,
) -> tuple[Weights, float]:
    """The weights of a stack, and the chosen strength.

    platt: (k, 2). best: the inputs of max-out. probability: (k, n), NaN = no answer. label: (n,) of
    the video. source: (n,).
    """
    z = clips.log_odds(probability)
    spread = np.nanstd(z, axis=1)
    weights = Weights(
        platt,
        np.nanmean(z, axis=1),
        np.where(spread > 0, spread, 1.0),
        np.flatnonzero(np.isnan(probability).any(axis=1)).tolist(),
        best,
        np.empty(0),
        0.0,
    )
    some = ~np.isnan(probability).all(axis=0)
    features = weights.features(probability[:, some], modalities)
    centre, scale = features.mean(axis=0), np.ones(features.shape[1])
    scale[:FREE] = np.maximum(features[:, :FREE].std(axis=0), 1e-6) / FREE_SCALE
    scaled, label, source = (features - centre) / scale, label[some], source[some]
    losses = {strength: _loss_across(scaled, label, source, strength) for strength in STRENGTHS}
    strength = min(losses, key=losses.get)
    model = _regression(strength).fit(scaled, label)
    coefficients = model.coef_[0] / scale
    intercept = float(model.intercept_[0] - coefficients @ centre)
    return weights._replace(coefficients=coefficients, intercept=intercept), strength


def _regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=5000)


def _loss_across(
    features: np.ndarray, label: np.ndarray, source: np.ndarray, strength: float
) -> float:
    """Log-loss of a cross-validation over sources; a fold whose rest has one class is left out."""
    from sklearn.model_selection import GroupKFold

    losses = []
    if len(np.unique(source)) > 1:
        folds = GroupKFold(min(FOLDS, len(np.unique(source)))).split(features, label, source)
        for rest, held in folds:
            if 0 < label[rest].sum() < len(rest):
                model = _regression(strength).fit(features[rest], label[rest])
                predicted = model.predict_proba(features[held])[:, 1]
                losses.append(clips.clip_log_loss(label[held], predicted))
    return float(np.concatenate(losses).mean()) if losses else 0.0


def compare(
    stacked: np.ndarray, max_out: np.ndarray, label: np.ndarray, source: np.ndarray
) -> dict[str, float]:
    """AUC of both, and the gain of the stack with its paired interval over sources."""
    rankings = [clips.Ranking(label, one) for one in (stacked, max_out)]

    def statistics(weights: np.ndarray) -> np.ndarray:
        return np.stack([one.auc_and_eer(weights)[0] for one in rankings])

    points, samples = clips.resampled(statistics, source, n=RESAMPLES)
    low, high = clips.interval(samples[0] - samples[1])
    names = ("auc", "auc_max", "gain", "gain_low", "gain_high")
    return dict(zip(names, map(float, (*points, points[0] - points[1], low, high))))
