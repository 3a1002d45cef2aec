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

# What rows may be instead of [score, start_s, end_s]: where score, start and end stand, and seconds
# by unit. Larger units come first: few rows of milliseconds would fit their clip as frames.
ORDERS = {"": (0, 1, 2), "[start, end, score]": (2, 0, 1), "[score, end, start]": (0, 2, 1)}
UNITS = {"": 1.0, "frames of 40 ms": 0.04, "milliseconds": 0.001}
SAMPLE_ROWS = 10_000  # rows looked at to guess what they are
BY_CHANCE = 0.1  # so many rows of another order or unit can make sense as written


class Answer(NamedTuple):
    """One clip's proposals for a comparison: a digest of all rows, and the best one in seconds.

    The best has the highest score, the first of equals; start_s = end_s where nothing was found.
    """

    digest: bytes
    start_s: float
    end_s: float


class RowCheck:
    """Finds a file whose rows are in another order or unit: hardly any of them can match."""

    def __init__(self) -> None:
        self.n_rows = self.n_possible = self.n_sampled = 0
        self.sample: list[np.ndarray] = []  # (n, 4) each: a clip's rows and its length in seconds
        self.first = ""

    def add(self, table: np.ndarray, duration_s: float, place: str) -> None:
        """Count one clip's rows (n, 3), but for those of no length: they say "nothing found"."""
        table = table[table[:, 1] != table[:, 2]]
        if not len(table):
            return
        self.first = self.first or f"{place}: {table[0].tolist()}"
        rows = np.column_stack([table, np.full(len(table), duration_s)])
        self.n_rows += len(rows)
        self.n_possible += int(_can_match(rows[:, 1], rows[:, 2], rows[:, 3]).sum())
        if self.n_sampled < SAMPLE_ROWS:
            self.sample.append(rows)
            self.n_sampled += len(rows)

    def finish(self, verdict: Verdict) -> None:
        """Refuse the file if no row can match, or if hardly any can and another reading fits."""
        if self.n_possible > BY_CHANCE * self.n_rows or not self.n_rows:
            return
        guess = self._guess()
        if guess or not self.n_possible:
            verdict.refusals.add(
                f"the rows are reversed or outside their clips{guess}; fix: write"
                " [score, start, end], with times in seconds",
                self.first,
            )

    def _guess(self) -> str:
        rows = np.concatenate(self.sample)
        for order, columns in ORDERS.items():
            for unit, seconds in UNITS.items():
                score, start, end = (rows[:, column] for column in columns)
                fits = _can_match(start * seconds, end * seconds, rows[:, 3])
                fits &= (score >= 0) & (score <= 1)
                if fits.mean() >= 1 - BY_CHANCE:
                    return f" (are they {' in '.join(filter(None, (order, unit)))}?)"
        return ""


def _can_match(start: np.ndarray, end: np.ndarray, duration_s: np.ndarray) -> np.ndarray:
    """(n,) bool: at least half of the row lies in its clip, without which no overlap is 0.5."""
    inside = np.fmin(end, duration_s) - np.maximum(start, 0)
    return (end > start) & (inside >= (end - start) / 2)


def check_json(handle: BinaryIO, name: str, listed: Listed, verdict: Verdict) -> set[str] | None:
    """Check `{file: [[score, start_s, end_s], ...]}`; returns the listed clips it has, None if
    unreadable.

    The answers that `verdict` keeps are of class Answer.
    """
    seen: set[str] = set()
    n_strays = 0
    row_check = RowCheck()
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
            duration_s = listed.duration.get(file, math.nan)
            table = _check_rows(rows, place, duration_s, verdict)
            if table is None:
                continue
            row_check.add(table, duration_s, place)
            if verdict.kept is not None:
                verdict.keep(name, file, _answer(table))
    except (ValueError, RecursionError) as error:
        verdict.refusals.add("the evaluator cannot read this JSON", f"{name}: {error}")
        return None
    row_check.finish(verdict)
    return seen & listed.line.keys()


def iter_clips(handle: BinaryIO, block: int = 1 << 23) -> Iterator[tuple[str, Any]]:
    """Yield (file, rows) of a prediction.json in order, a repeated key twice, from some MB of text
    at a time.

    Raises ValueError that says where the text is not a JSON object. A cut between `]` and `"` can
    only be wrong inside a name or a row that is refused anyway.
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
        warn("a segment appears twice: every copy costs AP", place)
    return table


def _row_problem(rows: Any) -> str:
    """Why the evaluator would abort on a clip's rows, or ''."""
    if type(rows) is not list or not all(type(row) is list for row in rows):
        return "an answer is not a list of [score, start, end] rows: the evaluator aborts"
    if not rows:
        return "an answer is an empty list: the evaluator aborts; write [[0.0, 0.0, 0.0]]"
    widths = {len(row) for row in rows}
    if len(widths) > 1 or not widths <= {3, 4}:
        return (
            f"rows of {' and '.join(map(str, sorted(widths)))} columns, where 3 belong: the"
            " evaluator aborts"
        )
    if not all(type(x) in (int, float) for row in rows for x in row):
        return "a value is not a number: the evaluator aborts"
    if any(is_beyond_64_bits(x) for row in rows for x in row):
        return "a value is a whole number beyond 64 bits: the evaluator aborts"
    if not all(map(math.isfinite, (x for row in rows for x in row))):
        return "a value is NaN or infinite: the evaluator aborts"
    return ""
