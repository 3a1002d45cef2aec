"""Occlusion of the picture, of models that look at one: which squares of it raise the score.

The window that decides is scored again with one square hidden at a time, by the mean of that square
over time. Grad-CAM (Selvaraju et al., 2017) would take one pass instead of 65, but its order of
squares was worse than random ones, on some clips when they are hidden, on others when shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from klassify.data.base import Window
from klassify.data.lips import LipCrops
from klassify.data.visual import VisualClip, VisualWindows
from klassify.explanation.answering import Answering
from klassify.explanation.axes import CELLS, cells_of, without_cells
from klassify.grid.frames import FRAME_S
from klassify.models.lips import LipMIL
from klassify.models.visual import Visual


class Map(NamedTuple):
    """values: (CELLS, CELLS) by how much the score falls without each square. frame_s: the time of
    the frame with the highest score; image: that frame, uint8.
    """

    values: np.ndarray
    frame_s: float
    image: np.ndarray


def occluded_squares(answering: Answering, clip: Any) -> Map | None:
    """The map of a clip that the data class's reader returned; None where no window has a face, and
    for other models than LipMIL and Visual: of LipFrameModel, whose score is that of its best
    frame, the order of squares was not better than random ones.
    """
    data, model = answering.data, answering.model
    if isinstance(data, LipCrops) and isinstance(model, LipMIL):
        return _of_crops(answering, data.cut(clip))
    if isinstance(data, VisualWindows) and isinstance(model, Visual):
        return _of_frames(answering, clip)
    return None


def _of_crops(answering: Answering, cut: Sequence[Window]) -> Map | None:
    cut = [window for window in cut if window.inputs["valid"].any()]
    if not cut:
        return None
    alone = [dataclasses.replace(w, start_s=0.0, end_s=w.end_s - w.start_s) for w in cut]
    which = int(np.argmax(answering.scores([[one] for one in alone])))
    window, start_s = alone[which], cut[which].start_s
    values = _falls(answering, [[without_cells(window, hidden)] for hidden in _each()])
    batch = {name: x[None].to(answering.device) for name, x in window.inputs.items()}
    with torch.no_grad():
        logit = answering.model(batch["crops"], batch["valid"]).logit
    best = int(logit.masked_fill(~batch["valid"], -torch.inf).argmax())
    image = window.inputs["crops"][best].numpy()
    return Map(values, start_s + (best + 0.5) * FRAME_S, image)


def _of_frames(answering: Answering, clip: VisualClip) -> Map | None:
    scores = answering.rows([clip])[:, 2]
    seen = np.ones(len(scores), bool) if clip.seen is None else clip.seen[: len(scores)]
    if not seen.any():
        return None
    data = answering.data
    best = int(np.flatnonzero(seen)[scores[: len(seen)][seen].argmax()])
    first = min(best - data.window // 2, clip.n_frames - data.window)
    first = max(first // data.stride * data.stride, 0)
    frames, mean = clip.frames(first, data.window), _mean(clip)
    lmm = clip.lmm
    if lmm is not None:
        lmm = dataclasses.replace(lmm, frames=lmm.frames - first)
    window = dataclasses.replace(clip, n_frames=data.window, seen=None, codes=None, lmm=lmm)
    cells = cells_of(frames.shape[1:3])
    shown = [np.where(hidden[cells][None, ..., None], mean, frames) for hidden in _each()]
    values = _falls(answering, [[dataclasses.replace(window, held=one)] for one in shown])
    place = min(best - first, data.window - 1)
    return Map(values, (first + place + 0.5) * FRAME_S, frames[place])


def _mean(clip: VisualClip) -> np.ndarray:
    """(S, S, 3) uint8, the mean of the clip's frames."""
    total, count = 0.0, 0
    for frames, _ in clip.blocks():
        total, count = total + frames.sum(axis=0, dtype=np.float64), count + len(frames)
    return (total / count).round().astype(np.uint8)


def _each() -> np.ndarray:
    """(1 + CELLS^2, CELLS^2) bool: nothing hidden, then one square after the other."""
    n = CELLS * CELLS
    return np.concatenate([np.zeros((1, n), bool), np.eye(n, dtype=bool)])


def _falls(answering: Answering, variants: Sequence[Sequence[Any]]) -> np.ndarray:
    scores = answering.scores(variants)
    return (scores[0] - scores[1:]).reshape(CELLS, CELLS)
