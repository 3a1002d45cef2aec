"""Stage 0: whatever describes a split -> its data list, with its record and its faults."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.files import read_json_mapping, whole_file, write_json
from klassify.lists import fakeavceleb, speech
from klassify.lists.data_list import COLUMNS, KINDS, MEASURED, UNPRINTABLE, possible, write_list
from klassify.lists.official import drop_late_segments, read_metadata, read_names
from klassify.lists.records import Fault, label_folders, sidecar_files
from klassify.lists.subsets import media_folder
from klassify.media.container import media_below
from klassify.progress import progress
from klassify.settings import already_done, file_hash

LIMIT_S = 120.0  # for the header of one file


def read_rows(source: Path, split: str, data: str, root: Path) -> tuple[pd.DataFrame, list[Fault]]:
    """The clips of a split from whatever describes it (see klassify.lists.find)."""
    if data in speech.CORPORA:
        return speech.read_protocol(source, data, split, root)
    if source.suffix == ".txt":
        return read_names(source)
    if source.name == "meta_data.csv":
        return fakeavceleb.read_csv(source, split)
    if source.is_dir() and not label_folders(source) and not sidecar_files(source):
        names = [path.relative_to(source).as_posix() for path in media_below(source)[0]]
        return pd.DataFrame({"row": range(1, len(names) + 1), "file": names}, dtype=object), []
    return read_metadata(source, split)


def make_list(
    source: Path,
    path: Path,
    split: str,
    *,
    data: str,
    root: Path,
    probe: str = "none",
    jobs: int = 1,
    force: bool = False,
    heldout: Path | None = None,
) -> int:
    """Write one list with its record (.json) and its faults (.failures.tsv); returns the number
    of faults.

    source: what describes the split. data: the data set's name. root: folder of the media. probe:
    which files are opened, `none`, those of unknown length (`missing`) or `all`. heldout: where the
    labels go, if there are any; the list itself then has none.
    """
    made_with = {"input": source.name, "hash": _fingerprint(source), "probe": probe, "split": split}
    record_path, faults_path = path.with_suffix(".json"), path.with_suffix(".failures.tsv")
    record = None
    if path.exists() and record_path.exists() and not force:
        record = _read_record(record_path)
    if already_done(path, record and record["made_with"], made_with, force=force):
        print(f"{path}: done before")
        return sum(record["faults"].values())
    frame, media, faults = _clips(source, split, data, root, probe, jobs)
    types = frame["modify_type"].value_counts().to_dict() if "modify_type" in frame else {}
    heldout = heldout if types else None
    record_path.unlink(missing_ok=True)  # the old one must never describe the new list
    if heldout:
        write_list(heldout, _columns(frame, COLUMNS))
    write_list(path, _columns(frame, ("file", *MEASURED) if heldout else COLUMNS))
    _write_faults(faults_path, faults)
    actions = dict(collections.Counter(fault.action for fault in faults))
    record = {"data": data, "split": split, "media": str(media) if media else None}
    record |= {"clips": len(frame), "types": types, "faults": actions, "made_with": made_with}
    write_json(record_path, record)
    kinds = ", ".join(f"{types[name]} {name}" for name in KINDS if name in types)
    labels = f"; labels in {heldout}" if heldout else ""
    if kinds and "fake_segments" not in frame:
        kinds += "; no segments, so for Task 1 alone"
    clips = f"{len(frame)} clips ({kinds or 'without labels'}{labels})"
    print(f"{path}: {clips}; media {media or 'not found'}")
    if faults:
        counts = ", ".join(f"{n} {action}" for action, n in actions.items())
        wrong = "1 entry was" if len(faults) == 1 else f"{len(faults)} entries were"
        print(f"  {wrong} wrong ({counts}), see {faults_path}", file=sys.stderr)
    return len(faults)


def _clips(
    source: Path, split: str, data: str, root: Path, probe: str, jobs: int
) -> tuple[pd.DataFrame, Path | None, list[Fault]]:
    """The clips of a split, measured as `probe` says, their media if found, and all faults."""
    frame, faults = read_rows(source, split, data, root)
    try:
        media = media_folder(root, split, frame["file"].tolist())
    except KlassifyError:
        if probe != "none":
            raise
        media = None
    if media and probe != "none":
        frame, more = measure(frame, media, everything=probe == "all", jobs=jobs)
        faults += more
    if source.name == "meta_data.csv":
        frame = fakeavceleb.with_segments(frame)  # whole clips, whose lengths are only known now
    frame, more = drop_late_segments(frame, source)
    return frame, media, sorted([*faults, *more], key=lambda fault: fault.row)


def _columns(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Those of the columns that are there."""
    return frame[[name for name in names if name in frame]]


