"""Write detector.yaml: which systems, in which order, lead from media to the submitted answers.

    klassify detector exp/demo/klassify --conf recipes/klassify/conf/demo/submit.yaml

The conf names the system that answers each task (`task1: maxout`). The file lists that system and
all that it is computed from, inputs first, with their hashes; what packages or predicts reads it
alone.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import yaml

from klassify.errors import KlassifyError
from klassify.files import write_text
from klassify.settings import already_done
from klassify.systems import system
from klassify.systems.detector import DETECTOR, _node, leaves, read_answers, read_mapping


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `klassify detector`."""
    parser.add_argument(
        "folder", type=Path, metavar="EXP_DIR", help="folder of the recipe's system folders"
    )
    parser.add_argument("--conf", type=Path, required=True, metavar="submit.yaml")
    parser.add_argument(
        "--force", action="store_true", help="replace a detector.yaml of other systems"
    )


def run(args: argparse.Namespace) -> int:
    """Run `klassify detector`."""
    answers = read_answers(args.conf)
    nodes: dict[str, dict[str, Any]] = {}
    for name in answers.values():
        for folder in system.with_inputs(args.folder / name):
            below = os.path.relpath(folder, args.folder)
            if leaves(below):
                fix = f"name systems below {args.folder}, and inputs likewise"
                raise KlassifyError(
                    "This system does not lie below the detector's folder.", where=folder, fix=fix
                )
            nodes[below] = _node(args.folder, folder)
    wanted = {"answers": answers, "systems": nodes}
    path = args.folder / DETECTOR
    made_with = read_mapping(path) if path.exists() else None
    if not already_done(path, made_with, wanted, force=args.force):
        write_text(path, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))
    print(path)
    return 0
