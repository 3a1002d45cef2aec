"""Say whether the challenge's server will score a submission as meant, and if not, why not and where.

    klassify check submissions/demo/klassify/testA --list data_lists/demo/testA.tsv

Takes a submission.zip, a folder, a prediction.txt (Task 1) or a prediction.json (Task 2); nothing is
ever extracted. Refused is what makes the official evaluator fail and what it scores in silence as
something else than was meant (submissions/README.md lists both). What it ignores is a warning.
Exits with 0 for an accepted and 1 for a refused submission.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from klassify import lists, metadata
from klassify.errors import KlassifyError
from klassify.files import file_hash, read_json

TXT, JSON, ZIP, MANIFEST = "prediction.txt", "prediction.json", "submission.zip", "manifest.json"
MAX_BYTES = 2**32 - 1  # "less than 4GB"; the evaluator's parser counts in 32 bits
SLOW_BYTES = 2**30  # larger archives have hung on Codabench
MAX_LINE = 4096  # bytes; a longer line is no answer for a clip
MAX_CLIP = 1 << 26  # bytes of JSON for one clip
MAX_ROWS = 50  # AR looks at no more
TOLERANCE_S = 0.05
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
NOT_A_NUMBER = {"", "nan", "na", "n/a", "null", "none", "inf", "+inf", "-inf", "infinity", "-infinity"}


class Notes:
    """What is wrong, by kind; counts everything and keeps the first few places of each kind."""

    def __init__(self, limit: int):
        self.limit, self.counts, self.places = limit, {}, {}

    def add(self, kind: str, place: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] <= self.limit:
            self.places.setdefault(kind, []).append(place)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def lines(self) -> Iterator[str]:
        for kind, count in self.counts.items():
            yield f"  {count} x {kind}"
            yield from (f"      {place}" for place in self.places[kind])
            if count > self.limit:
                yield f"      ... and {count - self.limit} more"


class Listed:
    """The clips that need an answer: name -> its line in the list, and their durations in seconds."""

    def __init__(self, files: list[str], name: str, durations: list[float] | None = None, first_line: int = 1):
        self.name = name
        self.line = {file: number for number, file in enumerate(files, first_line)}
        self.duration = dict(zip(files, durations or [math.nan] * len(files)))
        self._nearly: dict[str, str] | None = None

    @classmethod
    def read(cls, path: str | os.PathLike) -> Listed:
        """From a data list (.tsv) or an official testX_files.txt."""
        path = Path(path)
        if path.suffix == ".txt":
            return cls(metadata.read_names(path)[0]["file"].tolist(), path.name)
        frame = lists.read_list(path)
        return cls(frame["file"].tolist(), path.name, frame["duration"].tolist(), first_line=2)

    def hint(self, name: str) -> str:
        """How an unlisted name differs from a listed one, if little."""
        if self._nearly is None:
            self._nearly = {key: file for file in self.line for key in _variants(file)}
        near = next((self._nearly[key] for key in _variants(name) if key in self._nearly), None)
        return f"; the list has {near!r}" if near else ""


class Verdict:
    """What the checker found: `refusals`, `warnings` and the answers counted, by member."""

    def __init__(self, limit: int = 20):
        self.refusals, self.warnings, self.answers = Notes(limit), Notes(limit), {}

    @property
    def accepted(self) -> bool:
        return not self.refusals.total


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="submission.zip, its folder, prediction.txt or prediction.json")
    parser.add_argument("--list", type=Path, help="the split's data list; default: the one the manifest names")
    parser.add_argument("--limit", type=int, default=20, help="places shown of each kind of problem")


def run(args: argparse.Namespace) -> int:
    folder = args.path if args.path.is_dir() else args.path.parent
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).exists() else {}
    list_path = args.list or manifest.get("list", {}).get("path")
    if not list_path:
        raise KlassifyError("Which clips need an answer is not known.", where=args.path, mend="give --list")
    verdict = check(args.path, Listed.read(list_path), limit=args.limit)
    if not args.list and manifest["list"].get("sha256") != file_hash(list_path):
        verdict.warnings.add("the list has changed since this was packaged", str(list_path))
    answers = ", ".join(f"{n} answers in {name}" for name, n in verdict.answers.items()) or "no answers"
    print(f"{'ACCEPTED' if verdict.accepted else 'REFUSED'} {args.path}: {answers}, for {list_path}")
    if manifest.get("notice"):
        print(manifest["notice"])
    for notes, title in ((verdict.refusals, "problems"), (verdict.warnings, "warnings")):
        if notes.total:
            print(f"{notes.total} {title}:", *notes.lines(), sep="\n")
    return 0 if verdict.accepted else 1


def check(path: str | os.PathLike, listed: Listed, *, limit: int = 20) -> Verdict:
    """Check a zip, a folder (its submission.zip, else its prediction files) or one prediction file."""
    path, verdict = Path(path), Verdict(limit)
    if path.is_dir():
        inside = [path / name for name in (ZIP, TXT, JSON) if (path / name).is_file()]
        parts = inside[:1] if inside and inside[0].name == ZIP else inside
        if not parts:
            raise KlassifyError(f"This folder has no {ZIP}, {TXT} or {JSON}.", where=path)
    elif path.is_file():
        parts = [path]
    else:
        raise KlassifyError("There is no such file or folder.", where=path)
    for part in parts:
        if part.suffix == ".zip":
            _check_zip(part, listed, verdict)
        elif part.name in CHECKS:
            with open(part, "rb") as handle:
                _check_member(handle, part.name, part.stat().st_size, listed, verdict)
        else:
            verdict.refusals.add(f"the file must be named {TXT} or {JSON}", part.name)
    return verdict


# ------------------------------------------------------------------------------ the archive


def _check_zip(path: Path, listed: Listed, verdict: Verdict) -> None:
    refuse, size = verdict.refusals.add, path.stat().st_size
    if size > MAX_BYTES:
        refuse("the archive is not smaller than 4 GB", f"{path.name}: {size} bytes")
    elif size > SLOW_BYTES:
        verdict.warnings.add("archives of more than 1 GB have hung on the server", f"{path.name}: {size} bytes")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if _member_is_sound(info, verdict)]
            for name in CHECKS:
                same = [info for info in members if info.filename == name]
                if len(same) > 1:
                    refuse("a name stands twice in the archive", name)
                elif same:
                    with archive.open(same[0]) as handle:
                        _check_member(handle, name, same[0].file_size, listed, verdict)
            if not members:
                refuse(f"the archive has neither {TXT} nor {JSON} at its top level", path.name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        refuse("the archive is no readable zip", f"{path.name}: {error}")


def _member_is_sound(info: zipfile.ZipInfo, verdict: Verdict) -> bool:
    name, place = info.filename, repr(info.filename)
    unsafe = name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or ":" in name
    if unsafe or stat.S_ISLNK(info.external_attr >> 16):
        verdict.refusals.add("a member points outside the archive", place)
    elif re.split(r"[/\\]", name)[-1] in CHECKS and name not in CHECKS:
        verdict.refusals.add("the prediction is in a folder; it must lie at the top level", place)
    elif name not in CHECKS:
        verdict.refusals.add(f"the archive may hold {TXT} and {JSON}, nothing else", place)
    elif info.flag_bits & 1:
        verdict.refusals.add("a member is encrypted", place)
    else:
        return True
    return False


def _check_member(handle: BinaryIO, name: str, size: int, listed: Listed, verdict: Verdict) -> None:
    # a zip reads no further than its declared size, so this also stops one that would unpack to terabytes
    longest = 16 * sum(len(file.encode()) + 32 for file in listed.line) + 2**20 if name == TXT else MAX_BYTES
    if size > longest:
        verdict.refusals.add("larger than any answer for this list", f"{name}: {size} bytes, limit {longest}")
        return
    seen = CHECKS[name](handle, name, listed, verdict)
    if seen is None:  # unreadable from some place on
        return
    verdict.answers[name] = len(seen)
    for file, line in listed.line.items():
        if file not in seen:
            verdict.refusals.add("a listed clip has no answer", f"{listed.name}:{line}: {file!r} is not in {name}")


# ------------------------------------------------------------------------------ Task 1


def check_txt(handle: BinaryIO, name: str, listed: Listed, verdict: Verdict) -> set[str] | None:
    """Check `name;score` lines; returns the listed clips that have a line, None where it cannot be read."""
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
        if file in first_line:
            verdict.refusals.add("a clip is answered twice", f"{place}: {file!r}, first in line {first_line[file]}")
        elif file not in listed.line:
            verdict.refusals.add("a name is not in the list", f"{place}: {file!r}{listed.hint(file)}")
        first_line.setdefault(file, number)
    if len(scores) > 1 and len(set(scores)) == 1:
        verdict.warnings.add("every clip has the same score: the AUC will be 0.5", f"{name}: {scores[0]}")
    if scores and all(score.isdigit() for score in scores):
        verdict.warnings.add("no score has a decimal point: the server may not take integers", name)
    return first_line.keys() & listed.line.keys()


def _fields(raw: bytes, place: str, verdict: Verdict) -> list[str] | None:
    """A line's fields, None for one that has no answer (a blank one is only worth a warning)."""
    try:
        line = raw.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        verdict.refusals.add("a line is no UTF-8 text", place)
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
        verdict.refusals.add("a line is not `name;score` (the separator is ';')", f"{place}: {line[:80]!r}")
        return None
    return fields


