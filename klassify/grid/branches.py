"""Each branch onto the 40 ms grid: LMM states, visual windows, PartialSpoof scores."""

from __future__ import annotations

import numpy as np

from klassify.errors import KlassifyError
from klassify.grid import windows

GRID_MS = 40
LMM_RULES = ("nearest", "floor")


# ------------------------------------------------------------------------------ of one branch


def lmm_of_windows(
    starts: np.ndarray, size: int, sampled: np.ndarray, rule: str = "nearest"
) -> np.ndarray:
    """Which LMM state each window uses: (W,) indices into `sampled`, all -1 where there is no
    state.

    starts: (W,) first frames of windows of `size` frames. sampled: (n,) frames that have a state,
    ascending. "nearest" takes the one nearest to the window's centre frame (the frame its score is
    given to), the earlier of two that are equally near (multi-branch paper, figure 3); "floor" the
    last one at or before the window's start, as the published code does.
    """
    starts, sampled = np.asarray(starts), np.asarray(sampled)
    if rule not in LMM_RULES:
        raise KlassifyError(
            f"{rule!r} is not a rule for LMM states; there are {', '.join(LMM_RULES)}."
        )
    if not len(sampled):
        return np.full(len(starts), -1)
    if rule == "floor":
        return np.maximum(np.searchsorted(sampled, starts, side="right") - 1, 0)
    return np.searchsorted((sampled[:-1] + sampled[1:]) / 2, starts + size // 2, side="left")


def windows_on_grid(values: np.ndarray, starts: np.ndarray, size: int, n_frames: int) -> np.ndarray:
    """Window outputs (W, ...) -> (n_frames, ...): each at its window's centre frame (index 5 of
    10).

    Frames between two centres (a stride above 1) and after the last one take the centre before,
    frames before the first centre take the first. A clip shorter than a window has one window,
    whose output all its frames take.
    """
    return windows.centre_fill(values, starts, size, n_frames)


def ps_on_grid(values: np.ndarray, resolution_ms: int, n_frames: int) -> np.ndarray:
    """Scores (n, ...) each `resolution_ms` -> (n_frames, ...): frame k takes min(k // factor, n -
    1).

    Two scores of 20 ms are averaged. Scores beyond n_frames are left out.
    """
    values = np.asarray(values)
    if not len(values):
        raise ValueError("a clip without scores has none on the grid")
    if 2 * resolution_ms == GRID_MS:
        if len(values) % 2:
            values = np.concatenate([values, values[-1:]])
        values, resolution_ms = (values[0::2] + values[1::2]) / 2, GRID_MS
    if resolution_ms < GRID_MS or resolution_ms % GRID_MS:
        raise ValueError(f"{resolution_ms} ms is neither 20 ms nor a multiple of {GRID_MS} ms")
    return windows.repeat_to(values, resolution_ms // GRID_MS, n_frames)
