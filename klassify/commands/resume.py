"""Submit missing shards again, and only those.

    klassify resume features/demo/mouth/train
    klassify resume features/demo/mouth/train --time 06:00:00 --sbatch-arg=--mem=16G
    klassify resume features/demo/mouth/train --here  # on this machine, one shard after the other

Shards that are done or in the queue are left alone. Options replace those of the first submission.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from klassify.arguments import at_least_1
from klassify.cluster.options import add_job_arguments, added
from klassify.errors import KlassifyError

if TYPE_CHECKING:
    from klassify.cluster.record import Record


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="outputs, or folders of outputs")
    add("--here", action="store_true", help="run the missing shards on this machine")
    add("--dry-run", action="store_true", help="print the script and the commands, submit nothing")
    group = parser.add_argument_group("settings that differ from the first submission")
    group.add_argument(
        "--max-parallel", type=at_least_1, metavar="N", help="tasks that run at once"
    )
    add_job_arguments(group)


def run(args: argparse.Namespace) -> int:
    from klassify.cluster.record import records_in
    from klassify.cluster.submit import submit_missing

    for folder in args.folders:
        records = records_in(folder)
        if not records:
            raise KlassifyError(
                "No command was submitted from here, so none can be resumed.",
                where=folder,
                fix="repeat the command with --shard I/N for each shard that klassify status names",
            )
        for record in records:
            record.options = record.options.changed(
                max_parallel=args.max_parallel,
                time=args.time,
                cpus=args.cpus,
                max_restarts=args.max_restarts,
                grace=args.grace,
                sbatch=added(record.options.sbatch, args.sbatch_arg or ()),
                modules=args.module and tuple(args.module),
            )
            if args.here and not args.dry_run:
                _run_here(record)
            else:
                submit_missing(record, dry_run=args.dry_run)
    return 0


def _run_here(record: Record) -> None:
    from klassify.cluster.survey import survey

    found = survey(record)
    for shard in found.lacking:
        cut = [] if record.work.command == "train" else ["--shard", f"{shard}/{record.work.n}"]
        command = [sys.executable, "-m", "klassify.cli", *record.arguments, *cut]
        # as in the scripts: run no code that lies in that folder
        environment = os.environ | {"PYTHONSAFEPATH": "1"}
        failed = subprocess.run(command, cwd=record.cwd, env=environment, check=False).returncode
        if failed and not (record.may_fail_whole and shard in record.work.done()):
            what = f"Shard {shard} of {record.work.n} failed."
            raise KlassifyError(what, where=record.work.folder)
    if not found.in_queue:
        print(f"{record.work.folder}: {record.work.merge()}")