def _check_fields(fields: list[str], n_fields: int, place: str, verdict: Verdict) -> None:
    if len(fields) > n_fields:  # the server's reader takes the number of columns from the first line
        verdict.refusals.add("a line has more columns than the first one", place)
    elif len(fields) > 2:
        verdict.warnings.add("a column after the score; the server ignores it", place)
    if fields[1] != fields[1].strip():
        verdict.warnings.add("spaces around a score; the server takes them", place)


def _check_score(score: str, place: str, verdict: Verdict, *, maybe_header: bool) -> bool:
    if score.lower() in NOT_A_NUMBER or (NUMBER.fullmatch(score) and not math.isfinite(float(score))):
        kind = "a score is empty or not finite: the server would rank it above all others"
    elif not NUMBER.fullmatch(score):
        kind = "the first line is a header; the server wants none" if maybe_header else "a score is no number"
    elif not 0 <= float(score) <= 1:
        kind = "a score lies outside [0, 1]: the server would put a sigmoid on all, which ties the large"
    else:
        return True
    verdict.refusals.add(kind, f"{place}: {score[:80]!r}")
    return False


# ------------------------------------------------------------------------------ Task 2


def check_json(handle: BinaryIO, name: str, listed: Listed, verdict: Verdict) -> set[str] | None:
    """Check `{file: [[score, start_s, end_s], ...]}`; returns the listed clips it has, None if unreadable."""
    seen: set[str] = set()
    try:
        for file, rows in iter_clips(handle):
            place = f"{name}[{file!r}]"
            if file in seen:
                verdict.refusals.add("a clip is answered twice", place)
            elif file not in listed.line:
                verdict.refusals.add("a name is not in the list", f"{place}{listed.hint(file)}")
            seen.add(file)
            _check_rows(rows, place, listed.duration.get(file, math.nan), verdict)
    except (ValueError, RecursionError) as error:
        verdict.refusals.add("the evaluator cannot read this JSON", f"{name}: {error}")
        return None
    return seen & listed.line.keys()


