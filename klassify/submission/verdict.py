"""What the checker works with: names, limits, the clips listed, and what it found."""

from __future__ import annotations

import collections
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify.lists import data_list, official

TXT, JSON, ZIP, MANIFEST = "prediction.txt", "prediction.json", "submission.zip", "manifest.json"
MAX_ROWS = 50  # AR looks at no more


class Notes:
    """What is wrong, by kind; counts everything and keeps the first `limit` places of each kind."""

    def __init__(self, limit: int):
        self.limit = limit
        self.counts: collections.Counter[str] = collections.Counter()
        self.places: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, kind: str, place: str) -> None:
        """Count one more of a kind, which is at this place."""
        self.counts[kind] += 1
        if self.counts[kind] <= self.limit:
            self.places[kind].append(place)

    @property
    def total(self) -> int:
        """The count of all kinds."""
        return self.counts.total()

    def lines(self) -> Iterator[str]:
        """Each kind with its count and its first places, as text."""
        for kind, count in self.counts.items():
            yield f"  {count} x {kind}"
            yield from (f"      {place}" for place in self.places[kind])
            if count > self.limit:
                yield f"      ... and {count - self.limit} more"


class Listed:
    """The clips that need an answer: name -> line in the list, and durations in seconds."""

    def __init__(
        self, files: list[str], name: str, durations: list[float] | None = None, first_line: int = 1
    ):
        self.name = name
        self.line = {file: number for number, file in enumerate(files, first_line)}
        self.duration = dict(zip(files, durations or [math.nan] * len(files)))
        self._nearly: dict[str, str] | None = None

    @classmethod
    def read(cls, path: str | os.PathLike) -> Listed:
        """From a data list (.tsv) or an official testX_files.txt."""
        path = Path(path)
        if path.suffix == ".txt":
            return cls(official.read_names(path)[0]["file"].tolist(), path.name)
        return cls.from_table(data_list.read_list(path), path.name)

    @classmethod
    def from_table(cls, frame: pd.DataFrame, name: str) -> Listed:
        """From a data list that has been read."""
        return cls(frame["file"].tolist(), name, frame["duration"].tolist(), first_line=2)

    def durations(self, files: Sequence[str]) -> np.ndarray:
        """Seconds (n,) of these clips, NaN where they are unknown."""
        return np.array([self.duration.get(file, math.nan) for file in files], float)

    def hint(self, name: str) -> str:
        """The listed name that an unlisted one is a variant of, in words; '' if there is none."""
        if self._nearly is None:
            self._nearly = {key: file for file in self.line for key in _variants(file)}
        near = next((self._nearly[key] for key in _variants(name) if key in self._nearly), None)
        return f"; the list has {near!r}" if near else ""


class Verdict:
    """What the checker found: `refusals`, `warnings`, and the number of answers by member.

    keep: also hold the sound answers in `kept`, {member: {file: answer}}, of a repeated name the
    last, as on the server (an answer: see check_txt, check_json).
    """

    def __init__(self, limit: int = 20, *, keep: bool = False):
        self.refusals, self.warnings, self.answers = Notes(limit), Notes(limit), {}
        self.kept: dict[str, dict[str, Any]] | None = {} if keep else None

    @property
    def accepted(self) -> bool:
        """Whether nothing was refused."""
        return not self.refusals.total

    def keep(self, member: str, file: str, answer: Any) -> None:
        """Hold a sound answer, if a comparison will follow."""
        if self.kept is not None:
            self.kept.setdefault(member, {})[file] = answer


def _variants(name: str) -> list[str]:
    """Keys that recognise a name written with another folder, extension, case or quotes."""
    bare = name.strip().strip("\"'").replace("\\", "/").lower()
    base = bare.rsplit("/", 1)[-1]
    return [bare, bare.rsplit(".", 1)[0], base, base.rsplit(".", 1)[0]]
