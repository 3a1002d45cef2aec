"""Calls of sbatch, squeue, scancel, scontrol, sinfo, never through a shell or accounting."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Sequence

from klassify.errors import KlassifyError

ANSWER_S = 30.0  # squeue waits for long when the controller is down
FORMAT = "%i|%F|%K|%t|%r|%L|%N|%P|%j"
HELD = ("held", "JobHoldMaxRequeue")
# reasons that more nodes would solve
FULL = ("Resources", "ReqNodeNotAvail", "Nodes required for job are DOWN")
# reasons for which a job never starts
NEVER = (
    *("DependencyNeverSatisfied", "InvalidAccount", "InvalidQOS", "BadConstraints"),
    *("PartitionTimeLimit", "PartitionNodeLimit", "AccountNotAllowed", "QOSNotAllowed"),
)

# environment variables of a site or a user override the options of a script: those of its own
# options are dropped, and these
OTHER_NAMES = {"time": "TIMELIMIT", "requeue": "NO_REQUEUE", "mem": "MEM_PER_NODE"}
NEVER_INHERITED = ("SBATCH_ARRAY_INX", "SBATCH_WAIT", "SBATCH_ERROR", "SBATCH_INPUT")


class NoAnswer(Exception):
    """There is no Slurm here, or its controller does not answer; the message says why."""


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
        """Whether it waits until somebody releases it."""
        return not self.is_running and any(word.lower() in self.reason.lower() for word in HELD)

    @property
    def needs_nodes(self) -> bool:
        """Whether it waits for nodes, or is held, as when a node could not start it."""
        return self.is_held or (not self.is_running and any(word in self.reason for word in FULL))

    @property
    def is_never(self) -> bool:
        """Whether it waits for something that can never happen."""
        return not self.is_running and any(word in self.reason for word in NEVER)


def queue(names: Sequence[str]) -> list[Queued]:
    """The queued jobs of these names, array tasks one by one. NoAnswer if Slurm cannot be asked."""
    asked = ["squeue", "--noheader", "--array", f"--name={','.join(names)}", f"--format={FORMAT}"]
    found = []
    for line in _ask(asked).splitlines():
        if line.count("|") >= 8:
            id_, job, index, *rest, name = line.split("|", 8)
            place = int(index) if index.isdigit() else None
            found.append(Queued(id_, int(job), place, *rest, name.strip()))
    return found


def drained_nodes(partitions: Collection[str]) -> list[tuple[str, str]]:
    """(nodes, reason) of the nodes of these partitions that take no jobs until they are resumed."""
    names = ",".join(sorted(partitions))
    text = _ask(["sinfo", "--noheader", f"--partition={names}", "--format=%N|%t|%E"])
    rows = re.findall(r"(?m)^(.*?)\|(?:drain|drng|down)[^|\n]*\|(.*)$", text)
    return [(nodes, reason.strip()) for nodes, reason in rows]


@functools.cache
def largest_index() -> int:
    """The highest index of an array here: MaxArraySize - 1, by default 1000."""
    try:
        text = _ask(["scontrol", "show", "config"])
    except NoAnswer:
        text = ""
    match = re.search(r"(?m)^MaxArraySize\s*=\s*(\d+)", text)
    return max(1, int(match[1]) - 1) if match else 1000


def submit(command: Sequence[str], options: Collection[str] = ()) -> int:
    """Run an sbatch command; returns the job's id. KlassifyError has Slurm's message.

    options: those that the script sets, without dashes. Their SBATCH_... variables are dropped;
    other such variables are a site's defaults and stay.
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
    """Release a job that was submitted on hold."""
    try:
        _ask(["scontrol", "release", str(job)])
    except NoAnswer as error:
        raise KlassifyError(
            f"Job {job} is held in the queue: {error}.", fix=f"scontrol release {job}"
        ) from None


def _environment(is_dropped: Callable[[str], bool]) -> dict[str, str]:
    """The environment without variables that `is_dropped` names, and those of this job."""
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
