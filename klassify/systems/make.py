"""Make derived systems: the calibration of one, the fusion of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from klassify.errors import KlassifyError
from klassify.lists import subsets
from klassify.settings import file_hash, settings_hash
from klassify.systems.calibrated import Fit, fit, label_name
from klassify.systems.fused import check_scale, default_prior
from klassify.systems.system import System, derived_system, made_before, write_system


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
