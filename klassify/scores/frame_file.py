"""Frame score files read by the names of clips, a block of clips at a time.

A corpus of 77,000 clips has twenty million rows. The index of a file is its clips' names and row
counts; rows are read from the Parquet row groups that hold them, so that memory depends on the
block and not on the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.grid.ragged import FrameTable, pooled, row_numbers, row_offsets
from klassify.progress import Count
from klassify.scores.score_file import AGAIN, read_header, reading
from klassify.untrusted import refuse_swollen

BLOCK_CLIPS = 4096  # about a million frames


def blocks(files: Sequence[str], size: int = BLOCK_CLIPS) -> Iterator[Sequence[str]]:
    """`files` in slices of `size`."""
    for first in range(0, len(files), size):
        yield files[first : first + size]


def counted_blocks(files: Sequence[str], label: str) -> Iterator[Sequence[str]]:
    """`blocks` of files, with the progress of the clips."""
    with Count(label, len(files)) as count:
        yield from count(blocks(files), len)


def frame_table(source: FrameFile, plus: str = "score", minus: str | None = None) -> FrameTable:
    """The column `plus` of a frames score file, or `plus` less `minus`; nothing else is kept."""
    columns = [plus] if minus is None else [plus, minus]
    scores = [np.empty(0)]
    for files in counted_blocks(source.files, f"read {source.header.system}"):
        values = source.read(files, columns).values
        # a copy: a view would keep all columns
        scores.append(values[:, 0].copy() if minus is None else values[:, 0] - values[:, 1])
    grid = (source.header.hop_s, source.header.offset_s)
    return FrameTable(source.files, row_offsets(source.counts), np.concatenate(scores), *grid)


GROUPS_KEPT = 2  # row groups in memory: a block may begin in one and end in the next


class Rows(NamedTuple):
    """Frames of n clips: offsets (n + 1,), ends_s (n,), NaN without frames, values (F, C)."""

    offsets: np.ndarray
    ends_s: np.ndarray
    values: np.ndarray


class FrameFile:
    """A frames score file. files: (n,) names in file order; counts: (n,) frames of each."""

    def __init__(self, path: str | os.PathLike):
        self.path, self.header = Path(path), read_header(path)
        with reading(path), self._open() as parquet:
            sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
            self.columns = list(parquet.schema_arrow.names)
            names, runs = _runs(parquet, self.path)
        missing = {"file", "start", "end", "score"} - set(self.columns)
        if missing:
            raise KlassifyError(f"Columns {sorted(missing)} are missing.", where=self.path)
        self.files, self.counts = np.asarray(names, dtype=object), np.asarray(runs, np.int64)
        self._place = pd.Index(self.files)
        if self._place.has_duplicates:
            twice = self._place[self._place.duplicated()]
            raise KlassifyError(
                f"The rows of these clips are not contiguous: {first_few(twice)}.", where=self.path
            )
        self._offsets = row_offsets(self.counts)
        self._group_offsets = row_offsets(np.asarray(sizes, np.int64))
        self._groups: dict[tuple, np.ndarray] = {}

    def _open(self) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetFile(self.path, read_dictionary=["file"])

    def read(self, files: Sequence[str], columns: Sequence[str]) -> Rows:
        """The frames of `files` in their order; a clip that is not here has none.

        Raises KlassifyError for an unknown column, rows off the grid and values that are not
        finite.
        """
        unknown = [name for name in columns if name not in self.columns]
        if unknown:
            there = first_few(self.columns, 20)
            raise KlassifyError(
                f"There are no columns {first_few(unknown)}; there are {there}.", where=self.path
            )
        at = self._place.get_indexer(pd.Index(files, dtype=object))
        here = at >= 0
        counts = np.where(here, self.counts[at] if len(self.counts) else 0, 0)
        offsets = row_offsets(counts)
        table = self._rows(row_numbers(self._offsets, at[here]), tuple(columns))
        self._check(table, files, offsets)
        ends_s = np.full(len(files), np.nan)
        ends_s[here] = table[offsets[1:][here] - 1, 1]
        return Rows(offsets, ends_s, table[:, 2:])

    def _rows(self, rows: np.ndarray, columns: tuple[str, ...]) -> np.ndarray:
        """start, end and `columns` of these rows, (F, 2 + C) float64."""
        table = np.empty((len(rows), 2 + len(columns)))
        group = np.searchsorted(self._group_offsets, rows, side="right") - 1
        for g in np.unique(group).tolist():
            mine = group == g
            table[mine] = self._group(g, columns)[rows[mine] - self._group_offsets[g]]
        return table

    def _group(self, g: int, columns: tuple[str, ...]) -> np.ndarray:
        key = (g, columns)
        if key not in self._groups:
            with reading(self.path), self._open() as parquet:
                names = ["start", "end", *columns]
                refuse_swollen(parquet, self.path, group=g, columns=names, fix=AGAIN)
                read = parquet.read_row_group(g, columns=names)
                table = np.column_stack([read[name].to_numpy() for name in names]).astype(float)
            while len(self._groups) >= GROUPS_KEPT:
                self._groups.pop(next(iter(self._groups)))
            self._groups[key] = table
        return self._groups[key]

    def _check(self, table: np.ndarray, files: Sequence[str], offsets: np.ndarray) -> None:
        owner = np.repeat(np.arange(len(files)), np.diff(offsets))
        k = np.arange(len(table)) - offsets[owner]
        hop_s, offset_s = self.header.hop_s, self.header.offset_s
        with np.errstate(invalid="ignore"):  # infinite times
            off_grid = ~(np.abs(table[:, 0] - (k * hop_s + offset_s)) <= 1e-4)
        for bad, why in (
            (off_grid, f"not one row for each {1000 * hop_s:g} ms frame from {offset_s:g} s on"),
            (~np.isfinite(table).all(axis=1), "no finite numbers"),
        ):
            if bad.any():
                names = first_few(dict.fromkeys(files[i] for i in owner[bad][:50]))
                raise KlassifyError(f"Frame scores of {names} are {why}.", where=self.path)


def _runs(parquet: Any, path: Path) -> tuple[list[str], list[int]]:
    """Names and row counts of the clips of a file, in file order."""
    names: list[str] = []
    counts: list[int] = []
    for group in range(parquet.num_row_groups):
        if not parquet.metadata.row_group(group).num_rows:  # such a column has no type
            continue
        refuse_swollen(parquet, path, group=group, fix=AGAIN)
        for chunk in parquet.read_row_group(group, columns=["file"])["file"].chunks:
            codes = chunk.indices.to_numpy()
            first = np.flatnonzero(np.append(True, codes[1:] != codes[:-1])[: len(codes)])
            found = chunk.dictionary.take(chunk.indices.take(first)).to_pylist()
            for name, count in zip(found, np.diff(first, append=len(codes)).tolist()):
                if names and names[-1] == name:  # goes on from the chunk before
                    counts[-1] += count
                else:
                    names.append(name)
                    counts.append(count)
    return names, counts


def clip_scores(source: FrameFile, how: str = "max") -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Names and `pooled` scores of the clips of a file, a block of clips at a time."""
    for files in blocks(source.files):
        rows = source.read(files, ["score"])
        yield files, pooled(rows.values[:, 0], rows.offsets, how)
