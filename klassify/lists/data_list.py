"""The data list: one TSV per split, one row per clip; its columns, its reader and its writer.

Columns: `file` (as the metadata or testX_files.txt names it), the measured `n_frames fps n_samples
duration` (samples at 16 kHz, seconds), `modify_type`, `source` (id of the clip's original), and,
for localisation only, `fake_segments audio_fake_segments visual_fake_segments` (JSON arrays of
[start_s, end_s)). `audio_model video_model speaker dataset race gender language` are for reports,
never model inputs.
`klassify lists` makes them; docs/files.md describes them for people.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import gc
import io
import itertools
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.files import similar, whole_file
from klassify.untrusted import refuse_cut, refuse_irregular

MEASURED = ("n_frames", "fps", "n_samples", "duration")
COUNTS = ("n_frames", "n_samples")
LABELS = ("modify_type", "source")
SEGMENTS = ("fake_segments", "audio_fake_segments", "visual_fake_segments")
SEGMENTS_OF = dict(zip(("video", "audio", "visual"), SEGMENTS))  # by label
PEOPLE = ("race", "gender", "language")  # as the data set names them, for tables by group
OPTIONAL = ("audio_model", "video_model", "speaker", "dataset", *PEOPLE)
COLUMNS = ("file", *MEASURED, *LABELS, *SEGMENTS, *OPTIONAL)
TYPES = ("real", "audio_modified", "visual_modified", "both_modified")
FAKE = "fake"  # in a modality that is unknown: a label of the clip, and of neither modality
KINDS = (*TYPES, FAKE)  # of modify_type
FAKE_AGAINST = {
    "video": ("audio_modified", "visual_modified", "both_modified", FAKE),
    "audio": ("audio_modified", "both_modified"),
    "visual": ("visual_modified", "both_modified"),
}
# control characters break the TSV; surrogates stand for bytes that are not UTF-8
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
# ';' and '"' break prediction.txt, '/' and '..' leave the media folder
UNSAFE_NAME = re.compile(
    rf"""{UNPRINTABLE.pattern}|^$|^(?:[A-Za-z]:)?[/\\]|[;"]|(?:^|[/\\])\.\.(?:[/\\]|$)|^\s|\s$"""
)
MOST_BLOCK = 1 << 30  # bytes that are parsed at once; a line cannot be longer
PLAIN_NAME = re.compile(r"[\w-]+(?:[./][\w-]+)*")


def text_column(values: Iterable[str], index: pd.Index | None = None) -> pd.Series:
    """Texts as an object column, whatever pandas would make of them."""
    return pd.Series(list(values), index, dtype=object)


def read_list(path: str | os.PathLike, *, segments: bool | Collection[str] = False) -> pd.DataFrame:
    """Read and validate a data list.

    Always has `file n_frames fps n_samples duration modify_type source`: text is str in object
    columns ("" = unknown), counts are Int64, `fps` and `duration` float (NA = unknown); the
    optional columns where the file has them. Of the segment columns only those named in `segments`
    are read (True: all), so that Task 1 code cannot see them; each cell is a list of
    [start_s, end_s], or None where the segments are unknown. `attrs["path"]` is its path. Raises
    KlassifyError for a repeated or unsafe name, an unknown modify_type, and impossible numbers or
    segments.
    """
    path = Path(path)
    if not path.exists():
        # of a split beside others, the list may not be made yet
        fix = None if path.parent.is_dir() else similar(path)
        what = "This data list does not exist."
        raise KlassifyError(what, where=path, fix=fix or "make it with `klassify lists`")
    columns = SEGMENTS if segments is True else tuple(segments or ())
    frame = _typed(_read_columns(path, {*COLUMNS} - {*SEGMENTS} | {*columns}), path, columns)
    frame.attrs["path"] = str(path)  # for messages
    return frame


def _typed(frame: pd.DataFrame, path: str | os.PathLike, segments: Collection[str]) -> pd.DataFrame:
    """The text of a list as `read_list` returns it; KlassifyError for what no list may hold."""
    frame = frame.copy(deep=False)
    refuse_rows(frame, unsafe_names(frame["file"]), "unsafe file name", path)
    refuse_rows(frame, frame["file"].duplicated(), "the file appears more than once", path)
    for name in MEASURED:
        frame[name] = _numbers(frame, name, path)
    for name in LABELS:
        frame[name] = text_column(frame[name] if name in frame else [""] * len(frame), frame.index)
    spelt = {text: text.replace("-", "_") for text in frame["modify_type"].unique()}
    frame["modify_type"] = frame["modify_type"].map(spelt).astype(object)
    unknown = ~frame["modify_type"].isin([*KINDS, ""])
    refuse_rows(frame, unknown, f"modify_type is none of {', '.join(KINDS)}", path)
    with without_gc():
        for name in segments:
            frame[name] = _parse_segments(frame, name, path)
    return frame[[name for name in COLUMNS if name in frame]]


