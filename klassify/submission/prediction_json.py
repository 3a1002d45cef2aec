"""Proposals and true segments of many clips as flat arrays, and the reader of prediction.json.

A proposal is a row [score, start_s, end_s]. All clips share one array of rows; `offsets` says which
rows are whose. Its numbers are float32, as the challenge's evaluator holds them: 12 bytes a
proposal where a tree of Python lists takes 300, and scores that tie there tie here.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
import orjson

from klassify.errors import KlassifyError
from klassify.grid.ragged import row_offsets
from klassify.grid.segments import PLACEHOLDER, Proposals
from klassify.lists.data_list import without_gc

CHUNK_BYTES = (
    1 << 18
)  # of JSON parsed at once; its tree of lists then stays in the processor's cache
WHITESPACE = b" \t\n\r"
LONGEST_INT = 300  # digits; int() refuses thousands, float() numbers of more than 308
OUT_OF_INT_RANGE = 2.0**63  # whole numbers from here on are looked at one by one


# ------------------------------------------------------------------------------ prediction.json


def read_prediction_json(path: str | os.PathLike, chunk_bytes: int = CHUNK_BYTES) -> Proposals:
    """Read `{"<name>": [[score, start_s, end_s], ...], ...}` in pieces; memory is that of the
    result.

    Accepts what the challenge's evaluator accepts: whole numbers, exponents, further columns
    (ignored), any order of rows, of a repeated name the last. Raises KlassifyError, naming the
    clip, for what makes it abort: an empty list, NaN, null, text, ragged rows, fewer than three
    columns, broken JSON, a BOM.
    """
    names: list[str] = []
    counts, rows = [np.empty(0, np.int64)], [np.empty((0, 3), np.float32)]
    try:
        with open(path, "rb") as handle, without_gc():
            for offset, members in _members(handle, path, chunk_bytes):
                new_names, new_counts, new_rows = _parse(members) or _parse_one_by_one(
                    members, offset, path
                )
                names.extend(new_names)
                counts.append(new_counts)
                rows.append(new_rows)
    except OSError as error:
        raise KlassifyError(f"This file cannot be read: {error.strerror}.", where=path) from None
    read = Proposals(
        np.array(names, dtype=object), row_offsets(np.concatenate(counts)), np.concatenate(rows)
    )
    last = {name: index for index, name in enumerate(names)}
    return read if len(last) == len(names) else read.take(np.fromiter(last.values(), np.int64))


def _members(handle: BinaryIO, path: object, chunk_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, text) of runs of whole `"name": [...]` members, without braces and outer
    commas.

    Names are the only strings of the grammar, so a run may end before the quote that opens a name.
    A text in another place makes a run that does not parse, which is right: it has to be refused.
    """
    head = handle.read(chunk_bytes)
    if head.startswith(b"\xef\xbb\xbf"):
        raise KlassifyError(
            "The file begins with a byte order mark (BOM).", where=path, fix="save it without"
        )
    while not (rest := head.lstrip(WHITESPACE)) and (block := handle.read(chunk_bytes)):
        head += block
    if not rest.startswith(b"{"):
        raise KlassifyError(
            "This is not a JSON object of clips: it does not begin with `{`.", where=path
        )
    offset, rest, cut_before = len(head) - len(rest) + 1, rest[1:], False
    while block := handle.read(max(chunk_bytes, len(rest))):
        rest += block
        cut = _last_name(rest)
        members = rest[:cut].rstrip(WHITESPACE)
        if not members:
            continue
        if not (members.endswith(b",") and members[:-1].strip(WHITESPACE)):
            raise KlassifyError(
                "Text stands where no clip can begin: numbers are not quoted, one comma parts two"
                " clips.",
                where=(
                    f"{path}: byte {offset + cut}, at"
                    f" {rest[cut : cut + 40].decode(errors='replace')!r}"
                ),
            )
        yield offset, members[:-1]
        offset, rest, cut_before = offset + cut, rest[cut:], True
    members = rest.rstrip(WHITESPACE)
    if not members.endswith(b"}"):
        raise KlassifyError(
            "The file does not end with `}`: it is truncated, or something follows its object.",
            where=path,
        )
    if members[:-1].strip(WHITESPACE) or cut_before:
        yield offset, members[:-1]


def _last_name(text: bytes) -> int:
    """Where the last name in `text` begins, be it whole or not; 0 if there is none."""
    text = _mask_escapes(text)
    quote = text.rfind(b'"')
    return max(0, quote if text.count(b'"') % 2 else text.rfind(b'"', 0, quote))


