"""FakeAVCeleb v1.2 (Khalid et al., 2021), its meta_data.csv -> the rows of a data list.

The header names nine columns and ends in a comma:
`source,target1,target2,method,category,type,race,gender, path,`. Rows have ten cells: `path` holds
the file name, and the nameless last one the folder, which begins with "FakeAVCeleb/" where the
archive has no such folder. On disk the clips lie in <root>/<type>/<race>/<gender>/<source>/, with
one real clip a source. A fake clip is fake from end to end. Fake voices were all cloned with one
tool (SV2TTS, "rtvc"); `method` names it only where the video is real.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError
from klassify.lists.data_list import FAKE_AGAINST, LABELS, MEASURED, text_column
from klassify.lists.official import usable_rows
from klassify.lists.records import Fault, read_text

# then file and folder
HEADER = ("source", "target1", "target2", "method", "category", "type", "race", "gender")
VOICE_CLONING = "rtvc"
MODIFY_TYPES = {
    "RealVideo-RealAudio": "real",
    "RealVideo-FakeAudio": "audio_modified",
    "FakeVideo-RealAudio": "visual_modified",
    "FakeVideo-FakeAudio": "both_modified",
}


def read_csv(path: Path, split: str) -> tuple[pd.DataFrame, list[Fault]]:
    """All clips as list rows with unknown lengths (see `with_segments`), and the rows that were
    skipped.

    `file` is relative to the folder of the four types. Raises KlassifyError for another kind of
    file, and where no row is usable.
    """
    faults: list[Fault] = []
    rows = []
    for number, cells in enumerate(_cells(path), 1):
        if not cells or [cell.lower() for cell in cells[: len(HEADER)]] == list(HEADER):
            continue  # the header, wherever tables were joined
        entry = _entry(cells)
        if isinstance(entry, str):
            faults.append(Fault(number, cells[8] if len(cells) > 8 else "", entry, "skipped"))
        else:
            rows.append({"row": number} | entry)
    names = ["row", "file", *MEASURED, *LABELS, "audio_model", "video_model", "speaker"]
    names += ["race", "gender"]
    frame = pd.DataFrame(rows, columns=names, dtype=object)
    return usable_rows(frame, faults, path, split)


def _cells(path: Path) -> list[list[str]]:
    """The rows of the table, without spaces around and empty cells after what is written."""
    try:
        lines = io.StringIO(read_text(path), newline="")
        table = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    except csv.Error as error:
        raise KlassifyError(f"This table cannot be read: {error}.", where=path) from None
    for row in table:
        while row and not row[-1]:
            row.pop()
    first = next((row for row in table if row), [])
    with_header = tuple(cell.lower() for cell in first[:8]) == HEADER
    if not with_header and not (len(first) > 8 and first[5] in MODIFY_TYPES):
        raise KlassifyError(
            f"This is not the table of FakeAVCeleb: it begins with {','.join(first)[:120]!r}.",
            where=path,
        )
    return table


def _entry(cells: list[str]) -> dict[str, object] | str:
    """One row's columns of the data list, or what is wrong with it."""
    if len(cells) < 9:
        return f"it has {len(cells)} cells, not 9 or 10"
    source, _, _, method, _, kind, race, gender, file = cells[:9]
    if kind not in MODIFY_TYPES:
        return f"unknown type {kind!r}"
    folder = "/".join((kind, race, gender, source)) if len(cells) == 9 else cells[9]
    parts = (file if "/" in file else f"{folder}/{file}").split("/")
    types = [part for part in parts if part in MODIFY_TYPES]
    if types != [kind]:
        return f"its type is {kind}, but it is in {'/'.join(parts[:-1])!r}"
    modify_type = MODIFY_TYPES[kind]
    source = source if source not in ("", "-") else parts[-2]
    fake_video = modify_type in FAKE_AGAINST["visual"]
    fake_audio = modify_type in FAKE_AGAINST["audio"]
    return dict.fromkeys(MEASURED, np.nan) | {
        "file": "/".join(parts[parts.index(kind) :]),
        "modify_type": modify_type,
        "source": source,
        "audio_model": VOICE_CLONING if fake_audio else "",
        "video_model": method if fake_video else "",
        "speaker": source,
        "race": race,
        "gender": gender,
    }


def with_segments(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the segment columns: [0, duration) of each fake modality, unknown where the length is."""
    whole = [
        f"[[0.0,{duration!r}]]" if duration > 0 else ""
        for duration in frame["duration"].astype(float).tolist()
    ]
    columns = {}
    for name, against in (("fake", "video"), ("audio_fake", "audio"), ("visual_fake", "visual")):
        fake = frame["modify_type"].isin(FAKE_AGAINST[against])
        columns[f"{name}_segments"] = text_column(
            (clip if is_fake else "[]" for clip, is_fake in zip(whole, fake)), frame.index
        )
    return frame.assign(**columns)
