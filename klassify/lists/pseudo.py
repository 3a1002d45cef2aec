"""Pseudo-labels: clips without labels, and what a trained system is confident that they are.

A pseudo list is a data list of the chosen clips. The record beside it, `<name>.json`, says which
system answered, what it learned from, and how confident it had to be.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pandas as pd

from klassify.errors import KlassifyError
from klassify.files import read_json_mapping, write_json
from klassify.lists.data_list import FAKE, read_list, write_list

# what a system that answers for one modality, or for both, says of a clip that it calls fake
FAKE_OF = {"audio": "audio_modified", "visual": "visual_modified", "both": FAKE}


@dataclasses.dataclass(frozen=True)
class Record:
    """split: that the clips are of. system, system_hash: which one answered. modality: that it
    answers for, `both` for the video. supervision: the strongest labels that it learned from.
    fake_from, real_to: probabilities. n_clips: of the list they were chosen from.
    """

    split: str
    system: str
    system_hash: str
    modality: str
    supervision: str
    fake_from: float
    real_to: float
    n_clips: int


def record_path(path: str | os.PathLike) -> Path:
    """Where the record of a pseudo list is."""
    return Path(path).with_suffix(".json")


def write_pseudo(path: str | os.PathLike, table: pd.DataFrame, record: Record) -> None:
    """Write a pseudo list and its record."""
    write_json(record_path(path), dataclasses.asdict(record))
    write_list(path, table)


def read_pseudo(path: str | os.PathLike) -> tuple[pd.DataFrame, Record]:
    """A pseudo list, without segments, and its record; KlassifyError where either is missing."""
    made = "make it with `klassify pseudo`"
    if not record_path(path).exists():
        raise KlassifyError(
            "This list of pseudo-labels has no record of the system that made it.",
            where=record_path(path),
            fix=made,
        )
    try:
        record = Record(**read_json_mapping(record_path(path)))
    except TypeError as error:
        what = f"This is not the record of a list of pseudo-labels: {error}."
        raise KlassifyError(what, where=record_path(path), fix=made) from None
    return read_list(path), record
