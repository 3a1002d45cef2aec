"""The state of a submitted command: from its files, Slurm's queue, and logs."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shlex
import statistics
from collections.abc import Iterator
from pathlib import Path

from klassify.cluster import slurm
from klassify.cluster.options import TIME, seconds_of
from klassify.cluster.record import Record
from klassify.cluster.work import spans

STATES = ("done", "running", "queued", "held", "failed", "missing")
BEGIN = re.compile(r"== .*: job (\S+), start (\d+), on (\S+), (\S+)")
ENDED = re.compile(r"== .*: ended with status (\d+) after (\d+) s")
CANCELLED = re.compile(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+(?: DUE TO ([A-Z ]+))?")
LOG_TAIL = 16384
LOGS_READ = 50  # to estimate the duration of a shard


@dataclasses.dataclass
class Survey:
    """The state of every shard, and of the merge.

    states: {shard: (state, reason)}, see STATES. fixes: commands. slurm: why Slurm was not asked,
    or ''. merge: its state in words. merge_is_never: its job can never start.
    """

    record: Record
    states: dict[int, tuple[str, str]]
    fixes: list[str]
    slurm: str = ""
    merge: str = ""
    merge_is_never: bool = False
    time_left: str = ""
    shard_s: float | None = None

    def of(self, state: str) -> list[int]:
        """The shards in a state."""
        return [shard for shard, (name, _) in self.states.items() if name == state]

    @property
    def is_done(self) -> bool:
        """Whether all shards are done, merged or not."""
        return len(self.of("done")) == self.record.work.n

    @property
    def in_queue(self) -> set[int]:
        """The shards in Slurm's queue: running, queued or held."""
        return {*self.of("running"), *self.of("queued"), *self.of("held")}

    @property
    def merge_is_queued(self) -> bool:
        """Whether a merge job waits or runs."""
        return self.merge.startswith(("job", "running")) and not self.merge_is_never

    @property
    def lacking(self) -> list[int]:
        """Shards that are neither done nor in the queue: they must be submitted again."""
        return [*self.of("failed"), *self.of("missing")]


def survey(record: Record, *, anew: bool = False) -> Survey:
    """Look at files, queue and logs.

    anew: look at the queue alone, since all files will be replaced, damaged ones included.
    """
    look = set if anew else record.work.done
    done: set[int] = look()
    found = Survey(record, {}, [])
    rows: list[slurm.Queued] = []
    try:
        rows = slurm.queue([record.name, record.merge_name])
    except slurm.NoAnswer as error:
        found.slurm = str(error)
    queued = {record.shard_of(row.job, row.index): row for row in rows if row.name == record.name}
    if not done.issuperset(set(range(1, record.work.n + 1)).difference(queued)):
        done = look()  # a task may have ended between looking at files and queue
    for shard in range(1, record.work.n + 1):
        if shard in done:
            found.states[shard] = ("done", "")
        elif shard in queued:
            found.states[shard] = _of_queue(queued[shard])
        else:
            log = None if anew else record.log_of(shard)
            found.states[shard] = _of_log(log, asked=not found.slurm)
    waiting = [row for row in rows if row.name == record.merge_name]
    found.merge = _merge_state(found, waiting)
    found.merge_is_never = bool(waiting) and all(row.is_never for row in waiting)
    found.time_left = max(
        (row.time_left for row in queued.values() if row.is_running),
        key=lambda text: seconds_of(text) if TIME.fullmatch(text) else 0,
        default="",
    )
    found.shard_s = _duration(record, found.of("done"))
    found.fixes = _fixes(found, [*queued.values(), *waiting])
    return found


def _of_queue(row: slurm.Queued) -> tuple[str, str]:
    if row.is_running:
        return "running", ""
    if row.is_held:
        return "held", row.reason
    return "queued", row.reason


def _of_log(path: Path | None, *, asked: bool) -> tuple[str, str]:
    """The state of a shard that is neither done nor in the queue."""
    lines = tail(path)
    if not lines and path is not None:
        return "missing", f"job {path.stem} is gone and left no log" if asked else "no log yet"
    if not lines:
        return "missing", ""
    begin, last = _last(BEGIN, lines)
    where = f"job {begin[1]} on {begin[3]}" if begin else path.name
    ended, _ = _last(ENDED, last)
    cancelled, _ = _last(CANCELLED, last)
    if any("oom" in line.lower() and "kill" in line.lower() for line in last):
        return "failed", f"out of memory ({where})"
    # a job may be cancelled after it has failed: then the log has the reason, unless time ran out
    if cancelled and (not ended or (cancelled[1] or "").startswith("TIME")):
        return "failed", f"{(cancelled[1] or 'cancelled').strip().lower()} ({where})"
    if ended and ended[1] == "0":
        return "missing", f"ended without an error, but its files do not exist ({where})"
    if ended:
        return "failed", f"status {ended[1]}: {_said(last)} ({where})"
    if any("given up after" in line for line in last):
        return "failed", f"{_said(last)} ({where})"
    if not asked:
        return "missing", f"started, its log does not say how it ended ({where})"
    return "failed", f"ended without a message: its node was lost, or it was killed ({where})"


