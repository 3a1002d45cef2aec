"""Guards against files from elsewhere: pipes, truncated files, YAML aliases without bound, Parquet
files that unpack out of proportion, modules in folders from elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from klassify.errors import KlassifyError

MOST_REPEATED = 1 << 20  # characters and values that all aliases of a file repeat


class BoundedLoader(yaml.SafeLoader):
    """SafeLoader that refuses a value that contains itself, and aliases that repeat too much."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.size, self.repeated = 0, 0
        self.size_of: dict[int, int] = {}  # {id of a completely read value: its size}

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        """The next value; yaml.MarkedYAMLError where aliases repeat too much."""
        alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark
        before = self.size
        node = super().compose_node(parent, index)
        if not alias:
            self.size += 1 + len(node.value) * isinstance(node, yaml.ScalarNode)
            self.size_of[id(node)] = self.size - before
            return node
        if id(node) not in self.size_of:
            raise yaml.MarkedYAMLError(problem="this value holds itself", problem_mark=mark)
        self.size += self.size_of[id(node)]
        self.repeated += self.size_of[id(node)]
        if self.repeated > MOST_REPEATED:
            raise yaml.MarkedYAMLError(problem="its aliases repeat too much", problem_mark=mark)
        return node


def refuse_irregular(path: str | os.PathLike) -> None:
    """KlassifyError for a pipe, folder or device: reading a pipe would wait forever."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise KlassifyError("This is not a regular file.", where=path)


def refuse_cut(path: str | os.PathLike) -> None:
    """KlassifyError for a text file without a newline at its end, which klassify always writes."""
    with open(path, "rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(size - 1, 0))
        if handle.read(1) not in (b"\n", b""):
            raise KlassifyError(
                "This file is truncated: the last line has no newline.",
                where=path,
                fix="make it again; if it is complete, end its last line with a newline",
            )


# Bytes of one read, unpacked. A row group of frame scores is a million rows, 0.1 GB, and the codes
# of an hour's clip are 0.3 GB; both may consist of repeats, as those of a black video do.
ALWAYS_READ = 1 << 29
# Larger reads hold numbers of a network, and each takes some bytes in the file too. The extreme is
# a file of frame scores that never change: about 300 times its size, for the names of its clips.
MOST_TIMES = 1000
WIDTH = 8  # bytes per value or pointer


def refuse_swollen(
    parquet: Any,
    path: str | os.PathLike,
    *,
    group: int | None = None,
    columns: Collection[str] = (),
    fix: str,
) -> None:
    """KlassifyError where one row group (`group`; None: all together) would take too much memory.

    columns: those that are read; empty means all. Lists count by their bytes in the file, not by
    their length. parquet: an opened pyarrow.parquet.ParquetFile.
    """
    metadata, unpacked = parquet.metadata, 0
    for number in range(metadata.num_row_groups) if group is None else [group]:
        rows = metadata.row_group(number)
        # the metadata of its columns is left alone: where damaged, pyarrow ends the process
        width = (len(columns) or rows.num_columns) * WIDTH
        unpacked += max(rows.total_byte_size, rows.num_rows * width)
    packed = os.path.getsize(path)
    if unpacked > max(ALWAYS_READ, MOST_TIMES * packed):
        what = f"{packed} bytes of this file claim to unpack to {unpacked / 1e9:.1f} GB."
        raise KlassifyError(what, where=path, fix=fix)


@contextlib.contextmanager
def no_code_of(folder: Path) -> Iterator[None]:
    """No module is imported from a folder, which may lie on sys.path."""
    finder = _Refusing(folder.resolve())
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Refusing(importlib.abc.MetaPathFinder):
    """Finds nothing; KlassifyError for a module in a folder, but for installed ones."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.installed = [
            Path(path).resolve() for path in (Path(__file__).parent, sys.prefix, sys.base_prefix)
        ]

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or not spec.has_location:
            return
        place = Path(spec.origin).resolve()
        if place.is_relative_to(self.folder) and not any(map(place.is_relative_to, self.installed)):
            what = "A config names code in the detector's own folder, which is not run."
            raise KlassifyError(
                what, where=place, fix="if you trust it, move it to a folder of your own"
            )
