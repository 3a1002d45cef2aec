"""sbatch, squeue, scancel, scontrol: called with lists, never through a shell. Accounting
(sacct) is not needed.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Sequence

from klassify.errors import KlassifyError

ANSWER_S = 30.0  # a controller that is down lets squeue wait for long
FORMAT = "%i|%F|%K|%t|%r|%L|%N|%P|%j"
HELD = ("held", "JobHoldMaxRequeue")
FULL = (
    "Resources",
    "ReqNodeNotAvail",
    "Nodes required for job are DOWN",
)  # what more nodes would help
NEVER = (
    "DependencyNeverSatisfied",
    "InvalidAccount",
    "InvalidQOS",
    "BadConstraints",
    "PartitionTimeLimit",
    "PartitionNodeLimit",
    "AccountNotAllowed",
    "QOSNotAllowed",
)

# variables of a site's or a user's profile that would be stronger than the options of a script:
# those of its own options, and these
OTHER_NAMES = {"time": "TIMELIMIT", "requeue": "NO_REQUEUE", "mem": "MEM_PER_NODE"}
NEVER_INHERITED = ("SBATCH_ARRAY_INX", "SBATCH_WAIT", "SBATCH_ERROR", "SBATCH_INPUT")


class NoAnswer(Exception):
    """There is no Slurm here, or its controller does not answer; the message says which."""


@dataclasses.dataclass(frozen=True)
class Queued:
    """One job or array task in the queue. index: in its array, None for a plain job."""

    id: str
    job: int
    index: int | None
    state: str
    reason: str
    time_left: str
    node: str
    partition: str
    name: str

    @property
    def is_running(self) -> bool:
        """Running, or just starting or ending."""
        return self.state in ("R", "CG", "CF", "SO", "ST", "S")

    @property
    def is_held(self) -> bool:
        """Waits for somebody to release it."""
        return not self.is_running and any(word.lower() in self.reason.lower() for word in HELD)

    @property
    def needs_nodes(self) -> bool:
        """Waits for nodes, or was put on hold, as by a node that could not start it."""
        return self.is_held or (not self.is_running and any(word in self.reason for word in FULL))

    @property
    def is_never(self) -> bool:
        """Waits for what will never happen."""
        return not self.is_running and any(word in self.reason for word in NEVER)


def queue(names: Sequence[str]) -> list[Queued]:
    """The jobs of these names, array tasks one by one. NoAnswer where Slurm cannot be asked."""
    text = _ask(
        ["squeue", "--noheader", "--array", f"--name={','.join(names)}", f"--format={FORMAT}"]
    )
    rows = [line.split("|", 8) for line in text.splitlines() if line.count("|") >= 8]
    return [
        Queued(
            id_,
            int(job),
            int(index) if index.isdigit() else None,
            state,
            reason,
            left,
            node,
            part,
            name.strip(),
        )
        for id_, job, index, state, reason, left, node, part, name in rows
    ]


def drained_nodes(partitions: Collection[str]) -> list[tuple[str, str]]:
    """(nodes, reason) of those of these partitions that take no jobs until somebody says so."""
    asked = [
        "sinfo",
        "--noheader",
        f"--partition={','.join(sorted(partitions))}",
        "--format=%N|%t|%E",
    ]
    rows = (line.split("|", 2) for line in _ask(asked).splitlines())
    return [
        (row[0], row[2].strip())
        for row in rows
        if len(row) == 3 and re.match(r"(drain|drng|down)", row[1])
    ]


@functools.cache
def largest_index() -> int:
    """The highest index of an array here: MaxArraySize - 1, by default 1000."""
    try:
        match = re.search(
            r"^MaxArraySize\s*=\s*(\d+)", _ask(["scontrol", "show", "config"]), re.MULTILINE
        )
    except NoAnswer:
        return 1000
    return max(1, int(match[1]) - 1) if match else 1000


def submit(command: Sequence[str], options: Collection[str] = ()) -> int:
    """Run an sbatch command; the job's id. KlassifyError with what Slurm says.

    options: those that the script sets, without dashes. They count whatever SBATCH_... variables
    say; for others these are a site's defaults.
    """
    if shutil.which("sbatch") is None:
        raise KlassifyError(
            "There is no sbatch on this machine.",
            fix="run this on a login node of the cluster; --dry-run shows the script",
        )
    names = {f"SBATCH_{name.upper().replace('-', '_')}" for name in options}
    names |= {f"SBATCH_{OTHER_NAMES[name]}" for name in options if name in OTHER_NAMES}
    environment = _environment(lambda name: name in names or name in NEVER_INHERITED)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    match = re.match(r"(\d+)", done.stdout)
    if done.returncode or not match:
        raise KlassifyError(
            f"sbatch refused: {done.stderr.strip() or done.stdout.strip()}",
            where=" ".join(command),
            fix="set the site's --partition, account and limits with --sbatch-arg=...",
        )
    return int(match[1])


def cancel(job: int) -> None:
    """Take a job out of the queue."""
    subprocess.run(["scancel", str(job)], capture_output=True, check=False)


def release(job: int) -> None:
    """Let a job begin that was submitted on hold."""
    try:
        _ask(["scontrol", "release", str(job)])
    except NoAnswer as error:
        raise KlassifyError(
            f"Job {job} is in the queue, on hold: {error}.", fix=f"scontrol release {job}"
        ) from None


def _environment(is_dropped: Callable[[str], bool]) -> dict[str, str]:
    """The environment of a command of Slurm: without what `is_dropped` names, and without the
    job that we run in.
    """
    nested = "SLURM_JOB_ID" in os.environ
    kept = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
    return {
        name: value
        for name, value in os.environ.items()
        if not is_dropped(name) and not (nested and name.startswith("SLURM_") and name not in kept)
    }


def _ask(command: Sequence[str]) -> str:
    try:
        environment = _environment(lambda name: name.startswith(("SQUEUE_", "SINFO_", "SCONTROL_")))
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=ANSWER_S, env=environment
        )
    except FileNotFoundError:
        raise NoAnswer(f"there is no {command[0]} here") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} does not answer") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise NoAnswer(f"{command[0]} fails: {said[-1] if said else done.returncode}")
    return done.stdout
