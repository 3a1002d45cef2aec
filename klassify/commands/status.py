"""Where work on the cluster stands: done, running, queued, held, missing, failed with the reason.

    klassify status features/demo/mouth/train
    klassify status exp/demo/klassify            # every system in it

Reads the files first, Slurm's queue second and the logs of what is in neither; no accounting is
needed, and no Slurm either. Shards that were run by hand (`--shard i/n`) are told from their files.
Exit status 1 if anything is not done, 2 where a folder holds nothing of the kind.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from klassify.cluster.work import Work


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `klassify status`."""
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="outputs, or folders of outputs"
    )


def run(args: argparse.Namespace) -> int:
    """Run `klassify status`; 0 all done, 1 something is not, 2 a folder is none."""
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
    from klassify.cluster.survey import lines, survey_or_error
    from klassify.cluster.work import found_works
    from klassify.errors import KlassifyError

    done = True
    records = records_in(folder)
    for record in records:
        found = survey_or_error(record)
        if isinstance(found, KlassifyError):
            print(f"{record.work.folder}: {record.work.step}: {found}")
            done = False
            continue
        print(*lines(found), sep="\n")
        done = done and found.is_done and record.work.merged
    known = {(record.work.folder, record.work.step) for record in records}
    works = [work for work in found_works(folder) if (work.folder, work.step) not in known]
    for work in works:
        done = _show_by_hand(work) and done
    if not records and not works:
        raise KlassifyError(
            "Nothing was launched or cut into shards here.",
            where=folder,
            fix="give the --out of an extraction, or a system's folder",
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
            f"  missing  {len(missing):>5}  {spans(missing)}\n  fix:   the same command with"
            f" --shard I/{work.n}"
        )
    return not missing
