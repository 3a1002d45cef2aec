"""Platt scaling of a system: fitted on val_fit, applied to its clip scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from klassify.errors import KlassifyError, first_few
from klassify.lists import subsets
from klassify.metrics import clips
from klassify.scores.score_file import SHARES, ScoreFile
from klassify.settings import file_hash, settings_hash
from klassify.systems.base import Derived, System, derived_system, made_before, write_system
from klassify.systems.scores import answered, as_probability

INPUTS = ("probability", "log_odds")
MAX_NEWTON_STEPS = 100


def label_name(choice: str, system: System) -> str:
    """The label that `--label own|video` means for a system, see klassify.lists.subsets.label."""
    return "video" if choice == "video" else system.own_label


@dataclasses.dataclass(frozen=True)
class Fit:
    """A calibration and its quality on the n clips of the fit; log-loss in nats."""

    a: float
    b: float
    input: str
    n: int
    n_fake: int
    n_no_answer: int
    base_rate: float
    auc: float
    log_loss_before: float
    log_loss_after: float
    warnings: list[str]


def fit(
    scores: ScoreFile,
    files: Sequence[str],
    label: np.ndarray,
    *,
    input: str = "probability",
    smooth_targets: bool = True,
) -> Fit:
    """Fit Platt scaling on the clips `files` with labels (n,), 1 = fake.

    Clips without an answer are left out and counted. Raises KlassifyError if a clip is not in the
    scores, or if only one class remains.
    """
    files, label = list(files), np.asarray(label)
    row = pd.Index(scores.table["file"]).get_indexer(files)
    if (row < 0).any():
        missing = [file for file, at in zip(files, row) if at < 0]
        raise KlassifyError(
            f"{len(missing)} clips to fit on have no score: {first_few(missing)}.",
            where=scores.header.system,
        )
    has_answer = answered(scores)[row]
    row, label = row[has_answer], label[has_answer]
    s, probability = platt_input(scores, input)[row], as_probability(scores)[row]
    n_fake = int(label.sum())
    if n_fake in (0, len(label)):
        raise KlassifyError(
            f"Calibration needs real and fake clips; of {len(label)} clips with an answer {n_fake}"
            " are fake.",
            where=scores.header.system,
            fix="fit on more clips, or check the labels",
        )
    a, b = platt(s, label, smooth_targets=smooth_targets)
    calibrated = expit(-(a * s + b))
    auc = clips.roc_auc(label, scores.table["score"].to_numpy(float)[row])
    return Fit(
        a=a,
        b=b,
        input=input,
        n=len(label),
        n_fake=n_fake,
        n_no_answer=int((~has_answer).sum()),
        base_rate=n_fake / len(label),
        auc=auc,
        log_loss_before=clips.log_loss(label, probability),
        log_loss_after=clips.log_loss(label, calibrated),
        warnings=_warnings(a, auc, clips.roc_auc(label, np.round(calibrated, 9))),
    )


def _warnings(a: float, auc: float, auc_after: float) -> list[str]:
    if a > 0 or auc < 0.5:
        turned = "; this calibration reverses their order" if a > 0 else ""
        return [
            f"scores look inverted (a {a:.4g}, AUC {auc:.4f} on the fit); higher must mean more"
            f" fake{turned}"
        ]
    if auc_after < auc - 0.001:
        return [
            f"probabilities tie at nine digits (AUC {auc:.4f} -> {auc_after:.4f}): try --input"
            " log_odds"
        ]
    return []


def platt(s: np.ndarray, label: np.ndarray, *, smooth_targets: bool = True) -> tuple[float, float]:
    """a and b of p = 1 / (1 + exp(a s + b)) at the greatest likelihood, without regularisation.

    Newton's method with step halving on standardised s (the problem is convex). With hard targets,
    scores that separate the classes have no finite solution: KlassifyError. Equal scores give a =
    0.
    """
    s, label = np.asarray(s, dtype=float), np.asarray(label)
    real, fake = s[label != 1], s[label == 1]
    if (
        not smooth_targets
        and s.min() < s.max()
        and (real.max() <= fake.min() or fake.max() <= real.min())
    ):
        raise KlassifyError(
            f"The scores of the {len(s)} clips separate the classes, so a has no finite value.",
            fix="leave --smooth-targets on",
        )
    target = (label == 1).astype(float)
    if smooth_targets:
        target = np.where(label == 1, (len(fake) + 1) / (len(fake) + 2), 1 / (len(real) + 2))
    mean, spread = s.mean(), s.std()
    if spread == 0 or s.min() == s.max():
        return 0.0, float(-logit(target.mean()))
    slope, offset = _newton((s - mean) / spread, target)
    return float(slope / spread), float(offset - slope * mean / spread)


def _newton(x: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Minimise the mean of log(1 + exp(z)) - (1 - target) z over z = theta[0] x + theta[1]."""
    design = np.stack([x, np.ones_like(x)], axis=1)

    def loss(theta: np.ndarray) -> float:
        z = design @ theta
        return float(np.mean(np.logaddexp(0, z) - (1 - target) * z))

    theta = np.array([0.0, -logit(target.mean())])
    for _ in range(MAX_NEWTON_STEPS):
        q = expit(design @ theta)  # probability of real
        gradient = design.T @ (q - (1 - target)) / len(x)
        hessian = (design * (q * (1 - q))[:, None]).T @ design / len(x)
        step = np.linalg.solve(hessian + 1e-12 * np.eye(2), gradient)
        limit = loss(theta) + 1e-13  # rounding must not stop the last full steps
        while loss(theta - step) > limit:
            step = step / 2
        theta = theta - step
        if np.abs(step).max() < 1e-10:
            break
    return theta


