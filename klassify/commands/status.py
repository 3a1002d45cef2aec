"""Show the state of work on the cluster: done, running, queued, held, missing, or failed and why.

    klassify status features/demo/mouth/train
    klassify status exp/demo/klassify            # every system in it

Reads the files, then Slurm's queue, then the logs of shards that are in neither. It needs no
accounting and works without Slurm. Shards made by hand (`--shard i/n`) are found by their files.
Exit status 1 if anything is not done, 2 if a folder has no such work.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from klassify.cluster.work import Work


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="outputs, or folders of outputs"
    )


def run(args: argparse.Namespace) -> int:
    """Run `klassify status`; 0 all done, 1 something is not, 2 a folder has no such work."""
    from klassify.errors import KlassifyError

    worst = 0
    for folder in args.folders:
        try:
            worst = max(worst, int(not _show(folder)))
        except KlassifyError as error:
            worst = 2
            print(f"klassify status: {error}", file=sys.stderr)
    return worst


def _show(folder: Path) -> bool:
    from klassify.cluster.record import records_in
    from klassify.cluster.survey import lines, survey
    from klassify.cluster.work import found_works
    from klassify.errors import KlassifyError

    done = True
    records = records_in(folder)
    for record in records:
        try:
            found = survey(record)
            print(*lines(found), sep="\n")
            done = done and found.is_done and record.work.merged
        except KlassifyError as error:
            print(f"{record.work.folder}: {record.work.step}: {error}")
            done = False
    known = {(record.work.folder, record.work.step) for record in records}
    works = [work for work in found_works(folder) if (work.folder, work.step) not in known]
    for work in works:
        done = _show_by_hand(work) and done
    if not records and not works:
        raise KlassifyError(
            "Nothing here was submitted or made in shards.",
            where=folder,
            fix="name the --out folder of an extraction, or a system's folder",
        )
    return done


def _show_by_hand(work: Work) -> bool:
    from klassify.cluster.work import spans
    from klassify.errors import KlassifyError

    try:
        missing = sorted(set(range(1, work.n + 1)) - work.done())
    except KlassifyError as error:
        print(f"{work.folder}: {work.step}: {error}")
        return False
    print(
        f"{work.folder}: {work.step}, {work.n} shard{'s' if work.n > 1 else ''}, run without"
        " --launcher"
    )
    print(f"  done     {work.n - len(missing):>5}")
    if missing:
        print(
            f"  missing  {len(missing):>5}  {spans(missing)}\n  fix:   repeat the command with"
            f" --shard I/{work.n} for each of them"
        )
    return not missing
