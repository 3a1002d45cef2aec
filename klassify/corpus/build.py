"""Builds a corpus folder: originals in parallel, resumable, then the metadata files."""

from __future__ import annotations

import functools
import multiprocessing
import shutil
import sys
from pathlib import Path

from klassify.corpus.plan import DIFFICULTIES, SIZES, SPLITS, TEST_SPLITS, Original, originals
from klassify.corpus.speech import require_espeak
from klassify.errors import KlassifyError
from klassify.files import TEMPORARY, already_done, read_json, write_json, write_text

VERSION = 1  # of the generator; raise it when the same seed gives other files
RECORD = "corpus.json"
PROGRESS = "progress"  # one JSON of metadata entries for each finished original


def build(out: Path, size: str, seed: int, difficulty: str, *, jobs: int = 1, force: bool = False) -> None:
    """Generate the corpus, or go on where an earlier run stopped.

    Raises KlassifyError if `out` holds a corpus of other settings (unless force) or something else.
    """
    settings = {"version": VERSION, "size": size, "seed": seed, "difficulty": difficulty}
    if jobs < 1 or seed < 0:
        raise KlassifyError(f"--jobs must be at least 1 and --seed at least 0, not {jobs} and {seed}.")
    if _begin(out, settings, force):
        print(f"{out}: complete already", file=sys.stderr)
        return
    require_espeak()
    planned = originals(SIZES[size], seed)
    entries = _make_all(planned, out, seed, difficulty, jobs)
    _write_metadata(out, entries)
    write_json(out / RECORD, {**settings, "clips": len(entries), "complete": True})
    shutil.rmtree(out / PROGRESS)


def _begin(out: Path, settings: dict, force: bool) -> bool:
    """Prepare the folder; True if the corpus is there and whole."""
    record_path = out / RECORD
    record = read_json(record_path) if record_path.exists() else None
    made_with = {key: record.get(key) for key in settings} if record else None
    same = already_done(record_path, made_with, settings, force=force)
    if same and record["complete"]:
        return True
    if not same and record is None and out.exists() and any(out.iterdir()):
        raise KlassifyError("This folder holds something else than a generated corpus.", where=out,
                            mend="choose a new folder for --out")  # fmt: skip
    if not same and record is not None:
        _clear(out)
    for left_over in out.rglob(f"*{TEMPORARY}-*"):
        left_over.unlink()
    write_json(record_path, {**settings, "complete": False})
    (out / PROGRESS).mkdir(exist_ok=True)
    return False


def _clear(out: Path) -> None:
    """Remove what this command makes, and nothing else."""
    for name in (*SPLITS, "heldout", PROGRESS):
        shutil.rmtree(out / name, ignore_errors=True)
    for pattern in ("*_metadata.json", "*_files.txt", RECORD):
        for path in out.glob(pattern):
            path.unlink()


def _make_all(planned: list[Original], out: Path, seed: int, difficulty: str, jobs: int) -> list[dict]:
    from tqdm import tqdm

    done = {original.index: _progress_file(out, original) for original in planned}
    todo = [original for original in planned if not done[original.index].exists()]
    make = functools.partial(_make_one, out=out, seed=seed, difficulty=difficulty)
    bar = tqdm(total=len(planned), initial=len(planned) - len(todo), unit="original", mininterval=1)
    if jobs == 1:
        for original in todo:
            make(original)
            bar.update()
    else:
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            for _ in pool.imap_unordered(make, todo, chunksize=2):
                bar.update()
    bar.close()
    return [entry for path in done.values() for entry in read_json(path)]


def _progress_file(out: Path, original: Original) -> Path:
    return out / PROGRESS / f"{original.index:05d}.json"


def _make_one(original: Original, out: Path, seed: int, difficulty: str) -> None:
    import cv2

    from klassify.corpus.clips import make_versions

    cv2.setNumThreads(1)
    write_json(_progress_file(out, original), make_versions(original, out, seed, DIFFICULTIES[difficulty]))


def _write_metadata(out: Path, entries: list[dict]) -> None:
    for split in SPLITS:
        chosen = sorted((entry for entry in entries if entry["split"] == split), key=lambda entry: entry["file"])
        if split in TEST_SPLITS:
            write_json(out / "heldout" / f"{split}_metadata.json", chosen)
            write_text(out / f"{split}_files.txt", "".join(f"{entry['file']}\n" for entry in chosen))
        else:
            write_json(out / f"{split}_metadata.json", chosen)
