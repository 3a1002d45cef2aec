"""Perturbations of sound and picture together: those that cut or move time, and re-encoding."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from klassify.media.decoder import GRID_FPS

MOST_CUT = 0.25  # of a clip, at each end
T = TypeVar("T")


def same(content: T, value: float, rng: np.random.Generator) -> T:
    """The content itself: what changes it is its encoding, or a cut."""
    return content


def cut_s(milliseconds: float, duration: float) -> float:
    """Seconds to cut from each end of a clip: whole frames, at most a quarter of the clip."""
    frames = min(milliseconds / 1000, duration * MOST_CUT) * GRID_FPS
    return int(frames + 1e-6) / GRID_FPS
