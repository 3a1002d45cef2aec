"""Single frames without labels: what the VQ-VAE learns from."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from klassify import decoding, media
from klassify.clip_data import ClipData, Examples, NoAnswer, Reader, Sources
from klassify.errors import KlassifyError
from klassify.features import frames
from klassify.models.vqvae import decibels, mean_square
from klassify.training.ranks import ALONE, Ranks


class FrameImages(ClipData):
    """Frames of the training clips at random, or random parts of them. No label is read.

    Example: {"frames": (frames_per_clip, crop, crop, 3) uint8}; a batch holds those of all its
    clips.

    Args:
        size: pixels a side of a frame (see features.frames). crop: pixels a side of a random part
        of each training frame; 0 takes whole frames. Validation is on
            whole frames.
        frames_per_clip: drawn of a clip in an epoch. keep: decode this many evenly spaced frames of
        each clip once, keep them in memory and draw from them; 0
            decodes each clip in each epoch and draws from all its frames.
    """

    modality = "visual"
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
        if frames_per_clip < 1 or keep < 0:
            raise ValueError(
                f"at least one frame is drawn of a clip; here {frames_per_clip}, keep {keep}"
            )
        self.size, self.crop, self.frames_per_clip, self.keep = (
            size,
            crop or size,
            frames_per_clip,
            keep,
        )
        self.kept: dict[Path, np.ndarray] = {}

    def targets(self, table: pd.DataFrame) -> Sequence[Any]:
        """None for each clip: there is nothing to be told of it."""
        return [None] * len(table)

    def reader(self, sources: Sources, split: str) -> Reader:
        """Gives the path of a clip; frames are decoded by the example that draws them."""
        return _PathReader(sources.media_folder(split))

    def example(self, clip: Path, target: None, rng: np.random.Generator) -> dict[str, Tensor]:
        """Random frames of a clip, all where there are fewer, each cut at a random place."""
        if self.keep:
            kept = self._kept_frames(clip)
            images = kept[_draw(len(kept), self.frames_per_clip, rng)]
        else:
            drawn = _draw(_n_frames(clip), self.frames_per_clip, rng)
            images = decoding.call(frames.pick_frames, clip, drawn, size=self.size)
        corners = rng.integers(self.size - self.crop + 1, size=(len(images), 2))
        parts = [
            image[y : y + self.crop, x : x + self.crop] for image, (y, x) in zip(images, corners)
        ]
        return {"frames": torch.from_numpy(np.stack(parts))}

    def _kept_frames(self, clip: Path) -> np.ndarray:
        if clip not in self.kept:
            spaced = np.linspace(0, _n_frames(clip) - 1, self.keep).round().astype(int)
            self.kept[clip] = decoding.call(
                frames.pick_frames, clip, np.unique(spaced).tolist(), size=self.size
            )
        return self.kept[clip]

    def collate(self, inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """One batch of the frames of several clips, which may differ in number."""
        return {"frames": torch.cat([item["frames"] for item in inputs])}

    @torch.inference_mode()
    def validate(
        self, model: nn.Module, sources: Sources, *, ranks: Ranks = ALONE, **how: Any
    ) -> dict[str, float]:
        """How well frames are reconstructed, on the same whole frames of each validation clip every
        time.

        `val_loss`: the mean squared error alone, in units of [-1, 1] as in the training loss, whose
        other parts may rise while the picture gets better. `val_psnr`: the same in dB. ranks, how:
        as in ClipData. KlassifyError where no validation clip can be read.
        """
        sums = []
        for batch, _ in self._validation_batches(sources, ranks, how["batch_size"], how["workers"]):
            if batch is None:
                sums.append((0, 0.0))
                continue
            images = batch["frames"].to(how["device"])
            sums.append((len(images), len(images) * mean_square(images, model.reconstruct(images))))
        parts = ranks.gather(sums)
        rounds = itertools.zip_longest(
            *parts, fillvalue=(0, 0.0)
        )  # the batches in the order of the list
        n_frames, error = (
            sum(values) for values in zip((0, 0.0), *itertools.chain.from_iterable(rounds))
        )
        if not n_frames:
            raise KlassifyError(
                f"No clip of {self.val_split} can be read to validate on.", where=sources.media
            )
        return {"val_loss": error / n_frames / 127.5**2, "val_psnr": decibels(error / n_frames)}

    def _validation_batches(
        self, sources: Sources, ranks: Ranks, size: int, workers: int
    ) -> DataLoader:
        whole = copy.copy(self)
        whole.crop = self.size
        examples = Examples(whole, sources, self.val_split, seed=0)
        keys = [(0, index) for index in range(len(examples))]
        return DataLoader(
            examples,
            batch_sampler=ranks.share(
                [keys[start : start + size] for start in range(0, len(keys), size)]
            ),
            collate_fn=examples.collate,
            num_workers=workers,
            generator=torch.Generator(),
        )


class _PathReader(Reader):
    """The path of a clip: which frames of it are decoded is up to the example."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self, file: str) -> Path:
        return media.inside(self.folder, file)


def _draw(n: int, count: int, rng: np.random.Generator) -> list[int]:
    """`count` different ones of 0 .. n - 1, or all where there are fewer, ascending."""
    return sorted(rng.choice(n, min(count, n), replace=False).tolist())


def _n_frames(clip: Path) -> int:
    n_frames = decoding.call(frames.n_frames, clip)
    if not n_frames:
        raise NoAnswer("no frames")
    return n_frames
