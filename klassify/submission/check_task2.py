"""The checker's part for Task 2: the proposals of a prediction.json, read some MB at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from klassify.grid.ragged import row_offsets
from klassify.progress import Count
from klassify.submission.prediction_json import Block, iter_blocks, row_problem
from klassify.submission.verdict import JSON, MAX_ROWS, Listed, Verdict

MAX_STRAYS = 100_000  # unlisted or repeated answers, besides one per clip; the rest is not read
TOLERANCE_S = 0.05
MIXERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)  # odd

# What rows may be instead of [score, start_s, end_s]: the columns of score, start and end, and the
# seconds of a unit. Larger units come first: a few rows of milliseconds would fit as frames.
ORDERS = {"": (0, 1, 2), "[start, end, score]": (2, 0, 1), "[score, end, start]": (0, 2, 1)}
WITH_DURATION = "[score, start, duration]"
UNITS = {"": 1.0, "frames of 40 ms": 0.04, "milliseconds": 0.001, "samples at 16 kHz": 1 / 16_000}
SAMPLE_ROWS = 10_000  # rows looked at to guess what they are
BY_CHANCE = 0.1  # the share of rows of another order or unit that may make sense as written


class Answer(NamedTuple):
    """One clip's proposals for a comparison: a digest of all rows, and the best one in seconds.

    The best has the highest score, the first of equals; start_s = end_s where nothing was found.
    """

    digest: bytes
    start_s: float
    end_s: float


class RowCheck:
    """Finds a file whose rows are in another order or unit: hardly any of them can match."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.n_rows = self.n_possible = self.n_sampled = 0
        self.sample: list[np.ndarray] = []  # (n, 4) each: a clip's rows and its length in seconds
        self.first = ""

    def add(
        self, table: np.ndarray, duration_s: np.ndarray, clip: np.ndarray, names: Sequence[str]
    ) -> None:
        """Count rows (n, 3), except those without length, which say "nothing found". duration_s:
        (n,) of each row's clip. clip: (n,) place in names of the clip of each row.
        """
        there = table[:, 1] != table[:, 2]
        if not there.any():
            return
        if not self.first:
            at = int(there.argmax())
            self.first = f"{self.name}[{names[clip[at]]!r}]: {table[at].tolist()}"
        self.n_rows += int(there.sum())
        self.n_possible += int(_can_match(table[:, 1], table[:, 2], duration_s).sum())
        if self.n_sampled < SAMPLE_ROWS:
            self.sample.append(np.column_stack([table, duration_s])[there])
            self.n_sampled += len(self.sample[-1])

    def finish(self, verdict: Verdict) -> None:
        """Refuse the file if no row can match, or if hardly any can and another reading fits."""
        if not self.n_rows:
            verdict.warnings.add("no clip has a segment: AP and AR will be 0", self.name)
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
        found = []
        for order, columns in ORDERS.items():
            for unit, seconds in UNITS.items():
                score, start, end = (rows[:, column] for column in columns)
                if not found and _makes_sense(score, start * seconds, end * seconds, rows[:, 3]):
                    found.append(" in ".join(filter(None, (order, unit))))
        if _makes_sense(rows[:, 0], rows[:, 1], rows[:, 1] + rows[:, 2], rows[:, 3]):
            found.append(WITH_DURATION)
        return f" (are they {' or '.join(found)}?)" if found else ""


def _makes_sense(
    score: np.ndarray, start: np.ndarray, end: np.ndarray, duration_s: np.ndarray
) -> bool:
    """Whether nearly all rows, (n,) each, are probabilities and lie in their clips."""
    fits = _can_match(start, end, duration_s) & (score >= 0) & (score <= 1)
    return bool(fits.mean() >= 1 - BY_CHANCE)


def _can_match(start: np.ndarray, end: np.ndarray, duration_s: np.ndarray) -> np.ndarray:
    """(n,) bool: at least half of the row lies in its clip, without which no overlap is 0.5."""
    inside = np.fmin(end, duration_s) - np.maximum(start, 0)
    return (end > start) & (inside >= (end - start) / 2)


def check_json(handle: BinaryIO, name: str, listed: Listed, verdict: Verdict) -> set[str] | None:
    """Check `{file: [[score, start_s, end_s], ...]}`; returns the listed clips that it answers,
    None if it is unreadable.

    The answers that `verdict` keeps are of class Answer.
    """
    seen: set[str] = set()
    n_strays = 0
    row_check = RowCheck(name)
    try:
        for block in _counted(iter_blocks(handle), len(listed.line)):
            if isinstance(block, Block):
                block = _closer_look(block, name, seen, listed, row_check, verdict)
            for file, rows in block:
                place = f"{name}[{file!r}]"
                if file in seen:
                    verdict.refusals.add("a clip is answered twice", place)
                elif file not in listed.line:
                    verdict.refusals.add("a name is not in the list", f"{place}{listed.hint(file)}")
                n_strays += file in seen or file not in listed.line
                if n_strays > MAX_STRAYS + len(listed.line):
                    what = "too many answers are not for listed clips; the rest was not read"
                    verdict.refusals.add(what, place)
                    return None
                seen.add(file)
                duration_s = listed.durations([file])
                table = _check_rows(rows, place, duration_s[0], verdict)
                if table is not None:
                    clip = np.zeros(len(table), int)
                    row_check.add(table, duration_s[clip], clip, [file])
                    if verdict.kept is not None:
                        verdict.keep(name, file, _answer(table))
    except (ValueError, RecursionError) as error:
        verdict.refusals.add("the evaluator cannot read this JSON", f"{name}: {error}")
        return None
    row_check.finish(verdict)
    return seen & listed.line.keys()


