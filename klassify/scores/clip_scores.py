"""One score a clip from the scores of its windows or frames, which are read a block at a time."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.failures import read_failures
from klassify.grid.ragged import POOLS
from klassify.grid.windows import aggregate_by_clip, check_aggregate
from klassify.scores.frame_file import FrameFile, clip_scores
from klassify.scores.score_file import Header, read_blocks, read_header, score_path, write_scores
from klassify.settings import settings_hash

BLOCK_ROWS = 1 << 18  # windows in memory


def check_how(kind: str, aggregate: str) -> None:
    """KlassifyError unless scores of this kind, windows or frames, become clip scores like that."""
    if kind == "windows":
        check_aggregate(aggregate)
    elif aggregate not in POOLS:
        raise KlassifyError(f"unknown pooling {aggregate!r} (known: {', '.join(POOLS)})")


def keep_or_write(
    system_dir: str | os.PathLike,
    header: Header,
    clips: Callable[[], pd.DataFrame],
    reasons: Mapping[str, str],
    aggregate: str,
) -> Path:
    """`write_clip_scores` of the clips of a split, unless they are there, made of these scores and
    in this way.

    clips: gives the table of the list's clips, which is read only where it is needed.
    """
    path = score_path(system_dir, header.split, "clips")
    wanted = settings_hash({**header.settings, "aggregate": aggregate})
    if path.exists() and settings_hash(read_header(path).settings) == wanted:
        return path
    return write_clip_scores(system_dir, header, clips(), reasons, aggregate)


def write_clip_scores(
    system_dir: str | os.PathLike,
    header: Header,
    clips: pd.DataFrame,
    reasons: Mapping[str, str],
    aggregate: str,
) -> Path:
    """Write a system's clip scores from its window or frame scores; returns the path.

    header: of the latter. clips: file, duration (s) and shares of the list's clips, each of which
    gets one row.
    """
    from klassify.scores.inference import clip_table

    check_how(header.kind, aggregate)
    scored = score_path(system_dir, header.split, header.kind)
    path = score_path(system_dir, header.split, "clips")
    blocks = (
        _of_windows(scored, aggregate)
        if header.kind == "windows"
        else _of_frames(scored, aggregate)
    )
    pooled = pd.concat(list(blocks) or [pd.Series(dtype=float)])
    if pooled.index.has_duplicates:
        twice = first_few(pooled.index[pooled.index.duplicated()])
        raise KlassifyError(f"The rows of these clips are not contiguous: {twice}.", where=scored)
    table = pd.DataFrame({"file": pooled.index, "score": pooled.to_numpy()})
    header = dataclasses.replace(
        header, kind="clips", settings={**header.settings, "aggregate": aggregate}
    )
    # one row per clip is its own maximum
    write_scores(path, clip_table(table, clips, reasons, "max"), header)
    return path


def _of_windows(path: Path, aggregate: str) -> Iterator[pd.Series]:
    rest = None
    for block in read_blocks(path, BLOCK_ROWS):
        rows = block if rest is None else pd.concat([rest, block], ignore_index=True)
        before = (
            np.flatnonzero(rows["file"].to_numpy() != rows["file"].iat[-1]) if len(rows) else []
        )
        cut = before[-1] + 1 if len(before) else 0  # the last clip may go on in the next block
        if cut:
            yield _aggregated(rows[:cut], aggregate)
        rest = rows[cut:]
    if rest is not None and len(rest):
        yield _aggregated(rest, aggregate)


def _aggregated(rows: pd.DataFrame, aggregate: str) -> pd.Series:
    return aggregate_by_clip(rows["file"].to_numpy(), rows["score"].to_numpy(float), aggregate)


def _of_frames(path: Path, aggregate: str) -> Iterator[pd.Series]:
    for files, scores in clip_scores(FrameFile(path), aggregate):
        yield pd.Series(scores, index=files)


def failures_path(system_dir: str | os.PathLike, split: str) -> Path:
    """Where the clips of a split that a system has no answer for are listed."""
    return Path(system_dir) / "scores" / f"{split}.failures.tsv"


def read_reasons(system_dir: str | os.PathLike, split: str) -> dict[str, str]:
    """{file: reason} of the clips without an answer; empty where none are listed."""
    failures = read_failures(failures_path(system_dir, split))
    return {failure.file: failure.reason for failure in failures}
