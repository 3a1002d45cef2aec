"""Where a launched command stands: its files first, Slurm's queue second, the logs for what is
in neither.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import statistics
from collections.abc import Iterator
from pathlib import Path

from klassify.cluster import slurm
from klassify.cluster.record import Record
from klassify.cluster.work import spans
from klassify.errors import KlassifyError

STATES = ("done", "running", "queued", "held", "failed", "missing")
BEGIN = re.compile(r"== .*: job (\S+), start (\d+), on (\S+), (\S+)")
ENDED = re.compile(r"== .*: ended with status (\d+) after (\d+) s")
CANCELLED = re.compile(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+(?: DUE TO ([A-Z ]+))?")
LOG_TAIL = 16384
LOGS_READ = 50  # for the duration of a shard


@dataclasses.dataclass
class Survey:
    """states: {shard: (state, reason)}, see STATES. fixes: commands. slurm: why Slurm was not
    asked, or ''.

    merge: where merging stands, in words. merge_is_never: its job waits for what will never be.
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
        """Whether all shards are done; merging is another matter."""
        return len(self.of("done")) == self.record.work.n

    @property
    def in_queue(self) -> set[int]:
        """The shards that Slurm still has: running, queued or held."""
        return {*self.of("running"), *self.of("queued"), *self.of("held")}

    @property
    def merge_is_queued(self) -> bool:
        """Whether a merge job waits or runs, so that there is nothing to do but wait for it."""
        return self.merge.startswith(("job", "running")) and not self.merge_is_never

    @property
    def lacking(self) -> list[int]:
        """Neither done nor in the queue: what is to be submitted again."""
        return [*self.of("failed"), *self.of("missing")]


