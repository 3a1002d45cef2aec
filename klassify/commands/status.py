"""Show the state of work on the cluster: done, running, queued, held, missing, or failed and why.

    klassify status features/demo/mouth/train
    klassify status exp/demo/klassify            # every system in it

Reads the files, then Slurm's queue, then the logs of shards that are in neither. It needs no
accounting and works without Slurm. Shards that were run by hand (`--shard i/n`) are found by their
files. Exit status 1 if anything is not done, 2 if a folder has no such work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from klassify.errors import KlassifyError

if TYPE_CHECKING:
    from klassify.cluster.record import Record
    from klassify.cluster.work import Work


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="outputs, or folders of outputs"
    )


def run(args: argparse.Namespace) -> int:
    """Run `klassify status`; 0 all done, 1 something is not, 2 a folder has no such work."""
    worst = 0
    for folder in args.folders:
        try:
            worst = max(worst, int(not _show(folder)))
        except KlassifyError as error:
            worst = 2
            print(f"klassify status: {error}", file=sys.stderr)
    return worst


def _show(folder: Path) -> bool:
    """Print the state of all work in a folder; returns whether all of it is done."""
    from klassify.cluster.record import records_in
    from klassify.cluster.work import found_works

    records = records_in(folder)
    known = {(record.work.folder, record.work.step) for record in records}
    works = [work for work in found_works(folder) if (work.folder, work.step) not in known]
    if not records and not works:
        raise KlassifyError(
            "Nothing here was submitted or made in shards.",
            where=folder,
            fix="name the --out folder of an extraction, or a system's folder",
        )
    done = [_shown(record.work, _show_submitted, record) for record in records]
    done += [_shown(work, _show_by_hand, work) for work in works]
    return all(done)


def _shown(work: Work, show: Callable[..., bool], what: Record | Work) -> bool:
    """show(what); work whose files are damaged is named and counts as not done."""
    try:
        return show(what)
    except KlassifyError as error:
        print(f"{work.folder}: {work.step}: {error}")
        return False


def _show_submitted(record: Record) -> bool:
    from klassify.cluster.survey import lines, survey

    found = survey(record)
    print(*lines(found), sep="\n")
    return found.is_done and record.work.merged


def _show_by_hand(work: Work) -> bool:
    from klassify.cluster.work import spans

    missing = sorted(work.every - work.done())
    shards = f"{work.n} shard{'s' if work.n > 1 else ''}"
    print(f"{work.folder}: {work.step}, {shards}, run without --launcher")
    print(f"  done     {work.n - len(missing):>5}")
    if missing:
        print(f"  missing  {len(missing):>5}  {spans(missing)}")
        print(f"  fix:   repeat the command with --shard I/{work.n} for each of them")
    return not missing
