"""Errors a person can act on: what is wrong, where, and how to fix it.

The command line prints a KlassifyError without a traceback and exits with its status: 2, or 75 (as
EX_TEMPFAIL) where the same command may succeed later. Anything else that escapes is a defect of
this package and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable


class KlassifyError(Exception):
    """A mistake in the user's input, files or settings.

    what: one sentence that says what is wrong, with both sides of a mismatch.
    where: the file (and row, key or column) it was found in.
    fix: what to do about it, as a command where there is one.
    """

    status = 2

    def __init__(self, what: str, *, where: object = None, fix: str | None = None):
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.where is not None:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


class Interrupted(KlassifyError):
    """Something outside failed: the same command may succeed later; a cluster requeues it."""

    status = 75


def first_line(error: BaseException) -> str:
    """The first line of an error of a library; its type where it has none, as MemoryError."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def first_few(items: Iterable[object], limit: int = 5) -> str:
    """'a, b, c and 14 more': the first few of many names, for an error message."""
    items = [str(item) for item in items]
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
