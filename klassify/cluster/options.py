"""The options that send a command to a cluster."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from klassify.arguments import at_least_0, at_least_1
from klassify.errors import KlassifyError

# set by the scripts themselves: another value would break the bookkeeping
OWN = (
    *("array", "job-name", "output", "error", "dependency", "parsable", "wrap", "open-mode"),
    *("chdir", "signal", "kill-on-invalid-dep", "wait", "hold", "test-only", "requeue"),
    *("no-requeue", "time", "cpus-per-task", "nodes", "ntasks", "ntasks-per-node"),
)
INSTEAD = {
    "time": "--time",
    "cpus-per-task": "--cpus",
    "nodes": "--nodes",
    "ntasks-per-node": "--gpus",
}
GPUS = re.compile(
    r"--(gpus(-per-(node|task|socket))?=|(gres|tres-per-(job|node|task|socket))=.*gpu)"
)
TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")


@dataclasses.dataclass(frozen=True)
class Options:
    """What a task of an array, or the one job of a training, asks of Slurm.

    cpus: per task. gpus: per node. time: limit, as Slurm writes it. max_parallel: tasks that run at
    once, None for no limit. max_restarts: how often a task is requeued. grace: seconds before the
    limit at which it is requeued, None for 120 or half the limit. sbatch: further options, such as
    "--partition=gpu". modules: names for `module load`.
    """

    shards: int = 1
    max_parallel: int | None = None
    time: str = "04:00:00"
    cpus: int = 1
    gpus: int = 0
    nodes: int = 1
    max_restarts: int = 3
    grace: int | None = None
    sbatch: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def __post_init__(self):
        if not TIME.fullmatch(self.time):
            raise KlassifyError(
                f"--time {self.time!r} is not a time limit.",
                fix="write it as 90 (minutes), 02:00:00 or 1-12:00:00",
            )
        if (self.grace or 0) >= self.limit_s:
            raise KlassifyError(f"--grace {self.grace} must be shorter than --time {self.time}.")
        for text in self.sbatch:
            _check_sbatch(text)
        for text in (*self.sbatch, *self.modules):
            one_line(text, "an option for Slurm")

    @property
    def limit_s(self) -> int:
        """The time limit in seconds."""
        return seconds_of(self.time)

    @property
    def grace_s(self) -> int:
        """Seconds before the limit at which a task is requeued."""
        return min(120, self.limit_s // 2) if self.grace is None else self.grace

    @property
    def asks_for_gpus(self) -> bool:
        """Whether a task has a GPU, by --gpus or by an option of sbatch."""
        return bool(self.gpus) or any(GPUS.match(text) for text in self.sbatch)

    def changed(self, **values: Any) -> Options:
        """These options with others in their place; None keeps the present value."""
        return dataclasses.replace(
            self, **{key: value for key, value in values.items() if value is not None}
        )


def seconds_of(time: str) -> int:
    """Seconds of a time as Slurm writes it: m, m:s, h:m:s, d-h, d-h:m or d-h:m:s."""
    days, dash, rest = time.rpartition("-")
    pieces = [int(piece) for piece in rest.split(":")]
    if not dash and len(pieces) < 3:
        pieces = [0, *pieces]
    hours, minutes, seconds = (pieces + [0, 0])[:3]
    return 86400 * int(days or 0) + 3600 * hours + 60 * minutes + seconds


def added(options: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    """Options of sbatch with more of them, which replace those that set the same thing."""
    names = {_place(text) for text in more}
    return (*(text for text in options if _place(text) not in names), *more)


def _place(option: str) -> str:
    """What an option sets: sbatch takes one of --mem, --mem-per-cpu and --mem-per-gpu."""
    name = option.partition("=")[0]
    return "--mem" if name in ("--mem-per-cpu", "--mem-per-gpu") else name


def _check_sbatch(text: str) -> None:
    match = re.fullmatch(r"--([a-z][a-z-]+)(=.*)?", text)
    if not match:
        raise KlassifyError(
            f"--sbatch-arg {text!r} is not a long option of sbatch.",
            fix="write it as --sbatch-arg=--partition=gpu",
        )
    # sbatch accepts abbreviations
    own = next((name for name in OWN if name.startswith(match[1])), None)
    if own:
        fix = f"use klassify's {INSTEAD[own]}" if own in INSTEAD else "leave it out"
        raise KlassifyError(f"--sbatch-arg=--{match[1]}: --{own} is set by the script.", fix=fix)


def one_line(text: str, what: str) -> str:
    """`text`; KlassifyError for a line break or another control character in it."""
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise KlassifyError(f"{what} contains a control character: {text!r}.")
    return text


def add_launcher_arguments(parser: argparse.ArgumentParser, *, training: bool = False) -> None:
    """Add --launcher and its options. training: one job over nodes and GPUs instead of an array."""
    group = parser.add_argument_group("--launcher slurm")
    add = group.add_argument
    add("--launcher", choices=("local", "slurm"), default="local", help="here, or as jobs of Slurm")
    if not training:
        add_shard_arguments(group)
    elif "--nodes" not in parser._option_string_actions:  # which the training has anyway
        add("--nodes", type=at_least_1, default=1, help="nodes of the job (default: 1)")
    add_job_arguments(group)
    add("--gpus", type=at_least_0, metavar="M", help="GPUs per node (default: 0)")
    add(
        "--wait",
        action="store_true",
        help="wait for the jobs; interrupting the wait ends none of them",
    )
    add("--dry-run", action="store_true", help="print scripts and commands, submit nothing")


def add_shard_arguments(group: argparse._ActionsContainer) -> None:
    """Add the options of an array."""
    add = group.add_argument
    add("--shards", type=at_least_1, metavar="N", help="shards, one task each (default: 64)")
    add("--max-parallel", type=at_least_1, metavar="N", help="tasks at a time (default: all)")


def add_job_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the options that may change when missing work is submitted again."""
    add = group.add_argument
    add("--time", help="time limit of a task (default: 04:00:00)")
    cpus = "CPUs per task (default: --jobs, or --workers + 1)"
    add("--cpus", type=at_least_1, metavar="N", help=cpus)
    add("--max-restarts", type=at_least_0, metavar="N", help="most restarts of a task (default: 3)")
    grace = "seconds before its time limit at which a task is requeued (default: 120)"
    add("--grace", type=at_least_0, metavar="S", help=grace)
    sbatch = "passed to sbatch, as in --sbatch-arg=--partition=gpu; may be repeated"
    add("--sbatch-arg", action="append", metavar="=OPTION", help=sbatch)
    module = "a module to load (`module load`); may be repeated"
    add("--module", action="append", metavar="NAME", help=module)


