"""Write detector.yaml: the systems that lead from media to the submitted answers, in order.

    klassify detector exp/demo/klassify --conf recipes/klassify/conf/demo/submit.yaml

The conf names the system that answers each task (`task1: maxout`). detector.yaml lists these
systems and all their inputs, inputs first, with their hashes; `klassify package` and `klassify
predict` read only this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.systems.detector import read_answers, write_detector


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="EXP_DIR", help="folder of the recipe's system folders")
    add("--conf", type=Path, required=True, metavar="submit.yaml")
    add("--task", type=int, choices=(1, 2), help="of the conf's answers, this task's alone")
    add("--force", action="store_true", help="replace a detector.yaml of other systems")


def run(args: argparse.Namespace) -> int:
    answers = read_answers(args.conf)
    if args.task:
        answers = {task: name for task, name in answers.items() if task == f"task{args.task}"}
    print(write_detector(args.folder, answers, force=args.force))
    return 0