def _read_record(path: Path) -> dict[str, Any]:
    record = read_json_mapping(path)
    made_with, faults = record.get("made_with"), record.get("faults")
    if not (
        isinstance(made_with, dict)
        and isinstance(faults, dict)
        and all(type(n) is int for n in faults.values())
    ):
        raise KlassifyError(
            "This record of a list is damaged.", where=path, fix="make the list again with --force"
        )
    return record


def _fingerprint(source: Path) -> str:
    """A hash of what a list is made from; of a folder, the names, sizes and times of its files."""
    if source.is_file():
        return file_hash(source)
    digest = hashlib.sha256()
    sidecars = [] if label_folders(source) else sidecar_files(source)
    for path in sidecars or media_below(source)[0]:
        try:
            stat = path.stat()
            state = f"{stat.st_size}\t{stat.st_mtime_ns}"
        except OSError:  # a link that leads nowhere
            state = "unreadable"
        # a name may not be UTF-8
        digest.update(os.fsencode(f"{path.relative_to(source)}\t{state}\n"))
    return digest.hexdigest()


def _write_faults(path: Path, faults: list[Fault]) -> None:
    if not faults:
        path.unlink(missing_ok=True)
        return
    table = pd.DataFrame([dataclasses.asdict(fault) for fault in faults], dtype=object)
    for name in ("file", "problem"):
        table[name] = table[name].str.replace(UNPRINTABLE, "\ufffd", regex=True)
    with whole_file(path) as partial:
        table.to_csv(partial, sep="\t", index=False, lineterminator="\n")


def measure(
    frame: pd.DataFrame, media: Path, *, everything: bool, jobs: int = 1
) -> tuple[pd.DataFrame, list[Fault]]:
    """Fill the measured columns from the files' headers: where one is unknown, or of every clip.

    A missing or unreadable file stays in the list, since every clip needs an answer, and is a
    fault.
    """
    frame = frame.assign(**{name: frame.get(name, np.nan) for name in MEASURED})
    paths = [media / name for name in frame["file"]]
    # False for a name that is too long
    exists = np.fromiter(map(os.path.isfile, paths), bool, len(paths))
    faults = [
        Fault(*entry, f"no such file in {media}", "kept")
        for entry in zip(frame["row"][~exists], frame["file"][~exists])
    ]
    unknown = frame[list(MEASURED)].isna().any(axis=1).to_numpy()
    wanted = np.flatnonzero(exists & (everything | unknown))
    values = frame[list(MEASURED)].to_numpy(float)
    problems = {}
    probed = _probe_all([paths[i] for i in wanted], jobs, everything)
    for number, found in progress(probed, len(wanted), "probe"):
        i = wanted[number]
        if isinstance(found, str):
            problems[i] = found
        else:
            values[i] = found if everything else np.where(np.isnan(values[i]), found, values[i])
    faults += [
        Fault(frame["row"].iat[i], frame["file"].iat[i], problems[i], "kept")
        for i in sorted(problems)
    ]
    frame[list(MEASURED)] = values
    return frame, faults


def _probe_all(
    paths: list[Path], jobs: int, measured: bool = False
) -> Iterator[tuple[int, tuple[float, ...] | str]]:
    """What each header says (see _probe), or was measured, in any order: (number, found)."""
    from klassify import workers
    from klassify.media import info, isolated

    if jobs <= 1 or len(paths) < 64:
        steps = [isolated.probe, isolated.measure] if measured else [isolated.probe]
        yield from ((number, _probe(steps, path)) for number, path in enumerate(paths))
        return
    steps = [info.probe, info.measure] if measured else [info.probe]
    for number, found in workers.each(
        _probe, paths, functools.partial(list, steps), jobs=jobs, limit_s=LIMIT_S
    ):
        crashed = isinstance(found, workers.Died)
        yield number, f"The decoder crashed: {found.reason}." if crashed else found


def _probe(steps: Sequence[Callable[[Path], Any]], path: Path) -> tuple[float, ...] | str:
    """What the first step finds, and the second, if any, corrects where the file can be decoded."""
    try:
        info = steps[0](path)
    except KlassifyError as error:
        return error.what
    for correct in steps[1:]:
        with contextlib.suppress(KlassifyError):
            info = correct(path)
    found = info.n_frames, info.fps, info.n_samples, info.duration
    wrong = [
        f"{name} of {value}" for name, value in zip(MEASURED, found) if not possible(name, value)
    ]
    return f"Its header claims {first_few(wrong)}." if wrong else found
