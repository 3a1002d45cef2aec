"""Data lists: official metadata or file lists -> one TSV a split, one clip a row (stage 0).

    klassify lists --data avdeepfake1mpp --root /data/AV-Deepfake1M++ --out data_lists/avdeepfake1mpp

Columns: `file` (as the metadata or testX_files.txt names it), the measured `n_frames fps n_samples
duration` (samples at 16 kHz, seconds), `modify_type`, `source` (id of the clip's original), and, for
localisation only, `fake_segments audio_fake_segments visual_fake_segments` (JSON arrays of
[start_s, end_s)). `audio_model video_model speaker dataset` are for reports, never model inputs.
data_lists/README.md describes the columns, what is read, and what happens to bad rows.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import gc
import hashlib
import itertools
import math
import mmap
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from klassify.errors import KlassifyError, some
from klassify.files import already_done, file_hash, read_json, whole_file, write_json

DATASETS = ("avdeepfake1mpp", "avdeepfake1m", "lavdf", "demo")
MEASURED = ("n_frames", "fps", "n_samples", "duration")
LABELS = ("modify_type", "source")
SEGMENTS = ("fake_segments", "audio_fake_segments", "visual_fake_segments")
OPTIONAL = ("audio_model", "video_model", "speaker", "dataset")
COLUMNS = ("file", *MEASURED, *LABELS, *SEGMENTS, *OPTIONAL)
TYPES = ("real", "audio_modified", "visual_modified", "both_modified")
FAKE_AGAINST = {
    "video": ("audio_modified", "visual_modified", "both_modified"),
    "audio": ("audio_modified", "both_modified"),
    "visual": ("visual_modified", "both_modified"),
}
FIT_SHARE, FIT_AT_LEAST = 0.4, 3  # of val's sources, for what is fitted after training
FPS, SAMPLE_RATE = 25.0, 16_000  # what the official metadata counts frames and samples in
TOLERANCE_S = 0.2  # a segment may end this much after the clip: the metadata's counts are not exact
# ++ names the source corpus and the person in folders
DATASET = re.compile(r"(?:^|/)(vox_celeb_2|lrs3|silent_videos)/")
SPEAKER = re.compile(r"(?:^|/)(id\d{4,5}(?=/)|lrs3/[^/]+(?=/)|silent_videos/subject_\d+)")
# control characters break the TSV, ';' and '"' break prediction.txt, '/' and '..' leave the media folder
UNSAFE_NAME = re.compile(r"""^$|^(?:[A-Za-z]:)?[/\\]|[\x00-\x1f\x7f;"]|(?:^|[/\\])\.\.(?:[/\\]|$)|^\s|\s$""")
PLAIN_NAME = re.compile(r"[\w-]+(?:[./][\w-]+)*")


# ------------------------------------------------------------------------------ reading and writing


def read_list(path: str | os.PathLike, *, segments: bool = False) -> pd.DataFrame:
    """Read and validate a data list.

    Always has `file n_frames fps n_samples duration modify_type source`: text is str ("" = unknown),
    counts are Int64, `fps` and `duration` float (NA = unknown); the optional columns where the file
    has them. The segment columns are dropped unless `segments=True`, so that Task 1 code cannot see
    them; then each cell is a list of [start_s, end_s], or None where the segments are unknown.
    Raises KlassifyError for a repeated or unsafe name, an unknown modify_type, a cell that is no number.
    """
    path = Path(path)
    if not path.exists():
        raise KlassifyError("This data list does not exist.", where=path, mend="make it with `klassify lists`")
    wanted = set(COLUMNS) if segments else set(COLUMNS) - set(SEGMENTS)
    frame = _read_columns(path, wanted)
    _refuse(frame, _unsafe(frame["file"]), "unsafe file name", path)
    _refuse(frame, _repeated(frame["file"]), "a file stands here twice", path)
    for name in MEASURED:
        frame[name] = _numbers(frame, name, path)
    for name in LABELS:
        frame[name] = (
            frame[name].str.replace("-", "_") if name == "modify_type" and name in frame else frame.get(name, "")
        )
    _refuse(frame, ~frame["modify_type"].isin([*TYPES, ""]), f"modify_type is none of {', '.join(TYPES)}", path)
    if segments:
        for name in SEGMENTS:
            frame[name] = _parse_segments(frame, name, path)
    return frame[[name for name in COLUMNS if name in frame]]


