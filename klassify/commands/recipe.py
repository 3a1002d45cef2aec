"""Copy the recipes and their configs out of the package, to read, change and run them.

    klassify recipe copy my_runs
    cd my_runs && bash recipes/klassify/run.sh --help

Files that the folder already has are kept. In a checkout the recipes are in recipes/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.demo.recipes import copy_recipes
from klassify.errors import KlassifyError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("copy",), help="what to do")
    parser.add_argument("folder", type=Path, help="where recipes/ is written")


def run(args: argparse.Namespace) -> int:
    target = args.folder / "recipes"
    if target.exists():
        raise KlassifyError("There are recipes already.", where=target, fix="name another folder")
    copy_recipes(args.folder)
    print(target)
    return 0
