"""A fuzz campaign: broken and hostile input must end in an answer or in a clear error, soon, and
inside its folder.

    python -m tests.fuzz --seconds 300 --seed 7      (make fuzz)

Each case runs in a worker process. A finding is an exception that is not a KlassifyError, a case
that takes longer than LIMIT_S, memory beyond LIMIT_BYTES, a file outside the case's folder, or a
crash; a crash in the native decoder of `media` is counted apart, since the toolkit decodes in
processes that may die.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import random
import resource
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

from klassify import workers
from klassify.errors import KlassifyError

from .mutate import broken_bytes, broken_text
from .targets import TARGETS, Target

LIMIT_S = 20.0
LIMIT_BYTES = 6 << 30  # of address space; torch and arrow reserve some
DECODER = "media"


@dataclasses.dataclass(frozen=True)
class Case:
    target: str
    seed: int


class Scratch:
    """The intact files of all targets, and an empty folder for each case."""

    def __init__(self, limited: bool = True) -> None:
        if limited:  # of a worker process
            resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
        self.top = tempfile.TemporaryDirectory(prefix="fuzz-")
        self.sound: dict[str, list[tuple[Path, bytes]]] = {}

    def files(self, target: Target) -> list[tuple[Path, bytes]]:
        if target.name not in self.sound:
            folder = Path(self.top.name) / "sound" / target.name
            folder.mkdir(parents=True)
            self.sound[target.name] = [
                (path.relative_to(folder), path.read_bytes()) for path in target.sound(folder)
            ]
        return self.sound[target.name]


def try_case(scratch: Scratch, case: Case) -> tuple[str, str]:
    """The task of a worker."""
    return try_target(
        scratch, next(target for target in TARGETS if target.name == case.target), case.seed
    )


def try_target(scratch: Scratch, target: Target, seed: int) -> tuple[str, str]:
    """("answered" | "refused" | "found", what was found) of one broken file."""
    rng = random.Random(f"{target.name}-{seed}")
    name, content = rng.choice(scratch.files(target))
    broken = (broken_text if target.text else broken_bytes)(content, rng)
    with tempfile.TemporaryDirectory(dir=scratch.top.name) as outer:
        path = Path(outer) / "inner" / "case" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(broken)
        try:
            target.run(path)
            outcome = "answered", ""
        except KlassifyError as error:
            outcome = ("refused", "") if str(error).strip() else ("found", "an error without words")
        except Exception:  # what the campaign looks for
            outcome = "found", traceback.format_exc(limit=-12)
        allowed = Path(outer) / "inner" / "case"
        strays = [p for p in Path(outer).rglob("*") if p.is_file() and allowed not in p.parents]
        return ("found", f"files outside: {strays}") if strays else outcome


def cases(targets: Iterable[str], seed: int) -> Iterator[Case]:
    """All targets in turn, again and again, with another seed each time."""
    targets = list(targets)
    while True:
        yield from (Case(name, seed) for name in targets)
        seed += 1


def campaign(todo: Iterable[Case], jobs: int) -> tuple[collections.Counter, list[tuple[Case, str]]]:
    """Try all cases: counts by (target, outcome), and the findings."""
    counts: collections.Counter = collections.Counter()
    findings, given = [], []

    def remembered() -> Iterator[Case]:
        for case in todo:
            given.append(case)
            yield case

    for number, result in workers.each(try_case, remembered(), Scratch, jobs=jobs, limit_s=LIMIT_S):
        case = given[number]
        if isinstance(result, workers.Died):
            native = case.target == DECODER and "longer" not in result.reason
            result = ("crashed" if native else "found", result.reason)
        counts[case.target, result[0]] += 1
        if result[0] == "found":
            findings.append((case, result[1]))
    return counts, findings


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--target", action="append", choices=[target.name for target in TARGETS])
    parser.add_argument("--case", type=int, help="this seed alone, of one --target")
    args = parser.parse_args(argv)
    names = args.target or [target.name for target in TARGETS]
    todo = (
        (Case(name, args.case) for name in names)
        if args.case is not None
        else cases(names, args.seed)
    )
    end = time.monotonic() + args.seconds
    counts, findings = campaign(
        itertools.takewhile(lambda _: time.monotonic() < end, todo), args.jobs
    )
    print(f"{'target':<14}{'tried':>8}{'answered':>10}{'refused':>9}{'crashed':>9}{'found':>7}")
    for name in names:
        row = [counts[name, outcome] for outcome in ("answered", "refused", "crashed", "found")]
        print(f"{name:<14}{sum(row):>8}{row[0]:>10}{row[1]:>9}{row[2]:>9}{row[3]:>7}")
    print(f"{counts.total()} inputs, {len(findings)} findings")
    for case, what in findings[:20]:
        print(f"\n--target '{case.target}' --case {case.seed}\n{what}")
    return int(bool(findings))
