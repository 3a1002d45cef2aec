"""Mouth crops as inputs: of clip detectors and of localisers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from klassify.augmentation.lips import LipAugment
from klassify.augmentation.splice import splice_crops
from klassify.data.base import ClipData, FrameData, Reader, Sources, Window, check_windows
from klassify.data.faces import read_row, seen_shares
from klassify.features.lips import SIZE, LipsRow, opened
from klassify.features.shards import FeatureStore
from klassify.grid import windows
from klassify.grid.frames import FRAME_S

CROP = 88  # pixels a side that models take
UNSEEN = -3.5  # log-odds of a frame without a face, as those of the tagging TCN


class LipCrops(ClipData):
    """Gray mouth crops in windows, for clip classifiers.

    Example: {"crops": (window, 88, 88) uint8, "valid": (window,) bool}: a random stretch of the
    clip, of it a random part of 88 pixels, mirrored half of the time; a shorter clip is padded with
    frames that are not valid. Scoring takes the middle 88 pixels.

    Args:
        window, stride: frames (25 fps) a window, and between window starts in scoring.
        keep_in_memory: read each clip once and keep its crops as JPEG (45 kB a second).
        augment: what training crops go through (klassify.augmentation.lips).
        splice: above 0, train on real clips alone (supervision `self`): this share of the crops
            gets fakes of the training's own making (klassify.augmentation.splice).
    """

    modality = "visual"
    feature_kinds = ("lips",)

    def __init__(
        self,
        window: int = 100,
        stride: int = 50,
        keep_in_memory: bool = False,
        train_split: str = "train",
        val_split: str = "val_report",
        label: str = "own",
        aggregate: str = "max",
        augment: LipAugment | None = None,
        splice: float = 0.0,
    ):
        super().__init__(train_split, val_split, label, aggregate)
        check_windows(window, stride)
        self.train_with_splice(splice)
        self.window, self.stride, self.augment = window, stride, augment
        self.kept: dict[str, LipsRow] | None = {} if keep_in_memory else None

    def reader(self, sources: Sources, split: str) -> Reader:
        """Reads feature shards; NoAnswer if too few frames have a face."""
        return _LipsReader(self.stores(sources, split)["lips"], self.kept)

    def shares(self, sources: Sources, split: str, table: pd.DataFrame) -> pd.Series:
        """The frames with a face, of the clip's."""
        return seen_shares(sources, split, table, "lips")

    def settings(self, sources: Sources, split: str) -> dict[str, Any]:
        """Those of the feature shards of the split."""
        return {"features": self.stores(sources, split)["lips"].settings}

    def example(self, clip: LipsRow, target: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """A random stretch, augmented, with the clip's label, or that of its own edits."""
        inputs, _, fake = self.drawn(clip, rng)
        label = target if fake is None else int(len(fake) > 0)
        return inputs | {"label": torch.tensor(label)}

    def drawn(
        self, clip: LipsRow, rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], int, np.ndarray | None]:
        """A random stretch as the model takes it, its first frame, and the segments (k, 2) in
        seconds of edits that were made in it; None without `splice`.
        """
        start = int(rng.integers(max(len(clip.valid) - self.window, 0) + 1))
        stretch = slice(start, start + self.window)
        crops, valid, fake = opened(clip.crops[stretch]), clip.valid[stretch], None
        if self.splice:
            crops, fake = splice_crops(crops, rng, self.splice, valid)
        if self.augment is not None:
            crops = self.augment(crops, rng)
        top, left = rng.integers(SIZE - CROP + 1, size=2)
        crops = crops[:, top : top + CROP, left : left + CROP]
        if rng.random() < 0.5:
            crops = crops[:, :, ::-1]
        return self._inputs(crops, valid, self.window), start, fake

    def _inputs(self, crops: np.ndarray, valid: np.ndarray, size: int) -> dict[str, Tensor]:
        missing = size - len(valid)
        padded = np.pad(crops, ((0, missing), (0, 0), (0, 0)))
        return {
            "crops": torch.from_numpy(padded),
            "valid": torch.from_numpy(np.pad(valid, (0, missing))),
        }

    def cut(self, clip: LipsRow) -> list[Window]:
        """Windows each `stride` frames and one up to the end, but for those without a face."""
        return [window for window in self._windows(clip) if window.inputs["valid"].any()]

    def _windows(self, clip: LipsRow) -> Iterator[Window]:
        n_frames, margin = len(clip.valid), (SIZE - CROP) // 2
        size = min(self.window, n_frames)
        middle = slice(margin, margin + CROP)
        crops = opened(clip.crops)[:, middle, middle]
        for start in windows.cut(n_frames, size, self.stride).tolist():
            stretch = slice(start, start + size)
            inputs = self._inputs(crops[stretch], clip.valid[stretch], size)
            yield Window(start * FRAME_S, (start + size) * FRAME_S, inputs)


class _LipsReader(Reader):
    def __init__(self, store: FeatureStore, kept: dict[str, LipsRow] | None):
        self.store, self.kept = store, kept

    def read(self, file: str) -> LipsRow:
        if self.kept is None:
            return read_row(self.store, file)
        if file not in self.kept:
            self.kept[file] = read_row(self.store, file)
        return self.kept[file]


class LipFrames(FrameData, LipCrops):
    """Mouth crops with the share of each frame that is fake, for localisers.

    Example: that of LipCrops, and {"target": (T,) shares in [0, 1], NaN without a face, "start" and
    "end": (T,), Gaussians around the edges of fakes}. Rows: log-odds of fake, of a start and of an
    end, triangular mean over the windows that cover a frame.
    """

    COLUMNS = ("opens", "closes")

    def example(
        self, clip: LipsRow, target: tuple[np.ndarray | None, int], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """That of LipCrops with the targets of its frames."""
        segments, label = target
        inputs, start, fake = self.drawn(clip, rng)
        if fake is None:
            fake = segments - start * FRAME_S
        else:
            label = int(len(fake) > 0)
        targets = self.share_targets(fake, inputs["valid"].numpy())
        return inputs | targets | {"label": torch.tensor(label)}

    def cut(self, clip: LipsRow) -> list[Window]:
        """All windows, also those without a face: every frame gets a row."""
        return list(self._windows(clip))

    def valid_frames(self, clip: LipsRow, n_frames: int) -> np.ndarray:
        """(n_frames,) bool: the frames with a face."""
        return clip.valid

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> np.ndarray:
        """Log-odds of fake, of a start and of an end of each frame: (B, T, 3)."""
        scores = model.frame_scores(batch).float()
        return torch.where(batch["valid"][..., None], scores, UNSEEN).cpu().numpy()
