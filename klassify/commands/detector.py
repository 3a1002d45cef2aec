"""Write detector.yaml: which systems, in which order, lead from media to the submitted answers.

    klassify detector exp/demo/klassify --conf recipes/klassify/conf/demo/submit.yaml

The conf names the system that answers each task (`task1: maxout`). The file lists that system and
all that it is computed from, inputs first, with their hashes; what packages or predicts reads it
alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.systems.detector import read_answers, write_detector


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="EXP_DIR", help="folder of the recipe's system folders")
    add("--conf", type=Path, required=True, metavar="submit.yaml")
    add("--force", action="store_true", help="replace a detector.yaml of other systems")


def run(args: argparse.Namespace) -> int:
    print(write_detector(args.folder, read_answers(args.conf), force=args.force))
    return 0
