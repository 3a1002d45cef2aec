"""Data lists: official metadata or file lists -> one TSV a split, one clip a row (stage 0).

    klassify lists --data avdeepfake1mpp --root /data/AV-Deepfake1M++ \\
        --out data_lists/avdeepfake1mpp

Beside each list lies its record (.json) and, where entries were wrong, what was done with them
(.failures.tsv). klassify.datalist has the columns; data_lists/README.md describes them, what is
read, and what happens to bad rows.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from klassify import fakeavceleb
from klassify.arguments import at_least_1
from klassify.datalist import (
    COLUMNS,
    MEASURED,
    SUBSETS,
    TYPES,
    UNPRINTABLE,
    ZERO_SHOT,
    media_folder,
    possible,
    write_list,
)
from klassify.errors import KlassifyError, first_few
from klassify.files import already_done, file_hash, read_json_mapping, whole_file, write_json
from klassify.metadata import Fault, read_metadata, read_names, sidecar_files

T = TypeVar("T")
LIMIT_S = 120.0  # for the header of one file
DATASETS = ("avdeepfake1mpp", "avdeepfake1m", "lavdf", "fakeavceleb", "demo")


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `klassify lists`."""
    parser.add_argument("--data", required=True, choices=DATASETS, help="which data set this is")
    parser.add_argument(
        "--root", required=True, type=Path, help="folder of metadata, file lists and media"
    )
    parser.add_argument(
        "--out", required=True, type=Path, help="folder of the lists, such as data_lists/demo"
    )
    parser.add_argument("--splits", help="comma-separated; default: all that the root describes")
    parser.add_argument(
        "--probe",
        choices=("none", "missing", "all"),
        default="none",
        help="open no file; those of unknown length (and look whether every file is there); or all",
    )
    parser.add_argument(
        "--jobs", type=at_least_1, default=os.cpu_count() or 1, help="processes that probe"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 when any entry was wrong"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace lists that were made from other inputs"
    )


def run(args: argparse.Namespace) -> int:
    """Run `klassify lists`; 0 done, 1 wrong entries under --strict."""
    if not args.root.is_dir():
        raise KlassifyError("The root folder does not exist.", where=args.root)
    splits = args.splits.split(",") if args.splits else _splits(args.root)
    if not splits:
        fix = "give the folder that holds meta_data.csv" if args.data == "fakeavceleb" else None
        raise KlassifyError(
            "There is neither metadata nor a file list here.", where=args.root, fix=fix
        )
    n_faults = 0
    for split in splits:
        if not re.fullmatch(r"\w+", split) or split in SUBSETS:
            raise KlassifyError(f"{split!r} cannot be the name of a split.")
        inputs = _inputs(args.root, split)
        if not inputs:
            known = first_few(_splits(args.root)) or "none"
            raise KlassifyError(
                f"Nothing describes the split {split!r}; there are: {known}.", where=args.root
            )
        n_faults += make_list(inputs[0], args.out / f"{split}.tsv", split, args)
        labels = args.root / "heldout" / f"{split}_metadata.json"
        if labels.exists():
            n_faults += make_list(labels, args.out / "heldout" / f"{split}_labels.tsv", split, args)
    return 1 if args.strict and n_faults else 0


# ------------------------------------------------------------------------------ what describes a
# split


def _inputs(root: Path, split: str) -> list[Path]:
    """What describes a split: its metadata, a metadata file of all splits, a list of names, or
    sidecars.
    """
    if split == ZERO_SHOT and (root / "meta_data.csv").is_file():
        return [root / "meta_data.csv"]
    for name in (
        f"{split}_metadata.json",
        f"{split}_files.txt",
        "metadata.json",
        "metadata.min.json",
    ):
        if (root / name).is_file():
            return [root / name]
    for folder in (root / f"{split}_metadata", media_folder(root, split)):
        if folder != root and next(folder.rglob("*.json"), None):
            return [folder]
    return []


def _splits(root: Path) -> list[str]:
    """The splits that the root describes, train, val and dev first."""
    found = {
        p.name.removesuffix(end)
        for end in ("_metadata.json", "_files.txt")
        for p in root.glob(f"*{end}")
    }
    found |= {
        name
        for name in ("train", "val", "dev", "test")
        if (root / name).is_dir() and _inputs(root, name)
    }
    if (root / "meta_data.csv").is_file():
        found.add(ZERO_SHOT)
    return sorted(found, key=lambda name: (name not in ("train", "val", "dev"), name))


# ------------------------------------------------------------------------------ making one list


def read_rows(source: Path, split: str) -> tuple[pd.DataFrame, list[Fault]]:
    """The clips of a split from whatever describes it: names (.txt), FakeAVCeleb's .csv, or
    JSON.
    """
    if source.suffix == ".txt":
        return read_names(source)
    if source.suffix == ".csv":
        return fakeavceleb.read_csv(source, split)
    return read_metadata(source, split)