def survey(record: Record, *, anew: bool = False) -> Survey:
    """Look at files, queue and logs. anew: at the queue alone, since what is there will be
    replaced, damaged or not.
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
        done = look()  # a task may have ended between the two looks
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
        (row.time_left for row in queued.values() if row.is_running), key=_seconds, default=""
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
    """What became of a shard that is neither done nor in the queue."""
    lines = tail(path)
    if not lines and path is not None:
        return "missing", f"job {path.stem} is gone and left no log" if asked else "no log yet"
    if not lines:
        return "missing", ""
    begin = next((BEGIN.search(line) for line in reversed(lines) if BEGIN.search(line)), None)
    where = f"job {begin[1]} on {begin[3]}" if begin else path.name
    since = max((at for at, line in enumerate(lines) if BEGIN.search(line)), default=0)
    last = lines[since + 1 :] if begin else lines
    ended = next((ENDED.search(line) for line in reversed(last) if ENDED.search(line)), None)
    cancelled = next(
        (CANCELLED.search(line) for line in reversed(last) if CANCELLED.search(line)), None
    )
    if any("oom" in line.lower() and "kill" in line.lower() for line in last):
        return "failed", f"out of memory ({where})"
    # a job may end what failed before: the log has the reason. But what is out of time fails
    # because of that
    if cancelled and (not ended or (cancelled[1] or "").startswith("TIME")):
        return "failed", f"{(cancelled[1] or 'cancelled').strip().lower()} ({where})"
    if ended and ended[1] == "0":
        return "missing", f"ended well, but its files are gone ({where})"
    if ended:
        return "failed", f"status {ended[1]}: {_said(last)} ({where})"
    if any("given up after" in line for line in last):
        return "failed", f"{_said(last)} ({where})"
    if not asked:
        return "missing", f"was begun and has not ended, as its log says ({where})"
    return "failed", f"ended without a word: its node was lost, or it was killed ({where})"


def _said(lines: list[str]) -> str:
    """The line of a log that tells most: our own error, else the last one."""
    own = [line for line in lines if line.startswith("klassify ")]
    other = [line for line in lines if line.strip() and not ENDED.search(line)]
    return " ".join((own or other or ["nothing in the log"])[-1].removeprefix("== ").split())[:200]


def tail(path: Path | None) -> list[str]:
    """The last lines of a log; none where there is no log."""
    try:
        with open(path, "rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - LOG_TAIL))
            return handle.read().decode(errors="replace").splitlines()
    except (OSError, TypeError):
        return []


def _duration(record: Record, done: list[int]) -> float | None:
    """Seconds of a shard: the median over some that are done."""
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
    if waiting:
        return (
            f"job {waiting[0].id}, {waiting[0].reason or 'queued'}"
            if not waiting[0].is_running
            else "running"
        )
    if found.is_done:
        return "to be done"
    return "" if found.slurm else "not in the queue: submitted again by `klassify resume`"


def _fixes(found: Survey, rows: list[slurm.Queued]) -> list[str]:
    """Commands that get stuck work going."""
    folder = shlex.quote(str(found.record.work.folder))
    held = [row for row in rows if row.is_held]
    never = sorted({row.job for row in rows if row.is_never})
    fixes = [f"scontrol release {','.join(row.id for row in held)}"] if held else []
    fixes += [f"scancel {job}    # it waits for what will never be" for job in never]
    stuck = {row.partition for row in rows if row.needs_nodes}
    if stuck and not any(row.is_running for row in rows):
        fixes += [
            f"scontrol update nodename={nodes} state=resume    # an administrator: {why}"
            for nodes, why in _drained(stuck)
        ]
    lost_merge = found.merge and found.in_queue and not found.merge_is_queued
    if (found.lacking or lost_merge) and not found.slurm:
        fixes.append(f"klassify resume {folder}")
    if found.is_done and not found.record.work.merged and not found.merge_is_queued:
        fixes.append(f"klassify merge {folder}")
    return fixes


def _drained(partitions: set[str]) -> list[tuple[str, str]]:
    try:
        return slurm.drained_nodes(partitions)
    except slurm.NoAnswer:
        return []


def _seconds(text: str) -> int:
    """'1-02:03:04' -> seconds; what is no time is 0."""
    days, _, rest = text.rpartition("-")
    if not re.fullmatch(r"\d+(:\d+){0,2}", rest):
        return 0
    total = 0
    for piece in rest.split(":"):
        total = 60 * total + int(piece)
    return total + 86400 * int(days or 0)


def lines(found: Survey) -> Iterator[str]:
    """The survey for a person."""
    work = found.record.work
    yield f"{work.folder}: {work.step}, {work.n} shard{'s' if work.n > 1 else ''}"
    for state in STATES:
        shards = found.of(state)
        if shards:
            yield (
                f"  {state:<8} {len(shards):>5} "
                f" {_shortened(spans(shards)) if state != 'done' else ''}".rstrip()
            )
            yield from (f"           {line}" for line in _reasons(found, shards))
    if found.merge:
        yield f"  merge    {found.merge}"
    if found.slurm:
        yield f"  Slurm was not asked: {found.slurm}. What is not done may be running."
    yield from _time_left(found)
    yield from (f"  fix:   {fix}" for fix in found.fixes)


def _reasons(found: Survey, shards: list[int]) -> Iterator[str]:
    by_reason: dict[str, list[int]] = {}
    for shard in shards:
        reason = found.states[shard][1]
        by_reason.setdefault(re.sub(r" \(job .*\)$", "", reason), []).append(shard)
    for reason, group in list(by_reason.items())[:8]:
        log = found.record.log_of(group[0])
        is_failure = found.states[group[0]][0] == "failed"
        if reason and reason != "None":
            example = found.states[group[0]][1]
            yield f"{_shortened(spans(group))}: {example}{f'; {log}' if is_failure and log else ''}"


def _shortened(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[:limit].rpartition(",")[0] + ",..."


def _time_left(found: Survey) -> Iterator[str]:
    if found.time_left:
        yield f"  time     {found.time_left} at most to the limit of what runs"
    ahead, running = found.in_queue, len(found.of("running"))
    if found.shard_s is not None and running:
        rounds = -(-len(ahead) // running)
        left = int(rounds * found.shard_s)
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        yield f"           about {clock} left, at {found.shard_s:.0f} s a shard"


def survey_or_error(record: Record) -> Survey | KlassifyError:
    """A survey, or what is wrong with the files."""
    try:
        return survey(record)
    except KlassifyError as error:
        return error
