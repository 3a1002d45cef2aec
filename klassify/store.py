"""Feature shards: the one writer and reader of features (Parquet, one row a clip).

    features/<data>/<kind>/<split>/part-<i>-of-<n>-<k>.parquet

Part k (from 0) of shard i (1..n) of a list. Columns of every kind: `file`; `n_frames` on the 25 fps
grid; `fps` of the file; `stage` and `reason`, which say why a clip has no features ("" otherwise);
the others are in klassify.store_kinds. The file's metadata hold the settings that made it with
their hash, its place (shard, shards, part, parts), and a hash of its input files. Equal inputs give
equal bytes: nothing in a shard depends on time or machine.
"""

from __future__ import annotations

import collections
import contextlib
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

from klassify.errors import KlassifyError, first_few
from klassify.files import canonical_json, refuse_irregular, settings_hash, whole_file
from klassify.proportion import refuse_swollen
from klassify.store_kinds import LMMRow, MouthRow, ReconstructionRow, Row, row_class

__all__ = [
    "FeatureStore",
    "LMMRow",
    "MouthRow",
    "Place",
    "PartHeader",
    "ReconstructionRow",
    "Row",
    "write_part",
]

OPEN_PARTS = 32
DAMAGED = (
    pa.ArrowException,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)  # what a damaged file raises
AGAIN = "remove it and extract again"
TEXTS = {"file", "stage", "reason"}
NAME = re.compile(r"part-(\d+)-of-(\d+)-(\d+)\.parquet")


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
    folder: str | os.PathLike,
    place: Place,
    rows: Sequence[Row],
    settings: dict[str, Any],
    inputs: str,
) -> Path:
    """Write one part, whole or not at all. Refuses shapes that do not fit and values that are no
    numbers.
    """
    path = Path(folder) / place.name
    kind = row_class(settings)
    header = {
        "place": canonical_json(dataclasses.asdict(place)),
        "settings": canonical_json(settings),
        "settings_hash": settings_hash(settings),
        "inputs": inputs,
    }
    schema = kind.SCHEMA.with_metadata(header)
    common = {
        name: [getattr(row, name) for row in rows] for name in ("file", "fps", "stage", "reason")
    }
    table = pa.table({**common, **kind.columns(rows, settings)}, schema=schema)
    with whole_file(path) as partial:
        pq.write_table(
            table,
            partial,
            row_group_size=kind.ROWS_A_GROUP,
            compression="zstd",
            use_dictionary=False,
            use_byte_stream_split=list(kind.SPLIT_BYTES),
            write_statistics=False,
        )
    return path


def read_header(path: str | os.PathLike) -> PartHeader:
    """The header of one part; a broken or foreign file is a KlassifyError that names it."""
    path = Path(path)
    with reading(path):
        metadata = open_part(path).schema_arrow.metadata or {}
    try:
        place = Place(**json.loads(metadata[b"place"]))
        header = PartHeader(place, json.loads(metadata[b"settings"]), metadata[b"inputs"].decode())
    except (KeyError, ValueError, TypeError) as error:
        raise KlassifyError(
            f"This Parquet file is no feature shard ({error!r}).", where=path
        ) from None
    if place.name != path.name:
        raise KlassifyError(
            f"This shard was written as {place.name}.", where=path, fix="give it back its name"
        )
    if (size := metadata.get(b"beside_bytes")) is not None:
        _check_beside(path.with_suffix(".pcm"), int(size))
    return header


def _check_beside(path: Path, size: int) -> None:
    """A part of the audio cache is whole only with its sound."""
    found = path.stat().st_size if path.is_file() else -1
    if found != size:
        what = "is missing" if found < 0 else f"has {found} bytes, its index speaks of {size}"
        raise KlassifyError(
            f"The sound of this part {what}.",
            where=path,
            fix="remove the index (.parquet), then klassify extract --kind audio goes on",
        )


def read_rows(
    path: str | os.PathLike, columns: Sequence[str] = ("file", "stage", "reason")
) -> list[dict[str, Any]]:
    """The rows of one part without their features."""
    with reading(path):
        return read_part(path, open_part(path), columns=columns).to_pylist()


