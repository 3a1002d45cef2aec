"""Metadata entries and file names -> the rows of a data list, and what is wrong with them.

Knows the fields of AV-Deepfake1M, AV-Deepfake1M++ and LAV-DF, a plain `label`, and
testX_files.txt. Bad rows are faults, named with file and row; they do not stop the run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.lists import records
from klassify.lists.data_list import (
    FAKE,
    FAKE_AGAINST,
    KINDS,
    MEASURED,
    OPTIONAL,
    PEOPLE,
    SEGMENTS,
    TYPES,
    UNPRINTABLE,
    flat_segments,
    misshapen,
    parse_cells,
    possible,
    text_column,
    unprintable,
    unsafe_names,
    without_gc,
)
from klassify.lists.datasets import spellings
from klassify.lists.records import Fault

FPS, SAMPLE_RATE = 25.0, 16_000  # what the official metadata counts frames and samples in
FPS_RANGE = (0.01, 10_000.0)  # no clip's length may be computed with other frame rates
TOLERANCE_S = 0.2  # a segment may end this much after the clip: the metadata's counts are not exact
# what times may be instead of seconds: frames first, since few frames would fit as milliseconds
UNITS = {
    "frames at 25 per second": 0.04,
    "milliseconds": 0.001,
    "samples at 16 kHz": 1 / SAMPLE_RATE,
}
NEARLY_ALL = 0.9
UNSAFE = "unsafe file name"
NOT_PAIRS = "is not a list of [start, end]"
# ++ names the source corpus and the person in folders
DATASET = re.compile(r"(?:^|/)(vox_celeb_2|lrs3|silent_videos)/")
SPEAKER = re.compile(r"(?:^|/)(id\d{4,5}(?=/)|lrs3/[^/]+(?=/)|silent_videos/subject_\d+)")
LENGTHS = {"n_frames": "video_frames", "fps": "fps", "n_samples": "audio_frames"}


def read_metadata(source: Path, split: str) -> tuple[pd.DataFrame, list[Fault]]:
    """All clips of a split from a metadata file, a table, or a folder of sidecars or of labels,
    with their sources.

    Raises KlassifyError for unreadable files and where no entry is usable; single bad entries are
    faults.
    """
    faults: list[Fault] = []
    # the file of all splits, each entry with its own, as LAV-DF's
    all_splits = source.is_file() and source.name.split(".")[0] == "metadata"
    if source.is_dir() and records.label_folders(source):
        stream = iter([records.folder_records(source, split)])
    elif source.is_dir() and records.part_files(source):
        stream = iter([records.part_records(source)])
        all_splits = source.name not in spellings(split)
    elif source.is_dir():
        entries, faults = records.sidecar_records(source)
        stream = iter([entries])
    else:
        stream = records.read_entries(source)
    tables, row = [], 1
    with without_gc():
        for entries in stream:
            rows = range(row, row := row + len(entries))
            if all_splits:
                mine = [
                    not isinstance(r, dict) or r.get("split") in spellings(split) for r in entries
                ]
                rows = list(itertools.compress(rows, mine))
                entries = list(itertools.compress(entries, mine))
            table, more = tabulate(entries, rows)
            tables.append(table)
            faults += more
    frame, faults = usable_rows(pd.concat(tables, ignore_index=True), faults, source, split)
    original = frame.pop("original").tolist()
    found = clip_sources(frame["file"].tolist(), original, split)
    given = frame["source"].tolist()
    frame["source"] = text_column([own or path for own, path in zip(given, found)], frame.index)
    fakes = frame[frame["modify_type"] != "real"]
    if ((fakes if len(fakes) else frame)[SEGMENTS[0]] == "").all():
        _refuse_misshapen(faults, len(fakes), source)
        frame = frame.drop(columns=list(SEGMENTS))  # the split has clip labels alone
    frame = frame.drop(columns=[name for name in PEOPLE if (frame[name] == "").all()])
    return frame.reset_index(drop=True), faults


def _refuse_misshapen(faults: list[Fault], n_fakes: int, source: Path) -> None:
    """KlassifyError where nearly all fakes lost their segments because of their shape."""
    wrong = [fault for fault in faults if NOT_PAIRS in fault.problem]
    if len(wrong) > 1 and len(wrong) >= NEARLY_ALL * n_fakes:
        raise KlassifyError(
            f"The segments of {len(wrong)} of {n_fakes} fakes cannot be read. Row {wrong[0].row}:"
            f" {wrong[0].problem}.",
            where=source,
            fix="write seconds as [[start, end], ...], such as [[0.8, 1.2]]",
        )


def tabulate(entries: list[Any], rows: Sequence[int]) -> tuple[pd.DataFrame, list[Fault]]:
    """Metadata entries -> the columns of a data list, and what was wrong.

    Has `row`, and `original` beside `source`; segments are JSON text, "" where unknown.
    """
    faults: list[Fault] = []
    usable = [isinstance(r, dict) and isinstance(r.get("file"), str) for r in entries]
    faults += [
        Fault(n, "", "the entry has no file name", "skipped")
        for n, ok in zip(rows, usable)
        if not ok
    ]
    rows, entries = (
        list(itertools.compress(rows, usable)),
        list(itertools.compress(entries, usable)),
    )
    table = pd.DataFrame({"row": rows, "file": [r["file"] for r in entries]}, dtype=object)
    _tabulate_lengths(table, entries, faults)
    table["modify_type"] = text_column(map(_modify_type, entries))
    for name in ("original", "source", *OPTIONAL):
        table[name] = text_column(str(r.get(name) or "") for r in entries)
    _tabulate_segments(table, entries, faults)
    for name, pattern in (("dataset", DATASET), ("speaker", SPEAKER)):
        found = [pattern.search(file) for file in table["file"]]
        table[name] = text_column(
            given or (match[1] if match else "") for given, match in zip(table[name], found)
        )
    unknown = ~table["modify_type"].isin(KINDS)
    for row, file, kind in table.loc[unknown, ["row", "file", "modify_type"]].itertuples(
        index=False
    ):
        faults.append(Fault(row, file, _unknown_type(kind), "skipped"))
    return table[~unknown], faults


def _unknown_type(kind: str) -> str:
    if kind in ("0", "1", "True", "False"):
        return f"label {kind} may mean real or fake: write the word"
    return f"unknown modify_type {kind!r} (known: {', '.join(KINDS)})"


def _modify_type(entry: dict[str, Any]) -> str:
    """AV-Deepfake1M names the type (some code writes "both-modified"), LAV-DF has two flags, others
    a `label`. A `fake` is of the modality that its segments tell.
    """
    kind = entry.get("modify_type")
    if kind is None:
        video, audio = entry.get("modify_video"), entry.get("modify_audio")
        if isinstance(video, bool) and isinstance(audio, bool):
            return TYPES[2 * video + audio]
        kind = entry.get("label")
    kind = "" if kind is None else str(kind).replace("-", "_")
    if kind not in KINDS:
        kind = kind.lower()
    if kind == FAKE:
        audio, visual = entry.get("audio_fake_segments"), entry.get("visual_fake_segments")
        if audio is not None and visual is not None and (audio or visual):
            kind = TYPES[2 * bool(visual) + bool(audio)]
    return kind


def _tabulate_lengths(
    table: pd.DataFrame, entries: list[dict[str, Any]], faults: list[Fault]
) -> None:
    """Add the measured columns; impossible values are emptied, and no clip is skipped for them."""
    for name in MEASURED:
        key = LENGTHS.get(name, name)
        given = pd.Series([r.get(key, r.get(name)) for r in entries], dtype=object)
        values = pd.to_numeric(given, errors="coerce").astype(float)
        good = possible(name, values) & (values.between(*FPS_RANGE) if name == "fps" else True)
        table[name] = values.where(good)
        for i in np.flatnonzero(given.notna() & ~good):
            problem = f"{key} cannot be {str(given[i])[:80]}: emptied"
            faults.append(Fault(table["row"][i], table["file"][i], problem, "repaired"))
    table["fps"] = table["fps"].fillna(FPS)
    table["duration"] = table["duration"].fillna(table["n_frames"] / table["fps"])


def _tabulate_segments(
    table: pd.DataFrame, entries: list[dict[str, Any]], faults: list[Fault]
) -> None:
    """Add the three segment columns as JSON text; empty all three of a clip where one is
    impossible.

    The labels of Task 1 may not depend on segments, so no clip is skipped for them. AV-Deepfake1M
    repeats a segment in the column of the untouched modality of some thousand clips: emptied here.
    """
    rows, files, types = (table[name].tolist() for name in ("row", "file", "modify_type"))
    union = [r.get("fake_segments", r.get("fake_periods")) for r in entries]
    columns = {"fake_segments": union}
    for modality in ("audio", "visual"):
        name, touched = f"{modality}_fake_segments", (*FAKE_AGAINST[modality], FAKE)
        own = [r.get(name) for r in entries]
        for i, (cell, kind) in enumerate(zip(own, types)):
            if cell and kind in KINDS and kind not in touched:
                problem = f"{name} of a clip that is {kind}: emptied"
                faults.append(Fault(rows[i], files[i], problem, "repaired"))
        columns[name] = [
            None if u is None else [] if kind not in touched else _of_modality(u, cell, kind)
            for u, cell, kind in zip(union, own, types)
        ]
    for i, problem in sorted(_segment_problems(columns, types).items()):
        faults.append(Fault(rows[i], files[i], problem, "segments dropped"))
        for cells in columns.values():
            cells[i] = None
    for name, cells in columns.items():
        table[name] = text_column(
            "" if c is None else "[]" if not c else orjson.dumps(c).decode() for c in cells
        )


def _of_modality(union: Any, own: Any, kind: str) -> Any:
    """The segments of a modality that was changed: its own, or all; unknown for a plain `fake`."""
    return own if own is not None or kind == FAKE else union


def _segment_problems(columns: dict[str, list[Any]], types: list[str]) -> dict[int, str]:
    """{position: what is wrong}: no [start, end] lists, reversed times, a type that disagrees."""
    problems: dict[int, str] = {}
    flat: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, cells in columns.items():
        for i in misshapen(cells):
            problems.setdefault(i, f"{name} {NOT_PAIRS}: {cells[i]!r:.80}")
        owner, times = flat_segments(
            [None if i in problems else cell for i, cell in enumerate(cells)]
        )
        start, end = times.T
        for k in np.flatnonzero(~((start >= 0) & (start < end) & (end < np.inf))):
            problems.setdefault(int(owner[k]), f"{name} has [{start[k]:g}, {end[k]:g}]")
        flat[name] = owner, times
    for name in SEGMENTS[1:]:
        for i in _outside(*flat[name], *flat["fake_segments"]):
            problems.setdefault(i, f"{name} has a segment outside fake_segments")
    for i, (kind, cell) in enumerate(zip(types, columns["fake_segments"])):
        if cell is not None and kind in KINDS and (kind == "real") == bool(cell):
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
    # longer than any clip, so that owners do not mix on one time axis
    shift = 1e6 + np.max([*times.flat, *union.flat])
    order = np.lexsort((union[:, 0], union_owner))
    starts = union[order, 0] + shift * union_owner[order]
    # the latest end among those that start no later: it covers the segment if any does
    ends = np.maximum.accumulate(
        np.concatenate([[-1.0], union[order, 1] + shift * union_owner[order]])
    )
    before = np.searchsorted(starts, times[:, 0] + shift * owner + 5e-3, side="right")
    return owner[ends[before] < times[:, 1] + shift * owner - 5e-3].tolist()


def drop_late_segments(frame: pd.DataFrame, source: Path) -> tuple[pd.DataFrame, list[Fault]]:
    """Empty the segments of clips in which one ends after the clip, once the lengths are known.

    KlassifyError where nearly all are far too late: they are in another unit.
    """
    if SEGMENTS[0] not in frame:
        return frame, []
    lengths = frame[["duration", "n_samples"]].astype(float)
    length = np.fmax(lengths["duration"], lengths["n_samples"] / SAMPLE_RATE).to_numpy()
    limit = np.where(np.isnan(length), np.inf, length + TOLERANCE_S)
    found: dict[int, str] = {}
    for name in SEGMENTS:
        owner, times = flat_segments(parse_cells(frame[name].tolist())[0])
        if name == SEGMENTS[0]:
            _refuse_other_units(owner, times[:, 1], limit, source)
        for k in np.flatnonzero(times[:, 1] > limit[owner]):
            i, (start, end) = int(owner[k]), times[k]
            found.setdefault(i, f"{name} has [{start:g}, {end:g}] in a clip of {length[i]:g} s")
    frame = frame.copy(deep=False)
    frame.loc[frame.index[list(found)], list(SEGMENTS)] = ""
    faults = [
        Fault(frame["row"].iat[i], frame["file"].iat[i], problem, "segments dropped")
        for i, problem in sorted(found.items())
    ]
    return frame, faults


def _refuse_other_units(
    owner: np.ndarray, ends: np.ndarray, limit: np.ndarray, source: Path
) -> None:
    """owner: (n,) the clip of each segment; ends: (n,) when it ends; limit: of each clip, in s."""
    last = pd.Series(ends).groupby(owner).max()
    far = last[last > 2 * limit[last.index]]
    if far.empty or len(far) < NEARLY_ALL * len(last):
        return
    for unit, seconds in UNITS.items():
        if (far * seconds <= limit[far.index]).all():
            first = far.index[0]
            raise KlassifyError(
                f"{len(far)} of {len(last)} clips with segments end before their segments do, as if"
                f" the times were {unit}: one ends at {far[first]:g} in a clip of"
                f" {limit[first] - TOLERANCE_S:g} s.",
                where=source,
                fix=f"write seconds: {far[first] * seconds:g} instead of {far[first]:g}",
            )


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
    name = name.removeprefix("./")
    for spelling in spellings(split):
        name = name.removeprefix(f"{spelling}/")
    stem, dot, extension = name.rpartition(".")
    return stem if dot and "/" not in extension else name


def read_names(path: Path) -> tuple[pd.DataFrame, list[Fault]]:
    """A testX_files.txt: one name per line. Each needs an answer: a bad one is an error."""
    names = records.read_text(path).split("\n")
    lines = text_column(names, pd.RangeIndex(1, len(names) + 1)).str.rstrip("\r")
    lines = lines[lines != ""]
    for bad, why in ((unsafe_names(lines), "unsafe"), (lines.duplicated(), "repeated")):
        if bad.any():
            named = first_few(f"line {n}: {name!r}" for n, name in lines[bad].items())
            raise KlassifyError(f"{int(bad.sum())} names are {why}: {named}.", where=path)
    if lines.empty:
        raise KlassifyError("This file list is empty.", where=path)
    return pd.DataFrame({"row": lines.index, "file": lines.to_numpy(object)}), []


def usable_rows(
    frame: pd.DataFrame, faults: list[Fault], source: Path, split: str
) -> tuple[pd.DataFrame, list[Fault]]:
    """The rows with a safe name that appeared nowhere before, and all faults in order;
    KlassifyError if no row is left.

    Control characters in other texts are replaced: a list cannot hold them.
    """
    faults = list(faults)
    checks = (unsafe_names, UNSAFE), (pd.Series.duplicated, "this file appeared before")
    for check, problem in checks:
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
            clean = frame[name].str.replace(UNPRINTABLE, "\ufffd", regex=True)
            frame[name] = clean.astype(object)  # equal ones stay equal
    faults.sort(key=lambda fault: fault.row)
    if frame.empty:
        first = f"; the first fault: row {faults[0].row}, {faults[0].problem}" if faults else ""
        raise KlassifyError(
            f"No entry for the split {split!r} can be used{first}.",
            where=source,
            fix=(
                "write names relative to the media folder, without .., ; or quotes"
                if faults and faults[0].problem == UNSAFE
                else None
            ),
        )
    return frame, faults