def utf16_as_utf8(path: str | os.PathLike) -> bytes | None:
    """The content, in UTF-8, of a file with the byte order mark of UTF-16; else None."""
    with open(path, "rb") as handle:
        if handle.read(2) not in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return None
    try:
        return Path(path).read_bytes().decode("utf-16").encode()
    except UnicodeDecodeError as error:
        raise KlassifyError(
            f"This file begins as UTF-16, but is not: {error}.", where=path, fix="save it as UTF-8"
        ) from None


def _read_columns(path: Path, wanted: set[str]) -> pd.DataFrame:
    """The wanted columns of a TSV as text. (pandas would fill short rows and cut long ones.)"""
    import pyarrow as pa
    from pyarrow import csv

    refuse_irregular(path)
    content = utf16_as_utf8(path)
    if content is None:
        refuse_cut(path)
    with io.BytesIO(content) if content else open(path, "rb") as handle:
        first = handle.readline().removeprefix(codecs.BOM_UTF8)
    header = first.decode(errors="replace").rstrip("\r\n").split("\t")
    if "file" not in header or len(set(header)) < len(header):
        raise KlassifyError(
            f"This is not a data list: its header is {first_few(header, 20)!r}, where `file` and"
            " each other column appear once, separated by tabs.",
            where=path,
        )
    names = [name for name in header if name in wanted]
    read = functools.partial(
        csv.read_csv,
        parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()),
            include_columns=names,
            strings_can_be_null=False,
        ),
    )
    try:
        try:
            table = read(io.BytesIO(content) if content else path)
        except pa.ArrowInvalid:  # perhaps only for a line that is longer than a block
            size = min(path.stat().st_size + 1, MOST_BLOCK)
            options = csv.ReadOptions(block_size=size)
            table = read(io.BytesIO(content) if content else path, read_options=options)
    except pa.ArrowInvalid as error:
        raise KlassifyError(f"This data list cannot be parsed: {error}.", where=path) from None
    # to_pandas keeps equal texts once, unlike to_pylist, and is faster
    return pd.DataFrame({name: table[name].to_pandas() for name in names}, dtype=object)


def write_list(path: str | os.PathLike, frame: pd.DataFrame) -> None:
    """Write a data list, whole or not at all; known columns only, segments as JSON arrays.

    Raises KlassifyError for what `read_list` would refuse.
    """
    unknown = set(frame.columns) - set(COLUMNS)
    if unknown or "file" not in frame:
        raise KlassifyError(
            f"A data list has no columns {sorted(unknown)} and needs `file`.", where=path
        )
    text = pd.DataFrame(
        {name: _cells(frame[name]) for name in COLUMNS if name in frame}, dtype=object
    )
    for name in text.columns.drop("file"):
        refuse_rows(text, unprintable(text[name]), f"control characters in {name}", path)
    _typed(text, path, SEGMENTS)
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8", newline="") as handle:
        handle.write("\t".join(text) + "\n")
        rows = zip(*(text[name].tolist() for name in text))
        handle.writelines("\t".join(row) + "\n" for row in rows)


def _cells(column: pd.Series) -> list[str]:
    """A column as text: shortest exact numbers, compact JSON, "" for unknown."""
    if column.name in SEGMENTS:
        return [
            "" if x is None else x if isinstance(x, str) else orjson.dumps(x).decode()
            for x in column
        ]
    if column.name in MEASURED:
        values = pd.to_numeric(column).to_numpy(float, na_value=np.nan)
        return [
            "" if math.isnan(x) else repr(int(x)) if x.is_integer() else repr(x)
            for x in values.tolist()
        ]
    return [str(text) for text in column.fillna("")]


