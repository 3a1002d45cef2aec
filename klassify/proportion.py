"""Parquet files that would unpack to out of all proportion are refused before anything of them is
read.

Run lengths and dictionaries let a file of some kilobytes stand for as many rows as its header
likes. What a row group takes in memory is known beforehand, near enough: its rows and its bytes
stand in the file's metadata.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from klassify.errors import KlassifyError

# Of one read, unpacked. A row group of frame scores is a million rows, 0.1 GB, and the codes of an
# hour's clip are 0.3 GB; both may repeat themselves without end, as those of a black video do.
ALWAYS_READ = 1 << 29
# What takes more than that holds numbers of a network, of which each is some bytes in the file too.
# A whole file of frame scores that never change is the extreme: about 300, for the names of its
# clips.
MOST_TIMES = 1000
WIDTH = 8  # bytes a value, or its pointer


def refuse_swollen(
    parquet: Any,
    path: str | os.PathLike,
    *,
    group: int | None = None,
    columns: Collection[str] = (),
    fix: str,
) -> None:
    """KlassifyError where a row group (None: all) unpacks to too much: its bytes, or its rows of so
    many columns.

    columns: those that are read; none given: all. Lists count as their bytes in the file, not by
    their length. parquet: an opened pyarrow.parquet.ParquetFile.
    """
    metadata, unpacked = parquet.metadata, 0
    for number in range(metadata.num_row_groups) if group is None else [group]:
        rows = metadata.row_group(
            number
        )  # its columns are not asked: pyarrow ends the process where they are damaged
        unpacked += max(
            rows.total_byte_size, rows.num_rows * (len(columns) or rows.num_columns) * WIDTH
        )
    packed = os.path.getsize(path)
    if unpacked > max(ALWAYS_READ, MOST_TIMES * packed):
        raise KlassifyError(
            f"{packed} bytes of this file claim to unpack to {unpacked / 1e9:.1f} GB.",
            where=path,
            fix=fix,
        )
