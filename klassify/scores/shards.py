"""Scoring in shards: chunks of a list by any number of processes, joined into the very files that
one process writes.

Each chunk is a whole part file (klassify.scores.chunks) before the next one begins: a process that
is killed loses the chunk in progress. The process that finishes the last chunk joins the parts. The
files are made inside the parts' folder and renamed, and then that folder goes away at once, so that
several processes may join at the same time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from klassify.errors import KlassifyError
from klassify.failures import Failure, write_failures
from klassify.progress import Count
from klassify.scores.chunks import Parts, parts_folder
from klassify.scores.clip_scores import failures_path, write_clip_scores
from klassify.scores.score_file import is_current, made_with, score_path, write_blocks
from klassify.settings import already_done, settings_hash

GROUP_ROWS = 1 << 18  # in memory while parts are joined, and in a Parquet row group of the result


def is_done(parts: Parts, *, force: bool = False) -> bool:
    """Whether the scores are there and nothing is under way.

    Parts and scores made with other settings are refused, or with `force` replaced. What was begun
    goes on.
    """
    _sweep(parts.folder)
    if parts.there():
        return False
    path = score_path(parts.system_dir, parts.header.split, parts.header.kind)
    if is_current(path, parts.header.settings, force=force):
        return True
    for path, settings in parts.others().items():
        already_done(path, settings, parts.settings, force=force)
        path.unlink(missing_ok=True)
    return False


def score_share(
    parts: Parts, model: Any, data: Any, sources: Any, i: int, n: int, **how: Any
) -> None:
    """Score the missing chunks of shard i of n (i from 1) and write their parts.

    model, data: a system's. how: batch_size, workers, device and approximate, as
    inference.score_clips takes them.
    """
    from klassify.models.devices import return_freed_blocks
    from klassify.scores.clip_loader import ClipLoader
    from klassify.scores.inference import score_clips, score_frames

    return_freed_blocks()
    make = score_frames if parts.header.kind == "frames" else score_clips
    split, share, there = parts.header.split, parts.layout.share(i, n), parts.there()
    todo = [k for k in share if k not in there]
    if not todo:
        return
    if len(todo) < len(share):
        print(
            f"{parts.folder}: {len(share) - len(todo)} of {len(share)} chunks are there",
            file=sys.stderr,
        )
    table = data.listed(sources, split)
    data = data.for_scoring()
    # one open reader for all chunks
    sources = dataclasses.replace(sources, readers={split: data.reader(sources, split)})
    chunks = {k: table[parts.layout.clips(k)] for k in share}
    parts.folder.mkdir(parents=True, exist_ok=True)
    n_clips = sum(map(len, chunks.values()))
    n_todo = sum(len(chunks[k]) for k in todo)
    # one for all chunks: its workers take seconds to start
    how["workers"] = ClipLoader(data, sources, split, how.get("workers", 0), n_todo)
    with Count(f"score {split}", n_clips, n_clips - n_todo) as count:
        for k in todo:
            # without the folder, another process has joined
            if parts.path(k).exists() or not parts.folder.is_dir():
                continue
            files = chunks[k]["file"].tolist()
            rows, reasons = make(model, data, sources, split, files=files, progress=count, **how)
            if parts.folder.is_dir():
                parts.write(
                    k, rows, chunks[k].assign(reason=chunks[k]["file"].map(reasons).fillna(""))
                )


def merge(system_dir: str | os.PathLike, split: str) -> Path:
    """Join the parts of a split into its score files, and remove them; returns the file of windows
    or frames.

    Scores that are there already stay as they are. KlassifyError where chunks are missing, naming
    them.
    """
    paths = (score_path(system_dir, split, kind) for kind in ("windows", "frames"))
    path = next((path for path in paths if path.exists()), None)
    if path and not parts_folder(system_dir, split).exists():
        return path
    return join(Parts.found(system_dir, split))


def finish(parts: Parts) -> bool:
    """Join the parts if none is missing; whether the scores are there, by any process."""
    if _joined(parts):
        return True
    if parts.missing():
        return False
    join(parts)
    return True


def _joined(parts: Parts) -> bool:
    there = made_with(score_path(parts.system_dir, parts.header.split, parts.header.kind))
    return (
        not parts.there()
        and there is not None
        and settings_hash(there) == settings_hash(parts.header.settings)
    )


def join(parts: Parts) -> Path:
    """`merge` of these parts."""
    if parts.missing():
        raise KlassifyError(
            f"{missing_text(parts)}.",
            where=parts.folder,
            fix=(
                f"klassify score {parts.system_dir} --split {parts.header.split} ... resumes them"
            ),
        )
    path = score_path(parts.system_dir, parts.header.split, parts.header.kind)
    draft = parts.folder / f"joined-{uuid.uuid4().hex[:8]}"
    try:
        draft.mkdir()
        for file in _write_files(parts, draft):
            os.replace(file, path.with_name(file.name))
    # of a file that went away: another process has joined these parts
    except (FileNotFoundError, KlassifyError):
        if not _joined(parts):
            raise
        shutil.rmtree(draft, ignore_errors=True)
        with contextlib.suppress(OSError):
            parts.folder.rmdir()
    with contextlib.suppress(FileNotFoundError):
        parts.folder.rename(parts.folder.with_name(f"{parts.folder.name}-{uuid.uuid4().hex[:8]}"))
    _sweep(parts.folder)
    return path


def _write_files(parts: Parts, draft: Path) -> list[Path]:
    """The files of a split below `draft`, in the order in which they may appear."""
    split, kind = parts.header.split, parts.header.kind
    scored, listed = score_path(draft, split, kind), []
    write_blocks(scored, _gathered(_rows(parts, listed)), parts.header)
    clips = pd.concat(listed, ignore_index=True)
    reasons = {file: reason for file, reason in zip(clips["file"], clips["reason"]) if reason}
    failures = [Failure(file, "score", reason) for file, reason in sorted(reasons.items())]
    # failures first: scores must never be there without them
    files = [write_failures(failures_path(draft, split), failures), scored]
    if parts.aggregate is not None:
        files.append(write_clip_scores(draft, parts.header, clips, reasons, parts.aggregate))
    return files


def _rows(parts: Parts, listed: list[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """The rows of each chunk in order; its clips are put into `listed`."""
    for k in range(parts.layout.n_chunks):
        part = parts.read(k)
        listed.append(part.clips)
        yield part.rows


def _gathered(tables: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """The same rows in blocks of at least GROUP_ROWS, but the last; one block at least."""
    held, empty = [], None
    for table in tables:
        empty = table[:0]
        held += [table] * bool(len(table))
        if sum(map(len, held)) >= GROUP_ROWS:
            yield pd.concat(held, ignore_index=True)
            held, empty = [], None
    if held or empty is not None:
        yield pd.concat(held or [empty], ignore_index=True)


def missing_text(parts: Parts, n: int | None = None) -> str:
    """'3 of 7 chunks are missing', and where there are n shards, which of these have to do them."""
    left = parts.missing()
    text = f"{len(left)} of {parts.layout.n_chunks} chunks are missing"
    if n is None:
        return text
    return text + f" (--shard {', '.join(f'{i}/{n}' for i in sorted({k % n + 1 for k in left}))})"


def _sweep(folder: Path) -> None:
    """Remove parts that were joined; a process may have been killed before it could."""
    for path in folder.parent.glob(f"{folder.name}-*"):
        shutil.rmtree(path, ignore_errors=True)
