"""Doubts about finished data lists: one class, constant columns, splits that share sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from klassify.lists.data_list import FAKE_AGAINST, read_list
from klassify.lists.subsets import sources_of

VARIED = ("source", "n_frames", "n_samples", "duration")  # columns that differ between real clips
FEWEST = 4  # values that may be equal by chance


def warnings_of(folder: Path) -> Iterator[str]:
    """One sentence for each doubt about the lists of a data set, held-out labels included."""
    lists = {
        path.stem.removesuffix("_labels"): read_list(path)
        for path in (*sorted(folder.glob("*.tsv")), *sorted(folder.glob("heldout/*.tsv")))
        if "." not in path.stem
    }
    labelled = {}
    for split, frame in lists.items():
        yield from _constant(split, frame)
        if (frame["modify_type"] != "").any():
            labelled[split] = frame
            yield from _one_class(split, frame)
    order = sorted(labelled, key=lambda split: (split != "train", split != "val", split))
    sources = {split: set(sources_of(labelled[split])) for split in order}
    for at, split in enumerate(order):
        for earlier in order[:at]:
            shared = sources[split] & sources[earlier]
            if shared:
                yield (
                    f"{len(shared)} of {len(sources[split])} sources of {split} are in {earlier}"
                    f" too, such as {min(shared)}: numbers on {split} are optimistic"
                )


def _one_class(split: str, frame: pd.DataFrame) -> Iterator[str]:
    is_fake = frame["modify_type"].isin(FAKE_AGAINST["video"])
    if is_fake.all() or not is_fake.any():
        only = "fake" if is_fake.all() else "real"
        yield f"all {len(frame)} clips of {split} are {only}: a detector needs both classes"


def _constant(split: str, frame: pd.DataFrame) -> Iterator[str]:
    for name in VARIED:
        values = frame[name].replace("", pd.NA).dropna()
        values = values[values != 0]  # of clips without sound or picture
        if len(values) >= FEWEST and values.nunique() == 1:
            yield f"{name} is {values.iloc[0]} for all {len(values)} clips of {split}"
