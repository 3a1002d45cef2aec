"""Scores that are still being made: `scores/<split>.parts/`, one whole file per chunk of the list.

A list is cut into chunks of neighbouring clips in a way that depends on the list alone, so that any
number of processes can share the work and end with the same files. A chunk is a part (see
klassify.parts) with its rows, unrounded, and, in its metadata, the score file's header, its clips
with their durations, what was seen or heard of them and, of those without an answer, the reason.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from klassify.errors import KlassifyError
from klassify.files import whole_file
from klassify.parts import (
    Place,
    check_together,
    header_of,
    headers_in,
    open_part,
    read_part,
    reading,
)
from klassify.scores.score_file import SHARES, Header, as_arrow, validate
from klassify.settings import settings_hash

# of media a chunk, and at most so many clips: what a killed process loses
CHUNK_S, CHUNK_CLIPS = 1280.0, 256


class Layout(NamedTuple):
    """A list in chunks of `size`, the last one shorter; an empty list is one empty chunk."""

    n_clips: int
    size: int

    @classmethod
    def from_durations(cls, durations_s: np.ndarray) -> Layout:
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
    """rows: the chunk's score table. clips: its clips, one per row: file, duration (s), reason
    ("": scored), and `seen` or `heard` (see klassify.data.base.ClipData.shares).
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
        headers = headers_in(folder)
        if not headers:
            fix = f"klassify score {system_dir} --split {split} ..."
            raise KlassifyError("There are no parts to merge.", where=folder, fix=fix)
        check_together(headers, where=folder)
        settings = dict(headers[0].settings)
        with reading(folder / headers[0].place.name):
            layout = Layout(**settings.pop("chunks"))
            fields = json.loads(headers[0].own[b"scores"])
            aggregate = fields.pop("aggregate")
            return cls(folder, Header(**fields, settings=settings), layout, aggregate)

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
        return self.folder / self._place(k).name

    def _place(self, k: int) -> Place:
        return Place(k + 1, self.layout.n_chunks, 0, 1)

    def there(self) -> set[int]:
        """The chunks whose parts are there."""
        made_with = settings_hash(self.settings)
        headers = headers_in(self.folder)
        return {header.place.i - 1 for header in headers if header.settings_hash == made_with}

    def missing(self) -> list[int]:
        """The chunks whose parts are not."""
        return sorted(set(range(self.layout.n_chunks)) - self.there())

    def others(self) -> dict[Path, dict[str, Any]]:
        """{part: its settings} of those in the folder that were made with other settings."""
        made_with = settings_hash(self.settings)
        headers = [one for one in headers_in(self.folder) if one.settings_hash != made_with]
        return {self.folder / header.place.name: header.settings for header in headers}

    def write(self, k: int, rows: pd.DataFrame, clips: pd.DataFrame) -> None:
        """Write the part of chunk k, whole or not at all; see Part for the tables.

        KlassifyError where a clip has neither rows nor a reason, or a row is wrong
        (score_file.validate).
        """
        validate(rows, self.header, where=self.path(k))
        lost = clips.loc[clips["reason"].eq("") & ~clips["file"].isin(rows["file"]), "file"]
        if len(lost):
            raise KlassifyError(
                f"{len(lost)} clips have neither a score nor a reason, first {lost.iloc[0]}."
            )
        listed = clips.astype(object).where(clips.notna(), None)  # JSON knows no NaN
        fields = dataclasses.asdict(self.header) | {"aggregate": self.aggregate}
        del fields["settings"]
        own = {"scores": json.dumps(fields), "clips": json.dumps(listed.to_dict("list"))}
        metadata = header_of(self._place(k), self.settings, inputs="") | own
        with whole_file(self.path(k)) as partial:
            pq.write_table(
                as_arrow(rows).replace_schema_metadata(metadata), partial, compression="zstd"
            )

    def read(self, k: int) -> Part:
        """The part of chunk k; KlassifyError where it is damaged."""
        path = self.path(k)
        table = read_part(path, open_part(path))
        with reading(path):
            clips = pd.DataFrame(json.loads(table.schema.metadata[b"clips"]))
            numbers = [name for name in ("duration", *SHARES) if name in clips]
            # None throughout would not be a number
            return Part(table.to_pandas(), clips.astype(dict.fromkeys(numbers, float)))


def parts_folder(system_dir: str | os.PathLike, split: str) -> Path:
    """Where a system keeps the parts of a split that it has not scored to the end."""
    return Path(system_dir) / "scores" / f"{split}.parts"
