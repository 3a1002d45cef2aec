"""A loaded model as a function from the windows of a clip to its score, for many variants of a
clip at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from klassify.data.base import ClipData, Window
from klassify.grid.ragged import pooled
from klassify.grid.windows import aggregate_by_clip
from klassify.scores.inference import clip_frames, frame_rows


class Answering:
    """Scores variants of clips as `klassify score` does, each window that several of them share
    once.

    aggregate: of windows or frames to the clip's score. batch_size: windows at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ClipData,
        aggregate: str,
        device: torch.device | str = "cpu",
        batch_size: int = 16,
    ):
        self.device = torch.device(device)
        self.model, self.data = model.to(self.device).eval(), data
        self.aggregate, self.batch_size = aggregate, batch_size

    @property
    def of_frames(self) -> bool:
        """Whether the model scores frames."""
        return self.data.unit == "frame"

    def scores(self, variants: Iterable[Sequence[Any]]) -> np.ndarray:
        """(n,) clip scores of variants, each the windows of one; NaN for one without any."""
        if self.data.streams:
            return np.array([self._pooled(self.rows(cut)[:, 2]) for cut in variants])
        known: dict[tuple, Any] = {}
        waiting: dict[tuple, Window] = {}
        wanted = []
        for cut in variants:
            keys = [_key(window) for window in cut]
            wanted.append((keys, [(window.start_s, window.end_s) for window in cut]))
            waiting |= {key: one for key, one in zip(keys, cut) if key not in known}
            while len(waiting) >= self.batch_size:
                self._compute(waiting, known)
        while waiting:
            self._compute(waiting, known)
        return np.array([self._joined([known[k] for k in keys], at) for keys, at in wanted])

    @torch.inference_mode()
    def _compute(self, waiting: dict[tuple, Window], known: dict[tuple, Any]) -> None:
        """Move a batch of windows of one shape from those that wait to those that are known."""
        shape = next(iter(waiting))[0]
        keys = [key for key in waiting if key[0] == shape][: self.batch_size]
        batch = self.data.collate([waiting.pop(key).inputs for key in keys])
        batch = {name: values.to(self.device) for name, values in batch.items()}
        if self.of_frames:
            known |= zip(keys, self.data.outputs(self.model, batch))
        else:
            known |= zip(keys, self.model.score(batch).float().cpu().tolist())

    def _joined(self, outputs: Sequence[Any], places: Sequence[tuple[float, float]]) -> float:
        if not outputs:
            return np.nan
        if self.of_frames:
            cut = [Window(*place, {}) for place in places]
            return self._pooled(frame_rows(self.data, np.stack(outputs), cut)[:, 2])
        return float(aggregate_by_clip([""] * len(outputs), outputs, self.aggregate).iloc[0])

    def _pooled(self, scores: np.ndarray) -> float:
        return float(pooled(scores, np.array([0, len(scores)]), self.aggregate)[0])

    def rows(self, cut: Sequence[Any]) -> np.ndarray:
        """The frames of a clip, (n, 3 + columns): start, end, score, ..."""
        how = {"batch_size": self.batch_size, "device": self.device}
        return clip_frames(self.model, self.data, list(cut), **how)


def _key(window: Window) -> tuple:
    """Equal for windows with equal inputs; the shapes first."""
    shapes, digest = [], hashlib.blake2b(digest_size=16)
    for name, values in window.inputs.items():
        shapes.append((name, *values.shape))
        digest.update(values.contiguous().numpy().tobytes())
    return tuple(shapes), digest.digest()
