"""What describes the clips of a split, as dicts with the fields of the official metadata.

Read are a JSON array of objects, JSON lines, one object that maps names to objects, one JSON file
per video or per folder, a CSV or TSV table, and folders named after labels. Text is UTF-8 or, with
a byte order mark, UTF-16; NaN is unknown. A bad entry is a fault, named with its row and file.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import mmap
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from klassify.errors import KlassifyError, first_few
from klassify.grid.ragged import row_offsets
from klassify.grid.segments import Truth
from klassify.lists import datasets
from klassify.lists.data_list import COLUMNS, KINDS, SEGMENTS, utf16_as_utf8
from klassify.media.container import media_below
from klassify.untrusted import refuse_irregular

TABLES = (".csv", ".tsv")
NAME_COLUMNS = ("file", "path", "filename", "video")
# of the official metadata, of LAV-DF and of data lists
FIELDS = (
    *COLUMNS,
    *("label", "split", "original", "video_frames", "audio_frames"),
    *("fake_periods", "modify_video", "modify_audio"),
)
EXAMPLE = '[{"file": "a.mp4", "modify_type": "real"}, ...]'
BETWEEN_ITEMS = re.compile(rb"\}\s*(,)\s*(?=\{)")
BETWEEN_LINES = re.compile(rb"\}[ \t\r]*(\n)\s*(?=\{)")
TEXT_OR_NAN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\b(?:NaN|Infinity)\b')


@dataclasses.dataclass(frozen=True)
class Fault:
    """One wrong entry. row: from 1. action: skipped, kept, segments dropped or repaired."""

    row: int
    file: str
    problem: str
    action: str


def parse_json(text: bytes) -> Any:
    """JSON in which NaN and Infinity, as Python and pandas write them, are null."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        if b"NaN" not in text and b"Infinity" not in text:
            raise
    return orjson.loads(
        TEXT_OR_NAN.sub(lambda found: found[0] if found[0][:1] == b'"' else b"null", text)
    )


def read_entries(path: Path) -> Iterator[list[Any]]:
    """Yield the entries of a JSON file or a table, in order, in lists of some MB."""
    return iter([table_records(path)]) if path.suffix in TABLES else iter_records(path)


def iter_records(path: str | os.PathLike, block: int = 1 << 23) -> Iterator[list[Any]]:
    """Yield the entries of a metadata file in lists of about `block` bytes, in order.

    The 1.1 M entries of train_metadata.json (557 MB) would take gigabytes as one tree of dicts.
    A cut between `}` and `{` is right exactly if the text before it parses: inside a string or a
    nested array it leaves a bracket or a quote open.
    """
    refuse_irregular(path)
    with open(path, "rb") as handle:
        if os.fstat(handle.fileno()).st_size == 0:
            raise KlassifyError("This metadata file is empty.", where=path)
        text = utf16_as_utf8(path) or mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        start = re.match(rb"(?:\xef\xbb\xbf)?\s*", text).end()
        first = text[start : start + 1]
        if first == b"{" and not BETWEEN_LINES.search(text, start):
            yield _records_of_object(_parsed(text, start, len(text), path), path)
            return
        if first not in (b"[", b"{"):
            what = f"This metadata is not JSON: it begins with {bytes(text[start : start + 20])!r}."
            raise KlassifyError(what, where=path, fix=f"write {EXAMPLE}")
        lines = first == b"{"
        start += not lines
        if start == len(text):
            raise KlassifyError("This metadata is truncated after its first bracket.", where=path)
        while start < len(text):
            records, start = _next_block(text, start, block, path, lines=lines)
            yield records


def _next_block(
    text: Any, start: int, block: int, path: object, *, lines: bool
) -> tuple[list[Any], int]:
    cut, position = BETWEEN_LINES if lines else BETWEEN_ITEMS, start + block
    for _ in range(1000):  # a wrong cut is rare; a broken file must not be tried at each
        found = cut.search(text, position) if position < len(text) else None
        if found is None:
            break
        try:
            chunk = _as_items(text[start : found.start(1)], lines=lines)
            return parse_json(b"[" + chunk + b"]"), found.end(1)
        except orjson.JSONDecodeError:
            position = found.end(1)
    return _parsed(text, start, len(text), path, lines=lines), len(text)


def _as_items(text: bytes, *, lines: bool) -> bytes:
    """Objects on lines of their own, separated by commas as in an array."""
    return re.sub(rb"\}([ \t\r]*\n\s*)(?=\{)", rb"},\1", text) if lines else text


def _parsed(text: Any, start: int, end: int, path: object, *, lines: bool | None = None) -> Any:
    """The rest of a file as JSON; errors name the line. lines: as in `_next_block`, or None."""
    rest = text[start:end]
    if lines is not None:
        rest = b"[" + (_as_items(rest, lines=True) + b"]" if lines else rest)
    try:
        return parse_json(rest)
    except orjson.JSONDecodeError as error:
        line = text[:start].count(b"\n") + error.lineno
        fix = "correct that line, or write the file with json.dump"
        if "end of data" in error.msg:
            fix = "copy or download it again: its end is missing"
        elif b"\0" in rest[:100]:
            fix = "save the file as UTF-8"
        raise KlassifyError(
            f"This metadata is not valid JSON: {error}.", where=f"{path}:{line}", fix=fix
        ) from None


def _records_of_object(content: dict[str, Any], path: object) -> list[Any]:
    """The entries of a file that is one object: an entry, or entries by name."""
    if isinstance(content.get("file"), str):
        return [content]
    if not content or not all(isinstance(entry, dict) for entry in content.values()):
        raise KlassifyError(
            f"This metadata is not a list of clips, but an object with {first_few(content) or 'no'}"
            " as keys.",
            where=path,
            fix=f'write {EXAMPLE} or {{"a.mp4": {{"modify_type": "real"}}, ...}}',
        )
    return [{"file": name} | entry for name, entry in content.items()]


