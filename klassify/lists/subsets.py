"""Named parts of a data list (val_fit and val_report, by source), labels, and where media lie."""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.files import similar
from klassify.lists import datasets
from klassify.lists.data_list import FAKE, FAKE_AGAINST, SEGMENTS_OF, read_list

FIT_SHARE, FIT_AT_LEAST = 0.4, 3  # of val's sources, for what is fitted after training


def sources_of(frame: pd.DataFrame) -> np.ndarray:
    """(n,) the source of each clip, as text; a clip of unknown source is a source of its own."""
    return np.where(frame["source"] == "", frame["file"], frame["source"]).astype(str)


def sample_of_sources(source: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Indices of the clips of whole sources, at most `most` clips but at least one source."""
    names, place, counts = np.unique(source, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    kept = order[np.cumsum(counts[order]) <= most]
    return np.flatnonzero(np.isin(place, kept if len(kept) else order[:1]))


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


FOLDS = (1, 2)


def _fold(frame: pd.DataFrame, number: int) -> pd.Series:
    """The clips whose sources are in one of two halves, by a hash of the source's id."""
    digests = [hashlib.sha256(source.encode()).digest() for source in sources_of(frame)]
    half = np.array([digest[0] % 2 + 1 for digest in digests], np.int64)
    return pd.Series(half == number, index=frame.index)


# name: (split, the rule in words, rows it keeps); a clip of unknown length is in no length subset
SUBSETS: dict[str, tuple[str, str, Callable[[pd.DataFrame], pd.Series]]] = {
    "train_video": (
        "train",
        "at most 256 frames (paper 1, 4.1)",
        lambda f: f["n_frames"].le(256).fillna(False),
    ),
    "train_audio": ("train", "shorter than 6 s (paper 1, 4.2)", lambda f: f["duration"].lt(6.0)),
    "train_bam": ("train", "at most 6 s (paper 1, 4.3)", lambda f: f["duration"].le(6.0)),
    **{
        f"train_fold{number}": (
            "train",
            f"half {number} of the sources, for one of two encoders",
            functools.partial(_fold, number=number),
        )
        for number in FOLDS
    },
    "val_fit": ("val", "40 % of the sources, for calibration and tuning", _fit),
    "val_report": (
        "val",
        "the other 60 % of the sources, for early stopping and numbers",
        lambda f: ~_fit(f),
    ),
    "val_fit_leaking": (
        "val",
        "40 % of the clips, LEAKING: sources are on both sides",
        _leaking_fit,
    ),
    "val_report_leaking": (
        "val",
        "60 % of the clips, LEAKING: sources are on both sides",
        lambda f: ~_leaking_fit(f),
    ),
}


def base_split(split: str) -> str:
    """The split that a named subset is taken from; a split is its own."""
    return SUBSETS[split][0] if split in SUBSETS else split


def own_split(split: str) -> str:
    """The name of a split in its own data set: DATA-SPLIT is how systems that were trained on other
    data call it, so that its scores lie beside those of their own splits. A derived split, such as
    testA-mp3-3, is its own.
    """
    last = split.rpartition("-")[2]
    return split if last.isdigit() else last


def list_path(data_dir: str | os.PathLike, split: str) -> Path:
    """The TSV that holds a split or the split of a named subset."""
    return Path(data_dir) / f"{base_split(own_split(split))}.tsv"


def existing_list(data_dir: str | os.PathLike, split: str) -> Path:
    """`list_path` of a list that is there; otherwise KlassifyError with those that are."""
    path = list_path(data_dir, split)
    if not path.exists():
        lists = sorted(p.stem for p in Path(data_dir).glob("*.tsv") if "." not in p.stem)
        known = first_few(
            lists + [name for name, subset in SUBSETS.items() if subset[0] in lists], limit=20
        )
        what = f"There is no list for split {split!r}; there are: {known or 'none'}."
        fix = None if path.parent.is_dir() else similar(path)
        raise KlassifyError(what, where=path, fix=fix or "make stage0")
    return path


def load_split(
    data_dir: str | os.PathLike, split: str, *, segments: bool | Collection[str] = False
) -> pd.DataFrame:
    """The list `<data_dir>/<split>.tsv` or a named subset (SUBSETS), as `read_list` gives it."""
    path, name = existing_list(data_dir, split), own_split(split)
    frame = read_list(path, segments=segments)
    if name not in SUBSETS:
        return frame
    rule = SUBSETS[name][2]
    kept = frame[rule(frame).to_numpy(bool)].reset_index(drop=True)
    if kept.empty:
        raise KlassifyError(
            f"The subset {split!r} is empty: no clip of {len(frame)} fits its rule"
            f" ({SUBSETS[name][1]}).",
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
    where = frame.attrs.get("path")
    unknown = frame["modify_type"] == ""
    if unknown.any():
        names = first_few(frame.loc[unknown, "file"].head(50).tolist())
        raise KlassifyError(
            f"{int(unknown.sum())} of {len(frame)} clips have no label (modify_type is empty):"
            f" {names}.",
            where=where,
            fix=_labelled(where),
        )
    plain = int((frame["modify_type"] == FAKE).sum())
    if plain and against != "video":
        raise KlassifyError(
            f"{plain} of {len(frame)} clips are only 'fake', which does not say whether their"
            f" {against} part is.",
            where=where,
            fix=(
                "train with data.init_args.label=video and calibrate with --label video, or write"
                " audio_modified, visual_modified or both_modified"
            ),
        )
    return frame["modify_type"].isin(FAKE_AGAINST[against]).to_numpy(np.int64)


def _labelled(path: str | None) -> str:
    """Where the labels of an unlabelled list may be."""
    if path is not None:
        heldout = Path(path).parent / "heldout" / f"{Path(path).stem}_labels.tsv"
        if heldout.exists():
            return f"use {heldout}"
    return "use a list with labels: `klassify lists` writes modify_type from metadata that has it"


def known_label(frame: pd.DataFrame, label: str) -> str:
    """A label of `label`, or `video` where clips that are just `fake` leave a modality's open."""
    return "video" if (frame["modify_type"] == FAKE).any() else label


def segment_column(frame: pd.DataFrame, label: str) -> str:
    """The column with the segments of `known_label`."""
    return SEGMENTS_OF[known_label(frame, label)]


def media_folder(root: str | os.PathLike, split: str, files: Sequence[str] = ()) -> Path:
    """The folder that the `file` column of a split is relative to.

    Archives unpack to `root/train/train` or `root/train`; LAV-DF names "train/000001.mp4" below the
    root, and the folder of val may be called dev. With `files` the folder is the one that holds
    most of a sample of them; KlassifyError where none does. Without, it is the deepest that exists.
    """
    root = Path(root)
    spelt = [root / name for name in datasets.spellings(own_split(split))]
    folders = [folder for one in spelt for folder in (one / one.name, one)] + [root]
    if not len(files):
        return next((folder for folder in folders if folder.is_dir()), root)
    if not root.is_dir():
        raise KlassifyError(
            "The media folder does not exist.", where=root, fix="give the right --root"
        )
    sample = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, 50).astype(int))]
    # False for one too long
    held = [sum(os.path.exists(folder / name) for name in sample) for folder in folders]
    if not any(held):
        raise KlassifyError(
            f"None of {len(sample)} sampled files of split {split!r} is there, such as"
            f" {sample[0]!r}.",
            where=f"looked in {first_few(folders)}",
            fix=(
                "write / instead of \\ in the names"
                if "\\" in sample[0]
                else "unpack the media below the root, or give the right --root"
            ),
        )
    return folders[int(np.argmax(held))]
