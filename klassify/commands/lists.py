"""Data lists: metadata, tables, file names or folders -> one TSV per split (stage 0).

    klassify lists --data avdeepfake1mpp --root /data/AV-Deepfake1M++ \\
        --out data_lists/avdeepfake1mpp
    klassify lists --data mine --root my_videos --out data_lists/mine --probe missing

Beside each list are its record (.json) and, if entries were bad, what was done with them
(.failures.tsv). Labels of test splits go to heldout/<split>_labels.tsv. docs/files.md describes the
columns, what is read, and what happens to bad rows.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from klassify.arguments import at_least_1
from klassify.errors import KlassifyError
from klassify.lists import datasets
from klassify.lists.checks import warnings_of
from klassify.lists.find import find_split, find_splits, how_described, told_split
from klassify.lists.make import make_list


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--data",
        required=True,
        metavar="NAME",
        help=f"{', '.join(datasets.known())}, or a name for a data set of your own",
    )
    add("--root", required=True, type=Path, help="folder of metadata, file lists and media")
    add("--out", required=True, type=Path, help="folder of the lists, such as data_lists/demo")
    add("--splits", help="comma-separated; default: all that the root describes")
    add(
        "--probe",
        choices=("none", "missing", "all"),
        default="none",
        help=(
            "none: open no file (default); missing: open those of unknown length, and check that"
            " all exist; all: decode the sound of all, which corrects wrong headers"
        ),
    )
    add("--jobs", type=at_least_1, default=os.cpu_count() or 1, help="processes that open files")
    add("--strict", action="store_true", help="exit with 1 if any entry was bad")
    add("--force", action="store_true", help="replace lists that were made from other inputs")


def run(args: argparse.Namespace) -> int:
    """Run `klassify lists`; 0 done, 1 wrong entries under --strict."""
    datasets.check_name(args.data)
    if not args.root.is_dir():
        raise KlassifyError("The root folder does not exist.", where=args.root)
    how = {name: getattr(args, name) for name in ("data", "root", "probe", "jobs", "force")}
    n_faults = 0
    sources = _sources(args)
    for split, source in sources.items():
        heldout = args.out / "heldout" / f"{split}_labels.tsv"
        labels = args.root / "heldout" / f"{split}_metadata.json"
        apart = heldout if split.startswith("test") and not labels.exists() else None
        path = args.out / f"{split}.tsv"
        n_faults += make_list(source, path, split, heldout=apart, **how)
        if labels.exists():
            n_faults += make_list(labels, heldout, split, **how)
    for doubt in warnings_of(args.out):
        print(f"warning: {doubt}", file=sys.stderr)
    if not args.splits and "train" in sources and "val" not in sources:
        raise KlassifyError(
            "Training needs val too, which nothing describes; the other lists are written.",
            where=args.root,
            fix=f"{how_described(args.root, args.data, 'val')}; or name splits (make: split=train)",
        )
    return 1 if args.strict and n_faults else 0


def _sources(args: argparse.Namespace) -> dict[str, Path]:
    """{split: what describes it} of the splits that are asked for, or of all."""
    if not args.splits:
        return find_splits(args.root, args.data)
    splits = [told_split(name) for name in args.splits.split(",")]
    return {split: find_split(args.root, args.data, split) for split in splits}
