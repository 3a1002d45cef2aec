"""The data list: one TSV a split, one clip a row; its schema, its reader and writer, its subsets
and labels.

Columns: `file` (as the metadata or testX_files.txt names it), the measured `n_frames fps n_samples
duration` (samples at 16 kHz, seconds), `modify_type`, `source` (id of the clip's original), and,
for localisation only, `fake_segments audio_fake_segments visual_fake_segments` (JSON arrays of
[start_s, end_s)). `audio_model video_model speaker dataset` are for reports, never model inputs.
`klassify lists` makes them; data_lists/README.md describes them for people.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.files import refuse_cut, refuse_irregular, whole_file
from klassify.segment_cells import parse_cells, without_gc

MEASURED = ("n_frames", "fps", "n_samples", "duration")
COUNTS = ("n_frames", "n_samples")
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
# FakeAVCeleb has no splits and is only tested on; the name keeps its scores apart from those of the
# training data
ZERO_SHOT = "fakeavceleb"
FIT_SHARE, FIT_AT_LEAST = 0.4, 3  # of val's sources, for what is fitted after training
# control characters break the TSV; surrogates stand for bytes that are no UTF-8, and cannot be
# written
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
# so here, too; ';' and '"' break prediction.txt, '/' and '..' leave the media folder
UNSAFE_NAME = re.compile(
    rf"""{UNPRINTABLE.pattern}|^$|^(?:[A-Za-z]:)?[/\\]|[;"]|(?:^|[/\\])\.\.(?:[/\\]|$)|^\s|\s$"""
)
MOST_BLOCK = 1 << 30  # bytes that are parsed at once; a line cannot be longer
PLAIN_NAME = re.compile(r"[\w-]+(?:[./][\w-]+)*")


# ------------------------------------------------------------------------------ reading and writing


def read_list(path: str | os.PathLike, *, segments: bool = False) -> pd.DataFrame:
    """Read and validate a data list.

    Always has `file n_frames fps n_samples duration modify_type source`: text is str ("" =
    unknown), counts are Int64, `fps` and `duration` float (NA = unknown); the optional columns
    where the file has them. The segment columns are dropped unless `segments=True`, so that Task 1
    code cannot see them; then each cell is a list of [start_s, end_s], or None where the segments
    are unknown. Raises KlassifyError for a repeated or unsafe name, an unknown modify_type, a cell
    that is no number or no such list.
    """
    path = Path(path)
    if not path.exists():
        raise KlassifyError(
            "This data list does not exist.", where=path, fix="make it with `klassify lists`"
        )
    wanted = set(COLUMNS) if segments else set(COLUMNS) - set(SEGMENTS)
    return _typed(_read_columns(path, wanted), path, segments=segments)


def _typed(frame: pd.DataFrame, path: str | os.PathLike, *, segments: bool) -> pd.DataFrame:
    """The text of a list as `read_list` gives it; KlassifyError for what cannot stand in one."""
    frame = frame.copy(deep=False)
    _refuse(frame, unsafe_names(frame["file"]), "unsafe file name", path)
    _refuse(frame, repeated_names(frame["file"]), "a file stands here twice", path)
    for name in MEASURED:
        frame[name] = _numbers(frame, name, path)
    for name in LABELS:
        frame[name] = (
            frame[name].str.replace("-", "_")
            if name == "modify_type" and name in frame
            else frame.get(name, "")
        )
    _refuse(
        frame,
        ~frame["modify_type"].isin([*TYPES, ""]),
        f"modify_type is none of {', '.join(TYPES)}",
        path,
    )
    if segments:
        with without_gc():
            for name in SEGMENTS:
                frame[name] = _parse_segments(frame, name, path)
    return frame[[name for name in COLUMNS if name in frame]]