def iter_clips(handle: BinaryIO, block: int = 1 << 23) -> Iterator[tuple[str, Any]]:
    """Yield (file, rows) of a prediction.json in order, a repeated key twice, from some MB of text at a time.

    Raises ValueError that says where the text is no JSON object. A cut between `]` and `"` can only be
    wrong inside a name or a row that is refused anyway.
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
            raise ValueError(f"line {line}: the answer for one clip is larger than {MAX_CLIP >> 20} MB")
    yield from _pairs(b"{" + text, line)


def _pairs(text: bytes, line: int) -> list[tuple[str, Any]]:
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=lambda pairs: pairs)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {line + error.lineno - 1}, column {error.colno}: {error.msg}") from None


def _check_rows(rows: Any, place: str, duration_s: float, verdict: Verdict) -> None:
    """Check one clip's proposals."""
    if problem := _row_problem(rows):
        verdict.refusals.add(problem, place)
        return
    warn = verdict.warnings.add
    table = np.array([row[:3] for row in rows], float)
    score, start, end = table.T
    if len(rows[0]) > 3:
        warn("a fourth column; the evaluator ignores it", place)
    if (np.diff(score) > 0).any():
        warn("rows are not sorted by falling score: both AP and AR take them in the order of the file", place)
    if len(rows) > MAX_ROWS:
        warn(f"more than {MAX_ROWS} rows: AR does not see the rest, AP does", f"{place}: {len(rows)}")
    if ((score < 0) | (score > 1)).any():
        warn("a score outside [0, 1]; the evaluator takes it", place)
    if ((start < 0) | (end > duration_s + TOLERANCE_S) | (start > end)).any():
        warn("a row is reversed or lies outside the clip: it can hardly match", place)
    if len(np.unique(table[:, 1:], axis=0)) < len(table):
        warn("a segment stands twice: every copy costs AP", place)


def _row_problem(rows: Any) -> str:
    """Why the evaluator would abort on a clip's rows, or ''."""
    if type(rows) is not list or not all(type(row) is list for row in rows):
        return "an answer is no list of [score, start, end] rows: the evaluator aborts"
    if not rows:
        return "an answer is an empty list: the evaluator aborts; write [[0.0, 0.0, 0.0]]"
    widths = {len(row) for row in rows}
    if len(widths) > 1 or not widths <= {3, 4}:
        return f"rows of {' and '.join(map(str, sorted(widths)))} columns, where 3 belong: the evaluator aborts"
    if not all(type(x) in (int, float) for row in rows for x in row):
        return "a value is no number: the evaluator aborts"
    if not all(map(math.isfinite, (x for row in rows for x in row))):
        return "a value is NaN or infinite: the evaluator aborts"
    return ""


def _variants(name: str) -> list[str]:
    """What a name is recognised by when it was written with another folder, extension, case or quotes."""
    bare = name.strip().strip("\"'").replace("\\", "/").lower()
    base = bare.rsplit("/", 1)[-1]
    return [bare, bare.rsplit(".", 1)[0], base, base.rsplit(".", 1)[0]]


CHECKS = {TXT: check_txt, JSON: check_json}
