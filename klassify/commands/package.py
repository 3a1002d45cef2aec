"""Scores -> a zip that the challenge's server accepts, with a manifest.

    klassify package exp/demo/klassify/detector.yaml --split testA \\
        --list data_lists/demo/testA.tsv \\
        --out submissions/demo/klassify/testA

detector.yaml names the system that answers each task; --task1 and --task2 override it, or are used
without it. Task 1 becomes prediction.txt (`name;probability`), Task 2 prediction.json, both in one
submission.zip. Every clip of the list gets exactly one answer: a clip without a score gets the
prior (`--prior`, else the system's own) and is counted in manifest.json. Task 1 needs
probabilities: calibrated scores, or the softmax of a linear fusion. The checker reads the result,
and what it refuses is an error. Every package gets a row in ledger.tsv of the folder `submissions`
that contains --out (else of --out itself).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.arguments import between_0_and_1
from klassify.errors import KlassifyError
from klassify.submission import ledger
from klassify.submission.manifest import TASKS
from klassify.submission.package import package
from klassify.submission.verdict import ZIP
from klassify.systems.detector import read_detector
from klassify.systems.system import load_systems


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "detector",
        nargs="?",
        type=Path,
        metavar="detector.yaml",
        help="a detector.yaml, or its folder",
    )
    add("--task1", type=Path, metavar="SYSTEM_DIR", help="the system that answers Task 1")
    add("--task2", type=Path, metavar="SYSTEM_DIR", help="the system that answers Task 2")
    add("--split", required=True, help="the scored split, such as testA")
    add("--list", required=True, type=Path, help="the data list whose clips need an answer")
    add("--out", required=True, type=Path, help="folder of the submission")
    add("--ledger", type=Path, metavar="FILE", help="the ledger's file (default: see above)")
    add(
        "--prior",
        type=between_0_and_1,
        help="probability of clips without a score (default: the system's prior)",
    )
    add("--sigmoid", action="store_true", help="accept log-odds, through a sigmoid")
    add("--force", action="store_true", help="replace a submission made from other inputs")


def run(args: argparse.Namespace) -> int:
    detector = read_detector(args.detector) if args.detector else None
    tasks = {task: detector.answering(task) for task in detector.answers} if detector else {}
    named = {task: getattr(args, task) for task in TASKS if getattr(args, task)}
    tasks |= dict(zip(named, load_systems(named.values())))
    if not tasks:
        raise KlassifyError("Nothing to package.", fix="give a detector.yaml, --task1 or --task2")
    options = {
        "prior": args.prior,
        "sigmoid": args.sigmoid,
        "force": args.force,
        "ledger_path": args.ledger,
    }
    manifest = package(args.out, args.list, args.split, tasks, **options)
    for task in TASKS:
        if task in manifest:
            counts = ", ".join(
                f"{key} {value}" for key, value in manifest[task].items() if key.startswith("n_")
            )
            print(f"{task}: {manifest[task]['system']}, {counts}")
    for key in ("rule", "notice"):
        if key in manifest:
            print(manifest[key])
    print(
        f"{args.out / ZIP}  id {ledger.id_of(manifest)} in"
        f" {args.ledger or ledger.find_ledger(args.out)}"
    )
    return 0
