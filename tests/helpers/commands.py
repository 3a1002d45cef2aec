"""Commands in this process, and in one of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

from klassify import cli


def klassify(*words: object) -> int:
    """The exit status of `klassify` with these words."""
    return cli.main([str(word) for word in words])


def ran(command: Sequence[object], **how: Any) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, once it has ended, with what it printed."""
    return subprocess.run(command, capture_output=True, text=True, **how)
