"""Merge the shards of an extraction or of scores, or say why they cannot be merged.

    klassify merge features/demo/mouth/train
    klassify merge exp/demo/klassify/tcn --split val

Refuses missing shards, clips that appear more than once and shards made with other settings, and
names them. Feature shards are used as they are: this checks them and lists the clips without
features in failures.tsv. Parts of scores become the score files. It does not matter how the shards
were made: with --launcher slurm, GNU parallel or a loop.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.errors import KlassifyError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="folders of feature shards or of systems",
    )
    parser.add_argument("--split", help="only this split of a system's scores")


def run(args: argparse.Namespace) -> int:
    from klassify.cluster.record import records_in
    from klassify.cluster.work import found_works

    for folder in args.folders:
        works = [record.work for record in records_in(folder) if record.work.command != "train"]
        known = {(work.folder, work.step) for work in works}
        found = found_works(folder, args.split)
        works += [work for work in found if (work.folder, work.step) not in known]
        works = [work for work in works if args.split in (None, work.split)]
        if not works:
            of_split = f" of the split {args.split}" if args.split else ""
            raise KlassifyError(
                f"There are no shards here{of_split}.",
                where=folder,
                fix="name the --out folder of an extraction, or a system scored with --shard",
            )
        for work in works:
            print(f"{work.folder}: {work.merge()}")
    return 0