def make_list(source: Path, path: Path, split: str, args: argparse.Namespace) -> int:
    """Write one list with its record (.json) and its faults (.failures.tsv); returns the number
    of faults.
    """
    made_with = {
        "input": source.name,
        "hash": _fingerprint(source),
        "probe": args.probe,
        "split": split,
    }
    record_path, faults_path = path.with_suffix(".json"), path.with_suffix(".failures.tsv")
    record = (
        _read_record(record_path)
        if path.exists() and record_path.exists() and not args.force
        else None
    )
    if already_done(path, record and record["made_with"], made_with, force=args.force):
        print(f"{path}: done before")
        return sum(record["faults"].values())
    frame, faults = read_rows(source, split)
    try:
        media = media_folder(args.root, split, frame["file"].tolist())
    except KlassifyError:
        if args.probe != "none":
            raise
        media = None
    if media and args.probe != "none":
        frame, more = measure(frame, media, everything=args.probe == "all", jobs=args.jobs)
        faults = sorted([*faults, *more], key=lambda fault: fault.row)
    if source.suffix == ".csv":
        frame = fakeavceleb.with_segments(frame)  # whole clips, whose lengths are only known now
    record_path.unlink(missing_ok=True)  # the old one must never speak of the new list
    write_list(path, frame[[name for name in COLUMNS if name in frame]])
    _write_faults(faults_path, faults)
    types = frame["modify_type"].value_counts().to_dict() if "modify_type" in frame else {}
    actions = dict(collections.Counter(fault.action for fault in faults))
    record = {
        "data": args.data,
        "split": split,
        "media": str(media) if media else None,
        "clips": len(frame),
    }
    write_json(record_path, record | {"types": types, "faults": actions, "made_with": made_with})
    kinds = (
        ", ".join(f"{types[name]} {name}" for name in TYPES if name in types) or "without labels"
    )
    print(f"{path}: {len(frame)} clips ({kinds}); media {media or 'not found'}")
    if faults:
        counts = ", ".join(f"{n} {action}" for action, n in actions.items())
        print(f"  {len(faults)} entries were wrong ({counts}), see {faults_path}", file=sys.stderr)
    return len(faults)


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
    if source.is_file():
        return file_hash(source)
    digest = hashlib.sha256()
    for path in sidecar_files(source):
        try:
            stat = path.stat()
            state = f"{stat.st_size}\t{stat.st_mtime_ns}"
        except OSError:  # a link that leads nowhere
            state = "unreadable"
        digest.update(
            os.fsencode(f"{path.relative_to(source)}\t{state}\n")
        )  # a name may be no UTF-8
    return digest.hexdigest()


def _write_faults(path: Path, faults: list[Fault]) -> None:
    if not faults:
        path.unlink(missing_ok=True)
        return
    table = pd.DataFrame([dataclasses.asdict(fault) for fault in faults])
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
    from tqdm import tqdm

    frame = frame.assign(**{name: frame.get(name, np.nan) for name in MEASURED})
    paths = [media / name for name in frame["file"]]
    exists = np.fromiter(
        map(os.path.isfile, paths), bool, len(paths)
    )  # False for a name that is too long
    faults = [
        Fault(*entry, f"no such file in {media}", "kept")
        for entry in zip(frame["row"][~exists], frame["file"][~exists])
    ]
    wanted = np.flatnonzero(
        exists & (everything | frame[list(MEASURED)].isna().any(axis=1).to_numpy())
    )
    values = frame[list(MEASURED)].to_numpy(float)
    bar = {
        "disable": not len(wanted),
        "mininterval": 0.5 if sys.stderr.isatty() else 60.0,
        "desc": "probe",
    }
    problems = {}
    for number, found in tqdm(
        _probe_all([paths[i] for i in wanted], jobs), total=len(wanted), **bar
    ):
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


def _probe_all(paths: list[Path], jobs: int) -> Iterator[tuple[int, tuple[float, ...] | str]]:
    """What each file's header says (see _probe), in any order: (number of the path, measured or
    a problem).
    """
    from klassify import decoding, media, workers

    if jobs <= 1 or len(paths) < 64:
        yield from ((number, _probe(decoding.probe, path)) for number, path in enumerate(paths))
        return
    for number, found in workers.each(
        _probe, paths, functools.partial(_itself, media.probe), jobs=jobs, limit_s=LIMIT_S
    ):
        yield (
            number,
            (f"The decoder crashed: {found.reason}." if isinstance(found, workers.Died) else found),
        )


def _itself(value: T) -> T:
    return value


def _probe(probe: Callable[[Path], Any], path: Path) -> tuple[float, ...] | str:
    try:
        info = probe(path)
    except KlassifyError as error:
        return error.what
    found = info.n_frames, info.fps, info.n_samples, info.duration
    wrong = [
        f"{name} of {value}" for name, value in zip(MEASURED, found) if not possible(name, value)
    ]
    return f"Its header claims {first_few(wrong)}." if wrong else found
