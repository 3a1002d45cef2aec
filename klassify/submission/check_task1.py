"""The checker's part for Task 1: the lines of a prediction.txt."""

from __future__ import annotations

import math
import re
from typing import BinaryIO

from klassify.submission.verdict import Listed, Verdict

MAX_LINE = 4096  # bytes; a longer line is not an answer for a clip
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
NOT_A_NUMBER = {
    "",
    "nan",
    "na",
    "n/a",
    "null",
    "none",
    "inf",
    "+inf",
    "-inf",
    "infinity",
    "-infinity",
}


def check_txt(handle: BinaryIO, name: str, listed: Listed, verdict: Verdict) -> set[str] | None:
    """Check `name;score` lines; returns the listed clips that have a line, None where it cannot be
    read.

    The answers that `verdict` keeps are probabilities of fake (float).
    """
    first_line: dict[str, int] = {}
    scores: list[str] = []
    n_fields = 0
    for number, raw in enumerate(iter(lambda: handle.readline(MAX_LINE + 1), b""), 1):
        place = f"{name}:{number}"
        if len(raw) > MAX_LINE:
            verdict.refusals.add("a line is too long to be an answer", place)
            return None
        if number == 1 and raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
            verdict.refusals.add("the file begins with a byte order mark; write plain UTF-8", place)
            if not raw.startswith(b"\xef"):
                return None
            raw = raw[3:]
        fields = _fields(raw, place, verdict)
        if fields is None:
            continue
        n_fields = n_fields or len(fields)
        _check_fields(fields, n_fields, place, verdict)
        file, score = fields[0], fields[1].strip(" \t")
        if _check_score(score, place, verdict, maybe_header=number == 1):
            scores.append(score)
            verdict.keep(name, file, float(score))
        if file in first_line:
            verdict.refusals.add(
                "a clip is answered twice", f"{place}: {file!r}, first in line {first_line[file]}"
            )
        elif file not in listed.line:
            verdict.refusals.add(
                "a name is not in the list", f"{place}: {file!r}{listed.hint(file)}"
            )
        first_line.setdefault(file, number)
    if len(scores) > 1 and len(set(scores)) == 1:
        verdict.warnings.add(
            "every clip has the same score: the AUC will be 0.5", f"{name}: {scores[0]}"
        )
    if scores and all(score.isdigit() for score in scores):
        verdict.warnings.add("no score has a decimal point: the server may not take integers", name)
    return first_line.keys() & listed.line.keys()


def _fields(raw: bytes, place: str, verdict: Verdict) -> list[str] | None:
    """A line's fields, None for one that has no answer (a blank one is only worth a warning)."""
    try:
        line = raw.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        verdict.refusals.add("a line is not UTF-8 text", place)
        return None
    if line.endswith("\r"):
        verdict.warnings.add("a line ends with CR LF; the server takes it", place)
        line = line[:-1]
    if not line:
        verdict.warnings.add("a line is blank; the server skips it", place)
        return None
    if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", line):
        verdict.refusals.add("a line holds control characters", f"{place}: {line[:80]!r}")
        return None
    fields = line.split(";")
    if len(fields) < 2:
        verdict.refusals.add(
            "a line is not `name;score` (the separator is ';')", f"{place}: {line[:80]!r}"
        )
        return None
    return fields


def _check_fields(fields: list[str], n_fields: int, place: str, verdict: Verdict) -> None:
    if (
        len(fields) > n_fields
    ):  # the server's reader takes the number of columns from the first line
        verdict.refusals.add("a line has more columns than the first one", place)
    elif len(fields) > 2:
        verdict.warnings.add("a column after the score; the server ignores it", place)
    if fields[1] != fields[1].strip():
        verdict.warnings.add("spaces around a score; the server takes them", place)


def _check_score(score: str, place: str, verdict: Verdict, *, maybe_header: bool) -> bool:
    if score.lower() in NOT_A_NUMBER or (
        NUMBER.fullmatch(score) and not math.isfinite(float(score))
    ):
        kind = "a score is empty or not finite: the server would rank it above all others"
    elif not NUMBER.fullmatch(score):
        kind = (
            "the first line is a header; the server wants none"
            if maybe_header
            else "a score is not a number"
        )
    elif not 0 <= float(score) <= 1:
        kind = (
            "a score lies outside [0, 1]: the server would put a sigmoid on all, which ties the"
            " large"
        )
    else:
        return True
    verdict.refusals.add(kind, f"{place}: {score[:80]!r}")
    return False