def _read_columns(path: Path, wanted: set[str]) -> pd.DataFrame:
    """The wanted columns of a TSV as text. (pandas would fill short rows and cut long ones in
    silence.)
    """
    import pyarrow as pa
    from pyarrow import csv

    refuse_irregular(path)
    refuse_cut(path)
    with open(path, encoding="utf-8", errors="replace") as handle:
        header = handle.readline().rstrip("\n").split("\t")
    if "file" not in header or len(set(header)) < len(header):
        raise KlassifyError(
            "This is no data list: its header needs `file`, each column once.", where=path
        )
    names = [name for name in header if name in wanted]
    read = functools.partial(
        csv.read_csv,
        path,
        parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()),
            include_columns=names,
            strings_can_be_null=False,
        ),
    )
    try:
        try:
            table = read()
        except pa.ArrowInvalid:  # perhaps only for a line that is longer than a block
            table = read(
                read_options=csv.ReadOptions(block_size=min(path.stat().st_size + 1, MOST_BLOCK))
            )
    except pa.ArrowInvalid as error:
        raise KlassifyError(f"This data list cannot be parsed: {error}.", where=path) from None
    return pd.DataFrame({name: table[name].to_pylist() for name in names}, dtype=object)


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
        _refuse(text, unprintable(text[name]), f"control characters in {name}", path)
    _typed(text, path, segments=True)
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
    return column.fillna("").astype(str).tolist()


def _numbers(frame: pd.DataFrame, name: str, path: str | os.PathLike) -> pd.Series:
    text = frame[name] if name in frame else pd.Series("", index=frame.index)
    values = pd.to_numeric(text.where(text != ""), errors="coerce").astype(float)
    _refuse(
        frame, (text != "") & ~possible(name, values), f"{name} is no number that it can be", path
    )
    return values.astype("Int64") if name in COUNTS else values


def possible(name: str, values: Any) -> Any:
    """Whether a measured column may hold each of these numbers: finite, not negative, a count
    whole; False for NaN.
    """
    good = np.isfinite(values) & (values >= 0)
    return good & (values % 1 == 0) & (values <= 2**53) if name in COUNTS else good


def _parse_segments(frame: pd.DataFrame, name: str, path: str | os.PathLike) -> pd.Series:
    cells, wrong = parse_cells(frame[name].tolist() if name in frame else [""] * len(frame))
    bad = pd.Series(np.isin(np.arange(len(cells)), wrong), index=frame.index)
    _refuse(frame, bad, f"{name} is no list of [start_s, end_s] with 0 <= start_s < end_s", path)
    return pd.Series(np.fromiter(cells, object, len(cells)), index=frame.index)


def unsafe_names(names: pd.Series) -> pd.Series:
    """Which names break a file or leave the media folder (UNSAFE_NAME): bool, with the index of
    `names`.
    """
    # nearly all names are plain, and that is ten times as fast to see
    bad = [not PLAIN_NAME.fullmatch(name) and bool(UNSAFE_NAME.search(name)) for name in names]
    return pd.Series(bad, index=names.index, dtype=bool)


def unprintable(text: pd.Series) -> pd.Series:
    """Which texts hold control characters, or halves of characters (UNPRINTABLE): bool, with the
    index of `text`.
    """
    if "".join(text.tolist()).isprintable():  # one look at all is ten times as fast
        return pd.Series(False, index=text.index)
    return pd.Series([bool(UNPRINTABLE.search(x)) for x in text], index=text.index)


def repeated_names(names: pd.Series) -> pd.Series:
    """Which names stand further up already: bool, with the index of `names`."""
    return names.duplicated()


def _refuse(frame: pd.DataFrame, bad: pd.Series, why: str, path: object) -> None:
    if bad.any():
        names = first_few(
            f"row {i + 1} ({frame['file'].iloc[i]!r})" for i in np.flatnonzero(bad)[:50]
        )
        raise KlassifyError(
            f"{int(bad.sum())} of {len(frame)} rows are wrong: {why}: {names}.", where=path
        )


# ------------------------------------------------------------------------------ subsets and labels