def _read_columns(path: Path, wanted: set[str]) -> pd.DataFrame:
    """The wanted columns of a TSV as text. (pandas would fill short rows and cut long ones in silence.)"""
    import pyarrow as pa
    from pyarrow import csv

    with open(path, encoding="utf-8", errors="replace") as handle:
        header = handle.readline().rstrip("\n").split("\t")
    if "file" not in header or len(set(header)) < len(header):
        raise KlassifyError("This is no data list: its header needs `file`, each column once.", where=path)
    names = [name for name in header if name in wanted]
    try:
        table = csv.read_csv(
            path,
            parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()),
                include_columns=names,
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise KlassifyError(f"This data list cannot be parsed: {error}.", where=path) from None
    return pd.DataFrame({name: table[name].to_pylist() for name in names}, dtype=object)


def write_list(path: str | os.PathLike, frame: pd.DataFrame) -> None:
    """Write a data list, whole or not at all; known columns only, segments as JSON arrays."""
    unknown = set(frame.columns) - set(COLUMNS)
    if unknown or "file" not in frame:
        raise KlassifyError(f"A data list has no columns {sorted(unknown)} and needs `file`.", where=path)
    _refuse(frame, _unsafe(frame["file"]), "unsafe file name", path)
    _refuse(frame, _repeated(frame["file"]), "a file stands here twice", path)
    names = [name for name in COLUMNS if name in frame]
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8", newline="") as handle:
        handle.write("\t".join(names) + "\n")
        rows = zip(*(_cells(frame[name]) for name in names))
        handle.writelines("\t".join(row) + "\n" for row in rows)


def _cells(column: pd.Series) -> list[str]:
    """A column as text: shortest exact numbers, compact JSON, "" for unknown."""
    if column.name in SEGMENTS:
        return ["" if x is None else x if isinstance(x, str) else orjson.dumps(x).decode() for x in column]
    if column.name in MEASURED:
        values = pd.to_numeric(column).to_numpy(float, na_value=np.nan)
        return ["" if math.isnan(x) else repr(int(x)) if x.is_integer() else repr(x) for x in values.tolist()]
    return column.fillna("").astype(str).tolist()


def _numbers(frame: pd.DataFrame, name: str, path: Path) -> pd.Series:
    text = frame[name] if name in frame else pd.Series("", index=frame.index)
    values = pd.to_numeric(text.where(text != ""), errors="coerce").astype(float)
    bad = (text != "") & ~(np.isfinite(values) & (values >= 0))
    if name in ("n_frames", "n_samples"):
        bad |= values.notna() & (values % 1 != 0)
    _refuse(frame, bad, f"{name} is no number that it can be", path)
    return values.astype("Int64") if name in ("n_frames", "n_samples") else values


def _parse_segments(frame: pd.DataFrame, name: str, path: Path) -> pd.Series:
    text = frame[name] if name in frame else pd.Series("", index=frame.index)
    try:  # one parse of all cells is many times faster than a parse a cell
        cells = orjson.loads("[" + ",".join(x or "null" for x in text) + "]")
        if len(cells) == len(text):
            return pd.Series(cells, index=frame.index, dtype=object)
    except orjson.JSONDecodeError:
        pass
    bad = [bool(x) and not re.fullmatch(r"\[[\d\s.,eE+\-\[\]]*\]", x) for x in text]
    _refuse(frame, pd.Series(bad, index=frame.index), f"{name} is no JSON array", path)
    raise KlassifyError(f"The column {name} is no JSON.", where=path)


def _unsafe(names: pd.Series) -> pd.Series:
    # nearly all names are plain, and that is ten times as fast to see
    bad = [not PLAIN_NAME.fullmatch(name) and bool(UNSAFE_NAME.search(name)) for name in names]
    return pd.Series(bad, index=names.index, dtype=bool)


