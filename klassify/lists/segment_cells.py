"""The cells of segment columns, lists of [start_s, end_s] or None where they are unknown: read and
looked at.

A list has a million of them, so what is done a cell is done in C where it can be.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson


def parse_cells(text: Sequence[str]) -> tuple[list[Any], Sequence[int]]:
    """JSON texts ("" = unknown) as cells, and the positions of those that are not a list of 0 <=
    start_s < end_s.
    """
    try:
        cells = [orjson.loads(x) if x else None for x in text]
    except orjson.JSONDecodeError:
        cells = [_json_or_text(x) if x else None for x in text]
    wrong: Sequence[int] = misshapen(cells) or [
        i for i, cell in enumerate(cells) if cell is None and text[i]
    ]
    if not wrong:
        owner, times = flat_segments(cells)
        wrong = owner[~((times[:, 0] >= 0) & (times[:, 0] < times[:, 1]))].tolist()
    return cells, wrong


def _json_or_text(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def misshapen(cells: Sequence[Any]) -> list[int]:
    """Positions of what is neither a list of pairs of numbers nor None."""
    if _well_formed(cells):
        return []
    return [i for i, cell in enumerate(cells) if not _well_formed([cell])]


def _well_formed(cells: Sequence[Any]) -> bool:
    """Whether each cell is a list of pairs of numbers (or None); by sets of types, as in C."""
    if not set(map(type, cells)) <= {list, type(None)}:
        return False
    pairs = list(itertools.chain.from_iterable(filter(None, cells)))
    return (
        set(map(type, pairs)) <= {list}
        and set(map(len, pairs)) <= {2}
        and set(map(type, itertools.chain.from_iterable(pairs))) <= {int, float}
    )


def flat_segments(cells: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The segments of many well-formed cells: the position of each one's cell, and (n, 2)
    seconds.
    """
    owner = np.repeat(np.arange(len(cells)), [len(cell) if cell else 0 for cell in cells])
    pairs = itertools.chain.from_iterable(filter(None, cells))
    return owner, np.fromiter(itertools.chain.from_iterable(pairs), float).reshape(-1, 2)


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Keep the garbage collector off, which would walk millions of new lists, none of them in a
    cycle.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