@dataclasses.dataclass(frozen=True)
class Launch:
    """What --launcher slurm asks for.

    arguments: of the command, without those of the launcher. replace: --force.
    """

    arguments: list[str]
    options: Options
    wait: bool
    dry_run: bool
    replace: bool


def launch_from(args: argparse.Namespace) -> Launch | None:
    """What parsed arguments ask for; None under --launcher local.

    args.command_line has the command as it was typed.
    """
    if getattr(args, "launcher", "local") == "local":
        _refuse_launcher_options(args)
        return None
    arguments = without_launcher(args.command_line[1:], training=not hasattr(args, "shards"))
    return Launch(arguments, _options_from(args), args.wait, args.dry_run, args.force)


def _refuse_launcher_options(args: argparse.Namespace) -> None:
    """KlassifyError for an option that would have no effect without a cluster."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_launcher_arguments(parser, training=True)
    add_shard_arguments(parser)
    for action in parser._actions:
        # a training has --nodes without Slurm too
        is_local = action.dest in ("launcher", "nodes")
        if not is_local and getattr(args, action.dest, action.default) != action.default:
            raise KlassifyError(
                f"{action.option_strings[0]} needs --launcher slurm.",
                fix="add --launcher slurm, or leave it out",
            )


def _options_from(args: argparse.Namespace) -> Options:
    cpus = args.cpus or getattr(args, "jobs", None) or getattr(args, "workers", 0) + 1
    shards = getattr(args, "shards", None)
    return Options().changed(
        shards=1 if not hasattr(args, "shards") else 64 if shards is None else shards,
        cpus=cpus,
        time=args.time,
        max_parallel=getattr(args, "max_parallel", None),
        gpus=args.gpus,
        nodes=getattr(args, "nodes", None),
        max_restarts=args.max_restarts,
        grace=args.grace,
        sbatch=args.sbatch_arg and tuple(args.sbatch_arg),
        modules=args.module and tuple(args.module),
    )


def without(argv: Sequence[str], *options: str) -> list[str]:
    """Arguments without these options and their values."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in options:
        parser.add_argument(option)
    return parser.parse_known_args(list(argv))[1]


def without_launcher(argv: Sequence[str], *, training: bool = False) -> list[str]:
    """A command line without --force and the launcher's options: what a task runs."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_launcher_arguments(parser, training=training)
    parser.add_argument("--force", action="store_true")
    return parser.parse_known_args(list(argv))[1]
