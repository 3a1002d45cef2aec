"""Worker processes that may die: a native crash on one file costs that file, not the run.

Each worker has its own pipe and one task at a time, so that the parent knows the task of a dead
worker. The standard library's process pools lose every running task when a worker dies.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from klassify.errors import KlassifyError

ATTEMPTS = 2  # the first death may not be the task's fault: memory, an operator
MAX_LOST_AT_START = 3


@dataclasses.dataclass(frozen=True)
class Died:
    """The result of a task whose workers died."""

    reason: str


def each(
    function: Callable[[Any, Any], Any],
    tasks: Iterable,
    setup: Callable[[], Any],
    *,
    jobs: int,
    limit_s: float = math.inf,
) -> Iterator[tuple[int, Any]]:
    """Yield (number, function(setup(), task)) as results arrive, in any order.

    `setup` runs once in each of the `jobs` processes; both callables must be picklable. A task
    whose worker dies is tried once more in a fresh one, then its result is Died, and so it is at
    once where the task takes longer than `limit_s` seconds. An exception in `setup` or `function`
    ends the run, as KlassifyError or RuntimeError.
    """
    pool = _Pool(function, tasks, setup, limit_s)
    try:
        for _ in range(jobs):
            pool.start()
        while busy := pool.busy():
            for pipe in multiprocessing.connection.wait(busy, pool.time_left()):
                yield from pool.receive(pipe)
            yield from pool.end_overdue()
    finally:
        pool.stop()


@contextlib.contextmanager
def _main_left_alone() -> Iterator[None]:
    """`spawn` would run the caller's script in each worker, endlessly where it lacks `if
    __name__ == "__main__"`.
    """
    main = sys.modules["__main__"]
    hidden = {
        name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__
    }
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(hidden)


@contextlib.contextmanager
def _no_code_of_the_working_directory() -> Iterator[None]:
    """`spawn` starts with -c, which finds modules beside the videos (3.10 has no cure)."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


@dataclasses.dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    task: tuple[int, Any, int] | None  # number, task, earlier attempts
    ready: bool = False
    since: float = math.inf  # when it began the task


class _Pool:
    def __init__(self, function: Callable, tasks: Iterable, setup: Callable, limit_s: float):
        self.function, self.setup, self.limit_s = function, setup, limit_s
        self.again: collections.deque = collections.deque()
        self.fresh = ((number, task, 0) for number, task in enumerate(tasks))
        self.workers: dict[Connection, _Worker] = {}
        self.lost_at_start = 0

    def next_task(self) -> tuple[int, Any, int] | None:
        return self.again.popleft() if self.again else next(self.fresh, None)

    def busy(self) -> list[Connection]:
        return [pipe for pipe, worker in self.workers.items() if worker.task is not None]

    def start(self) -> None:
        """Start a worker if there is a task for it."""
        task = self.next_task()
        if task is None:
            return
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        process = context.Process(
            target=_work, args=(theirs, self.function, self.setup), daemon=True
        )
        with _main_left_alone(), _no_code_of_the_working_directory():
            process.start()
        theirs.close()  # so that a dead worker ends the pipe
        self.workers[pipe] = _Worker(process, None)
        self.give(pipe, task)

    def give(self, pipe: Connection, task: tuple[int, Any, int] | None) -> None:
        worker = self.workers[pipe]
        worker.task, worker.since = task, time.monotonic() if worker.ready else math.inf
        if task is not None:
            with contextlib.suppress(OSError):  # it just died: `receive` will find out
                pipe.send(task[1])

    def receive(self, pipe: Connection) -> Iterator[tuple[int, Any]]:
        """Take a message of a worker, or its death, and give the next task."""
        worker = self.workers[pipe]
        try:
            kind, value = pipe.recv()
        except (EOFError, OSError):
            yield from self.lose(pipe)
            return
        if kind == "ready":
            worker.ready, worker.since = True, time.monotonic()
        elif kind == "failed":
            raise value if isinstance(value, KlassifyError) else RuntimeError(value)
        else:
            number = worker.task[0]
            self.give(pipe, self.next_task())
            yield number, value

    def time_left(self) -> float | None:
        """Seconds until the first task is overdue; None without a limit."""
        begun = [worker.since for worker in self.workers.values() if worker.task is not None]
        deadline = min(begun, default=math.inf) + self.limit_s
        return None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())

    def end_overdue(self) -> Iterator[tuple[int, Any]]:
        """Kill the workers whose task takes longer than the limit."""
        now = time.monotonic()
        for pipe, worker in list(self.workers.items()):
            if worker.task is not None and now - worker.since >= self.limit_s and not pipe.poll():
                worker.process.kill()
                worker.task = (*worker.task[:2], ATTEMPTS)  # a second attempt would take as long
                yield from self.lose(pipe, f"it took longer than {self.limit_s:g} s")

    def lose(self, pipe: Connection, reason: str = "") -> Iterator[tuple[int, Any]]:
        worker = self.workers.pop(pipe)
        pipe.close()
        reason = reason or _how_it_ended(worker.process)
        self.lost_at_start = 0 if worker.ready else self.lost_at_start + 1
        if self.lost_at_start > MAX_LOST_AT_START:
            raise KlassifyError(f"Worker processes die before they are ready: {reason}.")
        number, task, attempts = worker.task
        attempts -= not worker.ready  # it never saw the task
        if attempts + 1 < ATTEMPTS:
            self.again.append((number, task, attempts + 1))
        self.start()
        if attempts + 1 >= ATTEMPTS:
            yield number, Died(reason)

    def stop(self) -> None:
        for pipe, worker in self.workers.items():
            pipe.close()
            if worker.task is not None:
                worker.process.terminate()
        for worker in self.workers.values():
            worker.process.join(timeout=10)
            if worker.process.is_alive():
                worker.process.kill()


def _work(pipe: Connection, function: Callable, setup: Callable) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interruption means
    try:
        state = setup()
        pipe.send(("ready", None))
        while True:
            try:
                task = pipe.recv()
            except EOFError:  # no more work
                return
            pipe.send(("done", function(state, task)))
    except BrokenPipeError:  # the parent is gone
        return
    except KlassifyError as error:
        pipe.send(("failed", error))
    except Exception:  # every defect goes to the parent, which raises it
        pipe.send(("failed", traceback.format_exc()))


def _how_it_ended(process: multiprocessing.process.BaseProcess) -> str:
    process.join(timeout=5)
    code = process.exitcode
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"the worker was ended by {signal.Signals(-code).name}"
    return f"the worker ended with status {code}"
