"""Scores as probabilities of fake, and which clips have an answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from klassify.errors import KlassifyError
from klassify.scores.score_file import ScoreFile, align
from klassify.systems.base import System

PROPOSALS = "proposals.yaml"


def as_probability(scores: ScoreFile) -> np.ndarray:
    """Clip scores as probabilities of fake, NaN where there is no answer; see `to_probability`."""
    return to_probability(
        scores.table["score"].to_numpy(float), scores.header.scale, where=scores.header.system
    )


def to_probability(score: np.ndarray, scale: str, *, where: object = None) -> np.ndarray:
    """Scores on a scale as probabilities of fake in [0, 1], in the same order; log-odds go through
    a sigmoid.

    A cosine score, fake minus real, becomes (1 + score) / 2, clipped to [0, 1]: the P2SGrad loss is
    the squared distance of both cosines to 0 and 1, whose minimum is the class's probability, so
    the difference estimates 2 p - 1. It is not a calibrated probability (`klassify calibrate` makes
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
        f"Scores of the scale {scale} do not convert to probabilities.", where=where
    )


def answered(scores: ScoreFile) -> np.ndarray:
    """(n,) bool: clips with an answer from evidence, not empty and not a fusion's prior."""
    table = scores.table
    has_evidence = table["answered"].to_numpy() > 0 if "answered" in table else True
    return table["score"].notna().to_numpy() & has_evidence


def listed(scores: ScoreFile, files: Sequence[str], *, where: object) -> ScoreFile:
    """The clip scores of a list, in its order; the list may be a part of what was scored."""
    own = ScoreFile(scores.header, scores.table[scores.table["file"].isin(files)])
    return ScoreFile(scores.header, align(own, files, where=where))


def scores_of(system: System, split: str, files: Sequence[str]) -> ScoreFile:
    """`listed` clip scores of a system."""
    return listed(system.clip_scores(split), files, where=system.folder)
