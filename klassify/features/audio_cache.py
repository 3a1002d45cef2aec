"""The files of the audio cache: writer, reader, and the store that serves samples to training."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from klassify.errors import KlassifyError, first_few
from klassify.files import whole_file
from klassify.media.decoder import SAMPLE_RATE
from klassify.parts import (
    DAMAGED,
    Place,
    check_together,
    header_of,
    missing_parts,
    open_part,
    parts_in,
    read_header,
    read_part,
)
from klassify.settings import differences

SAMPLE = np.dtype("<i2")
FORMAT = {"version": 1, "rate": SAMPLE_RATE, "sample": "int16", "channels": "mean"}
HEAD_BYTES = 128
# reasons of clips without an answer
NO_AUDIO, SILENT = "no audio", "the sound is digital silence"
SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("n_samples", pa.int32()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("n_heard", pa.int32()),  # samples that are not in gaps; caches made before lack it
    ]
)
READ = SCHEMA.remove(SCHEMA.get_field_index("n_heard"))


def to_int16(wave: np.ndarray) -> np.ndarray:
    """Samples (n,) float in [-1, 1] as int16, rounded to steps of 2^-15, at most 1 - 2^-15."""
    return np.rint(wave * np.float32(2**15)).clip(-(2**15), 2**15 - 1).astype(SAMPLE)


def to_float(samples: np.ndarray) -> np.ndarray:
    """int16 samples (n,) as float32 in [-1, 1); exact."""
    return np.multiply(samples, np.float32(2**-15), dtype=np.float32)


def quantised(wave: np.ndarray) -> np.ndarray:
    """A decoded wave as the cache would give it back."""
    return to_float(to_int16(wave))


def no_sound(samples: np.ndarray) -> str:
    """Why there is nothing to hear in samples (n,) of a clip; empty if there is."""
    if not len(samples):
        return NO_AUDIO
    return "" if samples.any() else SILENT


@dataclasses.dataclass(frozen=True)
class AudioRow:
    """One clip: samples (n,) int16 at 16 kHz, none where `reason` and `stage` say why.

    gaps and notes: see decoder.Sound. Of the gaps only the sum of their lengths is written.
    """

    file: str
    samples: np.ndarray
    reason: str = ""
    stage: str = ""
    gaps: Sequence[tuple[int, int]] = ()
    notes: Sequence[str] = ()

    @property
    def n_heard(self) -> int:
        """Samples for which the file has sound."""
        return len(self.samples) - sum(stop - start for start, stop in self.gaps)

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
    """Write one part: its samples, then its index. Returns the index."""
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
    columns["n_heard"] = [row.n_heard for row in rows]
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

    size: bytes of the .pcm file beside it, without which the part does not count.
    """
    header = header_of(place, settings, inputs) | {"sound": digest}
    if size is not None:
        header["beside_bytes"] = str(size)
    table = pa.table(columns, schema=SCHEMA.with_metadata(header))
    how = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    with whole_file(path) as partial:
        pq.write_table(table, partial, **how)
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


VARIABLE = "KLASSIFY_AUDIO"  # environment: auto, media (never the cache), cache (nothing else)
OPEN_PARTS = 64
AGAIN = "remove this part (.parquet and .pcm) and run `klassify extract --kind audio` again"


@dataclasses.dataclass(frozen=True)
class CachedClip:
    """The audio of a clip, read when sliced: len(clip), clip[start:stop] as float32, clip[:]."""

    cache: AudioStore
    part: int
    start: int  # samples of the part before it
    n_samples: int

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, span: slice) -> np.ndarray:
        first, stop, step = span.indices(self.n_samples)
        if step != 1:
            raise ValueError("audio is read in spans without gaps")
        return to_float(self.cache.samples(self.part, self.start + first, max(stop - first, 0)))


