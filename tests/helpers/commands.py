"""Commands in this process, and in one of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from klassify import cli


def klassify(*words: object) -> int:
    """The exit status of `klassify` with these words."""
    return cli.main([str(word) for word in words])


def ran(command: Sequence[object], **how: Any) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, once it has ended, with what it printed."""
    return subprocess.run(command, capture_output=True, text=True, **how)


def each_here(
    function: Callable, tasks: Iterable, setup: Callable, **_: Any
) -> Iterator[tuple[int, Any]]:
    """klassify.workers.each without worker processes, which take a second or two to start."""
    state = setup()
    for number, task in enumerate(tasks):
        yield number, function(state, task)