def sources_of(frame: pd.DataFrame) -> np.ndarray:
    """(n,) the source of each clip, as text; one of unknown source is a source of its own."""
    return np.where(frame["source"] == "", frame["file"], frame["source"]).astype(str)


def fit_sources(sources: Sequence[str]) -> set[str]:
    """The sources of val_fit: ids ranked by SHA-256, the first 40 % of them rounded up, at least 3.

    Ranking by a hash of the id needs no seed, and adding a clip never moves another one.
    """
    ranked = sorted(set(sources), key=lambda source: hashlib.sha256(source.encode()).digest())
    n_fit = max(math.ceil(FIT_SHARE * len(ranked) - 1e-9), FIT_AT_LEAST)
    if "" in ranked or n_fit >= len(ranked):
        why = "some clips have no source" if "" in ranked else f"it has {len(ranked)} sources"
        raise KlassifyError(
            f"val cannot be split by source: {why}; val_fit needs {FIT_AT_LEAST}, val_report at"
            " least one.",
            fix=(
                "use a larger val list (demo: size=default), or make the list again with `klassify"
                " lists`"
            ),
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
    "val_fit_leaking": (
        "val",
        "40 % of the clips, LEAKING: sources lie on both sides",
        _leaking_fit,
    ),
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


def existing_list(data_dir: str | os.PathLike, split: str) -> Path:
    """`list_path` of a list that is there; KlassifyError with the names of those that are,
    otherwise.
    """
    path = list_path(data_dir, split)
    if not path.exists():
        lists = sorted(p.stem for p in Path(data_dir).glob("*.tsv") if "." not in p.stem)
        known = first_few(
            lists + [name for name, subset in SUBSETS.items() if subset[0] in lists], limit=20
        )
        raise KlassifyError(
            f"There is no list for split {split!r}; there are: {known or 'none'}.",
            where=path,
            fix="make stage0",
        )
    return path


def load_split(data_dir: str | os.PathLike, split: str, *, segments: bool = False) -> pd.DataFrame:
    """The list `<data_dir>/<split>.tsv`, or a named subset of one (SUBSETS), as `read_list`
    gives it.
    """
    path, rule = existing_list(data_dir, split), SUBSETS[split][2] if split in SUBSETS else None
    frame = read_list(path, segments=segments)
    if rule is None:
        return frame
    kept = frame[rule(frame).to_numpy(bool)].reset_index(drop=True)
    if kept.empty:
        raise KlassifyError(
            f"The subset {split!r} is empty: no clip of {len(frame)} fits its rule"
            f" ({SUBSETS[split][1]}).",
            where=path,
            fix=(
                "if the lengths are unknown, make the list again with `klassify lists --probe"
                " missing`"
            ),
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


# ------------------------------------------------------------------------------ where things lie


def media_folder(root: str | os.PathLike, split: str, files: Sequence[str] = ()) -> Path:
    """The folder that the `file` column of a split is relative to.

    Archives unpack to `root/train/train` or `root/train`; LAV-DF names "train/000001.mp4" below the
    root. With `files` the folder is the one that holds most of a sample of them; KlassifyError
    where none does. Without, it is the deepest that exists.
    """
    root = Path(root)
    folders = [root / split / split, root / split, root]
    if not len(files):
        return next((folder for folder in folders if folder.is_dir()), root)
    if not root.is_dir():
        raise KlassifyError(
            "The media folder does not exist.", where=root, fix="give the right --root"
        )
    sample = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, 50).astype(int))]
    held = [
        sum(os.path.exists(folder / name) for name in sample) for folder in folders
    ]  # False for one too long
    if not any(held):
        raise KlassifyError(
            f"None of {len(sample)} sampled files of split {split!r} is there, such as"
            f" {sample[0]!r}.",
            where=f"looked in {first_few(folders)}",
            fix="unpack the media below the root, or give the right --root",
        )
    return folders[int(np.argmax(held))]