def parts_in(folder: str | os.PathLike) -> list[Path]:
    """The finished parts in a folder, in the order of shard and part."""
    found = [
        (tuple(map(int, match.groups())), path)
        for path in Path(folder).glob("part-*")
        if (match := NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


class FeatureStore:
    """The clips of one folder of shards: `store[file]` is a row of their kind, read when asked for.

    Holds the names and a few decoded row groups, whatever the size of the folder. Raises
    KlassifyError for parts of different cuttings or settings, a clip that stands twice, and, unless
    `incomplete`, for missing parts.
    """

    def __init__(self, folder: str | os.PathLike, *, incomplete: bool = False):
        self.folder = Path(folder)
        self._paths = parts_in(folder)
        if not self._paths:
            raise KlassifyError(
                "There are no feature shards.",
                where=folder,
                fix="make them: make stage1, or `klassify extract`",
            )
        headers = [read_header(path) for path in self._paths]
        self.settings: dict[str, Any] = headers[0].settings
        check_together(headers, where=folder)
        self.row_class = row_class(self.settings, where=folder)
        missing = missing_parts([header.place for header in headers])
        if missing and not incomplete:
            raise KlassifyError(
                f"{len(missing)} parts are missing: {first_few(missing)}.",
                where=folder,
                fix="run `klassify extract --status` with the list, then the shards that it names",
            )
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

    def __getitem__(self, file: str) -> Row:
        if file not in self._rows:
            raise KlassifyError(f"There are no features of {file!r}.", where=self.folder)
        number = self._rows[file]
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        group, row = divmod(number - self._starts[part], self.row_class.ROWS_A_GROUP)
        with reading(self._paths[part]):
            return self.row_class.from_columns(self._group(part, group), row, self.settings)

    def _index(self) -> None:
        twice: list[str] = []
        for path in self._paths:
            for file, reason in (row.values() for row in read_rows(path, ("file", "reason"))):
                if file in self._rows:
                    twice.append(f"{file} (again in {path.name})")
                self._rows.setdefault(file, len(self._rows))
                if reason:
                    self.reasons[file] = reason
            self._starts.append(len(self._rows))
        if twice:
            raise KlassifyError(
                f"{len(twice)} clips stand twice: {first_few(twice)}.", where=self.folder
            )

    def _forget(self) -> None:
        self._part = functools.lru_cache(OPEN_PARTS)(
            lambda part: open_part(self._paths[part], memory_map=True)
        )
        self._group = functools.lru_cache(self.row_class.KEPT_GROUPS)(self._read_group)

    def _read_group(self, part: int, group: int) -> dict[str, pa.Array]:
        names = self.row_class.SCHEMA.names
        table = read_part(self._paths[part], self._part(part), group=group, columns=names)
        return {name: table[name].combine_chunks() for name in names}

    def __getstate__(self) -> dict[str, Any]:  # a data loader's worker opens the files anew
        return {
            key: value for key, value in self.__dict__.items() if key not in ("_part", "_group")
        }

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
        names = "; ".join(
            f"{key}: {first_few([h.place.name for h in group], 3)}" for key, group in groups.items()
        )
        first, second = (group[0].settings for group in list(groups.values())[:2])
        keys = sorted(
            key for key in first.keys() | second.keys() if first.get(key) != second.get(key)
        )
        differ = "".join(f"; {key}: {first.get(key)!r} and {second.get(key)!r}" for key in keys)
        raise KlassifyError(
            f"The shards have {len(groups)} different {what}: {names}{differ}.",
            where=where,
            fix="remove those that do not belong here, or run `klassify extract --force`",
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


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """What a damaged shard raises becomes a KlassifyError that names it."""
    try:
        yield
    except DAMAGED as error:
        raise KlassifyError(
            f"This feature shard is damaged: {error}.", where=path, fix=AGAIN
        ) from None


def open_part(path: Path | str, **options) -> pq.ParquetFile:
    """A part, opened; a KlassifyError for a file that is not Parquet."""
    refuse_irregular(path)
    try:
        return pq.ParquetFile(path, **options)
    except DAMAGED as error:
        raise KlassifyError(
            f"This is no whole Parquet file: {error}.", where=path, fix=AGAIN
        ) from None


def read_part(
    path: Path | str, file: pq.ParquetFile, columns: Sequence[str], group: int | None = None
) -> pa.Table:
    """Columns of a part, or of one row group of it, no larger than the file warrants."""
    with reading(path):
        refuse_swollen(file, path, group=group, columns=columns, fix=AGAIN)
        table = (
            file.read(list(columns)) if group is None else file.read_row_group(group, list(columns))
        )
        table = table.select(list(columns))  # KeyError for one that is not there
        for name in TEXTS.intersection(columns):  # a flipped bit may turn texts into bytes
            if table.schema.field(name).type != pa.string():
                raise TypeError(f"{name} holds {table.schema.field(name).type}, not text")
        return table
