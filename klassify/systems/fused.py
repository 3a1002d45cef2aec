"""Fusion of clip scores: max-out and mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError
from klassify.scores.score_file import ScoreFile, align
from klassify.systems.scores import answered, as_probability, prior_probability
from klassify.systems.system import FRAMES_RULE, System, choice, number

LINEAR = FRAMES_RULE


def _mean(probability: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    there = ~np.isnan(probability)
    with np.errstate(invalid="ignore"):
        return np.where(there, probability, 0).sum(axis=0) / there.sum(axis=0)


def _max(probability: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    return np.fmax.reduce(probability, axis=0)


@dataclasses.dataclass(frozen=True)
class Rule:
    """How inputs become one score.

    combine: (inputs, clips) probabilities, NaN = no answer, and the fusion's parameters ->
    (clips,), NaN only where no input answers. scales: those of input scores that the rule takes.
    """

    combine: Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]
    scales: tuple[str, ...]


LINEAR_OPTIONS = (
    "labels",
    "label",
    "supervision",
    "solver",
    "epochs",
    "seed",
    "weights",
    "resolutions",
    "hold",
    "aggregate",
    "scores_split",
    "subset",
    "report",
)
RULES = {"max": Rule(_max, ("probability",)), "mean": Rule(_mean, ("probability", "log_odds"))}


def default_prior(rule: str, inputs: Sequence[System]) -> float:
    """What the rule makes of the probabilities that the inputs give to a clip they know nothing
    of.
    """
    priors = np.array([[prior_probability(system)] for system in inputs])
    return float(RULES[rule].combine(priors, {})[0])


def _check_scale(rule: str, name: str, scale: str) -> None:
    if scale not in RULES[rule].scales:
        raise KlassifyError(
            f"The rule {rule} takes {' or '.join(RULES[rule].scales)} scores; those of {name} are"
            f" {scale}.",
            fix=f"calibrate {name} first: klassify calibrate",
        )


def apply(system: System, inputs: Sequence[ScoreFile]) -> pd.DataFrame:
    """The fused clip table: file start end score answered reason; every clip has a score.

    The inputs must cover the same clips; they are joined by name, in the order of the first.
    """
    rule, prior = choice(system, "rule", RULES), number(system, "prior")
    files = inputs[0].table["file"].tolist()
    probabilities, reasons = [], []
    for scores in inputs:
        _check_scale(rule, scores.header.system, scores.header.scale)
        scores = ScoreFile(
            scores.header, align(scores, files, where=f"{system.name}: {scores.header.system}")
        )
        has_answer = answered(scores)
        probabilities.append(np.where(has_answer, as_probability(scores), np.nan))
        why = (
            scores.table["reason"].fillna("")
            if "reason" in scores.table
            else pd.Series("", index=scores.table.index)
        )
        reasons.append(
            [
                f"{scores.header.system}: {text}" if not ok else ""
                for ok, text in zip(has_answer, why)
            ]
        )
    fused = RULES[rule].combine(np.stack(probabilities), system.parameters)
    first = inputs[0].table
    return pd.DataFrame(
        {
            "file": files,
            "start": first["start"].to_numpy(),
            "end": first["end"].to_numpy(),
            "score": np.where(np.isnan(fused), prior, fused),
            "answered": (~np.isnan(probabilities)).sum(axis=0),
            "reason": ["; ".join(filter(None, clip)) for clip in zip(*reasons)],
        }
    )
