"""Join systems at the score level: max-out of calibrated probabilities, or their mean.

    klassify fuse exp/demo/klassify/{w2v_aasist_platt,tcn_platt} --out exp/demo/klassify/maxout --rule max

`max` is paper 1's decision (section 4.1): a clip is as fake as its more suspicious modality. It wants
calibrated probabilities, else the louder system wins. `mean` also takes log-odds, through a sigmoid:
Table 2's AVG row. A clip that one input has no answer for is answered by the others; one that no input
answers gets the prior: `--prior`, or what the rule makes of the inputs' base rates in calibration (0.5
where there is none). The column `answered` counts the inputs that answered, `reason` says why others did not.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify import systems
from klassify.errors import KlassifyError
from klassify.files import already_done
from klassify.scorefile import ScoreFile, align


def _mean(probability: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    there = ~np.isnan(probability)
    with np.errstate(invalid="ignore"):
        return np.where(there, probability, 0).sum(axis=0) / there.sum(axis=0)


def _max(probability: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    return np.fmax.reduce(probability, axis=0)


@dataclasses.dataclass(frozen=True)
class Rule:
    """How inputs become one score.

    combine: (inputs, clips) probabilities, NaN = no answer, and the fusion's parameters -> (clips,), NaN
    only where no input answers. scales: those of input scores that the rule takes.
    """

    combine: Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]
    scales: tuple[str, ...]


RULES = {"max": Rule(_max, ("probability",)), "mean": Rule(_mean, ("probability", "log_odds"))}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", type=Path, metavar="SYSTEM_DIR", help="the systems to join")
    parser.add_argument("--out", type=Path, required=True, help="folder of the fusion")
    parser.add_argument("--rule", choices=RULES, required=True)
    parser.add_argument("--prior", type=float, help="probability of a clip that no input answers for")
    parser.add_argument("--force", action="store_true", help="replace a fusion of something else")


def run(args: argparse.Namespace) -> int:
    folders = [path.resolve() for path in args.inputs]
    if len(set(folders)) < 2 or len(set(folders)) < len(folders) or args.out.resolve() in folders:
        raise KlassifyError("A fusion joins two or more different systems in a folder of its own.", where=args.out)
    inputs = [systems.load_system(folder) for folder in args.inputs]
    for system in inputs:
        _check_scale(args.rule, system.name, system.scale)
    if args.prior is not None and not 0 <= args.prior <= 1:
        raise KlassifyError(f"--prior is a probability, not {args.prior}.")
    prior = default_prior(args.rule, inputs) if args.prior is None else args.prior
    made_with = {
        "inputs": [systems.system_hash(folder) for folder in args.inputs], "rule": args.rule, "prior": prior,
    }  # fmt: skip
    path = args.out / systems.SYSTEM
    before = systems.load_system(args.out).parameters.get("made_with") if path.exists() else None
    if already_done(path, before, made_with, force=args.force):
        print(f"{path} is up to date")
        return 0
    parameters = {"rule": args.rule, "prior": prior, "made_with": made_with}
    system = systems.derived_system(args.out, "fusion", args.inputs, "probability", parameters)
    systems.write_system(args.out, system)
    print(f"{system.name}: {args.rule} of {', '.join(s.name for s in inputs)}, prior {prior:.4g}")
    return 0


def default_prior(rule: str, inputs: Sequence[systems.System]) -> float:
    """What the rule makes of the probabilities that the inputs give to a clip they know nothing of."""
    priors = np.array([[systems.prior_probability(system)] for system in inputs])
    return float(RULES[rule].combine(priors, {})[0])


def _check_scale(rule: str, name: str, scale: str) -> None:
    if scale not in RULES[rule].scales:
        raise KlassifyError(
            f"The rule {rule} takes {' or '.join(RULES[rule].scales)} scores; those of {name} are {scale}.",
            mend=f"calibrate {name} first: klassify calibrate",
        )


def apply(system: systems.System, inputs: Sequence[ScoreFile]) -> pd.DataFrame:
    """The fused clip table: file start end score answered reason; every clip has a score.

    The inputs must cover the same clips; they are joined by name, in the order of the first.
    """
    rule, prior = system.parameters["rule"], system.parameters["prior"]
    files = inputs[0].table["file"].tolist()
    probabilities, reasons = [], []
    for scores in inputs:
        _check_scale(rule, scores.header.system, scores.header.scale)
        scores = ScoreFile(scores.header, align(scores, files, where=f"{system.name}: {scores.header.system}"))
        has_answer = systems.answered(scores)
        probabilities.append(np.where(has_answer, systems.as_probability(scores), np.nan))
        why = scores.table["reason"].fillna("") if "reason" in scores.table else pd.Series("", index=scores.table.index)
        reasons.append([f"{scores.header.system}: {text}" if not ok else "" for ok, text in zip(has_answer, why)])
    fused = RULES[rule].combine(np.stack(probabilities), system.parameters)
    first = inputs[0].table
    return pd.DataFrame({
        "file": files, "start": first["start"].to_numpy(), "end": first["end"].to_numpy(),
        "score": np.where(np.isnan(fused), prior, fused),
        "answered": (~np.isnan(probabilities)).sum(axis=0),
        "reason": ["; ".join(filter(None, clip)) for clip in zip(*reasons)],
    })  # fmt: skip