def _last(pattern: re.Pattern, lines: list[str]) -> tuple[re.Match | None, list[str]]:
    """The last line that matches, and the lines after it; (None, all lines) if none does."""
    for at in reversed(range(len(lines))):
        if match := pattern.search(lines[at]):
            return match, lines[at + 1 :]
    return None, lines


def _said(lines: list[str]) -> str:
    """The most useful line of a log: our own error, else the last one."""
    own = [line for line in lines if line.startswith("klassify ")]
    other = [line for line in lines if line.strip() and not ENDED.search(line)]
    return " ".join((own or other or ["nothing in the log"])[-1].removeprefix("== ").split())[:200]


def tail(path: Path | None) -> list[str]:
    """The last lines of a log, if it exists."""
    try:
        with open(path, "rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - LOG_TAIL))
            return handle.read().decode(errors="replace").splitlines()
    except (OSError, TypeError):
        return []


def _duration(record: Record, done: list[int]) -> float | None:
    """Seconds that a shard takes: the median of a sample of those that are done."""
    step = max(1, len(done) // LOGS_READ)
    ends = (
        ENDED.search(line) for shard in done[::step] for line in tail(record.log_of(shard))[-1:]
    )
    seconds = [int(match[2]) for match in ends if match]
    return statistics.median(seconds) if seconds else None


def _merge_state(found: Survey, waiting: list[slurm.Queued]) -> str:
    work = found.record.work
    if work.command == "train":
        return ""
    if found.is_done and work.merged and not waiting:
        return "done"
    if waiting and waiting[0].is_running:
        return "running"
    if waiting:
        return f"job {waiting[0].id}, {waiting[0].reason or 'queued'}"
    if found.is_done:
        return "to be done"
    return "" if found.slurm else "not in the queue; `klassify resume` submits it again"


def _fixes(found: Survey, rows: list[slurm.Queued]) -> list[str]:
    """Commands for what does not proceed by itself."""
    folder = shlex.quote(str(found.record.work.folder))
    held = [row for row in rows if row.is_held]
    never = sorted({row.job for row in rows if row.is_never})
    fixes = [f"scontrol release {','.join(row.id for row in held)}"] if held else []
    fixes += [f"scancel {job}    # it can never start" for job in never]
    stuck = {row.partition for row in rows if row.needs_nodes}
    if stuck and not any(row.is_running for row in rows):
        with contextlib.suppress(slurm.NoAnswer):
            fixes += [
                f"scontrol update nodename={nodes} state=resume    # by an administrator: {why}"
                for nodes, why in slurm.drained_nodes(stuck)
            ]
    lost_merge = found.merge and found.in_queue and not found.merge_is_queued
    if (found.lacking or lost_merge) and not found.slurm:
        fixes.append(f"klassify resume {folder}")
    if found.is_done and not found.record.work.merged and not found.merge_is_queued:
        fixes.append(f"klassify merge {folder}")
    return fixes


def lines(found: Survey) -> Iterator[str]:
    """The survey in words."""
    work = found.record.work
    yield f"{work.folder}: {work.step}, {work.n} shard{'s' if work.n > 1 else ''}"
    for state in STATES:
        shards = found.of(state)
        if shards:
            named = "" if state == "done" else f"  {_shortened(spans(shards))}"
            yield f"  {state:<8} {len(shards):>5}{named}"
            yield from (f"           {line}" for line in _reasons(found, shards))
    if found.merge:
        yield f"  merge    {found.merge}"
    if found.slurm:
        yield f"  Slurm was not asked: {found.slurm}. Shards that are not done may be running."
    yield from _time_left(found)
    yield from (f"  fix:   {fix}" for fix in found.fixes)


def _reasons(found: Survey, shards: list[int]) -> Iterator[str]:
    by_reason: dict[str, list[int]] = {}
    for shard in shards:
        reason = re.sub(r" \(job .*\)$", "", found.states[shard][1])
        if reason not in ("", "None"):
            by_reason.setdefault(reason, []).append(shard)
    for group in list(by_reason.values())[:8]:
        state, example = found.states[group[0]]
        log = found.record.log_of(group[0]) if state == "failed" else None
        yield f"{_shortened(spans(group))}: {example}{f'; {log}' if log else ''}"


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:60].rpartition(",")[0] + ",..."


def _time_left(found: Survey) -> Iterator[str]:
    if found.time_left:
        yield f"  time     {found.time_left} at most until the running tasks reach their limit"
    ahead, running = found.in_queue, len(found.of("running"))
    if found.shard_s is not None and running:
        left = int(-(-len(ahead) // running) * found.shard_s)
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        yield f"           about {clock} left, at {found.shard_s:.0f} s per shard"
