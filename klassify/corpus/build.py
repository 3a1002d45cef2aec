"""Builds a corpus folder: the originals, in parallel and resumable, then the metadata files."""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from klassify import workers
from klassify.corpus.metadata import write_metadata
from klassify.corpus.plan import DIFFICULTIES, SIZES, SPLITS, Original, originals
from klassify.corpus.speech import require_espeak
from klassify.errors import KlassifyError
from klassify.files import TEMPORARY, read_json, write_json
from klassify.settings import already_done

VERSION = 1  # of the generator; raise it when the same seed gives other files
RECORD = "corpus.json"
PROGRESS = "progress"  # folder with the metadata entries of each finished original, as JSON


def build(
    out: Path, size: str, seed: int, difficulty: str, *, jobs: int = 1, force: bool = False
) -> None:
    """Generate the corpus, or continue an interrupted run.

    KlassifyError if `out` holds a corpus with other settings (unless force) or anything else.
    """
    settings = {"version": VERSION, "size": size, "seed": seed, "difficulty": difficulty}
    require_espeak()
    if not _begin(out, settings, force):
        print(f"{out}: already complete", file=sys.stderr)
        return
    planned = originals(SIZES[size], seed)
    entries = _make_all(planned, out, seed, difficulty, jobs)
    write_metadata(out, entries)
    write_json(out / RECORD, {**settings, "clips": len(entries), "complete": True})
    shutil.rmtree(out / PROGRESS)


def _begin(out: Path, settings: dict, force: bool) -> bool:
    """Prepare the folder; False if it already holds the complete corpus."""
    record_path = out / RECORD
    record = read_json(record_path) if record_path.exists() else None
    if record is None and out.exists() and any(out.iterdir()):
        raise KlassifyError(
            "This folder holds something other than a generated corpus.",
            where=out,
            fix="name a new folder with --out",
        )
    made_with = {key: record.get(key) for key in settings} if record else None
    keep = already_done(record_path, made_with, settings, force=force)
    if keep and record["complete"]:
        return False
    write_json(record_path, {**settings, "complete": False})
    if not keep:
        _clear(out)
    for left_over in out.rglob(f"*{TEMPORARY}-*"):
        left_over.unlink()
    (out / PROGRESS).mkdir(exist_ok=True)
    return True


def _clear(out: Path) -> None:
    """Remove only what this command makes."""
    for name in (*SPLITS, "heldout", PROGRESS):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(out / name)
    for path in (*out.glob("*_metadata.json"), *out.glob("*_files.txt")):
        path.unlink()


def _make_all(
    planned: list[Original], out: Path, seed: int, difficulty: str, jobs: int
) -> list[dict]:
    places = [out / PROGRESS / f"{original.index:05d}.json" for original in planned]
    todo = [(original, place) for original, place in zip(planned, places) if not place.exists()]
    # a speaker's originals together, so that each portrait is painted only once
    groups = [list(group) for _, group in itertools.groupby(todo, key=lambda item: item[0].speaker)]
    make = functools.partial(_make_group, out=out, seed=seed, difficulty=difficulty)
    clips = _clips(workers.each(make, groups, _one_thread, jobs=jobs))
    for _ in workers.progress(clips, sum(len(original.files) for original, _ in todo), "corpus"):
        pass
    return [entry for place in places for entry in read_json(place)]


def _clips(results: Iterator) -> Iterator[str]:
    """The names of finished clips, one by one."""
    for _, files in results:
        if isinstance(files, workers.Died):
            raise KlassifyError(
                f"The corpus could not be made: {files.reason}.", fix="run the same command again"
            )
        yield from files


def _one_thread() -> None:
    import cv2
    import threadpoolctl

    # one process runs per core, and the rounding of matrix products depends on the thread count
    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1)


def _make_group(
    _: None, group: list[tuple[Original, Path]], *, out: Path, seed: int, difficulty: str
) -> list[str]:
    from klassify.corpus.clips import make_versions

    files = []
    for original, place in group:
        entries = make_versions(original, out, seed, DIFFICULTIES[difficulty])
        write_json(place, entries)
        files += [entry["file"] for entry in entries]
    return files
