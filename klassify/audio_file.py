"""The files of the audio cache (see klassify.audio_store): what stands in them, and their one
writer.

    part-<i>-of-<n>-<k>.parquet
        the clips of a part: file, n_samples, stage, reason; settings as metadata
    part-<i>-of-<n>-<k>.pcm       a line of text (128 bytes), then their samples, clip after clip

Samples are int16, little-endian, 16 kHz, mono. The line of text ends with a hash of the samples,
which the index knows too. The index is written last: a part is there as soon as its index is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from klassify.files import canonical_json, settings_hash, whole_file
from klassify.media import SAMPLE_RATE
from klassify.store import Place

SAMPLE = np.dtype("<i2")
FORMAT = {"version": 1, "rate": SAMPLE_RATE, "sample": "int16", "channels": "mean"}
HEAD_BYTES = 128
NO_AUDIO = "no audio"  # the reason of a clip that has none
SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("n_samples", pa.int32()),
        ("stage", pa.string()),
        ("reason", pa.string()),
    ]
)


def to_int16(wave: np.ndarray) -> np.ndarray:
    """Samples (n,) float in [-1, 1] as int16: the nearest of the steps of 2^-15, at most 1 -
    2^-15.
    """
    return np.rint(wave * np.float32(2**15)).clip(-(2**15), 2**15 - 1).astype(SAMPLE)


def to_float(samples: np.ndarray) -> np.ndarray:
    """int16 samples (n,) as float32 in [-1, 1); exact."""
    return np.multiply(samples, np.float32(2**-15), dtype=np.float32)


def quantised(wave: np.ndarray) -> np.ndarray:
    """A decoded wave as the cache would give it back."""
    return to_float(to_int16(wave))


@dataclasses.dataclass(frozen=True)
class AudioRow:
    """One clip: samples (n,) int16 at 16 kHz, none where `reason` says why, with its `stage`
    (path, decode, audio).
    """

    file: str
    samples: np.ndarray
    reason: str = ""
    stage: str = ""

    @classmethod
    def failed(cls, file: str, stage: str, reason: str) -> AudioRow:
        """A clip that gave nothing at all."""
        return cls(file, np.zeros(0, SAMPLE), reason, stage)


def write_part(
    folder: str | os.PathLike,
    place: Place,
    rows: Sequence[AudioRow],
    settings: dict[str, Any],
    inputs: str,
) -> Path:
    """Write one part: its sound, then the index without which the sound counts for nothing.
    Returns the index.
    """
    path = Path(folder) / place.name
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        if row.samples.dtype != SAMPLE or row.samples.ndim != 1:
            raise ValueError(
                f"{row.file}: samples are {row.samples.dtype} {row.samples.shape}, not int16 (n,)"
            )
        digest.update(row.samples)
    with whole_file(sound_path(path)) as partial, open(partial, "wb") as handle:
        handle.write(head(digest.hexdigest()))
        for row in rows:
            handle.write(row.samples)
    columns = {name: [getattr(row, name) for row in rows] for name in ("file", "stage", "reason")}
    columns["n_samples"] = [len(row.samples) for row in rows]
    size = sound_path(path).stat().st_size
    return write_index(path, place, columns, settings, inputs, digest.hexdigest(), size)


def write_index(
    path: Path,
    place: Place,
    columns: dict[str, Sequence],
    settings: dict[str, Any],
    inputs: str,
    digest: str,
    size: int | None = None,
) -> Path:
    """Write the index of a part: the columns of SCHEMA and, as its metadata, what it was made of.

    size: bytes of the .pcm file beside it, which then must be there for the part to count.
    """
    header = {
        "place": canonical_json(dataclasses.asdict(place)),
        "settings": canonical_json(settings),
        "settings_hash": settings_hash(settings),
        "inputs": inputs,
        "sound": digest,
        **({} if size is None else {"beside_bytes": str(size)}),
    }
    with whole_file(path) as partial:
        table = pa.table(columns, schema=SCHEMA.with_metadata(header))
        pq.write_table(
            table, partial, compression="zstd", use_dictionary=False, write_statistics=False
        )
    return path


def sound_path(index: Path) -> Path:
    """The file of samples beside an index."""
    return index.with_suffix(".pcm")


def head(digest: str) -> bytes:
    """The first line of a .pcm file: what it is, and which index it belongs to."""
    line = (
        f"klassify audio {FORMAT['version']}: {SAMPLE_RATE} Hz, mono, int16, little-endian; samples"
        f" {digest}"
    )
    return line.ljust(HEAD_BYTES - 1).encode() + b"\n"
