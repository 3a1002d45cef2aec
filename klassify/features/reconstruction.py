"""Reconstructed frames as a feature: the VQ-VAE codes of every frame, from which its decoder makes
the frames.

A clip of 10 s (250 frames of 224 x 224) is 37.6 MB as reconstructed frames and 1.6 MB as codes (56
x 56 uint16 a frame), at most 1.2 MB in a shard. Decoding costs half of what reconstructing from the
frame costs. The codes are for frames that were cut to one size without augmentation
(klassify.features.frames).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from klassify import decoding
from klassify.errors import KlassifyError
from klassify.features import frames
from klassify.features.clip import attempt
from klassify.models.vqvae import VQVAE, to_unit
from klassify.store import ReconstructionRow

if TYPE_CHECKING:
    pass

DOWNSCALING = 4  # pixels a side of one code


class ReconstructionExtractor:
    """Extracts clips in the order of a list; memory does not grow with their length beyond the
    codes.

    Args:
        root: the folder that clip names are relative to.
        vqvae: the model, in eval mode, on the device that is to be used.
        size: pixels a side, a multiple of 4.
        batch_size: frames a batch.
    """

    def __init__(self, root: Path, vqvae: VQVAE, size: int = 224, batch_size: int = 64):
        check_size(size)
        self.root, self.vqvae, self.size, self.batch_size = root, vqvae, size, batch_size
        self.device = next(vqvae.parameters()).device

    def rows(self, files: Sequence[str]) -> Iterator[ReconstructionRow]:
        """One row for each clip."""
        for file in files:
            yield attempt(
                ReconstructionRow, self.root, file, lambda path, file=file: self.row(file, path)
            )

    def row(self, file: str, path: Path) -> ReconstructionRow:
        """The codes of one clip. Raises MediaError."""
        fps = decoding.probe(path).fps
        decoded = decoding.stream(frames.iter_frames, path, size=self.size, chunk=self.batch_size)
        blocks = [self.codes(block) for block in decoded]
        if not blocks:
            return ReconstructionRow.failed(file, "decode", "no frames")
        return ReconstructionRow(file, fps, np.concatenate(blocks))

    @torch.inference_mode()
    def codes(self, block: np.ndarray) -> np.ndarray:
        """(n, h, w) uint16 of frames (n, size, size, 3) uint8; one that repeats the frame before
        is encoded once.
        """
        words = block.reshape(len(block), -1).view(np.uint64)  # a frame has 48 bytes or a multiple
        new = np.concatenate([[True], (words[1:] != words[:-1]).any(axis=1)])
        codes = (
            self.vqvae.encode(to_unit(torch.from_numpy(block[new]).to(self.device))).cpu().numpy()
        )
        return codes.astype(np.uint16)[np.cumsum(new) - 1]


def check_size(size: int) -> None:
    """Refuse a size that codes cannot stand for exactly."""
    if size < DOWNSCALING or size % DOWNSCALING:
        raise KlassifyError(f"--size {size} is not a multiple of {DOWNSCALING}.")
