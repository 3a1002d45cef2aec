"""Systems of four clips with given scores, for tests of packages."""

from __future__ import annotations

import numpy as np
import pandas as pd

from klassify.lists import data_list
from klassify.scores.score_file import Header, score_path, write_scores
from klassify.systems.base import System, write_system

FILES = ["b.mp4", "a.mp4", "c/d.mp4", "e.mp4"]


def make_list(path):
    """A data list of FILES: 4 s each, one of unknown length."""
    frame = pd.DataFrame(
        {
            "file": FILES,
            "n_frames": 100,
            "fps": 25.0,
            "n_samples": 64000,
            "duration": [4.0, 4.0, np.nan, 4.0],
        }
    )
    data_list.write_list(path, frame)
    return path


def write_model(folder, modality="audio", supervision="clip", scale="log_odds"):
    """A trained system without weights; returns its folder."""
    write_system(folder, System(folder.name, "model", modality, supervision, scale))
    return folder


def write_table(folder, split, kind, table, scale="log_odds", supervision="clip", **more):
    """Scores of a system: its clips, frames or segments of a split."""
    header = Header(folder.name, split, kind, scale, supervision, **more)
    write_scores(score_path(folder, split, kind), table, header)


def make_system(
    folder,
    scores,
    *,
    scale="probability",
    supervision="clip",
    kind="model",
    inputs=(),
    parameters=(),
):
    """A system whose clip scores of testA are those of a, b, c/d and e; NaN means no audio."""
    system = System(folder.name, kind, "audio", supervision, scale, list(inputs), dict(parameters))
    write_system(folder, system)
    table = pd.DataFrame(
        {"file": sorted(FILES), "start": 0.0, "end": 4.0, "score": scores, "reason": ""}
    )
    table.loc[table["score"].isna(), "reason"] = "no audio"
    write_table(folder, "testA", "clips", table, scale, supervision)
    return folder


def make_segments(folder, rows, scale="probability"):
    """Its proposals of testA: rows of file, start_s, end_s, score."""
    table = pd.DataFrame(rows, columns=["file", "start", "end", "score"]).assign(
        modality="audio", method="threshold"
    )
    write_table(folder, "testA", "segments", table, scale, "segment")