class AudioStore:
    """The clips of one folder of the cache, which may lack parts.

    Raises KlassifyError for parts that do not belong together, that are damaged or of another
    format, and for a clip that appears twice. `missing` names the parts that do not exist.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        paths = parts_in(folder)
        if not paths:
            what = "There is no audio cache."
            raise KlassifyError(what, where=folder, fix="make it: klassify extract --kind audio")
        headers = [read_header(path) for path in paths]
        check_together(headers, where=folder)
        self.settings: dict[str, Any] = headers[0].settings
        self._check_format()
        self.missing = missing_parts([header.place for header in headers])
        self.reasons: dict[str, str] = {}
        self._sounds = [sound_path(path) for path in paths]
        self._index([self._part(number, path) for number, path in enumerate(paths)], paths)
        self._forget()

    def __len__(self) -> int:
        return len(self._high)

    def get(self, file: str) -> CachedClip | None:
        """A clip, empty without audio; None if not here. KlassifyError: not decodable."""
        high, low = _keys([file])[0]
        i = int(np.searchsorted(self._high, high))
        while i < len(self) and self._high[i] == high and self._low[i] != low:
            i += 1
        if i == len(self) or self._high[i] != high:
            return None
        if file in self.reasons:
            raise KlassifyError(self.reasons[file], where=self.folder / file)
        return CachedClip(self, int(self._parts[i]), int(self._starts[i]), int(self._lengths[i]))

    def samples(self, part: int, first: int, count: int) -> np.ndarray:
        """`count` samples (count,) int16 of a part; nothing else is read."""
        found = np.empty(count, SAMPLE)
        rest, offset = found.view(np.uint8), HEAD_BYTES + SAMPLE.itemsize * first
        try:
            while len(rest):
                n = os.preadv(self._sound(part).descriptor, [rest], offset)
                if not n:
                    raise KlassifyError(
                        "The file ends within a clip.", where=self._sounds[part], fix=AGAIN
                    )
                rest, offset = rest[n:], offset + n
        except OSError as error:
            raise KlassifyError(
                f"The audio cannot be read: {error}.", where=self._sounds[part]
            ) from None
        return found

    def _check_format(self) -> None:
        wanted = {"kind": "audio"} | FORMAT
        there = {name: self.settings.get(name) for name in wanted}
        if there != wanted:
            sides = differences(there, wanted, "there", "wanted")
            raise KlassifyError(
                f"This is not an audio cache that can be read ({sides}).",
                where=self.folder,
                fix="make it again: klassify extract --kind audio --force",
            )

    def _part(self, number: int, path: Path) -> tuple[np.ndarray, ...]:
        """Keys (n, 2), part, start and length of the clips of a part, both files checked."""
        try:
            table = read_part(path, open_part(path), READ.names)
            if not table.schema.equals(READ):  # a flipped bit may turn texts into bytes
                raise ValueError("columns of other types")
            digest = table.schema.metadata[b"sound"].decode()
            files, reasons = table["file"].to_pylist(), table["reason"].to_pylist()
            lengths = np.array(table["n_samples"].to_pylist(), np.int64)
            if (lengths < 0).any():
                raise ValueError("lengths below 0")
            keys = _keys(files)
        except DAMAGED as error:
            what = f"This index is damaged ({error!r})."
            raise KlassifyError(what, where=path, fix=AGAIN) from None
        ends = np.cumsum(lengths)
        _check_sound(sound_path(path), digest, int(ends[-1]) if len(ends) else 0)
        failed = zip(files, reasons)
        self.reasons |= {file: why for file, why in failed if why not in ("", None, NO_AUDIO)}
        return keys, np.full(len(files), number, np.int32), ends - lengths, lengths.astype(np.int32)

    def _index(self, parts: Sequence[tuple[np.ndarray, ...]], paths: Sequence[Path]) -> None:
        """Four arrays in the order of the keys, without objects: worker processes share them."""
        keys, part, start, length = (np.concatenate(columns) for columns in zip(*parts))
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        self._high, self._low = np.ascontiguousarray(keys[order].T)
        self._parts, self._starts, self._lengths = part[order], start[order], length[order]
        twice = (self._high[1:] == self._high[:-1]) & (self._low[1:] == self._low[:-1])
        if twice.any():
            names = first_few(paths[i].name for i in np.unique(self._parts[1:][twice]))
            raise KlassifyError(
                f"{int(twice.sum())} clips appear twice (again in {names}).", where=self.folder
            )

    def _forget(self) -> None:
        self._sound = functools.lru_cache(OPEN_PARTS)(lambda part: _Sound(self._sounds[part]))

    def __getstate__(self) -> dict[str, Any]:  # each worker process opens the files itself
        return {key: value for key, value in self.__dict__.items() if key != "_sound"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


class _Sound:
    """An open .pcm file, closed when the last reader lets go of it."""

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def heard_in(folder: str | os.PathLike) -> dict[str, int]:
    """The samples of each clip of a cache that are not in gaps; {} of one that does not tell."""
    found: dict[str, int] = {}
    for path in parts_in(folder):
        opened = open_part(path)
        if "n_heard" in opened.schema_arrow.names:
            columns = read_part(path, opened, ("file", "n_heard")).to_pydict()
            found |= zip(columns["file"], columns["n_heard"])
    return found


def _check_sound(path: Path, digest: str, n_samples: int) -> None:
    """Refuse a .pcm file that is missing, of another length, or of another index."""
    wanted = HEAD_BYTES + SAMPLE.itemsize * n_samples
    try:
        with open(path, "rb") as handle:
            first_line, size = handle.read(HEAD_BYTES), os.fstat(handle.fileno()).st_size
    except OSError as error:
        what = f"The samples of this part cannot be read: {error.strerror}."
        raise KlassifyError(what, where=path, fix=AGAIN) from None
    if size != wanted:
        raise KlassifyError(
            f"This file has {size} bytes, its index says {wanted}.", where=path, fix=AGAIN
        )
    if first_line != head(digest):
        raise KlassifyError(
            "These samples are not those of the index beside them.", where=path, fix=AGAIN
        )


def _keys(files: Sequence[str]) -> np.ndarray:
    """A hash of each name, (n, 2) uint64; a collision among a billion names has p = 10^-21."""
    digests = b"".join(hashlib.blake2b(file.encode(), digest_size=16).digest() for file in files)
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def open_cache(folder: Path) -> AudioStore | None:
    """The cache of a split, or None where there is none or $KLASSIFY_AUDIO is `media`.

    With $KLASSIFY_AUDIO=cache a missing one is a KlassifyError.
    """
    choice = audio_source()
    if choice == "media" or (choice == "auto" and not parts_in(folder)):
        return None
    cache = AudioStore(folder)
    if cache.missing and choice == "auto":
        _say_once(
            f"{folder}: the audio cache lacks {len(cache.missing)} parts; their clips are decoded"
            " each time"
        )
    return cache


def audio_source() -> str:
    """What $KLASSIFY_AUDIO says: auto (the default), media or cache."""
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in ("auto", "media", "cache"):
        raise KlassifyError(f"{VARIABLE}={choice!r} is not one of auto, media, cache.")
    return choice


@functools.cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)
