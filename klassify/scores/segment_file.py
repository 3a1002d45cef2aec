"""The proposals of a split in compact arrays, so that forty million rows fit in memory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from klassify.progress import Count
from klassify.scores.score_file import Header, n_rows, read_blocks, read_header

ROWS_AT_ONCE = 1 << 20
NUMBERS = ("start", "end", "score")
TEXTS = ("modality", "method")


@dataclasses.dataclass(frozen=True)
class Segments:
    """N proposals of n clips in the order of the file.

    files: (n,) names in order of appearance. clip: (N,) int32 place in files. start, end: (N,)
    seconds; score: (N,). texts: of those of TEXTS that were read, {modality, method: (distinct
    texts, (N,) int32 place among them)}.
    """

    header: Header
    files: np.ndarray
    clip: np.ndarray
    start: np.ndarray
    end: np.ndarray
    score: np.ndarray
    texts: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def numbers(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Start, end and score of some rows."""
        return self.start[rows], self.end[rows], self.score[rows]

    def texts_of(self, name: str, rows: np.ndarray) -> np.ndarray:
        """The modality, or the method, of some rows."""
        texts, code = self.texts[name]
        return texts[code[rows]]


def read_segments(path: str | os.PathLike, *, texts: Sequence[str] = TEXTS) -> Segments:
    """Read and validate a segments score file, a million rows at a time, and of TEXTS only those
    that are needed.
    """
    codes = {name: [np.empty(0, np.int32)] for name in ("file", *texts)}
    numbers = {name: [np.empty(0)] for name in NUMBERS}
    known: dict[str, dict[str, int]] = {name: {} for name in codes}
    header = read_header(path)
    with Count(f"read proposals of {header.system}", n_rows(path), unit="row") as count:
        without = set(TEXTS) - set(texts)
        for table in count(read_blocks(path, ROWS_AT_ONCE, without=without), len):
            for name in NUMBERS:
                numbers[name].append(table[name].to_numpy(float))
            for name, places in known.items():
                column = table.get(name, pd.Series("", table.index, dtype=object))
                code, found = pd.factorize(column.to_numpy(object))
                place = [places.setdefault(text, len(places)) for text in found]
                codes[name].append(np.array(place, np.int32)[code])
    arrays = {}
    for parts in (codes, numbers):  # each list of parts is freed as soon as it is one array
        for name in [*parts]:
            arrays[name] = np.concatenate(parts.pop(name))
    names = {name: np.array([*places], object) for name, places in known.items()}
    columns = (arrays[name] for name in ("file", *NUMBERS))
    coded = {name: (names[name], arrays[name]) for name in texts}
    return Segments(header, names["file"], *columns, coded)


def rows_of_clips(clip: np.ndarray, n_clips: int) -> Callable[[int, int], np.ndarray]:
    """A function (first, stop) of the rows of clips first to stop, in the order of the clips and
    each clip's in that of the file. clip: (N,) of each row, in [0, n_clips).
    """
    order = None if (clip[1:] >= clip[:-1]).all() else np.argsort(clip, kind="stable")
    edges = np.arange(n_clips + 1, dtype=clip.dtype)  # of another type, clip would be copied
    offsets = np.searchsorted(clip, edges, sorter=order)

    def rows(first: int, stop: int) -> np.ndarray:
        some = np.arange(offsets[first], offsets[stop])
        return some if order is None else order[some]

    return rows
