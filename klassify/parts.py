"""Work on a list in parts, each a whole Parquet file, so that any number of processes can share it
and an interrupted one resumes.

    part-<i>-of-<n>-<k>.parquet

Part k (from 0) of shard i (1..n). Feature shards and the chunks of scores are written so. A part's
metadata hold its place, the settings that made it with their hash, a hash of its input files, and
what else its kind records. Equal inputs give equal bytes: nothing depends on time or machine.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from klassify.errors import KlassifyError, first_few
from klassify.settings import canonical_json, differences, settings_hash
from klassify.untrusted import refuse_irregular, refuse_swollen

# what a damaged file raises
DAMAGED = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError)
AGAIN = "remove it and give the same command again"
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
    own: dict[bytes, bytes]  # all metadata of the file

    @property
    def settings_hash(self) -> str:
        """The hash of its settings."""
        return settings_hash(self.settings)


def header_of(place: Place, settings: dict[str, Any], inputs: str) -> dict[str, str]:
    """What a part says about itself, as the metadata of its file."""
    return {
        "place": canonical_json(dataclasses.asdict(place)),
        "settings": canonical_json(settings),
        "settings_hash": settings_hash(settings),
        "inputs": inputs,
    }


def read_header(path: str | os.PathLike) -> PartHeader:
    """The header of one part; a broken or foreign file is a KlassifyError that names it."""
    path = Path(path)
    with reading(path):
        metadata = open_part(path).schema_arrow.metadata or {}
    try:
        place = Place(**json.loads(metadata[b"place"]))
        settings, inputs = json.loads(metadata[b"settings"]), metadata[b"inputs"].decode()
    except (KeyError, ValueError, TypeError) as error:
        raise KlassifyError(
            f"This Parquet file is not a part of ours ({error!r}).", where=path
        ) from None
    if place.name != path.name:
        raise KlassifyError(
            f"This part was written as {place.name}.", where=path, fix="give it back its name"
        )
    if (size := metadata.get(b"beside_bytes")) is not None:
        _check_beside(path.with_suffix(".pcm"), int(size))
    return PartHeader(place, settings, inputs, metadata)


def _check_beside(path: Path, size: int) -> None:
    """A part of the audio cache is whole only with its sound."""
    found = path.stat().st_size if path.is_file() else -1
    if found != size:
        what = "is missing" if found < 0 else f"has {found} bytes, its index says {size}"
        raise KlassifyError(
            f"The sound of this part {what}.",
            where=path,
            fix="remove the index (.parquet), then repeat klassify extract --kind audio",
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


def n_shards_in(folder: str | os.PathLike) -> int:
    """Of how many shards the parts in a folder say that they are; 0 without parts."""
    return next((int(NAME.fullmatch(path.name)[2]) for path in parts_in(folder)), 0)


def headers_in(folder: str | os.PathLike) -> list[PartHeader]:
    """Of each finished part, but for those that another process removes meanwhile."""
    headers = []
    for path in parts_in(folder):
        try:
            headers.append(read_header(path))
        except KlassifyError:
            if path.exists():
                raise
    return headers


def check_together(headers: Sequence[PartHeader], *, where: object) -> None:
    """KlassifyError for parts that do not belong to one piece of work."""
    for what, of in (
        ("numbers of shards", lambda header: header.place.n),
        ("settings", lambda header: header.settings_hash),
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
        differ = differences(first, second, "in the first", "in the second")
        raise KlassifyError(
            f"The parts have {len(groups)} different {what}: {names}{differ and '; '}{differ}.",
            where=where,
            fix="remove those that do not belong here, or give the same command with --force",
        )


def missing_parts(places: Sequence[Place]) -> list[str]:
    """Names of the missing parts; `part-i-of-n-*` for a shard without any part."""
    if not places:
        return []
    there = {(place.i, place.k) for place in places}
    parts = {place.i: place.parts for place in places}
    n = places[0].n
    names = []
    for i in range(1, n + 1):
        if i not in parts:
            names.append(f"part-{i}-of-{n}-*")
        else:
            missing = (k for k in range(parts[i]) if (i, k) not in there)
            names += [Place(i, n, k, parts[i]).name for k in missing]
    return names


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """What a damaged part raises becomes a KlassifyError that names it."""
    try:
        yield
    except DAMAGED as error:
        raise KlassifyError(f"This part is damaged: {error}.", where=path, fix=AGAIN) from None


def open_part(path: Path | str, **options) -> pq.ParquetFile:
    """A part, opened; a KlassifyError for a file that is not Parquet."""
    refuse_irregular(path)
    try:
        return pq.ParquetFile(path, **options)
    except DAMAGED as error:
        raise KlassifyError(
            f"This is not a whole Parquet file: {error}.", where=path, fix=AGAIN
        ) from None


def read_part(
    path: Path | str,
    file: pq.ParquetFile,
    columns: Sequence[str] | None = None,
    group: int | None = None,
) -> pa.Table:
    """Columns of a part, None: all, or of one row group of it, no larger than the file warrants."""
    columns = file.schema_arrow.names if columns is None else list(columns)
    with reading(path):
        refuse_swollen(file, path, group=group, columns=columns, fix=AGAIN)
        table = file.read(columns) if group is None else file.read_row_group(group, columns)
        table = table.select(columns)  # KeyError for one that is not there
        for name in TEXTS.intersection(columns):  # a flipped bit may turn texts into bytes
            if table.schema.field(name).type != pa.string():
                raise TypeError(f"{name} holds {table.schema.field(name).type}, not text")
        return table
