"""Reconstructed frames as a feature: the VQ-VAE codes of every frame, from which its decoder makes
the frames.

A clip of 10 s (250 frames of 224 x 224) is 37.6 MB as reconstructed frames and 1.6 MB as codes (56
x 56 uint16 per frame), at most 1.2 MB in a shard. Decoding costs half of what reconstructing from
the frame costs. The codes are of frames that were resized without augmentation
(klassify.media.square_frames).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from klassify.arguments import at_least_1
from klassify.errors import KlassifyError
from klassify.features.base import (
    MODEL_ARGUMENTS,
    Columns,
    Extraction,
    Kind,
    Row,
    attempt,
    common,
    in_process,
    media_only,
    ragged,
    schema,
    values,
)
from klassify.media import decoder, isolated, square_frames
from klassify.settings import file_hash

if TYPE_CHECKING:
    import torch

    from klassify.models.vqvae import VQVAE


def extraction(
    *,
    vqvae: Path | None = None,
    size: int = 224,
    device: str | torch.device = "auto",
    batch: int | None = None,
    jobs: int | None = None,
) -> Extraction:
    """The VQ-VAE codes of every frame. vqvae: a trained system's folder, or a safetensors file."""
    if vqvae is None:
        raise KlassifyError(
            "--kind reconstruction needs --vqvae SYSTEM.", fix="train one: conf/<set>/vqvae.yaml"
        )
    from klassify.models.devices import pick_device
    from klassify.models.weights.checkpoint import weights_path

    check_size(size)
    weights = weights_path(vqvae)
    if not weights.is_file():
        raise KlassifyError("This VQ-VAE has no weights.", where=weights, fix="train it first")
    settings = {
        "fps": decoder.GRID_FPS,
        "size": size,
        "vqvae": vqvae.name,
        "weights": file_hash(weights)[:16],
    }

    def extractor(root: Path) -> Any:
        model = load_vqvae(weights).to(pick_device(str(device)))
        return ReconstructionExtractor(root, model, size, batch or 64)

    rows = functools.partial(in_process, extractor, jobs)
    return Extraction("reconstruction", settings, media_only, rows)


def load_vqvae(weights: Path) -> VQVAE:
    """The VQ-VAE of a safetensors file, in eval mode."""
    from klassify.models.vqvae import VQVAE
    from klassify.models.weights.load import load_weights
    from klassify.models.weights.safetensors_file import read_tensors

    state, _ = read_tensors(weights)
    if "codebook.embedding.weight" not in state:
        raise KlassifyError("This is not a VQ-VAE: it has no codebook.", where=weights)
    codes, dim = state["codebook.embedding.weight"].shape
    model = VQVAE(dim=dim, codes=codes)
    load_weights(model, weights)
    return model.eval()


DOWNSCALING = 4  # pixels per side of one code


class ReconstructionExtractor:
    """Extracts clips in the order of a list; memory does not grow with their length beyond the
    codes.

    Args:
        root: the folder that clip names are relative to.
        vqvae: the model, in eval mode, on the device that is to be used.
        size: pixels per side, a multiple of 4.
        batch_size: frames per batch.
    """

    def __init__(self, root: Path, vqvae: VQVAE, size: int = 224, batch_size: int = 64):
        check_size(size)
        self.root, self.vqvae, self.size, self.batch_size = root, vqvae, size, batch_size
        self.device = next(vqvae.parameters()).device

    def rows(self, files: Sequence[str]) -> Iterator[ReconstructionRow]:
        """One row for each clip."""
        for file in files:
            yield attempt(ReconstructionRow, self.root, file, functools.partial(self.row, file))

    def row(self, file: str, path: Path) -> ReconstructionRow:
        """The codes of one clip. Raises MediaError."""
        fps = isolated.probe(path).fps
        decoded = isolated.stream(
            square_frames.iter_frames, path, size=self.size, chunk=self.batch_size
        )
        blocks = [self.codes(block) for block in decoded]
        if not blocks:
            return ReconstructionRow.failed(file, "decode", "no frames")
        return ReconstructionRow(file, fps, np.concatenate(blocks))

    def codes(self, block: np.ndarray) -> np.ndarray:
        """(n, h, w) uint16 of frames (n, size, size, 3) uint8; repeated frames are encoded once."""
        import torch

        from klassify.models.vqvae import to_unit

        words = block.reshape(len(block), -1).view(np.uint64)  # a frame has 48 bytes or a multiple
        new = np.concatenate([[True], (words[1:] != words[:-1]).any(axis=1)])
        with torch.inference_mode():
            pixels = to_unit(torch.from_numpy(block[new]).to(self.device))
            codes = self.vqvae.encode(pixels).cpu().numpy()
        return codes.astype(np.uint16)[np.cumsum(new) - 1]


def check_size(size: int) -> None:
    """KlassifyError unless codes represent frames of this size exactly."""
    if size < DOWNSCALING or size % DOWNSCALING:
        raise KlassifyError(f"--size {size} is not a multiple of {DOWNSCALING}.")


@dataclasses.dataclass(frozen=True)
class ReconstructionRow(Row):
    """The VQ-VAE codes of every frame of one clip: codes (T, h, w) uint16, T on the 25 fps grid.

    The decoder of the VQ-VAE that made them (`vqvae` in the settings) turns them into the
    reconstructed frames. A clip without codes has T = 0, and `reason` in words with its `stage`.
    """

    file: str
    fps: float
    codes: np.ndarray
    reason: str = ""
    stage: str = ""

    SCHEMA: ClassVar = schema(
        ("height", pa.int32()), ("width", pa.int32()), ("codes", pa.large_list(pa.uint16()))
    )
    NOTHING: ClassVar = (np.zeros((0, 0, 0), np.uint16),)

    @classmethod
    def columns(
        cls, rows: Sequence[ReconstructionRow], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The rows as columns of SCHEMA. Raises ValueError for what is no (T, h, w) of uint16."""
        for row in rows:
            if row.codes.ndim != 3 or row.codes.dtype != np.uint16:
                raise ValueError(
                    f"{row.file}: codes are {row.codes.dtype} {row.codes.shape}, not uint16 (T,"
                    " h, w)"
                )
        return {
            "n_frames": [len(row.codes) for row in rows],
            "height": [row.codes.shape[1] for row in rows],
            "width": [row.codes.shape[2] for row in rows],
            "codes": ragged([row.codes.ravel() for row in rows], pa.uint16(), large=True),
        }

    @classmethod
    def from_columns(
        cls, columns: Columns, i: int, settings: Mapping[str, Any]
    ) -> ReconstructionRow:
        """Row i of a row group."""
        shape = [columns[name][i].as_py() for name in ("n_frames", "height", "width")]
        return cls(codes=values(columns, "codes", i).reshape(shape).copy(), **common(columns, i))


KIND = Kind(
    "reconstruction",
    ReconstructionRow,
    clips_per_file=200,
    extraction=extraction,
    arguments={
        "--vqvae": {
            "type": Path,
            "metavar": "SYSTEM",
            "help": "folder of a trained VQ-VAE, or a safetensors file",
        },
        "--size": {"type": at_least_1, "help": "pixels per side of a frame (default: 224)"},
        **MODEL_ARGUMENTS,
    },
)
