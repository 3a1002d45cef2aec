"""Feature shards: the one schema, writer and reader of features (Parquet, one row a clip).

    features/<data>/<kind>/<split>/part-<i>-of-<n>-<k>.parquet

Part k (from 0) of shard i (1..n) of a list. Columns: `file`; `n_frames` on the 25 fps grid; `fps` of
the file; `features` (n_frames x 8 float32, row by row) and `valid` (n_frames bool); `stage` and `reason`
say why a clip has no features ("" otherwise). The file's metadata hold the settings that made it with
their hash, its place (shard, shards, part, parts), and a hash of its input files. Equal inputs give equal
bytes: nothing in a shard depends on time or machine.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from klassify.errors import KlassifyError, some
from klassify.files import canonical_json, settings_hash, whole_file

CHANNELS = 8
ROWS_A_GROUP = 16  # what one random read decodes
OPEN_PARTS, KEPT_GROUPS = 32, 64
NAME = re.compile(r"part-(\d+)-of-(\d+)-(\d+)\.parquet")

SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("n_frames", pa.int32()),
        ("fps", pa.float64()),
        ("features", pa.list_(pa.float32())),
        ("valid", pa.list_(pa.bool_())),
        ("stage", pa.string()),
        ("reason", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True)
class MouthRow:
    """One clip: features (T, 8) float32, valid (T,) bool, the file's own fps.

    A clip without usable features says why: `reason` in words, `stage` (path, decode, face, worker).
    """

    file: str
    fps: float
    features: np.ndarray
    valid: np.ndarray
    reason: str = ""
    stage: str = ""

    @classmethod
    def failed(cls, file: str, stage: str, reason: str) -> MouthRow:
        """A clip that gave nothing at all."""
        empty = np.zeros((0, CHANNELS), np.float32), np.zeros(0, bool)
        return cls(file, 0.0, *empty, reason=reason, stage=stage)


@dataclasses.dataclass(frozen=True)
class Place:
    """Which part of which shard a file is: part `k` of `parts` of shard `i` of `n`."""

    i: int
    n: int
    k: int
    parts: int

    @property
    def name(self) -> str:
        """The file's name."""
        return f"part-{self.i}-of-{self.n}-{self.k}.parquet"


@dataclasses.dataclass(frozen=True)
class PartHeader:
    """What a part says about itself."""

    place: Place
    settings: dict[str, Any]
    inputs: str  # hash of the input files' names and sizes


def write_part(
    folder: str | os.PathLike, place: Place, rows: Sequence[MouthRow], settings: dict[str, Any], inputs: str
) -> Path:
    """Write one part, whole or not at all. Refuses shapes that do not fit and values that are no numbers."""
    path = Path(folder) / place.name
    for row in rows:
        if row.features.shape != (len(row.valid), CHANNELS) or not np.isfinite(row.features).all():
            raise ValueError(f"{row.file}: features {row.features.shape} for {len(row.valid)} frames, or not finite")
    columns = {
        "file": [row.file for row in rows],
        "n_frames": [len(row.valid) for row in rows],
        "fps": [row.fps for row in rows],
        "features": _ragged([row.features.astype(np.float32).ravel() for row in rows], pa.float32()),
        "valid": _ragged([row.valid.astype(bool) for row in rows], pa.bool_()),
        "stage": [row.stage for row in rows],
        "reason": [row.reason for row in rows],
    }
    header = {
        "place": canonical_json(dataclasses.asdict(place)),
        "settings": canonical_json(settings),
        "settings_hash": settings_hash(settings),
        "inputs": inputs,
    }
    table = pa.table(columns, schema=SCHEMA.with_metadata(header))
    with whole_file(path) as partial:
        pq.write_table(
            table, partial, row_group_size=ROWS_A_GROUP, compression="zstd", use_dictionary=False,
            use_byte_stream_split=["features.list.element"], write_statistics=False,
        )  # fmt: skip
    return path


def read_header(path: str | os.PathLike) -> PartHeader:
    """The header of one part; a broken or foreign file is a KlassifyError that names it."""
    path = Path(path)
    metadata = _open(path).schema_arrow.metadata or {}
    try:
        place = Place(**json.loads(metadata[b"place"]))
        header = PartHeader(place, json.loads(metadata[b"settings"]), metadata[b"inputs"].decode())
    except (KeyError, ValueError, TypeError) as error:
        raise KlassifyError(f"This Parquet file is no feature shard ({error!r}).", where=path) from None
    if place.name != path.name:
        raise KlassifyError(f"This shard was written as {place.name}.", where=path, mend="give it back its name")
    return header


def read_rows(path: str | os.PathLike, columns: Sequence[str] = ("file", "stage", "reason")) -> list[dict[str, Any]]:
    """The rows of one part without their features."""
    return _read(path, _open(path), columns=columns).to_pylist()


