"""Embeddings as a kind of features: what a trained frame encoder makes of each frame of a clip.

Heads that read embeddings of sound and mouth together train in minutes. klassify.systems.embeddings
makes them; here is how they are kept: (T, D) float16, 256 bytes per frame for D = 128, with the hop
and the offset of the frames and the encoder's hash in the settings of the shards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from klassify.features.base import (
    FEATURES,
    MODEL_ARGUMENTS,
    Columns,
    Kind,
    Row,
    common,
    matrix,
    ragged,
    schema,
    values,
)

VERSION = 1  # raise when embeddings of the same encoder change: it is part of the shards' settings


@dataclasses.dataclass(frozen=True)
class EmbeddingRow(Row):
    """One clip: embedding (T, D) float16, valid (T,) bool, False where nothing was to be seen.

    fps: frames a second. A clip without sound or face has T = 0, and says why in `reason`.
    """

    file: str
    fps: float
    embedding: np.ndarray
    valid: np.ndarray
    reason: str = ""
    stage: str = ""

    # bytes: lists of numbers take four times as long to read
    SCHEMA: ClassVar = schema(("embedding", pa.binary()), ("valid", pa.list_(pa.bool_())))
    NOTHING: ClassVar = (np.zeros((0, 0), np.float16), np.zeros(0, bool))
    KEPT_GROUPS: ClassVar = 256

    @classmethod
    def columns(cls, rows: Sequence[EmbeddingRow], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The rows as columns of SCHEMA. Raises ValueError for shapes that do not fit and for
        NaN.
        """
        for row in rows:
            fits = row.embedding.ndim == 2 and len(row.embedding) == len(row.valid)
            if not fits or not np.isfinite(row.embedding).all():
                raise ValueError(
                    f"{row.file}: embedding {row.embedding.shape} for {len(row.valid)} frames, or"
                    " not finite"
                )
        return {
            "n_frames": [len(row.valid) for row in rows],
            "embedding": [row.embedding.astype(np.float16).tobytes() for row in rows],
            "valid": ragged([row.valid.astype(bool) for row in rows], pa.bool_()),
        }

    @classmethod
    def from_columns(cls, columns: Columns, i: int, settings: Mapping[str, Any]) -> EmbeddingRow:
        """Row i of a row group."""
        return cls(
            embedding=matrix(columns, "embedding", i),
            valid=values(columns, "valid", i).copy(),
            **common(columns, i),
        )


KIND = Kind(
    "embedding",
    EmbeddingRow,
    clips_per_file=1000,
    extraction=None,  # klassify.systems.embeddings.extraction
    arguments={
        "--system": {
            "type": Path,
            "metavar": "SYSTEM_DIR",
            "help": "the trained encoder (audio_frames, lips_frames, ...)",
        },
        "--fold": {
            "type": Path,
            "metavar": "SYSTEM_DIR",
            "help": "one trained on other clips, for those that --system learned from",
        },
        "--features": FEATURES,
        "--device": MODEL_ARGUMENTS["--device"],
    },
)
