"""Proposals and true segments of many clips, as flat arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.grid.ragged import row_numbers, row_offsets

PLACEHOLDER = "write the placeholder [[0, 0, 0]] for a clip without proposals"


def proposed_columns(n: int) -> tuple[str, ...]:
    """The named columns of frame scores for `n` segments that a model itself proposes at each
    frame: proposed0_score (in [0, 1]), proposed0_start, proposed0_end (s), proposed1_score, ...
    """
    return tuple(f"proposed{k}_{part}" for k in range(n) for part in ("score", "start", "end"))


@dataclasses.dataclass(frozen=True)
class Proposals:
    """What a system proposes.

    files: (n,) names, each once. offsets: (n + 1,); clip i has rows[offsets[i]:offsets[i + 1]].
    rows: (N, 3) float32, score, start and end in seconds, in file order: the official metric
    depends on it.
    """

    files: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray

    @classmethod
    def from_rows(
        cls,
        files: Sequence[str],
        clip: np.ndarray,
        score: np.ndarray,
        start: np.ndarray,
        end: np.ndarray,
        most: int | None = None,
    ) -> Proposals:
        """From the columns (N,) of a segments score file; within a clip by descending score, as it
        is submitted, and at most so many.

        files: all clips of the split; one without rows has no proposals. clip: (N,) place in
        files; rows where it is negative are ignored.
        """
        order = np.lexsort((-score, clip))
        order = order[clip[order] >= 0]
        counts = np.bincount(clip[order], minlength=len(files))
        if most is not None:
            nth = np.arange(len(order)) - np.repeat(row_offsets(counts)[:-1], counts)
            order, counts = order[nth < most], np.minimum(counts, most)
        rows = np.empty((len(order), 3), np.float32)
        for column, values in enumerate((score, start, end)):
            rows[:, column] = values[order]
        return cls(np.asarray(files, dtype=object), row_offsets(counts), rows)

    def select(self, files: np.ndarray) -> Proposals:
        """The proposals of `files`, in their order; other clips are left out.

        Raises KlassifyError that counts and names the clips without an entry.
        """
        if np.array_equal(self.files, files):
            return self
        place = {name: index for index, name in enumerate(self.files)}
        missing = [name for name in files if name not in place]
        if missing:
            raise KlassifyError(
                f"{len(missing)} of {len(files)} clips have no entry: {first_few(missing)}.",
                fix=f"names must equal those of the list, extension included; {PLACEHOLDER}",
            )
        return self.take(np.fromiter((place[name] for name in files), np.int64, len(files)))

    def take(self, clips: np.ndarray) -> Proposals:
        """The proposals of the clips with these indices, in this order."""
        rows = self.rows[row_numbers(self.offsets, clips)]
        return Proposals(self.files[clips], row_offsets(np.diff(self.offsets)[clips]), rows)

    def by_score(self) -> Proposals:
        """The same with the rows of each clip in descending order of score, ties in file order."""
        clip = np.repeat(np.arange(len(self.files)), np.diff(self.offsets))
        return dataclasses.replace(self, rows=self.rows[np.lexsort((-self.rows[:, 0], clip))])


@dataclasses.dataclass(frozen=True)
class Truth:
    """The fake segments of a labelled split.

    files: (n,) names. offsets: (n + 1,). segments: (M, 2) float64 [start, end) in seconds.
    """

    files: np.ndarray
    offsets: np.ndarray
    segments: np.ndarray

    def take(self, clips: np.ndarray) -> Truth:
        """The truth of the clips with these indices, in this order."""
        segments = self.segments[row_numbers(self.offsets, clips)]
        return Truth(self.files[clips], row_offsets(np.diff(self.offsets)[clips]), segments)

    @classmethod
    def from_cells(cls, files: Sequence[str], cells: Sequence[Sequence[Sequence[float]]]) -> Truth:
        """From one list of [start, end] a clip; ValueError or TypeError for anything else."""
        times = np.fromiter(chain.from_iterable(chain.from_iterable(cells)), float)
        counts = np.fromiter(map(len, cells), np.int64, len(cells))
        if len(times) != 2 * counts.sum():
            raise ValueError("a segment is not a pair [start, end]")
        return cls(np.asarray(files, dtype=object), row_offsets(counts), times.reshape(-1, 2))

    @classmethod
    def from_list(cls, frame: pd.DataFrame, column: str = "fake_segments") -> Truth:
        """From a data list read with `read_list(path, segments=True)`.

        column: fake_segments (the challenge's target), audio_fake_segments or visual_fake_segments.
        """
        unknown = frame["file"][frame[column].isna()]
        if len(unknown):
            raise KlassifyError(
                f"{len(unknown)} of {len(frame)} clips have no {column}: {first_few(unknown)}.",
                where="data list",
                fix="evaluate on a labelled split, with `--labels` for labels that were held out",
            )
        return cls.from_cells(frame["file"].to_numpy(), frame[column].to_list())
