"""Builds a corpus folder, generated or of genuine clips: the originals, in parallel and resumable,
then the metadata files.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from klassify import workers
from klassify.corpus.metadata import write_metadata
from klassify.corpus.people import Source, find_sources, splits_of
from klassify.corpus.plan import DIFFICULTIES, SIZES, SPLITS, Original, generator, originals
from klassify.corpus.speech import require_espeak
from klassify.errors import KlassifyError
from klassify.failures import Failure, write_failures
from klassify.features.mouth.face import LandmarkSource, open_source
from klassify.files import TEMPORARY, read_json, write_json
from klassify.media import isolated
from klassify.media.container import MediaError
from klassify.progress import progress
from klassify.settings import already_done, settings_hash

VERSION = 1  # of corpora of genuine clips; raise it when the same clips and seed give other files
RECORD = "corpus.json"
PROGRESS = "progress"  # folder with the metadata entries of each finished original, as JSON


def build(
    out: Path, size: str, seed: int, difficulty: str, *, jobs: int = 1, force: bool = False
) -> None:
    """Generate the corpus, or continue an interrupted run.

    KlassifyError if `out` holds a corpus with other settings (unless force) or anything else.
    """
    settings = {"version": SIZES[size].version, "size": size, "seed": seed}
    settings["difficulty"] = difficulty
    require_espeak()
    if not _begin(out, settings, force):
        print(f"{out}: already complete", file=sys.stderr)
        return
    planned = originals(SIZES[size], seed)
    entries = _make_all(planned, out, seed, difficulty, jobs)
    write_metadata(out, entries)
    write_json(out / RECORD, {**settings, "clips": len(entries), "complete": True})
    shutil.rmtree(out / PROGRESS)


def build_from(
    folder: Path,
    out: Path,
    seed: int,
    *,
    people: Path | None = None,
    licence: str = "",
    jobs: int = 1,
    force: bool = False,
) -> None:
    """Make a corpus of the genuine clips below a folder, or continue an interrupted run.

    people, licence: see klassify.corpus.people. Clips, and parts of them, that cannot be used are
    listed in failures.tsv. KlassifyError if `out` holds another corpus or anything else, and if no
    clip can be used.
    """
    sources = find_sources(folder, people, licence)
    heard = {source.person for source in sources if _has_sound(folder / source.file)}
    split_of = splits_of([source.person for source in sources], heard, seed)
    sizes = [(folder / source.file).stat().st_size for source in sources]
    clips = settings_hash({"clips": [[*source, size] for source, size in zip(sources, sizes)]})
    settings = {"version": VERSION, "from": clips, "seed": seed}
    if not _begin(out, settings, force):
        print(f"{out}: already complete", file=sys.stderr)
        return
    places = [out / PROGRESS / f"{number:05d}.json" for number in range(len(sources))]
    tasks = [
        (source, split_of[source.person], place)
        for source, place in zip(sources, places)
        if not place.exists()
    ]
    make = functools.partial(_make_pieces, folder=folder, out=out, seed=seed)
    results = workers.each(make, tasks, _open_mesh, jobs=jobs)
    for number, result in progress(results, len(tasks), "corpus"):
        if isinstance(result, workers.Died):
            source, _, place = tasks[number]
            write_json(place, {"entries": [], "failures": [[source.file, "worker", result.reason]]})
    made = [read_json(place) for place in places]
    entries = [entry for one in made for entry in one["entries"]]
    failures = [Failure(*failure) for one in made for failure in one["failures"]]
    path = write_failures(out / "failures.tsv", failures)
    if not entries:
        raise KlassifyError("None of the clips can be used.", where=path)
    write_metadata(out, entries)
    write_json(out / RECORD, {**settings, "clips": len(entries), "complete": True})
    shutil.rmtree(out / PROGRESS)
    print(_summary(entries, failures, path))


def _has_sound(path: Path) -> bool:
    try:
        return isolated.probe(path).has_audio
    except MediaError:
        return False


def _open_mesh() -> LandmarkSource:
    _one_thread()
    return open_source()


def _make_pieces(
    mesh: LandmarkSource, task: tuple[Source, str, Path], *, folder: Path, out: Path, seed: int
) -> None:
    """Make the versions of all pieces of one clip, and record its entries and failures."""
    from klassify.corpus.footage import pieces_of
    from klassify.corpus.real_clips import make_versions

    source, split, place = task
    entries, failures = [], []
    rng = generator(seed, zlib.crc32(source.file.encode()))
    try:
        for piece in pieces_of(folder / source.file, mesh, rng):
            made = make_versions(piece, source, split, out, seed)
            entries += made
            failures += [[source.file, stage, reason] for stage, reason in piece.lacks(bool(made))]
    except MediaError as error:
        failures.append([source.file, "decode", error.what])
    except Exception as error:  # native libraries raise anything; the other clips continue
        failures.append([source.file, "edit", f"{type(error).__name__}: {error}"])
    write_json(place, {"entries": entries, "failures": failures})


def _summary(entries: Sequence[dict], failures: Sequence[Failure], path: Path) -> str:
    """How many clips and people each split has, and how many reasons there were not to use one."""
    lines = []
    for split in SPLITS:
        mine = [entry for entry in entries if entry["split"] == split]
        people = len({entry["speaker"] for entry in mine})
        fakes = sum(entry["modify_type"] != "real" for entry in mine)
        lines.append(f"{split}: {people} people, {len(mine)} clips, {fakes} of them fake")
    if failures:
        lines.append(
            f"{len(failures)} clips or parts of clips were not used, or not wholly: {path}"
        )
    return "\n".join(lines)


def _begin(out: Path, settings: dict, force: bool) -> bool:
    """Prepare the folder; False if it already holds the complete corpus."""
    record_path = out / RECORD
    record = read_json(record_path) if record_path.exists() else None
    if record is None and out.exists() and any(out.iterdir()):
        raise KlassifyError(
            "This folder holds something other than a corpus.",
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
    listed = ("*_metadata.json", "*_files.txt", "failures.tsv")
    for path in itertools.chain(*map(out.glob, listed)):
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
    for _ in progress(clips, sum(len(original.files) for original, _ in todo), "corpus"):
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
