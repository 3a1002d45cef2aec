"""Fusion of clip scores: max-out and mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError
from klassify.scores.score_file import ScoreFile, align, joined_shares
from klassify.systems.base import Derived, System, derived_system, made_before, write_system
from klassify.systems.scores import answered, as_probability


def _mean(probability: np.ndarray) -> np.ndarray:
    there = ~np.isnan(probability)
    with np.errstate(invalid="ignore"):
        return np.where(there, probability, 0).sum(axis=0) / there.sum(axis=0)


def _max(probability: np.ndarray) -> np.ndarray:
    return np.fmax.reduce(probability, axis=0)


@dataclasses.dataclass(frozen=True)
class Rule:
    """How inputs become one score.

    combine: (inputs, clips) probabilities, NaN = no answer -> (clips,), NaN only where no input
    answers. scales: of the input scores that the rule takes.
    """

    combine: Callable[[np.ndarray], np.ndarray]
    scales: tuple[str, ...]


RULES = {"max": Rule(_max, ("probability",)), "mean": Rule(_mean, ("probability", "log_odds"))}


def default_prior(rule: str, inputs: Sequence[System]) -> float:
    """The rule applied to the inputs' own priors."""
    priors = np.array([[system.prior] for system in inputs])
    return float(RULES[rule].combine(priors)[0])


def check_scale(rule: str, name: str, scale: str) -> None:
    """KlassifyError unless the rule takes scores of this scale."""
    if scale not in RULES[rule].scales:
        raise KlassifyError(
            f"The rule {rule} takes {' or '.join(RULES[rule].scales)} scores; those of {name} are"
            f" {scale}.",
            fix=f"calibrate {name} first: klassify calibrate",
        )


def apply(inputs: Sequence[ScoreFile], rule: str, prior: float, name: str) -> pd.DataFrame:
    """The fused clip table: file start end score answered reason seen heard; every clip has a
    score.

    The inputs must cover the same clips; they are joined by name, in the order of the first. name:
    of the fusion, for messages.
    """
    files = inputs[0].table["file"].tolist()
    probabilities, reasons, tables = [], [], []
    for scores in inputs:
        check_scale(rule, scores.header.system, scores.header.scale)
        where = f"{name}: {scores.header.system}"
        scores = ScoreFile(scores.header, align(scores, files, where=where))
        tables.append(scores.table)
        has_answer = answered(scores)
        probabilities.append(np.where(has_answer, as_probability(scores), np.nan))
        reasons.append(input_reasons(scores.header.system, scores.table, has_answer))
    fused = RULES[rule].combine(np.stack(probabilities))
    first = inputs[0].table
    return pd.DataFrame(
        {
            "file": files,
            "start": first["start"].to_numpy(),
            "end": first["end"].to_numpy(),
            "score": np.where(np.isnan(fused), prior, fused),
            "answered": (~np.isnan(probabilities)).sum(axis=0),
            "reason": ["; ".join(filter(None, clip)) for clip in zip(*reasons)],
            **joined_shares(tables),
        }
    )


def input_reasons(
    name: str, table: pd.DataFrame, has_answer: Iterable[bool], default: str = ""
) -> list[str]:
    """Why an input has no answer, `name: reason` for each clip of its table; '' where it has."""
    reasons = table["reason"].fillna("") if "reason" in table else [""] * len(table)
    return ["" if ok else f"{name}: {reason or default}" for ok, reason in zip(has_answer, reasons)]


class Fused(Derived):
    """A fusion of clip scores by one of the RULES."""

    def clip_table(self, inputs: Sequence[ScoreFile]) -> pd.DataFrame:
        """The fused clip table from the inputs' clip scores."""
        return apply(inputs, self.choice("rule", RULES), self.number("prior"), self.name)

    def deciding(self, scores: Mapping[str, ScoreFile]) -> list[str]:
        """Of a maximum the input with the highest probability, of a mean all."""
        if self.parameters.get("rule") != "max" or not scores:
            return list(scores)
        return [max(scores, key=lambda name: as_probability(scores[name])[0])]


def fuse(
    out: Path,
    inputs: Sequence[System],
    rule: str,
    *,
    prior: float | None = None,
    force: bool = False,
) -> System | None:
    """Write the folder of a fusion of clip scores; None if it is up to date.

    rule: of klassify.systems.fused.RULES. prior: None: the rule applied to the inputs' priors.
    """
    for system in inputs:
        check_scale(rule, system.name, system.scale)
    prior = default_prior(rule, inputs) if prior is None else prior
    made_with = {"inputs": [system.hash for system in inputs], "rule": rule, "prior": prior}
    if made_before(out, made_with, force=force):
        return None
    parameters = {"rule": rule, "prior": prior, "made_with": made_with}
    fusion = derived_system(out, "fusion", inputs, "probability", parameters)
    write_system(out, fusion)
    return fusion


def check_inputs(out: Path, inputs: Sequence[Path], least: int = 2) -> None:
    """KlassifyError unless `inputs` are different folders, at least so many, none of them `out`."""
    folders = {path.resolve() for path in inputs}
    if len(folders) < max(least, len(inputs)) or out.resolve() in folders:
        few = "two or more different systems" if least == 2 else "different systems"
        raise KlassifyError(f"A fusion needs {few} and a folder of its own.", where=out)
