"""AV-HuBERT's view of mouth and of sound as features, each from a pass without the other stream.

AuViRe reads them. klassify.features.avhubert_extraction makes them; here is how they are kept: two
streams (T, C) float16, 25 frames a second, 0.77 MB for 10 s of 768 numbers each.
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
    schema,
)

VERSION = 1  # raise when features of the same weights change: it is part of the shards' settings


@dataclasses.dataclass(frozen=True)
class AVHubertRow(Row):
    """One clip: video and audio (T, C) float16, 25 frames a second. fps: of the file.

    A clip without features has T = 0, and `reason` in words with its `stage`.
    """

    file: str
    fps: float
    video: np.ndarray
    audio: np.ndarray
    reason: str = ""
    stage: str = ""

    SCHEMA: ClassVar = schema(("video", pa.binary()), ("audio", pa.binary()))
    NOTHING: ClassVar = (np.zeros((0, 0), np.float16),) * 2

    @classmethod
    def columns(cls, rows: Sequence[AVHubertRow], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The rows as columns of SCHEMA. Raises ValueError for streams of different shapes and for
        NaN.
        """
        for row in rows:
            if row.video.shape != row.audio.shape or not np.isfinite(row.video + row.audio).all():
                raise ValueError(
                    f"{row.file}: video {row.video.shape} and audio {row.audio.shape}, or not"
                    " finite"
                )
        return {"n_frames": [len(row.video) for row in rows]} | {
            name: [getattr(row, name).astype(np.float16).tobytes() for row in rows]
            for name in ("video", "audio")
        }

    @classmethod
    def from_columns(cls, columns: Columns, i: int, settings: Mapping[str, Any]) -> AVHubertRow:
        """Row i of a row group."""
        streams = {name: matrix(columns, name, i) for name in ("video", "audio")}
        return cls(**streams, **common(columns, i))


KIND = Kind(
    "avhubert",
    AVHubertRow,
    clips_per_file=200,
    extraction=None,  # klassify.features.avhubert_extraction.extraction
    arguments={
        "--weights": {"type": Path, "metavar": "FILE", "help": "AV-HuBERT's base_lrs3_iter4.pt"},
        "--features": FEATURES,
        "--device": MODEL_ARGUMENTS["--device"],
    },
)