def parts_in(folder: str | os.PathLike) -> list[Path]:
    """The finished parts in a folder, in the order of shard and part."""
    found = [
        (tuple(map(int, match.groups())), path)
        for path in Path(folder).glob("part-*")
        if (match := NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


class FeatureStore:
    """The clips of one folder of shards: `store[file]` is a MouthRow, read when asked for.

    Holds the names and a few decoded row groups, whatever the size of the folder. Raises KlassifyError
    for parts of different cuttings or settings, a clip that stands twice, and, unless `incomplete`,
    for missing parts.
    """

    def __init__(self, folder: str | os.PathLike, *, incomplete: bool = False):
        self.folder = Path(folder)
        self._paths = parts_in(folder)
        if not self._paths:
            raise KlassifyError(
                "There are no feature shards.",
                where=folder,
                mend="make them: make stage1, or `klassify extract`",
            )
        headers = [read_header(path) for path in self._paths]
        self.settings: dict[str, Any] = headers[0].settings
        check_together(headers, where=folder)
        missing = missing_parts([header.place for header in headers])
        if missing and not incomplete:
            raise KlassifyError(
                f"{len(missing)} parts are missing: {some(missing)}.", where=folder,
                mend="run `klassify extract --status` with the list, then the shards that it names",
            )  # fmt: skip
        self._rows: dict[str, int] = {}  # file -> row number over all parts
        self._starts = [0]
        self.reasons: dict[str, str] = {}
        self._index()
        self._forget()

    @property
    def files(self) -> list[str]:
        """The clips' names, in the order of the parts."""
        return list(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, file: object) -> bool:
        return file in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __getitem__(self, file: str) -> MouthRow:
        if file not in self._rows:
            raise KlassifyError(f"There are no features of {file!r}.", where=self.folder)
        number = self._rows[file]
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        group, row = divmod(number - self._starts[part], ROWS_A_GROUP)
        columns = self._group(part, group)
        value = {name: columns[name][row].as_py() for name in ("file", "fps", "stage", "reason")}
        features, valid = (columns[name][row].values.to_numpy(zero_copy_only=False) for name in ("features", "valid"))
        return MouthRow(features=features.reshape(-1, CHANNELS).copy(), valid=valid.astype(bool), **value)

    def _index(self) -> None:
        twice: list[str] = []
        for path in self._paths:
            table = _read(path, _open(path), columns=("file", "reason"))
            for file, reason in zip(table["file"].to_pylist(), table["reason"].to_pylist()):
                if file in self._rows:
                    twice.append(f"{file} (again in {path.name})")
                self._rows.setdefault(file, len(self._rows))
                if reason:
                    self.reasons[file] = reason
            self._starts.append(len(self._rows))
        if twice:
            raise KlassifyError(f"{len(twice)} clips stand twice: {some(twice)}.", where=self.folder)

    def _forget(self) -> None:
        self._part = functools.lru_cache(OPEN_PARTS)(lambda part: _open(self._paths[part], memory_map=True))
        self._group = functools.lru_cache(KEPT_GROUPS)(self._read_group)

    def _read_group(self, part: int, group: int) -> dict[str, pa.Array]:
        table = _read(self._paths[part], self._part(part), group=group, columns=SCHEMA.names)
        return {name: table[name].combine_chunks() for name in SCHEMA.names}

    def __getstate__(self) -> dict[str, Any]:  # a data loader's worker opens the files anew
        return {key: value for key, value in self.__dict__.items() if key not in ("_part", "_group")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


def check_together(headers: Sequence[PartHeader], *, where: object) -> None:
    """Refuse parts that do not belong to one extraction, and say which."""
    for what, of in (
        ("cuttings of the list (n)", lambda header: header.place.n),
        ("settings", lambda header: settings_hash(header.settings)),
    ):
        groups = collections.defaultdict(list)
        for header in headers:
            groups[of(header)].append(header)
        if len(groups) < 2:
            continue
        names = "; ".join(f"{key}: {some([h.place.name for h in group], 3)}" for key, group in groups.items())
        first, second = (group[0].settings for group in list(groups.values())[:2])
        keys = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
        differ = "".join(f"; {key}: {first.get(key)!r} and {second.get(key)!r}" for key in keys)
        raise KlassifyError(
            f"The shards have {len(groups)} different {what}: {names}{differ}.",
            where=where,
            mend="remove those that do not belong here, or run `klassify extract --force`",
        )


def missing_parts(places: Sequence[Place]) -> list[str]:
    """Names of the parts, and of the shards of which nothing is there, that the others speak of."""
    if not places:
        return []
    there = {(place.i, place.k) for place in places}
    parts = {place.i: place.parts for place in places}
    n = places[0].n
    names = []
    for i in range(1, n + 1):
        names += (
            [Place(i, n, k, parts[i]).name for k in range(parts[i]) if (i, k) not in there]
            if i in parts
            else [f"part-{i}-of-{n}-*"]
        )
    return names


def _ragged(arrays: Sequence[np.ndarray], kind: pa.DataType) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays], dtype=np.int64)])
    values = np.concatenate(arrays) if arrays else []
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind))


def _open(path: Path | str, **options) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, **options)
    except (pa.ArrowInvalid, OSError) as error:
        raise KlassifyError(
            f"This is no whole Parquet file: {error}.", where=path, mend="remove it and extract again"
        ) from None


def _read(path, file: pq.ParquetFile, columns: Sequence[str], group: int | None = None) -> pa.Table:
    try:
        return file.read(list(columns)) if group is None else file.read_row_group(group, list(columns))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise KlassifyError(
            f"This feature shard is damaged: {error}.", where=path, mend="remove it and extract again"
        ) from None
