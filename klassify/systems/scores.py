"""A system's own scores; stale ones are refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from scipy.special import expit

from klassify.errors import KlassifyError
from klassify.scores.score_file import ScoreFile, read_header, read_scores, score_path
from klassify.systems.system import (
    FRAMES_RULE,
    PROPOSALS_RULE,
    System,
    load_system,
    number,
    system_hash,
)

PROPOSALS = "proposals.yaml"


def segment_scores(folder: Path, split: str) -> ScoreFile:
    """A system's proposals; missing ones, or ones of an older state of it, are refused with the
    command.
    """
    path, command = (
        score_path(folder, split, "segments"),
        f"klassify localise {folder} --split {split}",
    )
    if not path.exists():
        raise KlassifyError(f"{folder.name} has no proposals for {split}.", where=path, fix=command)
    refuse_older(folder, path, command)
    return read_scores(path)


# ------------------------------------------------------------------------------ merged systems


def is_merged(system: System) -> bool:
    """Whether a system joins the proposals of others."""
    return system.parameters.get("rule") == PROPOSALS_RULE


def clip_scores(folder: str | os.PathLike, split: str) -> ScoreFile:
    """A system's clip scores; missing ones, or ones of an older state of it, are refused with
    the command.
    """
    path, command = score_path(folder, split, "clips"), f"klassify score {folder} --split {split}"
    system = load_system(folder)
    if system.kind == "model":
        command += " --lists ... --media ... --features ..."
    if not path.exists():
        raise KlassifyError(
            f"{system.name} has no clip scores for {split}.", where=path, fix=command
        )
    scores = read_scores(path)
    made_with = scores.header.settings.get("system")
    if made_with is not None and made_with != system_hash(folder):
        raise KlassifyError(
            f"{system.name} has changed since it scored {split}.",
            where=path,
            fix=f"{command} --force",
        )
    return scores


def frames_path(folder: str | os.PathLike, split: str) -> Path:
    """A system's frame scores; KlassifyError where it has none, or they are missing or of an
    older state of it.
    """
    system, path = load_system(folder), score_path(folder, split, "frames")
    command = f"klassify score {folder} --split {split}"
    if system.kind == "model":
        command += " --lists ... --media ... --features ..."
    elif system.parameters.get("rule") != FRAMES_RULE:
        raise KlassifyError(
            f"{system.name} is a {system.kind} and has no frame scores.", where=folder
        )
    if not path.exists():
        raise KlassifyError(
            f"{system.name} has no frame scores for {split}.", where=path, fix=command
        )
    refuse_older(folder, path, command)
    return path


def refuse_older(folder: str | os.PathLike, path: Path, command: str) -> None:
    """Raise KlassifyError for a score file that an older state of the system made."""
    made_with = read_header(path).settings.get("system")
    if made_with is not None and made_with != system_hash(folder):
        raise KlassifyError(
            f"{Path(folder).name} has changed since it made these scores.",
            where=path,
            fix=f"{command} --force",
        )


def as_probability(scores: ScoreFile) -> np.ndarray:
    """Clip scores as probabilities of fake, NaN where there is no answer; see `to_probability`."""
    return to_probability(
        scores.table["score"].to_numpy(float), scores.header.scale, where=scores.header.system
    )


def to_probability(score: np.ndarray, scale: str, *, where: object = None) -> np.ndarray:
    """Scores on a scale as probabilities of fake in [0, 1], in the same order; log-odds go through
    a sigmoid.

    A cosine score, fake minus real, becomes (1 + score) / 2, cut to [0, 1]: the P2SGrad loss is the
    squared distance of both cosines to 0 and 1, whose minimum is the class's probability, so that
    the difference estimates 2 p - 1. It is no calibrated probability (`klassify calibrate` makes
    one of it).
    """
    score = np.asarray(score, float)
    if scale == "probability":
        return score
    if scale == "log_odds":
        return expit(score)
    if scale == "cosine":
        return np.clip((1 + score) / 2, 0, 1)
    raise KlassifyError(
        f"These scores are a {scale}, which says nothing of probabilities.", where=where
    )


def answered(scores: ScoreFile) -> np.ndarray:
    """(n,) bool: clips with an answer from evidence, neither empty nor filled with a fusion's
    prior.
    """
    table = scores.table
    has_evidence = table["answered"].to_numpy() > 0 if "answered" in table else True
    return table["score"].notna().to_numpy() & has_evidence


def prior_probability(system: System) -> float:
    """What stands for a clip without an answer: a fusion's prior, a calibration's base rate,
    else 0.5.
    """
    return number(system, "prior" if "prior" in system.parameters else "base_rate", 0.5)