def _numbers(frame: pd.DataFrame, name: str, path: str | os.PathLike) -> pd.Series:
    text = frame[name] if name in frame else pd.Series("", index=frame.index)
    values = pd.to_numeric(text.where(text != ""), errors="coerce").astype(float)
    bad = (text != "") & ~possible(name, values)
    refuse_rows(frame, bad, f"{name} is not a possible number", path)
    return values.astype("Int64") if name in COUNTS else values


def possible(name: str, values: Any) -> Any:
    """Whether a measured column may hold each number: finite, not negative, counts whole."""
    good = np.isfinite(values) & (values >= 0)
    return good & (values % 1 == 0) & (values <= 2**53) if name in COUNTS else good


def _parse_segments(frame: pd.DataFrame, name: str, path: str | os.PathLike) -> pd.Series:
    cells, wrong = parse_cells(frame[name].tolist() if name in frame else [""] * len(frame))
    bad = pd.Series(np.isin(np.arange(len(cells)), wrong), index=frame.index)
    refuse_rows(
        frame, bad, f"{name} is not a list of [start_s, end_s] with 0 <= start_s < end_s", path
    )
    return pd.Series(np.fromiter(cells, object, len(cells)), index=frame.index)


def parse_cells(text: Sequence[str]) -> tuple[list[Any], Sequence[int]]:
    """JSON texts ("" = unknown) as cells, and the positions of those that are not a list of
    [start_s, end_s] with 0 <= start_s < end_s.

    A list has a million cells, so that what is done with each is done in C where it can be.
    """
    try:
        cells = [orjson.loads(x) if x else None for x in text]
    except orjson.JSONDecodeError:
        cells = [_json_or_text(x) if x else None for x in text]
    wrong: Sequence[int] = misshapen(cells) or [
        i for i, cell in enumerate(cells) if cell is None and text[i]
    ]
    if not wrong:
        owner, times = flat_segments(cells)
        wrong = owner[~((times[:, 0] >= 0) & (times[:, 0] < times[:, 1]))].tolist()
    return cells, wrong


def _json_or_text(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def misshapen(cells: Sequence[Any]) -> list[int]:
    """Positions of what is neither a list of pairs of numbers nor None."""
    if _well_formed(cells):
        return []
    return [i for i, cell in enumerate(cells) if not _well_formed([cell])]


def _well_formed(cells: Sequence[Any]) -> bool:
    """Whether each cell is a list of pairs of numbers, or None; by sets of types, which is fast."""
    if not set(map(type, cells)) <= {list, type(None)}:
        return False
    pairs = list(itertools.chain.from_iterable(filter(None, cells)))
    return (
        set(map(type, pairs)) <= {list}
        and set(map(len, pairs)) <= {2}
        and set(map(type, itertools.chain.from_iterable(pairs))) <= {int, float}
    )


def flat_segments(cells: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The segments of many well-formed cells: each one's cell, and (n, 2) seconds."""
    owner = np.repeat(np.arange(len(cells)), [len(cell) if cell else 0 for cell in cells])
    pairs = itertools.chain.from_iterable(filter(None, cells))
    return owner, np.fromiter(itertools.chain.from_iterable(pairs), float).reshape(-1, 2)


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Keep the garbage collector from walking millions of new lists, none of them in a cycle."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def unsafe_names(names: pd.Series) -> pd.Series:
    """Which names break a file or leave the media folder (UNSAFE_NAME): bool, same index."""
    # nearly all names are plain, and that is ten times as fast to see
    bad = [not PLAIN_NAME.fullmatch(name) and bool(UNSAFE_NAME.search(name)) for name in names]
    return pd.Series(bad, index=names.index, dtype=bool)


def unprintable(text: pd.Series) -> pd.Series:
    """Which texts hold control or half characters (UNPRINTABLE): bool, indexed as `text`."""
    if "".join(text.tolist()).isprintable():  # one look at all is ten times as fast
        return pd.Series(False, index=text.index)
    return pd.Series([bool(UNPRINTABLE.search(x)) for x in text], index=text.index)


def refuse_rows(frame: pd.DataFrame, bad: pd.Series | np.ndarray, why: str, where: object) -> None:
    """KlassifyError that counts and names the `bad` rows (n,) of a table with a column `file`."""
    if bad.any():
        names = first_few(
            f"row {i + 1} ({frame['file'].iloc[i]!r})" for i in np.flatnonzero(bad)[:50]
        )
        raise KlassifyError(
            f"{int(bad.sum())} of {len(frame)} rows are wrong: {why}: {names}.", where=where
        )
