"""The checker's part for Task 1: the lines of a prediction.txt."""

from __future__ import annotations

import io
import math
import re
from typing import BinaryIO

from klassify.submission.verdict import Listed, Verdict

MAX_LINE = 4096  # bytes; a longer line is not an answer for a clip
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
# a sound line; its name, and whether the score is above 1, are still to be checked
PLAIN = re.compile(rb"([!-:<-~]+);(\d(?:\.\d*)?(?:[eE]-?\d{1,3})?)\n")
READ_BYTES = 1 << 20
NOT_FINITE = re.compile(r"|n/?a|nan|null|none|[+-]?inf(inity)?", re.IGNORECASE)
MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def check_txt(handle: BinaryIO, name: str, listed: Listed, verdict: Verdict) -> set[str] | None:
    """Check `name;score` lines; returns the listed clips that have a line, None if it cannot be
    read.

    The answers that `verdict` keeps are probabilities of fake (float).
    """
    refuse, warn = verdict.refusals.add, verdict.warnings.add
    first_line: dict[str, int] = {}
    scores: list[str] = []
    n_fields = 0
    # much faster lines than those of a zip's member
    reader = io.BufferedReader(handle, READ_BYTES)
    for number, raw in enumerate(iter(lambda: reader.readline(MAX_LINE + 1), b""), 1):
        if plain := PLAIN.fullmatch(raw):
            file, score = plain[1].decode(), plain[2].decode()
            probability = float(score)
            if file in listed.line and file not in first_line and probability <= 1:
                n_fields = n_fields or 2
                scores.append(score)
                verdict.keep(name, file, probability)
                first_line[file] = number
                continue
        place = f"{name}:{number}"
        if len(raw) > MAX_LINE:
            refuse("a line is too long to be an answer", place)
            return None
        if number == 1 and raw.startswith(MARKS):
            refuse("the file begins with a byte order mark; write plain UTF-8", place)
            if not raw.startswith(MARKS[0]):
                return None
            raw = raw[len(MARKS[0]) :]
        fields = _fields(raw, place, verdict)
        if fields is None:
            continue
        n_fields = n_fields or len(fields)
        if len(fields) > n_fields:  # the server's reader takes the columns of the first line
            refuse("a line has more columns than the first one", place)
        elif len(fields) > 2:
            warn("a column after the score; the server ignores it", place)
        file, score = fields[0], fields[1].strip(" \t")
        if fields[1] != fields[1].strip():
            warn("spaces around a score; the server takes them", place)
        if problem := _score_problem(score, number == 1):
            refuse(problem, f"{place}: {score[:80]!r}")
        else:
            scores.append(score)
            verdict.keep(name, file, float(score))
        if file in first_line:
            first = first_line[file]
            refuse("a clip is answered twice", f"{place}: {file!r}, first in line {first}")
        elif file not in listed.line:
            refuse("a name is not in the list", f"{place}: {file!r}{listed.hint(file)}")
        first_line.setdefault(file, number)
    if len(scores) > 1 and len(set(scores)) == 1:
        warn("every clip has the same score: the AUC will be 0.5", f"{name}: {scores[0]}")
    if scores and all(score.isdigit() for score in scores):
        warn("no score has a decimal point: the server may not take integers", name)
    return first_line.keys() & listed.line.keys()


def _fields(raw: bytes, place: str, verdict: Verdict) -> list[str] | None:
    """A line's fields, None for one without an answer; a blank one is only worth a warning."""
    refuse, warn = verdict.refusals.add, verdict.warnings.add
    try:
        line = raw.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        refuse("a line is not UTF-8 text", place)
        return None
    if line.endswith("\r"):
        warn("a line ends with CR LF; the server takes it", place)
        line = line[:-1]
    fields = line.split(";")
    if not line:
        warn("a line is blank; the server skips it", place)
    elif re.search(r"[\x00-\x08\x0a-\x1f\x7f]", line):
        refuse("a line holds control characters", f"{place}: {line[:80]!r}")
    elif len(fields) < 2:
        refuse("a line is not `name;score` (the separator is ';')", f"{place}: {line[:80]!r}")
    else:
        return fields
    return None


def _score_problem(score: str, in_first_line: bool) -> str:
    """Why a score is refused, or ''."""
    number = float(score) if NUMBER.fullmatch(score) else None
    if NOT_FINITE.fullmatch(score) or number is not None and not math.isfinite(number):
        return "a score is empty or not finite: the server would rank it above all others"
    if number is None and in_first_line:
        return "the first line is a header; the server wants none"
    if number is None:
        return "a score is not a number"
    if not 0 <= number <= 1:
        return (
            "a score lies outside [0, 1]: the server would apply a sigmoid to all scores, and large"
            " ones would tie"
        )
    return ""