def sidecar_files(folder: Path) -> list[Path]:
    """What is named as a per-video JSON file below a folder, in the order of the names."""
    return sorted(folder.rglob("*.json"))


def sidecar_records(folder: Path) -> tuple[list[dict[str, Any]], list[Fault]]:
    """The per-video JSON files below a folder, by name; an unreadable one is a fault."""
    records, faults = [], []
    for row, path in enumerate(sidecar_files(folder), 1):
        name = path.relative_to(folder).with_suffix(".mp4").as_posix()
        if not os.path.isfile(path):  # a pipe would be waited for
            faults.append(Fault(row, name, "its JSON is not a regular file", "skipped"))
            continue
        try:
            record = parse_json(utf16_as_utf8(path) or path.read_bytes())
        except (orjson.JSONDecodeError, OSError, KlassifyError) as error:
            faults.append(Fault(row, name, f"its JSON is not readable: {error}", "skipped"))
            continue
        if isinstance(record, dict):
            records.append({"file": name} | record)
        else:
            faults.append(Fault(row, name, "its JSON is not an object", "skipped"))
    return records, faults


def part_files(folder: Path) -> list[Path]:
    """The metadata of folders that are parts of a data set, as dfdc_train_part_0 of DFDC is."""
    return sorted(folder.glob("*/metadata.json"))


def part_records(folder: Path) -> list[dict[str, Any]]:
    """The entries of part folders; `file` and `original` begin with the part's name."""
    records = []
    parts = part_files(folder)
    described = {path.parent for path in parts} | {folder / name for name in datasets.FOLDERS}
    if others := [x.name for x in folder.iterdir() if x not in described and media_below(x)[0]]:
        print(f"without metadata.json, so not read: {first_few(sorted(others))}", file=sys.stderr)
    for path in parts:
        for entry in itertools.chain.from_iterable(iter_records(path)):
            if isinstance(entry, dict):
                names = {name: entry[name] for name in ("file", "original") if entry.get(name)}
                entry = entry | {key: f"{path.parent.name}/{name}" for key, name in names.items()}
            records.append(entry)
    return records


def table_records(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV or TSV with a header: `file`, `label` or `modify_type`, and any field of
    the metadata or of a data list; segments as JSON.
    """
    text = io.StringIO(read_text(path), newline="")
    header = text.readline()
    text.seek(0)
    table = csv.DictReader(text, delimiter=max("\t,;", key=header.count))
    names = [name.strip().lower() for name in table.fieldnames or []]
    named = next((name for name in NAME_COLUMNS if name in names), None)
    if named is None or not {"label", "modify_type"} & set(names):
        raise KlassifyError(
            f"The header of this table is {first_few(names, 20)!r}.",
            where=path,
            fix="name its columns file,label (label: real or fake), and fake_segments if known",
        )
    if unread := [name for name in names if name not in (*FIELDS, named)]:
        print(f"{path}: columns that are not read: {first_few(unread)}", file=sys.stderr)
    table.fieldnames = ["file" if name == named else name for name in names]
    try:
        return [_entry_of_row(row) for row in table]
    except csv.Error as error:
        raise KlassifyError(f"This table cannot be read: {error}.", where=path) from None


def _entry_of_row(row: dict[str, Any]) -> dict[str, Any]:
    entry = {name: text.strip() for name, text in row.items() if name and text and text.strip()}
    for name in set(SEGMENTS) & set(entry):
        try:
            entry[name] = orjson.loads(entry[name])
        except orjson.JSONDecodeError:
            continue  # reported as segments that cannot be read
    return entry


def label_folders(folder: Path) -> list[Path]:
    """The folders below one that are named after a label: real, Fake, audio_modified, ..."""
    return [
        folder / name
        for kind in KINDS
        for name in (kind, kind.capitalize(), kind.upper())
        if (folder / name).is_dir()
    ]


def folder_records(folder: Path, split: str) -> list[dict[str, Any]]:
    """The media in folders named after labels. A fake named as a real clip was made from it."""
    records = []
    reals = set()
    for below in label_folders(folder):
        for path in media_below(below)[0]:
            name = path.relative_to(below).as_posix()
            kind = below.name.lower()
            if kind == "real":
                reals.add(name)
            original = "real" if name in reals else kind
            source = f"{split}/{original}/{os.path.splitext(name)[0]}"
            entry = {"file": f"{below.name}/{name}", "modify_type": kind, "source": source}
            records.append(entry)
    return records


def read_text(path: Path) -> str:
    """A text file in UTF-8, or UTF-16 with a byte order mark; KlassifyError for anything else."""
    refuse_irregular(path)
    content = utf16_as_utf8(path) or path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n")
        line = content.split(b"\n")[number].rstrip(b"\r")
        raise KlassifyError(
            f"This line is not UTF-8 text: {line!r}.",
            where=f"{path}:{number + 1}",
            fix="save the file as UTF-8",
        ) from None


def truth_from_metadata(path: str | os.PathLike, column: str = "fake_segments") -> Truth:
    """The true segments of a metadata JSON, whose entries have `file` and `column`."""
    parts = [Truth.from_cells([], [])]
    for entries in iter_records(path):
        try:
            parts.append(
                Truth.from_cells([x["file"] for x in entries], [x[column] for x in entries])
            )
        except (KeyError, TypeError, ValueError) as error:
            problem = f"An entry lacks `file` or a list `{column}` of pairs ({error!r})."
            raise KlassifyError(problem, where=path) from None
    files = np.concatenate([part.files for part in parts])
    segments = np.concatenate([part.segments for part in parts])
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    return Truth(files, row_offsets(counts), segments)
