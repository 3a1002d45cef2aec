"""Scores that are still being made: `scores/<split>.parts/`, one whole file a chunk of the list.

A list is cut into chunks of neighbouring clips in a way that depends on the list alone, so that any
number of processes can share the work and end with the same files. A part holds a chunk's rows
(Parquet, unrounded) and, in its metadata, the score file's header, its clips with their durations,
what was seen or heard of them and, of those without an answer, the reason. The hash of its settings
is in its name, so that one look at the folder tells what is there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError
from klassify.files import whole_file
from klassify.scores.score_file import SHARES, Header, as_arrow, read_header, reading, validate
from klassify.settings import differences, settings_hash
from klassify.untrusted import refuse_swollen

CHUNK_S, CHUNK_CLIPS = (
    1280.0,
    256,
)  # of media a chunk, and at most so many clips: what a killed process loses
NAME = re.compile(r"chunk-(\d+)-of-(\d+)-([0-9a-f]{16})\.parquet")


class Layout(NamedTuple):
    """A list of `n_clips` in chunks of `size`, the last one shorter; an empty list is one empty
    chunk.
    """

    n_clips: int
    size: int

    @classmethod
    def of(cls, durations_s: np.ndarray) -> Layout:
        """The layout of the clips with these durations in seconds, NaN where unknown."""
        known = durations_s[np.isfinite(durations_s)]
        mean_s = known.mean() if len(known) else 0.0
        return cls(len(durations_s), int(np.clip(CHUNK_S / max(mean_s, 1e-3), 1, CHUNK_CLIPS)))

    @property
    def n_chunks(self) -> int:
        """How many chunks there are; at least one."""
        return max(1, -(-self.n_clips // self.size))

    def clips(self, k: int) -> slice:
        """The places in the list of the clips of chunk k, from 0."""
        return slice(k * self.size, min((k + 1) * self.size, self.n_clips))

    def share(self, i: int, n: int) -> range:
        """The chunks of shard i of n, i from 1: every n-th one."""
        return range(i - 1, self.n_chunks, n)


class Part(NamedTuple):
    """rows: the chunk's score table. clips: its clips, one a row: file, duration (s), reason
    ("": scored), and `seen` or `heard` (see clip_data.ClipData.shares).
    """

    rows: pd.DataFrame
    clips: pd.DataFrame


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of one score file.

    header: of the file that they become. aggregate: how its clip scores are made, None where it has
    none.
    """

    folder: Path
    header: Header
    layout: Layout
    aggregate: str | None

    @classmethod
    def found(cls, system_dir: str | os.PathLike, split: str) -> Parts:
        """What the parts that are there say of themselves.

        KlassifyError where there are none, or they were made with different settings.
        """
        folder = parts_folder(system_dir, split)
        first = {match[3]: path for path, match in _named(folder)}
        if len(first) != 1:
            what = "There are no parts to merge."
            if first:
                one, other = (read_header(path).settings for path in list(first.values())[:2])
                differ = differences(one, other, "in one", "in another")
                what = f"These parts were made with different settings ({differ})."
            fix = f"klassify score {system_dir} --split {split} ..." + (" --force" if first else "")
            raise KlassifyError(what, where=folder, fix=fix)
        (path,) = first.values()
        header, settings = read_header(path), dict(read_header(path).settings)
        with reading(path):
            layout = Layout(**settings.pop("chunks"))
        return cls(folder, dataclasses.replace(header, settings=settings), layout, _aggregate(path))

    @property
    def system_dir(self) -> Path:
        """The folder of the system whose scores these are."""
        return self.folder.parent.parent

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that all parts have in common."""
        return {**self.header.settings, "chunks": self.layout._asdict()}

    def path(self, k: int) -> Path:
        """Where the part of chunk k lies."""
        return self.folder / (
            f"chunk-{k + 1:05d}-of-{self.layout.n_chunks:05d}-"
            f"{settings_hash(self.settings)}.parquet"
        )

    def there(self) -> set[int]:
        """The chunks whose parts are there."""
        made_with = settings_hash(self.settings)
        return {int(match[1]) - 1 for _, match in _named(self.folder) if match[3] == made_with}

    def missing(self) -> list[int]:
        """The chunks whose parts are not."""
        return sorted(set(range(self.layout.n_chunks)) - self.there())

    def others(self) -> list[Path]:
        """Parts in the folder that were made with other settings."""
        made_with = settings_hash(self.settings)
        return [path for path, match in _named(self.folder) if match[3] != made_with]

    def write(self, k: int, rows: pd.DataFrame, clips: pd.DataFrame) -> None:
        """Write the part of chunk k, whole or not at all; see Part for the tables.

        KlassifyError where a clip has neither rows nor a reason, or a row is wrong
        (scorefile.validate).
        """
        import pyarrow.parquet as pq

        validate(rows, self.header, where=self.path(k))
        lost = clips.loc[clips["reason"].eq("") & ~clips["file"].isin(rows["file"]), "file"]
        if len(lost):
            raise KlassifyError(
                f"{len(lost)} clips have neither a score nor a reason, first {lost.iloc[0]}."
            )
        listed = clips.astype(object).where(clips.notna(), None)  # JSON knows no NaN
        own = {"aggregate": self.aggregate, "clips": listed.to_dict("list")}
        header = dataclasses.replace(self.header, settings=self.settings)
        metadata = header.as_lines() | {name: json.dumps(value) for name, value in own.items()}
        with whole_file(self.path(k)) as partial:
            pq.write_table(
                as_arrow(rows).replace_schema_metadata(metadata), partial, compression="zstd"
            )

    def read(self, k: int) -> Part:
        """The part of chunk k; KlassifyError where it is damaged."""
        import pyarrow.parquet as pq

        path = self.path(k)
        with reading(path):
            parquet = pq.ParquetFile(path)
            refuse_swollen(parquet, path, fix="remove it and score again")
            table = parquet.read()
            clips = pd.DataFrame(json.loads(table.schema.metadata[b"clips"]))
            numbers = [name for name in ("duration", *SHARES) if name in clips]
            # None throughout would not be a number
            return Part(table.to_pandas(), clips.astype(dict.fromkeys(numbers, float)))


def parts_folder(system_dir: str | os.PathLike, split: str) -> Path:
    """Where a system keeps the parts of a split that it has not scored to the end."""
    return Path(system_dir) / "scores" / f"{split}.parts"


def _named(folder: Path) -> list[tuple[Path, re.Match]]:
    """The parts in a folder by their names, which may not exist."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [(folder / name, match) for name in names if (match := NAME.fullmatch(name))]


def _aggregate(path: Path) -> str | None:
    import pyarrow.parquet as pq

    with reading(path):
        return json.loads(pq.read_schema(path).metadata[b"aggregate"])
