"""Official metadata and file names -> the rows of a data list, and what is wrong with them.

Reads the lists of AV-Deepfake1M and AV-Deepfake1M++ (one JSON a split, or one beside each video),
LAV-DF's fields, and testX_files.txt. Bad rows are faults, named with file and row, never an end of
the run. (FakeAVCeleb's CSV is read in fakeavceleb.py; lists.py turns rows and faults into files.)
"""

from __future__ import annotations

import dataclasses
import itertools
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.grid.ragged import row_offsets
from klassify.grid.segments import Truth
from klassify.lists.data_list import (
    FAKE_AGAINST,
    MEASURED,
    OPTIONAL,
    SEGMENTS,
    TYPES,
    UNPRINTABLE,
    possible,
    repeated_names,
    unprintable,
    unsafe_names,
)
from klassify.lists.segment_cells import flat_segments, misshapen, without_gc
from klassify.untrusted import refuse_irregular

FPS, SAMPLE_RATE = 25.0, 16_000  # what the official metadata counts frames and samples in
FPS_RANGE = (
    0.01,
    10_000.0,
)  # what is beyond is not a frame rate, and no clip's length may be computed with it
TOLERANCE_S = 0.2  # a segment may end this much after the clip: the metadata's counts are not exact
# ++ names the source corpus and the person in folders
DATASET = re.compile(r"(?:^|/)(vox_celeb_2|lrs3|silent_videos)/")
SPEAKER = re.compile(r"(?:^|/)(id\d{4,5}(?=/)|lrs3/[^/]+(?=/)|silent_videos/subject_\d+)")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One wrong entry. `row` counts from 1; `action`: skipped, kept, segments dropped or
    repaired.
    """

    row: int
    file: str
    problem: str
    action: str


def iter_records(path: str | os.PathLike, block: int = 1 << 23) -> Iterator[list[Any]]:
    """Yield the elements of a JSON array of objects in lists of about `block` bytes, in order.

    The 1.1 M entries of train_metadata.json (557 MB) would take gigabytes as one tree of dicts.
    A cut between `}` and `{` is right exactly if the text before it parses: inside a string or a
    nested array it leaves a bracket or a quote open.
    """
    refuse_irregular(path)
    with open(path, "rb") as handle:
        if os.fstat(handle.fileno()).st_size == 0:
            raise KlassifyError("This metadata file is empty.", where=path)
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as text:
            start = re.match(rb"(?:\xef\xbb\xbf)?\s*", text).end()
            if text[start : start + 1] != b"[":
                raise KlassifyError("This metadata is not a JSON list of clips.", where=path)
            start += 1
            if start == len(text):
                raise KlassifyError("This metadata ends after its first bracket.", where=path)
            cut = re.compile(rb"\}\s*(,)\s*(?=\{)")
            while start < len(text):
                records, start = _next_block(text, start, block, cut, path)
                yield records


def _next_block(
    text: mmap.mmap, start: int, block: int, cut: re.Pattern, path: object
) -> tuple[list[Any], int]:
    position = start + block
    for _ in range(
        1000
    ):  # a wrong cut is rare, so is a second one; a broken file must not be tried at each
        found = cut.search(text, position) if position < len(text) else None
        if found is None:
            break
        try:
            return orjson.loads(b"[" + text[start : found.start(1)] + b"]"), found.end(1)
        except orjson.JSONDecodeError:
            position = found.end(1)
    try:
        return orjson.loads(b"[" + text[start:]), len(text)
    except orjson.JSONDecodeError as error:
        line = text[:start].count(b"\n") + error.lineno
        raise KlassifyError(
            f"This metadata is not readable JSON: {error}.", where=f"{path}:{line}"
        ) from None


def sidecar_files(folder: Path) -> list[Path]:
    """What is named as a per-video JSON file below a folder, in the order of the names."""
    return sorted(folder.rglob("*.json"))


def sidecar_records(folder: Path) -> tuple[list[dict[str, Any]], list[Fault]]:
    """The per-video JSON files below a folder, in the order of their names; an unreadable one is
    a fault.
    """
    records, faults = [], []
    for row, path in enumerate(sidecar_files(folder), 1):
        name = path.relative_to(folder).with_suffix(".mp4").as_posix()
        if not os.path.isfile(path):  # a pipe would be waited for
            faults.append(Fault(row, name, "its JSON is not a regular file", "skipped"))
            continue
        try:
            record = orjson.loads(path.read_bytes())
        except (orjson.JSONDecodeError, OSError) as error:
            faults.append(Fault(row, name, f"its JSON is not readable: {error}", "skipped"))
            continue
        if isinstance(record, dict):
            records.append({"file": name} | record)
        else:
            faults.append(Fault(row, name, "its JSON is not an object", "skipped"))
    return records, faults


def tabulate(records: list[Any], rows: Sequence[int]) -> tuple[pd.DataFrame, list[Fault]]:
    """Metadata entries (AV-Deepfake1M, ++ or LAV-DF) -> the columns of a data list, and what was
    wrong.

    Has `original` in place of `source`, and `row`; segments are JSON text, "" where unknown.
    """
    faults: list[Fault] = []
    usable = [isinstance(r, dict) and isinstance(r.get("file"), str) for r in records]
    faults += [
        Fault(n, "", "the entry has no file name", "skipped")
        for n, ok in zip(rows, usable)
        if not ok
    ]
    rows, records = (
        list(itertools.compress(rows, usable)),
        list(itertools.compress(records, usable)),
    )
    table = pd.DataFrame({"row": rows, "file": [r["file"] for r in records]}, dtype=object)
    _tabulate_lengths(table, records, faults)
    table["modify_type"] = [_modify_type(r) for r in records]
    for name in ("original", *OPTIONAL):
        table[name] = [str(r.get(name) or "") for r in records]
    _tabulate_segments(table, records, faults)
    for name, pattern in (("dataset", DATASET), ("speaker", SPEAKER)):
        table[name] = [
            given or (found[1] if (found := pattern.search(file)) else "")
            for given, file in zip(table[name], table["file"])
        ]
    unknown = ~table["modify_type"].isin(TYPES)
    for row, file, kind in table.loc[unknown, ["row", "file", "modify_type"]].itertuples(
        index=False
    ):
        faults.append(Fault(row, file, f"unknown modify_type {kind!r}", "skipped"))
    return table[~unknown], faults


def _modify_type(record: dict[str, Any]) -> str:
    """AV-Deepfake1M names the type (some code writes "both-modified"); LAV-DF has two flags."""
    if "modify_type" in record:
        return str(record["modify_type"]).replace("-", "_")
    video, audio = record.get("modify_video"), record.get("modify_audio")
    if not (isinstance(video, bool) and isinstance(audio, bool)):
        return ""
    return TYPES[2 * video + audio]


def _tabulate_lengths(
    table: pd.DataFrame, records: list[dict[str, Any]], faults: list[Fault]
) -> None:
    """Add the measured columns; what no clip can have is emptied, which no clip is skipped for."""
    for name, key in zip(MEASURED, ("video_frames", "fps", "audio_frames", "duration")):
        given = pd.Series([r.get(key) for r in records], dtype=object)
        values = pd.to_numeric(given, errors="coerce").astype(float)
        good = possible(name, values) & (values.between(*FPS_RANGE) if name == "fps" else True)
        table[name] = values.where(good)
        for i in np.flatnonzero(given.notna() & ~good):
            problem = f"{key} cannot be {str(given[i])[:80]}: emptied"
            faults.append(Fault(table["row"][i], table["file"][i], problem, "repaired"))
    table["fps"] = table["fps"].fillna(FPS)
    table["duration"] = table["duration"].fillna(table["n_frames"] / table["fps"])


def _tabulate_segments(
    table: pd.DataFrame, records: list[dict[str, Any]], faults: list[Fault]
) -> None:
    """Add the three segment columns as JSON text; blank all three of a clip where one is
    impossible.

    The labels of Task 1 may not depend on segments, so no clip is skipped for them. AV-Deepfake1M
    repeats a segment in the column of the untouched modality of some thousand clips: emptied here.
    """
    rows, files, types = (table[name].tolist() for name in ("row", "file", "modify_type"))
    limit = (
        np.fmax(table["duration"], table["n_samples"] / SAMPLE_RATE).fillna(np.inf).to_numpy()
        + TOLERANCE_S
    )
    union = [r.get("fake_segments", r.get("fake_periods")) for r in records]
    columns = {"fake_segments": union}
    for modality in ("audio", "visual"):
        name, touched = f"{modality}_fake_segments", FAKE_AGAINST[modality]
        own = [r.get(name) for r in records]
        for i, (cell, kind) in enumerate(zip(own, types)):
            if cell and kind in TYPES and kind not in touched:
                faults.append(
                    Fault(
                        rows[i], files[i], f"{name} of a clip that is {kind}: emptied", "repaired"
                    )
                )
        columns[name] = [
            None if u is None else [] if kind not in touched else u if cell is None else cell
            for u, cell, kind in zip(union, own, types)
        ]
    for i, problem in sorted(_segment_problems(columns, limit, types).items()):
        faults.append(Fault(rows[i], files[i], problem, "segments dropped"))
        for cells in columns.values():
            cells[i] = None
    for name, cells in columns.items():
        table[name] = [
            "" if c is None else "[]" if not c else orjson.dumps(c).decode() for c in cells
        ]


def _segment_problems(
    columns: dict[str, list[Any]], limit_s: np.ndarray, types: list[str]
) -> dict[int, str]:
    """{position: what is wrong}: no [start, end] lists, impossible times, a type that disagrees."""
    problems: dict[int, str] = {}
    flat: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, cells in columns.items():
        for i in misshapen(cells):
            problems.setdefault(i, f"{name} is not a list of [start, end]: {str(cells[i])[:80]}")
        owner, times = flat_segments(
            [None if i in problems else cell for i, cell in enumerate(cells)]
        )
        start, end = times.T
        for k in np.flatnonzero(~((start >= 0) & (start < end) & (end <= limit_s[owner]))):
            what = (
                f"{name} has [{start[k]:g}, {end[k]:g}] in a clip of"
                f" {limit_s[owner[k]] - TOLERANCE_S:g} s"
            )
            problems.setdefault(int(owner[k]), what)
        flat[name] = owner, times
    for name in SEGMENTS[1:]:
        for i in _outside(*flat[name], *flat["fake_segments"]):
            problems.setdefault(i, f"{name} has a segment that lies outside fake_segments")
    for i, (kind, cell) in enumerate(zip(types, columns["fake_segments"])):
        if cell is not None and kind in TYPES and (kind == "real") == bool(cell):
            problems.setdefault(
                i, f"modify_type is {kind}, but fake_segments {'is not' if cell else 'is'} empty"
            )
    return problems


def _outside(
    owner: np.ndarray, times: np.ndarray, union_owner: np.ndarray, union: np.ndarray
) -> list[int]:
    """Owners of a segment that no segment of the union covers (5 ms of rounding allowed)."""
    if not len(owner):
        return []
    shift = 1e6  # seconds; longer than any clip, so that owners do not mix on one time axis
    order = np.lexsort((union[:, 0], union_owner))
    starts = union[order, 0] + shift * union_owner[order]
    # the latest end among those that start no later: it covers the segment if any does
    ends = np.maximum.accumulate(
        np.concatenate([[-1.0], union[order, 1] + shift * union_owner[order]])
    )
    before = np.searchsorted(starts, times[:, 0] + shift * owner + 5e-3, side="right")
    return owner[ends[before] < times[:, 1] + shift * owner - 5e-3].tolist()


def clip_sources(files: Sequence[str], originals: Sequence[str], split: str) -> list[str]:
    """The id of each clip's original, one for a real clip, its perturbed parts and all fakes made
    of them.

    `original` of a fake names its real, that of a part (`real_p1`) the whole clip, that of a whole
    clip the video it was cut from, or nothing. It is followed from clip to clip to the end; the id
    is the last path reached, without its extension and without a leading split folder.
    """
    own, up = ([_path_id(name, split) for name in names] for names in (files, originals))
    parent = {clip: original for clip, original in zip(own, up) if original and original != clip}
    sources = []
    for source in own:
        for _ in range(8):  # deeper than any chain; ends where two clips name each other
            if source not in parent:
                break
            source = parent[source]
        sources.append(source)
    return sources


def _path_id(name: str, split: str) -> str:
    name = name.removeprefix("./").removeprefix(f"{split}/")
    stem, dot, extension = name.rpartition(".")
    return stem if dot and "/" not in extension else name


def read_names(path: Path) -> tuple[pd.DataFrame, list[Fault]]:
    """A testX_files.txt: a name a line, blank lines allowed. Each needs an answer, so a bad one
    is fatal.
    """
    refuse_irregular(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        number, line = next(
            (n, x) for n, x in enumerate(path.read_bytes().splitlines(), 1) if not _is_utf8(x)
        )
        raise KlassifyError(
            f"A name of this file list is not UTF-8 text: {line!r}.", where=f"{path}:{number}"
        ) from None
    lines = pd.Series(text.split("\n"), index=range(1, text.count("\n") + 2)).str.rstrip("\r")
    lines = lines[lines != ""]
    for bad, why in ((unsafe_names(lines), "unsafe"), (repeated_names(lines), "repeated")):
        if bad.any():
            names = first_few(f"line {n}: {name!r}" for n, name in lines[bad].items())
            raise KlassifyError(f"{int(bad.sum())} names are {why}: {names}.", where=path)
    if lines.empty:
        raise KlassifyError("This file list is empty.", where=path)
    return pd.DataFrame({"row": lines.index, "file": lines.to_numpy()}), []


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_metadata(source: Path, split: str) -> tuple[pd.DataFrame, list[Fault]]:
    """All clips of a split from a metadata JSON or a folder of sidecars, checked, with their
    sources.

    Raises KlassifyError for unreadable JSON and where no entry is usable; single bad entries are
    faults.
    """
    faults: list[Fault] = []
    if source.is_dir():
        records, faults = sidecar_records(source)
        stream = iter([records])
    else:
        stream = iter_records(source)
    one_of_all = source.name in (
        "metadata.json",
        "metadata.min.json",
    )  # LAV-DF: all splits in one file
    names = {split, {"val": "dev", "dev": "val"}.get(split, split)}
    tables, row = [], 1
    with without_gc():
        for records in stream:
            rows = range(row, row := row + len(records))
            if one_of_all:
                mine = [not isinstance(r, dict) or r.get("split") in names for r in records]
                records, rows = (
                    list(itertools.compress(records, mine)),
                    list(itertools.compress(rows, mine)),
                )
            table, more = tabulate(records, rows)
            tables.append(table)
            faults += more
    frame, faults = usable_rows(pd.concat(tables, ignore_index=True), faults, source, split)
    frame["source"] = clip_sources(frame["file"].tolist(), frame.pop("original").tolist(), split)
    return frame.reset_index(drop=True), faults


def usable_rows(
    frame: pd.DataFrame, faults: list[Fault], source: Path, split: str
) -> tuple[pd.DataFrame, list[Fault]]:
    """The rows with a safe name that stood nowhere before, and all faults in order; KlassifyError
    if none is left.

    Control characters in other texts are replaced: a list cannot hold them.
    """
    faults = list(faults)
    for check, problem in (
        (unsafe_names, "unsafe file name"),
        (repeated_names, "this file stood here before"),
    ):
        bad = check(frame["file"])
        faults += [
            Fault(*entry, problem, "skipped")
            for entry in zip(frame["row"][bad], frame["file"][bad])
        ]
        frame = frame[~bad]
    frame = frame.copy(deep=False)
    for name in ("original", "source", *OPTIONAL):
        if name in frame and (bad := unprintable(frame[name])).any():
            problem = f"control characters in {name}: replaced"
            faults += [
                Fault(*entry, problem, "repaired")
                for entry in zip(frame["row"][bad], frame["file"][bad])
            ]
            frame[name] = frame[name].str.replace(
                UNPRINTABLE, "\ufffd", regex=True
            )  # equal ones stay equal
    faults.sort(key=lambda fault: fault.row)
    if frame.empty:
        first = f"; the first fault: row {faults[0].row}, {faults[0].problem}" if faults else ""
        raise KlassifyError(f"No entry for the split {split!r} can be used{first}.", where=source)
    return frame, faults


def truth_from_metadata(path: str | os.PathLike, column: str = "fake_segments") -> Truth:
    """The true segments of a metadata JSON, a list of objects with `file` and `column`."""
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
