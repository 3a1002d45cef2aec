"""Readers of prediction.json, `{file: [[score, start_s, end_s], ...]}`, which accept what the
challenge's evaluator accepts.

The file is read in runs of whole clips, so that memory stays near that of the result.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import orjson

from klassify.errors import KlassifyError
from klassify.grid.ragged import row_offsets
from klassify.grid.segments import Proposals
from klassify.lists.data_list import without_gc

RUN_BYTES = 1 << 20  # parsed at once
MAX_CLIP = 1 << 24  # bytes of JSON for one clip
NEXT_CLIP = re.compile(rb'\]\s*(,)\s*(?="[^"]*"\s*:)')
SPACE = b" \t\r\n"
OUT_OF_INT_RANGE = 2.0**63  # numbers from here on are looked at one by one


def read_prediction_json(path: str | os.PathLike, run_bytes: int = RUN_BYTES) -> Proposals:
    """Read a prediction.json; its numbers become float32, as in the challenge's evaluator.

    Accepts whole numbers, exponents, further columns (ignored), any order of rows, and of a
    repeated name the last. KlassifyError for what makes the evaluator abort: an empty list, NaN,
    null, text, rows of different lengths, fewer than three columns, broken JSON, a byte order mark.
    """
    names: list[str] = []
    counts, rows = [np.empty(0, np.int64)], [np.empty((0, 3), np.float32)]
    try:
        with open(path, "rb") as handle, without_gc():
            for text, line in _runs(handle, run_bytes):
                block = _parse(text) or _parse_one_by_one(text, line)
                names += block.names
                counts.append(block.counts)
                rows.append(_as_rows(block.numbers))
    except OSError as error:
        raise KlassifyError(f"This file cannot be read: {error.strerror}.", where=path) from None
    except (ValueError, RecursionError) as error:
        raise KlassifyError(f"The evaluator cannot read this JSON: {error}.", where=path) from None
    offsets = row_offsets(np.concatenate(counts))
    read = Proposals(np.array(names, dtype=object), offsets, np.concatenate(rows))
    last = {name: index for index, name in enumerate(names)}
    return read if len(last) == len(names) else read.take(np.fromiter(last.values(), np.int64))


class Block(NamedTuple):
    """Sound answers of some clips, each name once: names, rows per clip, and all rows (F, C)
    float64 of at least three columns.
    """

    names: list[str]
    counts: np.ndarray
    numbers: np.ndarray


def iter_blocks(
    handle: BinaryIO, run_bytes: int = RUN_BYTES
) -> Iterator[Block | list[tuple[str, Any]]]:
    """Yield the clips in order: a Block of some, or what needs a closer look as (file, rows) pairs,
    repeated files too. ValueError where it is not JSON.
    """
    with without_gc():
        for text, line in _runs(handle, run_bytes):
            yield _parse(text) or _pairs(text, line)


def row_problem(rows: Any) -> str:
    """Why the evaluator would abort on a clip's rows, or ''."""
    if type(rows) is not list or not all(type(row) is list for row in rows):
        return "an answer is not a list of [score, start, end] rows: the evaluator aborts"
    if not rows:
        return "an answer is an empty list: the evaluator aborts; write [[0.0, 0.0, 0.0]]"
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1 or widths[0] < 3:
        columns = " and ".join(map(str, widths))
        return f"rows of {columns} columns, where 3 belong: the evaluator aborts"
    if not all(type(value) is float for value in chain.from_iterable(rows)):
        return "a value is not a number: the evaluator aborts"
    if not all(map(math.isfinite, chain.from_iterable(rows))):
        return "a value is NaN, infinite or beyond 64 bits: the evaluator aborts"
    return ""


def _runs(handle: BinaryIO, run_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Yield JSON objects of whole clips, and the line that each begins in."""
    text = handle.read(run_bytes)
    while not text.strip(SPACE) and (more := handle.read(run_bytes)):
        text += more
    before, brace, text = text.partition(b"{")
    if not brace or before.strip(SPACE):
        raise ValueError(f"it begins with {before.strip(SPACE)[:10]!r}, not with '{{'")
    line = 1 + before.count(b"\n")
    while more := handle.read(max(run_bytes, len(text))):
        text += more
        if found := NEXT_CLIP.search(text, len(text) // 2):
            head, text = text[: found.start(1)], text[found.end(1) :]
            yield b"{" + head + b"}", line
            line += head.count(b"\n")
        elif len(text) > MAX_CLIP:
            raise ValueError(f"line {line}: one clip has more than {MAX_CLIP >> 20} MB")
    yield b"{" + text, line


def _parse(text: bytes) -> Block | None:
    """The answers of a sound object; None for what needs a closer look."""
    if b"\\" in text or b"true" in text or b"false" in text:
        return None
    try:
        clips = orjson.loads(text)
        counts = np.fromiter(map(len, clips.values()), np.int64, len(clips))
        rows = list(chain.from_iterable(clips.values()))
        widths = set(map(len, rows))
        if len(widths) != 1 or not counts.all():
            return None
        numbers = np.fromiter(chain.from_iterable(rows), float, len(rows) * max(widths))
    except (TypeError, ValueError):
        return None
    # a repeated name, or a text among the numbers, which numpy would read as a number
    if text.count(b'"') != 2 * len(clips):
        return None
    if max(widths) < 3 or not (np.abs(numbers) < OUT_OF_INT_RANGE).all():  # null becomes NaN
        return None
    return Block(list(clips), counts, numbers.reshape(len(rows), -1))


def _as_rows(numbers: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # 1e39 is infinite to the evaluator, too
        return numbers[:, :3].astype(np.float32)


def _parse_one_by_one(text: bytes, line: int) -> Block:
    """The same, slowly; ValueError names the clip that the evaluator aborts on."""
    names, rows = [], [np.empty((0, 3))]
    for name, clip in _pairs(text, line):
        if problem := row_problem(clip):
            raise ValueError(f"{name!r}: {problem}")
        names.append(name)
        rows.append(np.array([row[:3] for row in clip]))
    counts = np.array([len(clip) for clip in rows[1:]], np.int64)
    return Block(names, counts, np.concatenate(rows))


def _pairs(text: bytes, line: int) -> list[tuple[str, Any]]:
    try:
        return json.loads(text.decode(), object_pairs_hook=list, parse_int=_whole_number)
    except json.JSONDecodeError as error:
        near = error.doc[max(0, error.pos - 40) : error.pos + 20]
        raise ValueError(f"line {line + error.lineno - 1}, at {near!r}: {error.msg}") from None


def _whole_number(digits: str) -> float:
    """A whole number; NaN for one that the evaluator's 64-bit arrays cannot hold."""
    number = float(digits)
    return number if -(2**63) <= number <= 2**64 else math.nan
