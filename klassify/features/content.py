"""What the content of a clip says without any model, as a kind of features for `klassify audit`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from klassify.features.base import (
    Columns,
    Extraction,
    Kind,
    Row,
    attempt,
    common,
    in_workers,
    media_only,
)
from klassify.media import content

VERSION = 1  # raise when a value changes: it is part of the shards' settings
NUMBERS = (*content.SOUND, *content.PICTURE, *content.CONTAINER)


@dataclasses.dataclass(frozen=True)
class ContentRow(Row):
    """One clip: its traits by name, None where a stream is missing.

    A clip that cannot be decoded says why: `reason` in words, `stage` (path, decode, worker).
    """

    file: str
    fps: float
    traits: Mapping[str, float | str | None]
    reason: str = ""
    stage: str = ""

    SCHEMA: ClassVar = pa.schema(
        [
            ("file", pa.string()),
            ("fps", pa.float64()),
            *((name, pa.float64()) for name in NUMBERS),
            *((name, pa.string()) for name in content.TEXTS),
            ("stage", pa.string()),
            ("reason", pa.string()),
        ]
    )
    NOTHING: ClassVar = ({},)
    ROWS_A_GROUP: ClassVar = 500
    KEPT_GROUPS: ClassVar = 4

    @classmethod
    def columns(cls, rows: Sequence[ContentRow], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The traits as columns."""
        names = (*NUMBERS, *content.TEXTS)
        return {name: [row.traits.get(name) for row in rows] for name in names}

    @classmethod
    def from_columns(cls, columns: Columns, i: int, settings: Mapping[str, Any]) -> ContentRow:
        """Row i of a row group."""
        names = (*NUMBERS, *content.TEXTS)
        traits = {name: columns[name][i].as_py() for name in names}
        return cls(traits=traits, **common(columns, i))


def extraction(*, jobs: int | None = None) -> Extraction:
    """The traits of every clip, each decoded once in a worker process."""
    rows = functools.partial(in_workers, ContentRow, extract_content, Path, jobs)
    return Extraction("content", {"version": VERSION}, media_only, rows)


def extract_content(root: Path, file: str) -> ContentRow:
    """The traits of one clip; a clip that cannot be decoded is a row with the reason."""

    def measured(path: Path) -> ContentRow:
        traits = content.content_traits(path)
        return ContentRow(file, float(traits.get("picture_rate", 0.0)), traits)

    return attempt(ContentRow, root, file, measured)


KIND = Kind("content", ContentRow, clips_per_file=1000, extraction=extraction)
