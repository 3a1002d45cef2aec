"""AV-HuBERT features as inputs of AuViRe (klassify.models.auvire)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from klassify.data.base import FrameData, NoAnswer, Reader, Sources, Window, check_windows
from klassify.features.shards import FeatureStore
from klassify.grid import windows
from klassify.grid.segments import proposed_columns
from klassify.models import auvire


class AuViReFrames(FrameData):
    """Features of mouth and sound at 25 a second, in windows of `length` frames.

    Example: {"video": (T, C), "audio": (T, C), "target": (T, 3)}: the beginning of the clip, zeros
    behind a shorter one. Rows: score, the highest log-odds of fake among the levels that cover a
    frame; and of each level the proposal of the frame where one begins a position of it.

    A clip longer than `length`, of which the published code reads only the beginning, is scored in
    windows; of two that overlap each counts up to the middle. Proposals of the zeros behind a clip,
    which the published code keeps, are left out.

    Args:
        length: frames per window; it must be the model's.
        stride: frames between window starts in scoring.
        factors: frames per position of each level; they must be the model's, (1, 1, 2, 4) for the
            one released for LAV-DF.
    """

    modality = "both"
    feature_kinds = ("avhubert",)

    def __init__(
        self,
        length: int = 512,
        stride: int = 256,
        factors: Sequence[int] = (1, 2),
        train_split: str = "train",
        val_split: str = "val_report",
    ):
        super().__init__(train_split, val_split, label="video", aggregate="max")
        check_windows(length, stride)
        self.length, self.stride, self.factors = length, stride, list(factors)
        if any(size % max(self.factors) for size in (length, stride)):
            raise ValueError("length and stride are multiples of the largest of factors")
        self.COLUMNS = proposed_columns(len(self.factors))

    def check_model(self, model: nn.Module) -> None:
        """ValueError for one of another length or other levels, where it says so."""
        for name in ("length", "factors"):
            ours, its = getattr(self, name), getattr(model, name, getattr(self, name))
            if ours != its:
                raise ValueError(f"the data has {name}={ours}, and the model {its}")

    def reader(self, sources: Sources, split: str) -> Reader:
        """Reads feature shards; NoAnswer for a clip without them."""
        return _FeatureReader(self.stores(sources, split)["avhubert"])

    def settings(self, sources: Sources, split: str) -> dict[str, Any]:
        """Those of the feature shards of the split."""
        return {"features": self.stores(sources, split)["avhubert"].settings}

    def example(
        self, clip: dict[str, Tensor], target: tuple[np.ndarray, int], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """The first `length` frames, as in the published training."""
        fake, label = target
        first = Window(0.0, 0.0, {name: values[: self.length] for name, values in clip.items()})
        of_frames = torch.from_numpy(auvire.targets(fake.tolist(), self.length))
        inputs = first.padded(self.length).inputs
        return inputs | {"target": of_frames, "label": torch.tensor(label)}

    def cut(self, clip: dict[str, Tensor]) -> list[Window]:
        """Windows of `length` frames; zeros behind the clip."""
        n_frames = len(clip["video"])
        step = max(self.factors)
        starts = windows.cut(-(-n_frames // step) * step, self.length, self.stride).tolist()
        cut = []
        for start in starts:
            end = min(start + self.length, n_frames)
            inputs = {name: values[start:end] for name, values in clip.items()}
            window = Window(start * self.hop_s, end * self.hop_s, inputs)
            cut.append(window.padded(self.length))
        return cut

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> np.ndarray:
        """Highest log-odds, and the proposals of each level in seconds of the window: (B, T, 1 + 3
        L).
        """
        levels = model(batch["video"], batch["audio"]).levels
        rows = torch.zeros(len(levels[0]), self.length, 1 + len(self.COLUMNS), dtype=torch.double)
        logits = [
            level[..., 0].cpu().repeat_interleave(factor, dim=1)
            for level, factor in zip(levels, self.factors)
        ]
        rows[..., 0] = torch.stack(logits).amax(dim=0)
        scale = torch.tensor([1, self.hop_s, self.hop_s], dtype=torch.double)
        found = auvire.proposals(levels, self.factors)
        for k, (proposed, factor) in enumerate(zip(found, self.factors)):
            rows[:, ::factor, 1 + 3 * k : 4 + 3 * k] = proposed.cpu().double() * scale
        return rows.numpy()

    def join(self, outputs: np.ndarray, starts: np.ndarray, n_frames: int) -> np.ndarray:
        """Rows (n_frames, 1 + 3 L), the proposals in seconds of the clip, from 0 on."""
        edges, rows = windows.seams(starts, self.length), np.zeros((0, outputs.shape[2]))
        for window, start, first, stop in zip(outputs, starts, edges[:-1], edges[1:]):
            part = window[first - start : stop - start].copy()
            for k in range(len(self.factors)):
                here = part[:, 1 + 3 * k] > 0
                times = part[:, 2 + 3 * k : 4 + 3 * k]
                times[here] = np.maximum(times[here] + start * self.hop_s, 0)
            rows = np.concatenate([rows, part])
        return rows[:n_frames]


class _FeatureReader(Reader):
    def __init__(self, store: FeatureStore):
        self.store = store

    def read(self, file: str) -> dict[str, Tensor]:
        """The features {"video": (T, C), "audio": (T, C)} of a clip."""
        row = self.store[file]
        if not len(row.video):
            raise NoAnswer(row.reason)
        return {
            "video": torch.from_numpy(row.video.astype(np.float32)),
            "audio": torch.from_numpy(row.audio.astype(np.float32)),
        }