def _repeated(names: pd.Series) -> pd.Series:
    return names.duplicated()


def _refuse(frame: pd.DataFrame, bad: pd.Series, why: str, path: object) -> None:
    if bad.any():
        names = some(f"row {i + 1} ({frame['file'].iloc[i]!r})" for i in np.flatnonzero(bad)[:50])
        raise KlassifyError(f"{int(bad.sum())} of {len(frame)} rows are wrong: {why}: {names}.", where=path)


# ------------------------------------------------------------------------------ subsets and labels


def fit_sources(sources: Sequence[str]) -> set[str]:
    """The sources of val_fit: ids ranked by SHA-256, the first 40 % of them rounded up, at least 3.

    Ranking by a hash of the id needs no seed, and adding a clip never moves another one.
    """
    ranked = sorted(set(sources), key=lambda source: hashlib.sha256(source.encode()).digest())
    n_fit = max(math.ceil(FIT_SHARE * len(ranked) - 1e-9), FIT_AT_LEAST)
    if "" in ranked or n_fit >= len(ranked):
        why = "some clips have no source" if "" in ranked else f"it has {len(ranked)} sources"
        raise KlassifyError(
            f"val cannot be split by source: {why}; val_fit needs {FIT_AT_LEAST}, val_report at least one.",
            mend="use a larger val list (demo: size=default), or make the list again with `klassify lists`",
        )
    return set(ranked[:n_fit])


def _fit(frame: pd.DataFrame) -> pd.Series:
    return frame["source"].isin(fit_sources(frame["source"]))


def _leaking_fit(frame: pd.DataFrame) -> pd.Series:
    return frame["file"].isin(fit_sources(frame["file"]))


# name: (split, the rule in words, rows it keeps); a clip of unknown length is in no length subset
SUBSETS: dict[str, tuple[str, str, Callable[[pd.DataFrame], pd.Series]]] = {
    "train_video": (
        "train",
        "at most 256 frames (paper 1, 4.1)",
        lambda f: f["n_frames"].le(256).fillna(False),
    ),
    "train_audio": ("train", "shorter than 6 s (paper 1, 4.2)", lambda f: f["duration"].lt(6.0)),
    "train_bam": ("train", "at most 6 s (paper 1, 4.3)", lambda f: f["duration"].le(6.0)),
    "val_fit": ("val", "40 % of the sources, for calibration and tuning", _fit),
    "val_report": (
        "val",
        "the other 60 % of the sources, for early stopping and numbers",
        lambda f: ~_fit(f),
    ),
    "val_fit_leaking": ("val", "40 % of the clips, LEAKING: sources lie on both sides", _leaking_fit),
    "val_report_leaking": (
        "val",
        "60 % of the clips, LEAKING: sources lie on both sides",
        lambda f: ~_leaking_fit(f),
    ),
}


def base_split(split: str) -> str:
    """The split that a named subset is taken from; a split is its own."""
    return SUBSETS[split][0] if split in SUBSETS else split


def list_path(data_dir: str | os.PathLike, split: str) -> Path:
    """The TSV that holds a split or the split of a named subset."""
    return Path(data_dir) / f"{base_split(split)}.tsv"


def load_split(data_dir: str | os.PathLike, split: str, *, segments: bool = False) -> pd.DataFrame:
    """The list `<data_dir>/<split>.tsv`, or a named subset of one (SUBSETS), as `read_list` gives it."""
    path, rule = list_path(data_dir, split), SUBSETS[split][2] if split in SUBSETS else None
    if not path.exists():
        lists = sorted(p.stem for p in Path(data_dir).glob("*.tsv") if "." not in p.stem)
        known = some(lists + [name for name, subset in SUBSETS.items() if subset[0] in lists], limit=20)
        raise KlassifyError(
            f"There is no list for split {split!r}; there are: {known or 'none'}.",
            where=path,
            mend="make stage0",
        )
    frame = read_list(path, segments=segments)
    if rule is None:
        return frame
    kept = frame[rule(frame).to_numpy(bool)].reset_index(drop=True)
    if kept.empty:
        raise KlassifyError(
            f"The subset {split!r} is empty: no clip of {len(frame)} fits its rule ({SUBSETS[split][1]}).",
            where=path,
            mend="if the lengths are unknown, make the list again with `klassify lists --probe missing`",
        )
    return kept


