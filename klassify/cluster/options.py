"""The options that send a command to a cluster, and what they come to."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from klassify.arguments import at_least_0, at_least_1
from klassify.errors import KlassifyError

# what the scripts set themselves: another value would break the bookkeeping
OWN = (
    "array",
    "job-name",
    "output",
    "error",
    "dependency",
    "parsable",
    "wrap",
    "open-mode",
    "chdir",
    "signal",
    "kill-on-invalid-dep",
    "wait",
    "hold",
    "test-only",
    "requeue",
    "no-requeue",
    "time",
    "cpus-per-task",
    "nodes",
    "ntasks",
    "ntasks-per-node",
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

    cpus: of a task. gpus: of a node. time: its limit, as Slurm writes it. max_parallel: tasks that
    run at once, None for no limit. max_restarts: how often it is put back in the queue. grace:
    seconds before the limit at which that happens, None for 120 or half the limit. sbatch: further
    options, such as "--partition=gpu". modules: names for `module load`.
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
        counts = {"--shards": self.shards, "--max-parallel": self.max_parallel, "--cpus": self.cpus}
        for name, count in (counts | {"--nodes": self.nodes}).items():
            if count is not None and count < 1:
                raise KlassifyError(f"{name} is at least 1, not {count}.")
        for name, count in (
            ("--gpus", self.gpus),
            ("--max-restarts", self.max_restarts),
            ("--grace", self.grace or 0),
        ):
            if count < 0:
                raise KlassifyError(f"{name} is at least 0, not {count}.")
        if not TIME.fullmatch(self.time):
            raise KlassifyError(
                f"--time {self.time!r} is no time limit.",
                fix="as in 90 (minutes), 02:00:00, 1-12:00:00",
            )
        if (self.grace or 0) >= self.limit_s:
            raise KlassifyError(f"--grace {self.grace} is no less than --time {self.time}.")
        for text in self.sbatch:
            _check_sbatch(text)
        for text in (*self.sbatch, *self.modules):
            one_line(text, "an option for Slurm")

    @property
    def limit_s(self) -> int:
        """The time limit in seconds. Slurm writes minutes, minutes:s, h:m:s, days-h, days-h:m or
        days-h:m:s.
        """
        days, dash, rest = self.time.rpartition("-")
        pieces = [int(piece) for piece in rest.split(":")]
        if not dash and len(pieces) < 3:
            pieces = [0, *pieces]
        hours, minutes, seconds = (pieces + [0, 0])[:3]
        return 86400 * int(days or 0) + 3600 * hours + 60 * minutes + seconds

    @property
    def grace_s(self) -> int:
        """Seconds before the limit at which a task is put back in the queue."""
        return min(120, self.limit_s // 2) if self.grace is None else self.grace

    @property
    def asks_for_gpus(self) -> bool:
        """Whether a task has a GPU: by --gpus, or by an option of sbatch."""
        return bool(self.gpus) or any(GPUS.match(text) for text in self.sbatch)

    def changed(self, **values: Any) -> Options:
        """These options with others in their place; None leaves one as it is."""
        return dataclasses.replace(
            self, **{key: value for key, value in values.items() if value is not None}
        )


def added(options: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    """Options of sbatch with more of them, which replace those of the same name, or of the same
    memory.
    """
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
            f"--sbatch-arg {text!r} is no option in its long form.",
            fix="as in --sbatch-arg=--partition=gpu",
        )
    own = next(
        (name for name in OWN if name == match[1] or name.startswith(match[1])), None
    )  # sbatch takes beginnings
    if own:
        fix = f"klassify's own {INSTEAD[own]}" if own in INSTEAD else "leave it out"
        raise KlassifyError(f"--sbatch-arg=--{match[1]}: --{own} is set by the script.", fix=fix)


def one_line(text: str, what: str) -> str:
    """`text`, unless it holds a line break or another control character, which no script shall
    carry.
    """
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise KlassifyError(f"{what} holds a control character: {text!r}.")
    return text


def add_launcher_arguments(parser: argparse.ArgumentParser, *, training: bool = False) -> None:
    """--launcher and what belongs to it. `training`: one job over nodes and GPUs instead of an
    array of shards.
    """
    group = parser.add_argument_group("--launcher slurm")
    group.add_argument(
        "--launcher",
        choices=("local", "slurm"),
        default="local",
        help="where it runs (default: here)",
    )
    if training:
        if "--nodes" not in parser._option_string_actions:  # which the training has anyway
            group.add_argument(
                "--nodes", type=at_least_1, default=1, help="nodes of the job (default: 1)"
            )
    else:
        add_shard_arguments(group)
    add_job_arguments(group)
    group.add_argument("--gpus", type=at_least_0, metavar="M", help="GPUs a node (default: none)")
    group.add_argument(
        "--wait", action="store_true", help="stay until it is done; ending this ends no job"
    )
    group.add_argument(
        "--dry-run", action="store_true", help="print the script and the commands, submit nothing"
    )


def add_shard_arguments(group: argparse._ActionsContainer) -> None:
    """What an array has and a single job has not."""
    group.add_argument(
        "--shards",
        type=at_least_1,
        metavar="N",
        help="tasks that the list is cut into (default: 64)",
    )
    group.add_argument(
        "--max-parallel", type=at_least_1, metavar="N", help="tasks that run at once (default: all)"
    )


def add_job_arguments(group: argparse._ArgumentGroup) -> None:
    """What may change when missing work is submitted again."""
    group.add_argument("--time", help="time limit of a task (default: 04:00:00)")
    group.add_argument(
        "--cpus",
        type=at_least_1,
        metavar="N",
        help="CPUs a task (default: --jobs, or --workers and one more)",
    )
    group.add_argument(
        "--max-restarts",
        type=at_least_0,
        metavar="N",
        help="times a task is put back in the queue (default: 3)",
    )
    group.add_argument(
        "--grace",
        type=at_least_0,
        metavar="S",
        help="so many seconds before its time limit (default: 120)",
    )
    group.add_argument(
        "--sbatch-arg",
        action="append",
        metavar="=OPTION",
        help="for sbatch: --sbatch-arg=--partition=gpu",
    )
    group.add_argument(
        "--module", action="append", metavar="NAME", help="`module load` it first; may be repeated"
    )


def refuse_launcher_options(args: argparse.Namespace) -> None:
    """KlassifyError for an option that means something on a cluster only: the command would run
    here as if without.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_launcher_arguments(parser, training=True)
    add_shard_arguments(parser)
    for action in parser._actions:
        own = action.dest in ("launcher", "nodes")  # a training has nodes without Slurm too
        if not own and getattr(args, action.dest, action.default) != action.default:
            raise KlassifyError(
                f"{action.option_strings[0]} goes with --launcher slurm.",
                fix="add --launcher slurm, or leave it out",
            )


def options_from(args: argparse.Namespace) -> Options:
    """The options among parsed arguments."""
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
    """Arguments without these options and the one value of each."""
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word in options:
            skip = True
        elif word.partition("=")[0] not in options:
            kept.append(word)
    return kept


def without_launcher(argv: Sequence[str], *, training: bool = False) -> list[str]:
    """A command line without the options of the launcher and without --force: what a task runs."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_launcher_arguments(parser, training=training)
    parser.add_argument("--force", action="store_true")
    return parser.parse_known_args(list(argv))[1]
