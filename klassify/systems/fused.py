"""Fusion of clip scores: max-out and mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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


@dataclasses.dataclass(frozen=True)
class Rule:
    """How inputs become one score.

    combine: (inputs, clips) probabilities, NaN = no answer -> (clips,), NaN only where no input
    answers. scales: of the input scores that the rule takes.
    """

    combine: Callable[[np.ndarray], np.ndarray]
    scales: tuple[str, ...]


RULES = {
    "max": Rule(np.fmax.reduce, ("probability",)),
    "mean": Rule(_mean, ("probability", "log_odds")),
}


def check_scale(rule: str, name: str, scale: str) -> None:
    """KlassifyError unless the rule takes scores of this scale."""
    if scale not in RULES[rule].scales:
        raise KlassifyError(
            f"The rule {rule} takes {' or '.join(RULES[rule].scales)} scores; those of {name} are"
            f" {scale}.",
            fix=f"calibrate {name} first: klassify calibrate",
        )


def in_one_order(inputs: Sequence[ScoreFile], name: str) -> list[ScoreFile]:
    """The inputs of the fusion `name`, joined by the clips' names, in the order of the first.

    KlassifyError where they do not cover the same clips.
    """
    files = inputs[0].table["file"].tolist()
    return [
        ScoreFile(one.header, align(one, files, where=f"{name}: {one.header.system}"))
        for one in inputs
    ]


def probabilities(scores: Sequence[ScoreFile]) -> np.ndarray:
    """(k, n) probabilities of fake of k inputs with the same clips, NaN = no answer."""
    return np.stack([np.where(answered(one), as_probability(one), np.nan) for one in scores])


def fused_table(
    inputs: Sequence[ScoreFile], score: np.ndarray, has_answer: np.ndarray, default: str = ""
) -> pd.DataFrame:
    """The clip table of a fusion: file start end score answered reason seen heard.

    inputs: k, with the same clips in one order. score: (n,). has_answer: (k, n) which inputs
    answered; the others' reasons are joined, `default` where an input gives none.
    """
    reasons = []
    for one, there in zip(inputs, has_answer):
        name, table = one.header.system, one.table
        own = table["reason"].fillna("") if "reason" in table else [""] * len(table)
        told = [f"{name}: {(why or default).rstrip('.')}" for why in own]
        reasons.append(["" if ok else why for ok, why in zip(there, told)])
    return (
        inputs[0]
        .table[["file", "start", "end"]]
        .assign(
            score=score,
            answered=has_answer.sum(axis=0),
            reason=["; ".join(filter(None, clip)) for clip in zip(*reasons)],
            **joined_shares([one.table for one in inputs]),
        )
    )


class Fused(Derived):
    """A fusion of clip scores by one of the RULES."""

    def clip_table(self, inputs: Sequence[ScoreFile]) -> pd.DataFrame:
        """The fused clip table from the inputs' clip scores; every clip has a score."""
        rule, prior = self.choice("rule", RULES), self.number("prior")
        for scores in inputs:
            check_scale(rule, scores.header.system, scores.header.scale)
        inputs = in_one_order(inputs, self.name)
        probability = probabilities(inputs)
        score = RULES[rule].combine(probability)
        score = np.where(np.isnan(score), prior, score)
        return fused_table(inputs, score, ~np.isnan(probability))

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
    if prior is None:
        prior = float(RULES[rule].combine(np.array([[system.prior] for system in inputs]))[0])
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
