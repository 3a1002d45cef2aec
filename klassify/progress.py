"""Progress of long work: a bar on a terminal, in a log a line a minute, nothing for short work."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

SHORT_S = 5.0  # work that ends earlier shows no bar
LOG_EVERY_S = 60.0


class Count(contextlib.AbstractContextManager):
    """Counts what is done of `total` units, in one or several loops, and says what is left.

    total: None where nobody knows it; then what is left is not said. done: units of an earlier run.
    """

    def __init__(self, label: str, total: int | None, done: int = 0, *, unit: str = "clip"):
        from tqdm import tqdm

        self.label, self.total, self.before, self.done = label, total, done, done
        self.unit = unit
        self.bar = tqdm(
            desc=label,
            total=total,
            initial=done,
            unit=unit,
            unit_scale=total is not None and total > 1_000_000,
            delay=SHORT_S,
            # a bar of one unit shows nothing
            disable=(total is not None and total < 2) or not sys.stderr.isatty(),
        )
        self.began = self.said = time.monotonic()

    def __call__(self, items: Iterable, size: Callable[[Any], int] = lambda _: 1) -> Iterator:
        """The items of one of the loops, counted as they go by; size: units of an item."""
        for one in items:
            yield one
            self.add(size(one))

    def add(self, n: int) -> None:
        """Count n more units."""
        self.done += n
        self.bar.update(n)
        now = time.monotonic()
        if self.bar.disable and now - self.said >= LOG_EVERY_S:
            self.said, rate = now, (self.done - self.before) / (now - self.began)
            of_all = "" if self.total is None else f" of {self.total}"
            text = f"{self.label}: {self.done}{of_all} {self.unit}s, {rate:.1f} a second"
            if rate and self.total is not None:
                text += f", {(self.total - self.done) / rate / 60:.0f} min left"
            print(text, file=sys.stderr, flush=True)

    def __exit__(self, *_) -> None:
        self.bar.close()


def progress(results: Iterable, total: int | None, label: str, *, unit: str = "clip") -> Iterator:
    """Pass results through and count them."""
    with Count(label, total, unit=unit) as count:
        yield from count(results)