def label(frame: pd.DataFrame, against: str) -> np.ndarray:
    """Clip labels, (n,) int64, 1 = fake, from `modify_type` alone.

    against: "video" (anything fake), "audio" (audio_modified | both_modified) or "visual"
    (visual_modified | both_modified). An unlabelled clip is a KlassifyError.
    """
    if against not in FAKE_AGAINST:
        raise KlassifyError(f"There is no label {against!r}; there are {', '.join(FAKE_AGAINST)}.")
    unknown = ~frame["modify_type"].isin(TYPES)
    _refuse(frame, unknown, "no label (modify_type is empty)", "data list")
    return frame["modify_type"].isin(FAKE_AGAINST[against]).to_numpy(np.int64)


# ------------------------------------------------------------------------------ official metadata


@dataclasses.dataclass(frozen=True)
class Fault:
    """One wrong entry. `row` counts from 1; `action`: skipped, kept, segments dropped or repaired."""

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
    with open(path, "rb") as handle:
        if os.fstat(handle.fileno()).st_size == 0:
            raise KlassifyError("This metadata file is empty.", where=path)
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as text:
            start = re.match(rb"(?:\xef\xbb\xbf)?\s*", text).end()
            if text[start : start + 1] != b"[":
                raise KlassifyError("This metadata is no JSON list of clips.", where=path)
            start += 1
            cut = re.compile(rb"\}\s*(,)\s*(?=\{)")
            while start < len(text):
                records, start = _next_block(text, start, block, cut, path)
                yield records


def _next_block(text: mmap.mmap, start: int, block: int, cut: re.Pattern, path: object) -> tuple[list[Any], int]:
    position = start + block
    for _ in range(1000):  # a wrong cut is rare, so is a second one; a broken file must not be tried at each
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
        raise KlassifyError(f"This metadata is not readable JSON: {error}.", where=f"{path}:{line}") from None


