"""The demo: generate clips, train the recipes on them, and compare what they learned.

    klassify demo                             16 minutes on 2 cores, first table after 6 minutes
    klassify demo recipe=klassify             the first system alone
    klassify demo size=tiny recipe=klassify   does everything run on this machine?
    klassify demo size=large                  three training seeds

NAME=VALUE are variables of the recipes, as of make: size (tiny, small, default, large), recipe,
corpus_seed, seed, jobs, force, dry; verbose=1 prints everything. It runs in a checkout, where
`make demo` is the same; elsewhere it first copies the recipes of the installed package into
klassify-demo/.

The demo runs the commands of the recipes, each once, in as many processes as there are cores. Their
output is in exp/demo/logs/. To resume an interrupted demo, repeat the command.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from klassify.demo.recipes import RECIPES, copy_recipes
from klassify.errors import KlassifyError
from klassify.files import write_json

if TYPE_CHECKING:
    from klassify.demo.plan import Step

CHECKOUT = Path("klassify-demo")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("variables", nargs="*", metavar="NAME=VALUE", help="such as size=tiny")


def run(args: argparse.Namespace) -> int:
    from klassify.corpus.plan import SIZES
    from klassify.demo.plan import folder_name, planned

    given = _variables(args.variables)
    size = given.setdefault("size", "default")
    if size not in SIZES:
        raise KlassifyError(f"unknown size={size}. Known: {' '.join(SIZES)}")
    verbose, dry = (bool(given.pop(name, "")) for name in ("verbose", "dry"))
    recipes = [given.pop("recipe")] if given.get("recipe") else list(RECIPES)
    if recipes[0] not in RECIPES:
        raise KlassifyError(f"no recipe {recipes[0]}. There are: {' '.join(RECIPES)}")
    seed = given.pop("seed", None)
    seeds = [seed] if seed else ["1", "2", "3"] if size == "large" else ["1"]
    jobs = given.pop("jobs", "") or str(len(os.sched_getaffinity(0)))
    if not jobs.isdecimal() or not (cores := int(jobs)):
        raise KlassifyError(f"jobs={jobs} is not a whole number of at least 1.")
    moved = _enter_checkout()
    # where the recipes' commands find `klassify` and its processes one thread each
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    steps = planned(recipes, seeds, given | {"data": "demo"}, cores)
    if dry:
        print("\n".join(f"+ klassify {shlex.join(step.words)}" for step in steps))
        return 0
    name = folder_name(size, given.get("corpus_seed", "0"))
    below = "" if seeds[0] == "1" else f"seed-{seeds[0]}"
    folders = {recipe: Path("exp", name, recipe, below) for recipe in recipes}
    media = Path(given.get("root") or f"media/{name}")
    _carry_out(steps, folders, name, media, cores, verbose)
    if moved:
        print(f"  all of it   in {CHECKOUT}/: cd {CHECKOUT}")
    return 0


def _carry_out(
    steps: Sequence[Step],
    folders: Mapping[str, Path],
    name: str,
    media: Path,
    cores: int,
    verbose: bool,
) -> None:
    """Run the steps, and tell of them and of the results."""
    from klassify.demo import run as runner
    from klassify.demo.told import Teller, ending
    from klassify.lists.data_list import read_list
    from klassify.lists.subsets import sources_of

    teller, logs = Teller(steps, cores, folders), Path("exp", name, "logs")
    taken: list[dict[str, object]] = []

    def finished(step: Step, seconds: float) -> None:
        taken.append({"log": runner.log_name(step), "cpu_s": round(seconds, 2)})
        teller.finished(step)

    try:
        runner.run(steps, cores, None if verbose else logs, finished, teller.waiting)
    finally:
        if taken:
            write_json(logs / "cpu_seconds.json", taken)
    clips = read_list(Path("data_lists", name, "heldout", "testA_labels.tsv"))
    first = next(iter(folders))
    clip = media / "testA" / clips["file"].iloc[1]
    paths = {
        "report": f"{steps[-1].out}/testA/report.html",
        "submission": f"submissions/{folders[first].relative_to('exp')}/testA/submission.zip",
        "logs": f"{logs}/",
        "predict": f"{_program()} predict {clip} --video{_detector(folders[first], name)}",
    }
    n_sources = len(set(sources_of(clips)))
    print(ending(folders, len(clips), n_sources, teller.passed, paths))


def _program() -> str:
    """How a person calls this program here."""
    if Path(".venv/bin/klassify").exists():
        return ".venv/bin/klassify"
    return "klassify"


def _detector(folder: Path, name: str) -> str:
    """The option that names a detector which predict would not choose by itself."""
    return "" if name == "demo" and folder.name == "klassify" else f" --detector {folder}"


def _variables(words: Sequence[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    if wrong := [word for word, (name, equals, _) in zip(words, pairs) if not (name and equals)]:
        raise KlassifyError(f"{wrong[0]!r} is not NAME=VALUE.", fix="for instance size=tiny")
    return {name: value for name, _, value in pairs}


def _enter_checkout() -> bool:
    """Go to where the recipes are; whether that is a copy of the package's in klassify-demo/."""
    if Path("recipes/common.sh").exists():
        return False
    copy_recipes(CHECKOUT)
    print(f"working in {CHECKOUT}/, with a copy of the recipes", flush=True)
    os.chdir(CHECKOUT)
    return True
