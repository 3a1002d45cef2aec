"""What each input of a calibration or fusion adds to its answer: exact, from its rule and the
inputs' scores.

| rule | unit | what an input adds | the rest |
|---|---|---|---|
| Platt | log-odds | -a times the input | -b |
| max | probability | all, for the one that decides | 0 |
| mean | probability | its probability over the number of answers | 0 |
| stack | log-odds | weights times features, half of each product | intercept, absent inputs |
| stack that chose max-out | log-odds | all, for the one that decides | 0 |
| linear | log-odds | weights times columns less their means, in the frames that decide | bias |

The smooth maximum of a stack, log sum exp of the modalities' mean log-odds l, is the sum of s l
plus the entropy of their softmax s: each input gets its part of s l, the entropy goes to the rest.
The bias of a linear fusion is its log-odds at the means.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.special import expit, softmax

from klassify.explanation.contributions import Contribution
from klassify.grid.ragged import top_rows
from klassify.scores.frame_file import FrameFile
from klassify.scores.score_file import ScoreFile
from klassify.systems import align, stack
from klassify.systems.base import System
from klassify.systems.calibrated import Calibrated, platt_input
from klassify.systems.fused import Fused
from klassify.systems.linear import Linear, Rule
from klassify.systems.stack import Stack, Weights

EXACT = "exact"
DECIDES = "exact: the highest decides"


def over_systems(system: System, scores: Sequence[ScoreFile]) -> Contribution | None:
    """What each input of a system adds to its score of a clip; None for a system without such a
    rule, or without an answer.

    scores: those of its inputs, each with the one row of the clip.
    """
    probability = stack.probabilities(scores)
    if np.isnan(probability).all():
        return None
    if isinstance(system, Calibrated):
        (one,) = scores
        value = float(platt_input(one, system.parameters["input"])[0])
        values, rest, unit = [-system.number("a") * value], -system.number("b"), "log-odds"
    elif isinstance(system, Stack):
        weights, unit = Weights.from_system(system), "log-odds"
        if system.parameters["chosen"] == stack.MAX_OUT:
            return _deciding(system, weights.candidates(probability)[:, 0], unit)
        modalities = [one.modality for one in system.input_systems]
        values, rest = of_stack(weights, probability[:, 0], modalities)
    elif isinstance(system, Fused):
        unit, answers = "probability", probability[:, 0]
        if system.parameters["rule"] == "max":
            return _deciding(system, answers, unit)
        values, rest = np.nan_to_num(answers) / np.count_nonzero(~np.isnan(answers)), 0.0
    else:
        return None
    names = tuple(one.name for one in system.input_systems)
    return Contribution("systems", EXACT, unit, np.asarray(values, float), names=names, rest=rest)


def _deciding(system: System, candidates: np.ndarray, unit: str) -> Contribution:
    """All for the highest of (k,) candidates, NaN for inputs that are not among them."""
    values = np.zeros(len(candidates))
    best = int(np.nanargmax(candidates))
    values[best] = candidates[best]
    names = tuple(one.name for one in system.input_systems)
    return Contribution("systems", DECIDES, unit, values, names=names, rest=0.0)


def of_stack(
    weights: Weights, probability: np.ndarray, modalities: Sequence[str]
) -> tuple[np.ndarray, float]:
    """(k,) shares of the inputs in the log-odds of the regression, and the rest.

    probability: (k,), NaN = no answer, some answer.
    """
    k = len(probability)
    largest, mean, *others = weights.coefficients
    own, products = others[:k], others[k : k + k * (k - 1) // 2]
    there = ~np.isnan(probability)
    z = np.nan_to_num(stack.standardised(probability[:, None], weights.mean, weights.spread)[:, 0])
    values = np.asarray(own) * z + mean * z / there.sum()
    for (i, j), weight in zip(itertools.combinations(range(k), 2), products):
        values[[i, j]] += weight * z[i] * z[j] / 2
    log_odds = weights.calibrated(probability[:, None])[:, 0]
    groups = [np.equal(modalities, one) & there for one in dict.fromkeys(modalities)]
    groups = [group for group in groups if group.any()]
    means = np.array([log_odds[group].mean() for group in groups])
    share = softmax(means)
    for group, part in zip(groups, share):
        values[group] += largest * part * log_odds[group] / group.sum()
    features = weights.features(probability[:, None], modalities)[0]
    rest = float(features @ weights.coefficients + weights.intercept - values.sum())
    return values, rest


def of_linear(system: Linear, sources: Sequence[FrameFile], file: str) -> list[Contribution]:
    """The contributions of a linear fusion over systems, in the frames that decide the clip's
    score, and over systems and time; [] for a clip that no input has frames of.
    """
    rule = Rule.from_system(system)
    found = align.aligned(sources, rule.columns, [file], hold_s=rule.hold_s)
    if not len(found.values):
        return []
    weight = rule.weight[1] - rule.weight[0]
    base = float(rule.means @ weight + rule.bias[1] - rule.bias[0])
    terms = np.nan_to_num(found.values - rule.means) * weight
    ends = np.cumsum([len(columns) for columns in rule.columns])[:-1]
    shares = np.stack([part.sum(axis=1) for part in np.split(terms, ends, axis=1)], axis=1)
    score = shares.sum(axis=1) + base
    rows = [int(score.argmax())]
    if rule.aggregate == "top":
        rows = top_rows(score, np.array([0, len(score)]))[0]
    names = tuple(one.name for one in system.input_systems)
    start, end = found.frame_times()
    edges = np.append(start, end[-1])
    return [
        Contribution(
            "systems", EXACT, "log-odds", shares[rows].mean(axis=0), names=names, rest=base
        ),
        Contribution("systems over time", EXACT, "log-odds", shares, edges, names, base),
    ]


def modality_probabilities(system: System, scores: Sequence[ScoreFile]) -> dict[str, float]:
    """What the inputs of a fusion say by modality: {audio, visual or both: probability of fake},
    NaN without an answer.

    That is the highest of a maximum, the mean calibrated log-odds of a stack, else the mean.
    """
    probability = stack.probabilities(scores)[:, 0]
    modalities = [one.modality for one in system.input_systems]
    if isinstance(system, Stack):
        probability = Weights.from_system(system).calibrated(probability[:, None])[:, 0]
    found = {}
    for modality in dict.fromkeys(modalities):
        own = probability[np.equal(modalities, modality)]
        own = own[~np.isnan(own)]
        if not len(own):
            found[modality] = np.nan
        elif isinstance(system, Stack):
            found[modality] = float(expit(own.mean()))
        else:
            highest = system.parameters.get("rule") == "max"
            found[modality] = float(own.max() if highest else own.mean())
    return found
