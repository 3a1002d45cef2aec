"""Commands in this process."""

from __future__ import annotations

from klassify import cli


def klassify(*words: object) -> int:
    """The exit status of `klassify` with these words."""
    return cli.main([str(word) for word in words])