def _without_gc(blocks: Iterator[list[Any]]) -> Iterator[list[Any]]:
    """Pass blocks on with the garbage collector off, which would walk millions of new containers."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield from blocks
    finally:
        if was_on:
            gc.enable()


def sidecar_records(folder: Path) -> tuple[list[dict[str, Any]], list[Fault]]:
    """The per-video JSON files below a folder, in the order of their names; an unreadable one is a fault."""
    records, faults = [], []
    for row, path in enumerate(sorted(folder.rglob("*.json")), 1):
        name = path.relative_to(folder).with_suffix(".mp4").as_posix()
        try:
            record = orjson.loads(path.read_bytes())
        except (orjson.JSONDecodeError, OSError) as error:
            faults.append(Fault(row, name, f"its JSON is not readable: {error}", "skipped"))
            continue
        if isinstance(record, dict):
            records.append({"file": name} | record)
        else:
            faults.append(Fault(row, name, "its JSON is no object", "skipped"))
    return records, faults


def tabulate(records: list[Any], rows: Sequence[int]) -> tuple[pd.DataFrame, list[Fault]]:
    """Metadata entries (AV-Deepfake1M, ++ or LAV-DF) -> the columns of a data list, and what was wrong.

    Has `original` in place of `source`, and `row`; segments are JSON text, "" where unknown.
    """
    faults: list[Fault] = []
    usable = [isinstance(r, dict) and isinstance(r.get("file"), str) for r in records]
    faults += [Fault(n, "", "the entry has no file name", "skipped") for n, ok in zip(rows, usable) if not ok]
    rows, records = list(itertools.compress(rows, usable)), list(itertools.compress(records, usable))
    table = pd.DataFrame({"row": rows, "file": [r["file"] for r in records]}, dtype=object)
    for name, key in zip(MEASURED, ("video_frames", "fps", "audio_frames", "duration")):
        values = pd.to_numeric(pd.Series([r.get(key) for r in records], dtype=object), errors="coerce").astype(float)
        table[name] = values.where(np.isfinite(values) & (values >= 0))
    table["fps"] = table["fps"].fillna(FPS)
    table["duration"] = table["duration"].fillna(table["n_frames"] / table["fps"])
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
    for row, file, kind in table.loc[unknown, ["row", "file", "modify_type"]].itertuples(index=False):
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


def _tabulate_segments(table: pd.DataFrame, records: list[dict[str, Any]], faults: list[Fault]) -> None:
    """Add the three segment columns as JSON text; blank all three of a clip where one is impossible.

    The labels of Task 1 may not depend on segments, so no clip is skipped for them. AV-Deepfake1M
    repeats a segment in the column of the untouched modality of some thousand clips: emptied here.
    """
    rows, files, types = (table[name].tolist() for name in ("row", "file", "modify_type"))
    limit = np.fmax(table["duration"], table["n_samples"] / SAMPLE_RATE).fillna(np.inf).to_numpy() + TOLERANCE_S
    union = [r.get("fake_segments", r.get("fake_periods")) for r in records]
    columns = {"fake_segments": union}
    for modality in ("audio", "visual"):
        name, touched = f"{modality}_fake_segments", FAKE_AGAINST[modality]
        own = [r.get(name) for r in records]
        for i, (cell, kind) in enumerate(zip(own, types)):
            if cell and kind in TYPES and kind not in touched:
                faults.append(Fault(rows[i], files[i], f"{name} of a clip that is {kind}: emptied", "repaired"))
        columns[name] = [
            None if u is None else [] if kind not in touched else u if cell is None else cell
            for u, cell, kind in zip(union, own, types)
        ]
    for i, problem in sorted(_segment_problems(columns, limit, types).items()):
        faults.append(Fault(rows[i], files[i], problem, "segments dropped"))
        for cells in columns.values():
            cells[i] = None
    for name, cells in columns.items():
        table[name] = ["" if c is None else "[]" if not c else orjson.dumps(c).decode() for c in cells]


def _segment_problems(columns: dict[str, list[Any]], limit_s: np.ndarray, types: list[str]) -> dict[int, str]:
    """{position: what is wrong}: no [start, end] lists, impossible times, a type that disagrees."""
    problems: dict[int, str] = {}
    flat: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, cells in columns.items():
        if not _all_well_formed(cells):  # rare, so only then are cells looked at one by one
            for i in (i for i, cell in enumerate(cells) if not _all_well_formed([cell])):
                problems.setdefault(i, f"{name} is no list of [start, end]: {str(cells[i])[:80]}")
        sound = [() if not cell or i in problems else cell for i, cell in enumerate(cells)]
        owner = np.repeat(np.arange(len(cells)), [len(cell) for cell in sound])
        times = np.array(list(itertools.chain.from_iterable(sound)), float).reshape(-1, 2)
        start, end = times.T
        for k in np.flatnonzero(~((start >= 0) & (start < end) & (end <= limit_s[owner]))):
            what = f"{name} has [{start[k]:g}, {end[k]:g}] in a clip of {limit_s[owner[k]] - TOLERANCE_S:g} s"
            problems.setdefault(int(owner[k]), what)
        flat[name] = owner, times
    for name in SEGMENTS[1:]:
        for i in _outside(*flat[name], *flat["fake_segments"]):
            problems.setdefault(i, f"{name} has a segment that lies outside fake_segments")
    for i, (kind, cell) in enumerate(zip(types, columns["fake_segments"])):
        if cell is not None and kind in TYPES and (kind == "real") == bool(cell):
            problems.setdefault(i, f"modify_type is {kind}, but fake_segments {'is not' if cell else 'is'} empty")
    return problems


def _all_well_formed(cells: list[Any]) -> bool:
    """Whether each cell is a list of pairs of numbers (or None); by sets of types, as in C."""
    if not set(map(type, cells)) <= {list, type(None)}:
        return False
    pairs = list(itertools.chain.from_iterable(filter(None, cells)))
    return (
        set(map(type, pairs)) <= {list}
        and set(map(len, pairs)) <= {2}
        and set(map(type, itertools.chain.from_iterable(pairs))) <= {int, float}
    )


def _outside(owner: np.ndarray, times: np.ndarray, union_owner: np.ndarray, union: np.ndarray) -> list[int]:
    """Owners of a segment that no segment of the union covers (5 ms of rounding allowed)."""
    if not len(owner):
        return []
    shift = 1e6  # seconds; longer than any clip, so that owners do not mix on one time axis
    order = np.lexsort((union[:, 0], union_owner))
    starts = union[order, 0] + shift * union_owner[order]
    # the latest end among those that start no later: it covers the segment if any does
    ends = np.maximum.accumulate(np.concatenate([[-1.0], union[order, 1] + shift * union_owner[order]]))
    before = np.searchsorted(starts, times[:, 0] + shift * owner + 5e-3, side="right")
    return owner[ends[before] < times[:, 1] + shift * owner - 5e-3].tolist()


def clip_sources(files: Sequence[str], originals: Sequence[str], split: str) -> list[str]:
    """The id of each clip's original, one for a real clip, its perturbed parts and all fakes made of them.

    `original` of a fake names its real, that of a part (`real_p1`) the whole clip, that of a whole clip
    the video it was cut from, or nothing. It is followed from clip to clip to the end; the id is the last
    path reached, without its extension and without a leading split folder.
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


