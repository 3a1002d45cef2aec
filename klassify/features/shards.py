"""Feature shards: the one writer and reader of features (Parquet, one row per clip).

    features/<data>/<kind>/<split>/part-<i>-of-<n>-<k>.parquet

Part k (from 0) of shard i (1..n) of a list. Columns of every kind: `file`; `n_frames` on the 25 fps
grid; `fps` of the file; `stage` and `reason`, which say why a clip has no features ("" otherwise);
the others are those of the kind. The file's metadata hold the settings that made it with
their hash, its place (shard, shards, part, parts), and a hash of its input files. Equal inputs give
equal bytes: nothing in a shard depends on time or machine.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from klassify.errors import KlassifyError, first_few
from klassify.features.kinds import Row, row_class
from klassify.files import whole_file
from klassify.parts import (
    Place,
    check_together,
    header_of,
    missing_parts,
    open_part,
    parts_in,
    read_header,
    read_part,
    read_rows,
    reading,
)

OPEN_PARTS = 32


def write_part(
    folder: str | os.PathLike,
    place: Place,
    rows: Sequence[Row],
    settings: dict[str, Any],
    inputs: str,
) -> Path:
    """Write one part, whole or not at all. ValueError for shapes that do not fit, and NaN."""
    path = Path(folder) / place.name
    kind = row_class(settings)
    schema = kind.SCHEMA.with_metadata(header_of(place, settings, inputs))
    names = ("file", "fps", "stage", "reason")
    columns = {name: [getattr(row, name) for row in rows] for name in names}
    table = pa.table(columns | kind.columns(rows, settings), schema=schema)
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


class FeatureStore:
    """The clips of one folder of shards: `store[file]` is a row of their kind, read when asked for.

    Memory holds the names and a few decoded row groups, for folders of any size. Raises
    KlassifyError for parts of different settings or numbers of shards, a clip that appears
    twice, and, unless `incomplete`, for missing parts.
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
            raise KlassifyError(f"No features were extracted for {file}.", where=self.folder)
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
                f"{len(twice)} clips appear twice: {first_few(twice)}.", where=self.folder
            )

    def _forget(self) -> None:
        open_one = functools.lru_cache(OPEN_PARTS)
        self._part = open_one(lambda part: open_part(self._paths[part], memory_map=True))
        self._group = functools.lru_cache(self.row_class.KEPT_GROUPS)(self._read_group)

    def _read_group(self, part: int, group: int) -> dict[str, pa.Array]:
        file = self._part(part)
        # a column that was added later may be missing
        names = [name for name in self.row_class.SCHEMA.names if name in file.schema_arrow.names]
        table = read_part(self._paths[part], file, group=group, columns=names)
        return {name: table[name].combine_chunks() for name in names}

    def __getstate__(self) -> dict[str, Any]:  # each worker of a data loader opens the files itself
        state = self.__dict__
        return {key: state[key] for key in state if key not in ("_part", "_group")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()
