"""Runs planned steps in a few processes, each of which takes one command after another.

What a command prints goes to a file of its own, so that a person reads a line for each finished
model instead of hundreds.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import multiprocessing
import os
import resource
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from klassify import cli
from klassify.demo.plan import Step
from klassify.errors import KlassifyError
from klassify.systems.base import SYSTEM

# of a training; not its scores and what was made of them
TRAINING_FILES = (
    *("model.safetensors", "config.yaml", "env.json", "metrics.csv", "settings.json"),
    *("training.json", SYSTEM),
)
LAST_LINES = 12
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def run(
    steps: Sequence[Step],
    cores: int,
    logs: Path | None,
    finished: Callable[[Step, float], None],
    waiting: Callable[[Sequence[Step]], None],
) -> None:
    """Run all steps, the most urgent first, at most `cores` at a time.

    logs: a folder for what the commands print; None lets them print here. finished: called with
    each finished step and its CPU seconds. waiting: called about once a second with those that run.
    KlassifyError, once the running steps have ended, for a step that fails.
    """
    open_steps = {step.number: step for step in steps}
    running: dict[Future, Step] = {}
    failed: list[tuple[Step, int]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, context, _begin, (os.getpid(),)) as pool:
        try:
            while running or (open_steps and not failed):
                while not failed and (step := _next(open_steps, running, cores)):
                    running[pool.submit(_work, step, logs)] = open_steps.pop(step.number)
                done, _ = concurrent.futures.wait(running, 1.0, concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    step = running.pop(future)
                    status, seconds = future.result()
                    if status:
                        failed.append((step, status))
                        if running:
                            print(
                                f"\nklassify {step.command} failed; {len(running)} other commands"
                                " end first",
                                file=sys.stderr,
                                flush=True,
                            )
                    else:
                        finished(step, seconds)
                waiting(list(running.values()))
        except BrokenProcessPool:
            raise KlassifyError(
                "A process of the demo was killed; perhaps the memory did not suffice.",
                fix="run the same command again: it resumes",
            ) from None
    if failed:
        raise _failure(*failed[0], logs)


def _next(open_steps: dict[int, Step], running: dict[Future, Step], cores: int) -> Step | None:
    """The most urgent step that can begin now."""
    unfinished = open_steps.keys() | {step.number for step in running.values()}
    free = cores - sum(min(step.cores, cores) for step in running.values())
    ready = [step for step in open_steps.values() if not step.after & unfinished]
    ready.sort(key=lambda step: (step.part, -step.urgency, step.number))
    first = next(iter(ready), None)
    return first if first and min(first.cores, cores) <= free else None


def _failure(step: Step, status: int, logs: Path | None) -> KlassifyError:
    log = logs and logs / log_name(step)
    last = log.read_text(encoding="utf-8", errors="replace").splitlines() if log else []
    said = "".join(f"\n  {line}" for line in last[-LAST_LINES:])
    return KlassifyError(
        f"klassify {step.command} ended with status {status}:{said}",
        where=log,
        fix="run the same command again: what is finished is kept",
    )


def log_name(step: Step) -> str:
    """The name of the file that holds what a step printed."""
    name = "-".join(filter(None, (step.command, step.recipe, step.out and step.out.name)))
    return f"{step.number:03d}-{name}.log"


def _begin(parent: int) -> None:
    """Prepare a worker process: it leaves interruptions to its parent, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # a parent that is killed cannot end it; only Linux has this
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)


def _work(step: Step, logs: Path | None) -> tuple[int, float]:
    """Run a step in a worker process: its exit status, and the CPU seconds that it took."""
    began = _cpu_seconds()
    # an interruption ends the step; a process without one waits for the pool to end it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with _printing_to(logs and logs / log_name(step)):
            print(f"+ klassify {shlex.join(step.words)}", flush=True)
            if step.like is not None:
                copy_training(step.like, step.out)
            status = _status(step.words)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return status, _cpu_seconds() - began


def copy_training(done: Path, folder: Path) -> None:
    """Copy a finished training to where an equal one would write, unless something is there."""
    if folder.exists() or not (done / SYSTEM).exists():
        return
    folder.mkdir(parents=True)
    for name in TRAINING_FILES:
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(done / name, folder / name)


def _status(words: Sequence[str]) -> int:
    try:
        return cli.main(list(words))
    except SystemExit as end:
        return int(end.code or 0) if isinstance(end.code, int | None) else 1
    except Exception:  # a defect: its traceback is what to read
        traceback.print_exc()
        return 1


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


@contextlib.contextmanager
def _printing_to(path: Path | None) -> Iterator[None]:
    """Let this process and those it starts print to a file."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [(stream, os.dup(stream)) for stream in (1, 2)]
    try:
        with open(path, "ab") as log:
            for stream, _ in kept:
                os.dup2(log.fileno(), stream)
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, copy in kept:
            os.dup2(copy, stream)
            os.close(copy)