def platt_input(scores: ScoreFile, input: str) -> np.ndarray:
    """(n,) what a calibration with this `input` takes of clip scores."""
    probability = as_probability(scores)
    if input == "probability":
        return probability
    if scores.header.scale == "log_odds":
        return scores.table["score"].to_numpy(float)
    return clips.log_odds(probability)


def apply(scores: ScoreFile, a: float, b: float, input: str) -> pd.DataFrame:
    """The calibrated clip table, with the same rows."""
    table = scores.table.assign(score=expit(-(a * platt_input(scores, input) + b)))
    if "reason" not in table:
        table["reason"] = ""
    names = ("file", "start", "end", "score", "answered", "reason", *SHARES)
    return table[[name for name in names if name in table]]


class Calibrated(Derived):
    """A system whose scores are another's after Platt scaling."""

    def clip_table(self, inputs: Sequence[ScoreFile]) -> pd.DataFrame:
        """The calibrated clip table from the input's clip scores."""
        (scores,) = inputs
        a, b = self.number("a"), self.number("b")
        return apply(scores, a, b, self.choice("input", INPUTS))


def calibrate(
    out: Path,
    system: System,
    labels: Path,
    *,
    scores_split: str = "val",
    subset: str = "val_fit",
    label: str = "own",
    input: str = "probability",
    smooth_targets: bool = True,
    force: bool = False,
) -> Fit | None:
    """Fit Platt scaling of a system on a labelled subset and write its folder; None if it is up to
    date. See klassify.systems.calibrated.fit.
    """
    if out.resolve() == system.folder.resolve():
        raise KlassifyError("A calibrated system needs a folder of its own.", where=out)
    scores = system.clip_scores(scores_split)
    frame = subsets.load_split(labels, subset)
    is_fake = subsets.label(frame, label_name(label, system))
    made_with = {
        "input_system": system.hash,
        "scores": file_hash(system.path(scores_split, "clips")),
        "labels": settings_hash(dict(zip(frame["file"], is_fake.tolist()))),
        "subset": subset,
        "label": label,
        "input": input,
        "smooth_targets": smooth_targets,
    }
    if made_before(out, made_with, force=force):
        return None
    fitted = fit(scores, frame["file"], is_fake, input=input, smooth_targets=smooth_targets)
    parameters = {**dataclasses.asdict(fitted), "label": label, "made_with": made_with}
    parameters["fit_hash"] = settings_hash(made_with)
    write_system(out, derived_system(out, "calibrated", [system], "probability", parameters))
    return fitted