def _counted(blocks: Iterator[Any], n_clips: int) -> Iterator[Any]:
    """Blocks of iter_blocks, with the progress of their clips."""
    with Count(f"check {JSON}", n_clips) as count:
        yield from count(blocks, lambda b: len(b.names if isinstance(b, Block) else b))


def _closer_look(
    block: Block, name: str, seen: set[str], listed: Listed, row_check: RowCheck, verdict: Verdict
) -> list[tuple[str, Any]]:
    """The clips of a block that may have a problem, as (file, rows). The others are finished here:
    counted, kept for a comparison, and added to `seen`.
    """
    names, counts = block.names, block.counts
    owner = np.repeat(np.arange(len(names)), counts)
    table = block.numbers[:, :3]
    score, start, end = table.T
    noted = (score < 0) | (score > 1) | (start < 0) | (start > end)
    duration_s = listed.durations(names)[owner]
    noted |= end > duration_s + TOLERANCE_S
    noted[1:] |= (score[1:] > score[:-1]) & (owner[1:] == owner[:-1])
    noted |= _may_repeat(owner, table[:, 1:])
    noted = np.bincount(owner[noted], minlength=len(names)) > 0
    noted |= (counts > MAX_ROWS) | (block.numbers.shape[1] > 3)
    noted |= np.array([file in seen or file not in listed.line for file in names], bool)
    fine = ~noted[owner] if noted.any() else slice(None)
    row_check.add(table[fine], duration_s[fine], owner[fine], names)
    edges = row_offsets(counts)
    if verdict.kept is not None:
        for clip in np.flatnonzero(~noted).tolist():
            answer = _answer(np.ascontiguousarray(table[edges[clip] : edges[clip + 1]]))
            verdict.keep(name, names[clip], answer)
    seen.update(names[clip] for clip in np.flatnonzero(~noted).tolist())
    return [
        (names[clip], block.numbers[edges[clip] : edges[clip + 1]].tolist())
        for clip in np.flatnonzero(noted).tolist()
    ]


def _may_repeat(clip: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(n,) bool, true for the rows of each segment that appears twice in its clip; times: (n, 2).
    By a hash, so that another row is rarely true as well.
    """
    start, end = (times.T + 0.0).view(np.uint64)  # -0.0 + 0.0 is 0.0
    keys = clip.astype(np.uint64) * MIXERS[0] + start * MIXERS[1] + end * MIXERS[2]  # modulo 2^64
    ordered = np.sort(keys)  # much faster than argsort, and nearly always all keys differ
    return np.isin(keys, ordered[1:][ordered[1:] == ordered[:-1]])


def _answer(table: np.ndarray) -> Answer:
    """table: (n, 3) score, start and end of one clip's proposals."""
    best = table[np.argmax(table[:, 0])]
    start, end = best[1:].tolist()
    return Answer(hashlib.blake2b(table.tobytes(), digest_size=12).digest(), start, max(start, end))


def _check_rows(rows: Any, place: str, duration_s: float, verdict: Verdict) -> np.ndarray | None:
    """Check one clip's proposals; returns them as (n, 3) score, start and end, None if refused."""
    problem = row_problem(rows)
    if not problem and len(rows[0]) > 4:
        problem = f"rows of {len(rows[0])} columns, where 3 belong"
    if problem:
        verdict.refusals.add(problem, place)
        return None
    warn = verdict.warnings.add
    table = np.array([row[:3] for row in rows])
    score, start, end = table.T
    if len(rows[0]) > 3:
        warn("a fourth column; the evaluator ignores it", place)
    if (np.diff(score) > 0).any():
        warn("rows are not sorted by descending score: AP and AR take them in file order", place)
    if len(rows) > MAX_ROWS:
        more = f"more than {MAX_ROWS} rows: AR ignores the rest, AP does not"
        warn(more, f"{place}: {len(rows)}")
    if ((score < 0) | (score > 1)).any():
        warn("a score outside [0, 1]; the evaluator takes it", place)
    if ((start < 0) | (end > duration_s + TOLERANCE_S) | (start > end)).any():
        warn("a row is reversed or outside the clip: it can hardly match", place)
    if len(np.unique(table[:, 1:], axis=0)) < len(table):
        warn("a segment appears twice: every copy costs AP", place)
    return table