# ------------------------------------------------------------------------------ where things lie


def media_folder(root: str | os.PathLike, split: str, files: Sequence[str] = ()) -> Path:
    """The folder that the `file` column of a split is relative to.

    Archives unpack to `root/train/train` or `root/train`; LAV-DF names "train/000001.mp4" below the root.
    With `files` the folder is the one that holds most of a sample of them; KlassifyError where none does.
    Without, it is the deepest that exists.
    """
    root = Path(root)
    folders = [root / split / split, root / split, root]
    if not len(files):
        return next((folder for folder in folders if folder.is_dir()), root)
    sample = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, 50).astype(int))]
    held = [sum((folder / name).exists() for name in sample) for folder in folders]
    if not any(held):
        raise KlassifyError(
            f"None of {len(sample)} sampled files of split {split!r} is there, such as {sample[0]!r}.",
            where=f"looked in {some(folders)}",
            mend="unpack the media below the root, or give the right --root",
        )
    return folders[int(np.argmax(held))]


def _inputs(root: Path, split: str) -> list[Path]:
    """What describes a split: its metadata, a metadata file of all splits, a list of names, or sidecars."""
    for name in (f"{split}_metadata.json", f"{split}_files.txt", "metadata.json", "metadata.min.json"):
        if (root / name).is_file():
            return [root / name]
    for folder in (root / f"{split}_metadata", media_folder(root, split)):
        if folder != root and next(folder.rglob("*.json"), None):
            return [folder]
    return []


def _splits(root: Path) -> list[str]:
    """The splits that the root describes, in the order train, val, then by name."""
    found = {p.name.removesuffix(end) for end in ("_metadata.json", "_files.txt") for p in root.glob(f"*{end}")}
    found |= {name for name in ("train", "val", "dev", "test") if (root / name).is_dir() and _inputs(root, name)}
    return sorted(found, key=lambda name: (name not in ("train", "val", "dev"), name))


# ------------------------------------------------------------------------------ the command


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, choices=DATASETS, help="which data set this is")
    parser.add_argument("--root", required=True, type=Path, help="folder of metadata, file lists and media")
    parser.add_argument("--out", required=True, type=Path, help="folder of the lists, such as data_lists/demo")
    parser.add_argument("--splits", help="comma-separated; default: all that the root describes")
    parser.add_argument(
        "--probe", choices=("none", "missing", "all"), default="none",
        help="open no file; those of unknown length (and look whether every file is there); or all",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that probe")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when any entry was wrong")
    parser.add_argument("--force", action="store_true", help="replace lists that were made from other inputs")


