"""Write detector.yaml: the systems that lead from media to the submitted answers, in order.

    klassify detector exp/demo/klassify --conf recipes/klassify/conf/demo/submit.yaml \\
        --labels data_lists/demo

The conf names the system that answers each task (`task1: maxout`). detector.yaml lists these
systems and all their inputs, inputs first, with their hashes; `klassify package` and `klassify
predict` read only this file.

With --labels it also holds the operating points of Task 1's answer, fitted on val_fit: thresholds
at the false-alarm rates of --false-alarms, at the equal error rate and at the lowest cost, with
intervals (bootstrap over sources). `klassify predict` takes its verdicts from them. A detector.yaml
without operating points gets them added; others are replaced only with --force.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.arguments import add_thresholds
from klassify.lists import subsets
from klassify.metrics.decisions import ASVSPOOF_5, Cost
from klassify.systems.detector import read_answers, write_detector
from klassify.systems.operating import RATES


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="EXP_DIR", help="folder of the recipe's system folders")
    add(
        "--conf",
        type=Path,
        required=True,
        metavar="submit.yaml",
        help="YAML file that names the system for each task",
    )
    add("--task", type=int, choices=(1, 2), help="use only the answer to this task")
    add(
        "--labels",
        type=Path,
        metavar="DIR",
        help="folder of the data lists; thresholds are fitted on their val_fit",
    )
    add_thresholds(parser, RATES, ASVSPOOF_5)
    add("--force", action="store_true", help="replace a detector.yaml of other systems")


def run(args: argparse.Namespace) -> int:
    answers = read_answers(args.conf)
    if args.task:
        answers = {task: name for task, name in answers.items() if task == f"task{args.task}"}
    val_fit = subsets.load_split(args.labels, "val_fit") if args.labels else None
    given = {"rates": args.false_alarms, "cost": Cost(*args.cost)}
    print(write_detector(args.folder, answers, val_fit=val_fit, **given, force=args.force))
    return 0
