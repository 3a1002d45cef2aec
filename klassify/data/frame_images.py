"""Single frames without labels: what the VQ-VAE learns from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from klassify.data.base import ClipData, Reader, Sources
from klassify.data.square_frames import SquareClip, SquareReader
from klassify.settings import check_sizes


class FrameImages(ClipData):
    """Frames of the training clips at random, or random parts of them. No label is read.

    Example: {"frames": (frames_per_clip, crop, crop, 3) uint8}; a batch holds those of all its
    clips.

    Args:
        size: pixels a side of a frame (see klassify.media.square_frames).
        crop: pixels a side of a random part of each training frame; 0 takes whole frames.
            Validation is on whole frames.
        frames_per_clip: drawn of a clip in an epoch.
        keep: decode this many evenly spaced frames of each clip once, keep them in memory and draw
            from them; 0 decodes each clip in each epoch and draws from all its frames.
    """

    modality = "visual"
    unit = "image"
    scale = "none"

    def __init__(
        self,
        size: int = 224,
        crop: int = 0,
        frames_per_clip: int = 8,
        keep: int = 0,
        train_split: str = "train",
        val_split: str = "val_report",
    ):
        super().__init__(train_split, val_split, label="own", aggregate="mean")
        if size % 4 or crop % 4 or not 0 <= crop <= size:
            raise ValueError(
                f"size and crop are multiples of 4, crop at most size; here {size} and {crop}"
            )
        check_sizes(frames_per_clip=frames_per_clip)
        check_sizes(0, keep=keep)
        self.size, self.crop = size, crop or size
        self.frames_per_clip, self.keep = frames_per_clip, keep
        self.kept: dict[Path, np.ndarray] = {}

    def targets(self, table: pd.DataFrame) -> Sequence[Any]:
        """None for each clip: there is nothing to learn about it."""
        return [None] * len(table)

    def reader(self, sources: Sources, split: str) -> Reader:
        """Gives a SquareClip, whose frames are decoded when they are asked for."""
        return SquareReader(sources.media_folder(split), self.size)

    def example(
        self, clip: SquareClip, target: None, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Random frames of a clip, all where there are fewer, each cut at a random place."""
        if self.keep:
            kept = self._kept_frames(clip)
            images = kept[_draw(len(kept), self.frames_per_clip, rng)]
        else:
            images = clip.pick(_draw(clip.n_frames, self.frames_per_clip, rng))
        corners = rng.integers(self.size - self.crop + 1, size=(len(images), 2))
        parts = [
            image[y : y + self.crop, x : x + self.crop] for image, (y, x) in zip(images, corners)
        ]
        return {"frames": torch.from_numpy(np.stack(parts))}

    def _kept_frames(self, clip: SquareClip) -> np.ndarray:
        if clip.path not in self.kept:
            spaced = np.linspace(0, clip.n_frames - 1, self.keep).round().astype(int)
            self.kept[clip.path] = clip.pick(np.unique(spaced))
        return self.kept[clip.path]

    def collate(self, inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """One batch of the frames of several clips, which may differ in number."""
        return {"frames": torch.cat([item["frames"] for item in inputs])}

    def for_validation(self) -> FrameImages:
        """Whole frames."""
        whole = copy.copy(self)
        whole.crop = self.size
        return whole


def _draw(n: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` different ones of 0 .. n - 1, or all where there are fewer, ascending."""
    return np.sort(rng.choice(n, min(count, n), replace=False))
