"""Scores of the systems that are computed from others: calibrated ones and fusions, pure
functions of their inputs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pandas as pd

from klassify import calibrate, fuse, systems
from klassify.errors import KlassifyError
from klassify.files import already_done, settings_hash
from klassify.frame_fusion import derive_frames
from klassify.scorefile import Header, ScoreFile, made_with, read_scores, score_path, write_scores

APPLY = {"calibrated": calibrate.apply, "fusion": fuse.apply}


def derive(system: systems.System, inputs: Sequence[ScoreFile]) -> pd.DataFrame:
    """The clip table of a calibrated or fused system from its inputs' clip scores."""
    return APPLY[system.kind](system, inputs)


def derive_scores(folder: str | os.PathLike, split: str, *, force: bool = False) -> ScoreFile:
    """Compute and write a derived system's clip scores, or keep them where nothing has changed."""
    system = systems.load_system(folder)
    if system.parameters.get("rule") == systems.PROPOSALS_RULE:
        raise KlassifyError(
            f"{system.name} joins proposals and has no clip scores.",
            where=folder,
            fix=f"klassify localise {folder} --split {split}",
        )
    if system.parameters.get("rule") == systems.FRAMES_RULE:
        return derive_frames(folder, split, force=force)
    path = score_path(folder, split, "clips")
    inputs = [
        systems.clip_scores(input_folder, split) for input_folder in systems.input_folders(folder)
    ]
    made_from = [
        f"{scores.header.system} {settings_hash(scores.header.settings)}" for scores in inputs
    ]
    settings = {"system": systems.system_hash(folder), "inputs": made_from}
    if not already_done(path, made_with(path), settings, force=force):
        header = Header(system.name, split, "clips", system.scale, system.supervision, settings)
        write_scores(path, derive(system, inputs), header)
    return read_scores(path)