def run(args: argparse.Namespace) -> int:
    if not args.root.is_dir():
        raise KlassifyError("The root folder does not exist.", where=args.root)
    splits = args.splits.split(",") if args.splits else _splits(args.root)
    if not splits:
        raise KlassifyError("There is neither metadata nor a file list here.", where=args.root)
    n_faults = 0
    for split in splits:
        if not re.fullmatch(r"\w+", split) or split in SUBSETS:
            raise KlassifyError(f"{split!r} cannot be the name of a split.")
        inputs = _inputs(args.root, split)
        if not inputs:
            known = some(_splits(args.root)) or "none"
            raise KlassifyError(f"Nothing describes the split {split!r}; there are: {known}.", where=args.root)
        n_faults += make_list(inputs[0], args.out / f"{split}.tsv", split, args)
        labels = args.root / "heldout" / f"{split}_metadata.json"
        if labels.exists():
            n_faults += make_list(labels, args.out / "heldout" / f"{split}_labels.tsv", split, args)
    return 1 if args.strict and n_faults else 0


def make_list(source: Path, path: Path, split: str, args: argparse.Namespace) -> int:
    """Write one list with its record (.json) and its faults (.failures.tsv); returns the number of faults."""
    made_with = {"input": source.name, "hash": _fingerprint(source), "probe": args.probe, "split": split}
    record_path, faults_path = path.with_suffix(".json"), path.with_suffix(".failures.tsv")
    record = read_json(record_path) if path.exists() and record_path.exists() else None
    if already_done(path, record and record["made_with"], made_with, force=args.force):
        print(f"{path}: done before")
        return sum(record["faults"].values())
    frame, faults = read_names(source) if source.suffix == ".txt" else read_metadata(source, split)
    try:
        media = media_folder(args.root, split, frame["file"].tolist())
    except KlassifyError:
        if args.probe != "none":
            raise
        media = None
    if media and args.probe != "none":
        frame, more = measure(frame, media, everything=args.probe == "all", jobs=args.jobs)
        faults = sorted([*faults, *more], key=lambda fault: fault.row)
    write_list(path, frame[[name for name in COLUMNS if name in frame]])
    _write_faults(faults_path, faults)
    types = frame["modify_type"].value_counts().to_dict() if "modify_type" in frame else {}
    actions = dict(collections.Counter(fault.action for fault in faults))
    record = {"data": args.data, "split": split, "media": str(media) if media else None, "clips": len(frame)}
    write_json(record_path, record | {"types": types, "faults": actions, "made_with": made_with})
    kinds = ", ".join(f"{types[name]} {name}" for name in TYPES if name in types) or "without labels"
    print(f"{path}: {len(frame)} clips ({kinds}); media {media or 'not found'}")
    if faults:
        counts = ", ".join(f"{n} {action}" for action, n in actions.items())
        print(f"  {len(faults)} entries were wrong ({counts}), see {faults_path}", file=sys.stderr)
    return len(faults)


