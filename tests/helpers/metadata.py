"""Entries of the official metadata, and the lists that stage 0 makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from klassify.cli import main
from klassify.lists import data_list
from klassify.lists.data_list import FAKE_AGAINST, TYPES

NAMES = ("real", "real_video_fake_audio", "fake_video_real_audio", "fake_video_fake_audio")


def entry(file: object, modify_type: object = "real", segments: object = (), **fields) -> dict:
    """An entry in the schema of AV-Deepfake1M++."""
    segments = [list(s) for s in segments]
    return {
        "file": file,
        "original": None,
        "split": "train",
        "modify_type": modify_type,
        "audio_model": None,
        "video_model": None,
        "fake_segments": segments,
        "audio_fake_segments": segments if modify_type in FAKE_AGAINST["audio"] else [],
        "visual_fake_segments": segments if modify_type in FAKE_AGAINST["visual"] else [],
        "video_frames": 100,
        "audio_frames": 64_000,
    } | fields


def family(folder: str, **fields) -> list[dict]:
    """A real clip and the three fakes made of it."""
    real = f"{folder}/real.mp4"
    fakes = [
        entry(f"{folder}/{name}.mp4", kind, [[1.0, 1.5]], original=real, **fields)
        for kind, name in zip(TYPES[1:], NAMES[1:])
    ]
    return [entry(real, **fields), *fakes]


def plain(files: Iterable[str], **columns) -> pd.DataFrame:
    """A table of clips."""
    return pd.DataFrame({"file": list(files), **columns}, dtype=object)


def run_lists(root: Path, *extra: object, data: str = "avdeepfake1mpp") -> int:
    """`klassify lists` from a root into its folder `lists`; the exit status."""
    arguments = ["--data", data, "--root", root, "--out", root / "lists", *extra]
    return main(["lists", *map(str, arguments)])


def faults_of(root: Path, split: str) -> pd.DataFrame | None:
    """The faults beside a list, None if there are none."""
    path = root / f"lists/{split}.failures.tsv"
    return pd.read_csv(path, sep="\t", keep_default_na=False) if path.exists() else None


def make(
    root: Path, entries: list, split: str = "train", *extra: str
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Write metadata, make the list, and return it with its faults."""
    (root / f"{split}_metadata.json").write_text(json.dumps(entries))
    assert run_lists(root, "--splits", split, *extra) == 0
    return data_list.read_list(root / f"lists/{split}.tsv", segments=True), faults_of(root, split)
