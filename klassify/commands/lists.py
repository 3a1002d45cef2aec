"""Data lists: official metadata or file lists -> one TSV a split, one clip a row (stage 0).

    klassify lists --data avdeepfake1mpp --root /data/AV-Deepfake1M++ \\
        --out data_lists/avdeepfake1mpp

Beside each list lies its record (.json) and, where entries were wrong, what was done with them
(.failures.tsv). klassify.lists.data_list has the columns; data_lists/README.md describes them, what
is read, and what happens to bad rows.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from klassify.arguments import at_least_1
from klassify.errors import KlassifyError, first_few
from klassify.lists.data_list import ZERO_SHOT
from klassify.lists.make import DATASETS, make_list
from klassify.lists.subsets import SUBSETS, media_folder


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
        help=(
            "open no file; those of unknown length (and look whether every file is there); or"
            " decode the sound of all, so that wrong headers are corrected"
        ),
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
    how = {name: getattr(args, name) for name in ("data", "root", "probe", "jobs", "force")}
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
        n_faults += make_list(inputs[0], args.out / f"{split}.tsv", split, **how)
        labels = args.root / "heldout" / f"{split}_metadata.json"
        if labels.exists():
            n_faults += make_list(
                labels, args.out / "heldout" / f"{split}_labels.tsv", split, **how
            )
    return 1 if args.strict and n_faults else 0


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