def _fingerprint(source: Path) -> str:
    if source.is_file():
        return file_hash(source)
    digest = hashlib.sha256()
    for path in sorted(source.rglob("*.json")):
        stat = path.stat()
        digest.update(f"{path.relative_to(source)}\t{stat.st_size}\t{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _write_faults(path: Path, faults: list[Fault]) -> None:
    if not faults:
        path.unlink(missing_ok=True)
        return
    table = pd.DataFrame([dataclasses.asdict(fault) for fault in faults])
    for name in ("file", "problem"):
        table[name] = table[name].map(lambda text: re.sub(r"[\x00-\x1f\x7f]", "\ufffd", text))
    with whole_file(path) as partial:
        table.to_csv(partial, sep="\t", index=False, lineterminator="\n")


def read_names(path: Path) -> tuple[pd.DataFrame, list[Fault]]:
    """A testX_files.txt: a name a line, blank lines allowed. Each needs an answer, so a bad one is fatal."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise KlassifyError(f"This file list is no UTF-8 text: {error}.", where=path) from None
    lines = pd.Series(text.split("\n"), index=range(1, text.count("\n") + 2)).str.rstrip("\r")
    lines = lines[lines != ""]
    for bad, why in ((_unsafe(lines), "unsafe"), (_repeated(lines), "repeated")):
        if bad.any():
            names = some(f"line {n}: {name!r}" for n, name in lines[bad].items())
            raise KlassifyError(f"{int(bad.sum())} names are {why}: {names}.", where=path)
    if lines.empty:
        raise KlassifyError("This file list is empty.", where=path)
    return pd.DataFrame({"row": lines.index, "file": lines.to_numpy()}), []


def read_metadata(source: Path, split: str) -> tuple[pd.DataFrame, list[Fault]]:
    """All clips of a split from a metadata JSON or a folder of sidecars, checked, with their sources.

    Raises KlassifyError for unreadable JSON and where no entry is usable; single bad entries are faults.
    """
    faults: list[Fault] = []
    if source.is_dir():
        records, faults = sidecar_records(source)
        stream = iter([records])
    else:
        stream = iter_records(source)
    one_of_all = source.name in ("metadata.json", "metadata.min.json")  # LAV-DF: all splits in one file
    names = {split, {"val": "dev", "dev": "val"}.get(split, split)}
    tables, row = [], 1
    for records in _without_gc(stream):
        rows = range(row, row := row + len(records))
        if one_of_all:
            mine = [not isinstance(r, dict) or r.get("split") in names for r in records]
            records, rows = list(itertools.compress(records, mine)), list(itertools.compress(rows, mine))
        table, more = tabulate(records, rows)
        tables.append(table)
        faults += more
    frame = pd.concat(tables, ignore_index=True)
    for check, problem in ((_unsafe, "unsafe file name"), (_repeated, "this file stood here before")):
        bad = check(frame["file"])
        faults += [Fault(*entry, problem, "skipped") for entry in zip(frame["row"][bad], frame["file"][bad])]
        frame = frame[~bad]
    faults.sort(key=lambda fault: fault.row)
    if frame.empty:
        first = f"; the first fault: row {faults[0].row}, {faults[0].problem}" if faults else ""
        raise KlassifyError(f"No entry for the split {split!r} can be used{first}.", where=source)
    frame["source"] = clip_sources(frame["file"].tolist(), frame.pop("original").tolist(), split)
    return frame.reset_index(drop=True), faults


def measure(frame: pd.DataFrame, media: Path, *, everything: bool, jobs: int = 1) -> tuple[pd.DataFrame, list[Fault]]:
    """Fill the measured columns from the files' headers: where one is unknown, or of every clip.

    A missing or unreadable file stays in the list, since every clip needs an answer, and is a fault.
    """
    from tqdm import tqdm

    frame = frame.assign(**{name: frame.get(name, np.nan) for name in MEASURED})
    paths = [media / name for name in frame["file"]]
    exists = np.fromiter((path.is_file() for path in paths), bool, len(paths))
    faults = [
        Fault(*entry, f"no such file in {media}", "kept")
        for entry in zip(frame["row"][~exists], frame["file"][~exists])
    ]
    wanted = np.flatnonzero(exists & (everything | frame[list(MEASURED)].isna().any(axis=1).to_numpy()))
    values = frame[list(MEASURED)].to_numpy(float)
    bar = {"disable": not len(wanted), "mininterval": 0.5 if sys.stderr.isatty() else 60.0, "desc": "probe"}
    for i, found in tqdm(zip(wanted, _probe_all([paths[i] for i in wanted], jobs)), total=len(wanted), **bar):
        if isinstance(found, str):
            faults.append(Fault(frame["row"].iat[i], frame["file"].iat[i], found, "kept"))
        else:
            values[i] = found if everything else np.where(np.isnan(values[i]), found, values[i])
    frame[list(MEASURED)] = values
    return frame, faults


def _probe_all(paths: list[Path], jobs: int) -> Iterator[tuple[float, ...] | str]:
    if jobs <= 1 or len(paths) < 64:
        yield from map(_probe, paths)
        return
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(_probe, paths, chunksize=16)


def _probe(path: Path) -> tuple[float, ...] | str:
    from klassify import media

    try:
        info = media.probe(path)
    except KlassifyError as error:
        return error.what
    return info.n_frames, info.fps, info.n_samples, info.duration
