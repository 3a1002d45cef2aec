"""Commands in this process, and in one of their own, and the files that they leave."""

from __future__ import annotations

import contextlib
import functools
import io
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from klassify import cli


def klassify(*words: object) -> int:
    """The exit status of `klassify` with these words."""
    return cli.main([str(word) for word in words])


@functools.cache
def help_of(command: str) -> str:
    """What `klassify COMMAND --help` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        cli.main([command, "--help"])
    return printed.getvalue()


def check_words(words: Sequence[str]) -> None:
    """The command that `klassify WORDS` names exists, with its options."""
    assert words[0] in cli.COMMANDS, words
    for option in (word for word in words if word.startswith("--")):
        assert option in help_of(words[0]), f"{words[0]} has no {option}"


def ran(command: Sequence[object], **how: Any) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, once it has ended, with what it printed."""
    return subprocess.run(command, capture_output=True, text=True, **how)


def contents(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """What the files of a folder hold, by their names in it."""
    files = (path for path in sorted(folder.glob(pattern)) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def each_here(
    function: Callable, tasks: Iterable, setup: Callable, **_: Any
) -> Iterator[tuple[int, Any]]:
    """klassify.workers.each without worker processes, which take a second or two to start."""
    state = setup()
    for number, task in enumerate(tasks):
        yield number, function(state, task)