def _mask_escapes(text: bytes) -> bytes:
    return re.sub(rb"\\.", b"__", text, flags=re.DOTALL) if b"\\" in text else text


def _parse(members: bytes) -> tuple[list[str], np.ndarray, np.ndarray] | None:
    """Names, rows a clip and rows of well-formed members; None for whatever needs a closer look."""
    try:
        clips = orjson.loads(b"{" + members + b"}")
        counts = np.fromiter(map(len, clips.values()), np.int64, len(clips))
        rows = list(chain.from_iterable(clips.values()))
        widths = set(map(len, rows))
        if len(widths) != 1 or not counts.all():
            return None
        numbers = np.fromiter(chain.from_iterable(rows), float, len(rows) * max(widths))
    except (TypeError, ValueError):
        return None
    # a repeated name, or a text among the numbers, which numpy would read like a number
    if (
        _mask_escapes(members).count(b'"') != 2 * len(clips)
        or b"true" in members
        or b"false" in members
    ):
        return None
    if max(widths) < 3 or not (np.abs(numbers) < OUT_OF_INT_RANGE).all():  # null becomes NaN
        return None
    return list(clips), counts, _as_rows(numbers.reshape(len(rows), -1))


def _as_rows(numbers: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # 1e39 is infinite to the evaluator, too
        return numbers[:, :3].astype(np.float32)


def _parse_one_by_one(
    members: bytes, offset: int, path: object
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """What `_parse` gives, slowly, or a KlassifyError that says what is wrong with which clip."""
    try:
        clips = json.loads(b"{" + members + b"}", object_pairs_hook=_Pairs, parse_int=whole_number)
    except UnicodeDecodeError as error:
        raise KlassifyError(
            "This is not UTF-8 text.", where=f"{path}: byte {offset + error.start - 1}"
        ) from None
    except json.JSONDecodeError as error:
        at = max(0, error.pos - 1)
        near = members.decode()[max(0, at - 40) : at + 20]
        where = f"{path}: near byte {offset + len(members.decode()[:at].encode())}, at {near!r}"
        raise KlassifyError(f"This is not readable JSON: {error.msg}.", where=where) from None
    except RecursionError:
        raise KlassifyError(
            "Lists lie in lists without end.", where=f"{path}: behind byte {offset}"
        ) from None
    rows = []
    for name, clip in clips:
        problem = _problem(clip)
        if problem:
            fix = (
                PLACEHOLDER
                if not clip
                else "every clip needs [[score, start, end], ...] in plain numbers"
            )
            raise KlassifyError(
                f"{name!r} {problem}: the evaluator would abort.", where=path, fix=fix
            )
        rows.append(_as_rows(np.array(clip, dtype=float)))
    counts = np.array([len(clip) for clip in rows], np.int64)
    return [name for name, _ in clips], counts, np.concatenate(rows)


def whole_number(digits: str) -> int:
    """A whole number of JSON; of one that is beyond 64 bits by far, another that is so too."""
    return int(digits[:LONGEST_INT])


def is_beyond_64_bits(value: Any) -> bool:
    """Whether this is a whole number that the evaluator's arrays cannot hold."""
    return type(value) is int and not -(2**63) <= value < 2**64


class _Pairs(list):
    """The members of a JSON object in file order, repeated names included."""


def _problem(clip: Any) -> str | None:
    """What the evaluator cannot digest in the value of one clip."""
    if type(clip) is not list:  # a _Pairs is an object
        return "has no list of rows"
    if not clip:
        return "has an empty list"
    if any(type(row) is not list for row in clip):
        return "has a row that is not a list"
    widths = sorted({len(row) for row in clip})
    if len(widths) > 1:
        return f"has ragged rows, of {widths[0]} to {widths[-1]} columns"
    if widths[0] < 3:
        return f"has rows of {widths[0]} columns, not of 3"
    for value in chain.from_iterable(clip):
        if type(value) not in (int, float):
            what = (
                "a list or an object" if type(value) in (list, _Pairs) else json.dumps(value)[:40]
            )
            return f"has {what} where a number belongs"
        if is_beyond_64_bits(value):
            return f"has a whole number beyond 64 bits ({str(value)[:20]}...)"
        if not math.isfinite(value):
            return "has a NaN or an infinite number"
    return None
