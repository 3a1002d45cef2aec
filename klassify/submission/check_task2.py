"""The checker's part for Task 2: the proposals of a prediction.json, read some MB at a time."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from klassify.submission.prediction_json import is_beyond_64_bits, whole_number
from klassify.submission.verdict import MAX_ROWS, Listed, Verdict

MAX_CLIP = 1 << 24  # bytes of JSON for one clip
MAX_STRAYS = (
    100_000  # answers that no listed clip needs, besides one for each; the rest is not read
)
TOLERANCE_S = 0.05


class Answer(NamedTuple):
    """One clip's proposals for a comparison: a digest of all rows, and the best one in seconds.

    The best has the highest score, the first of equals; start_s = end_s where nothing was found.
    """

    digest: bytes
    start_s: float
    end_s: float


def check_json(handle: BinaryIO, name: str, listed: Listed, verdict: Verdict) -> set[str] | None:
    """Check `{file: [[score, start_s, end_s], ...]}`; returns the listed clips it has, None if
    unreadable.

    The answers that `verdict` keeps are of class Answer.
    """
    seen: set[str] = set()
    n_strays = 0
    try:
        for file, rows in iter_clips(handle):
            place = f"{name}[{file!r}]"
            if file in seen:
                verdict.refusals.add("a clip is answered twice", place)
            elif file not in listed.line:
                verdict.refusals.add("a name is not in the list", f"{place}{listed.hint(file)}")
            n_strays += file in seen or file not in listed.line
            if n_strays > MAX_STRAYS + len(listed.line):
                verdict.refusals.add(
                    "so many answers are none of a listed clip that the rest was not read", place
                )
                return None
            seen.add(file)
            table = _check_rows(rows, place, listed.duration.get(file, math.nan), verdict)
            if table is not None and verdict.kept is not None:
                verdict.keep(name, file, _answer(table))
    except (ValueError, RecursionError) as error:
        verdict.refusals.add("the evaluator cannot read this JSON", f"{name}: {error}")
        return None
    return seen & listed.line.keys()


def iter_clips(handle: BinaryIO, block: int = 1 << 23) -> Iterator[tuple[str, Any]]:
    """Yield (file, rows) of a prediction.json in order, a repeated key twice, from some MB of text
    at a time.

    Raises ValueError that says where the text is no JSON object. A cut between `]` and `"` can only
    be wrong inside a name or a row that is refused anyway.
    """
    cut = re.compile(rb'\]\s*(,)\s*(?=")')
    text, line = handle.read(block).lstrip(b" \t\r\n"), 1
    if not text.startswith(b"{"):
        raise ValueError(f"it begins with {text[:10]!r}, not with '{{'")
    text = text[1:]
    while more := handle.read(block):
        text += more
        if found := cut.search(text, len(text) // 2):
            head, text = text[: found.start(1)], text[found.end(1) :]
            yield from _pairs(b"{" + head + b"}", line)
            line += head.count(b"\n")
        elif len(text) > MAX_CLIP:
            raise ValueError(
                f"line {line}: the answer for one clip is larger than {MAX_CLIP >> 20} MB"
            )
    yield from _pairs(b"{" + text, line)


def _pairs(text: bytes, line: int) -> list[tuple[str, Any]]:
    try:
        return json.loads(
            text.decode("utf-8"), object_pairs_hook=lambda pairs: pairs, parse_int=whole_number
        )
    except json.JSONDecodeError as error:
        raise ValueError(
            f"line {line + error.lineno - 1}, column {error.colno}: {error.msg}"
        ) from None


def _answer(table: np.ndarray) -> Answer:
    """table: (n, 3) score, start and end of one clip's proposals."""
    best = table[np.argmax(table[:, 0])]
    start, end = best[1:].tolist()
    return Answer(hashlib.blake2b(table.tobytes(), digest_size=12).digest(), start, max(start, end))


def _check_rows(rows: Any, place: str, duration_s: float, verdict: Verdict) -> np.ndarray | None:
    """Check one clip's proposals; returns them as (n, 3) score, start and end, None where they
    are refused.
    """
    if problem := _row_problem(rows):
        verdict.refusals.add(problem, place)
        return None
    warn = verdict.warnings.add
    table = np.array([row[:3] for row in rows], float)
    score, start, end = table.T
    if len(rows[0]) > 3:
        warn("a fourth column; the evaluator ignores it", place)
    if (np.diff(score) > 0).any():
        warn(
            "rows are not sorted by falling score: both AP and AR take them in the order of the"
            " file",
            place,
        )
    if len(rows) > MAX_ROWS:
        warn(
            f"more than {MAX_ROWS} rows: AR does not see the rest, AP does", f"{place}: {len(rows)}"
        )
    if ((score < 0) | (score > 1)).any():
        warn("a score outside [0, 1]; the evaluator takes it", place)
    if ((start < 0) | (end > duration_s + TOLERANCE_S) | (start > end)).any():
        warn("a row is reversed or lies outside the clip: it can hardly match", place)
    if len(np.unique(table[:, 1:], axis=0)) < len(table):
        warn("a segment stands twice: every copy costs AP", place)
    return table


def _row_problem(rows: Any) -> str:
    """Why the evaluator would abort on a clip's rows, or ''."""
    if type(rows) is not list or not all(type(row) is list for row in rows):
        return "an answer is no list of [score, start, end] rows: the evaluator aborts"
    if not rows:
        return "an answer is an empty list: the evaluator aborts; write [[0.0, 0.0, 0.0]]"
    widths = {len(row) for row in rows}
    if len(widths) > 1 or not widths <= {3, 4}:
        return (
            f"rows of {' and '.join(map(str, sorted(widths)))} columns, where 3 belong: the"
            " evaluator aborts"
        )
    if not all(type(x) in (int, float) for row in rows for x in row):
        return "a value is no number: the evaluator aborts"
    if any(is_beyond_64_bits(x) for row in rows for x in row):
        return "a value is a whole number beyond 64 bits: the evaluator aborts"
    if not all(map(math.isfinite, (x for row in rows for x in row))):
        return "a value is NaN or infinite: the evaluator aborts"
    return ""
