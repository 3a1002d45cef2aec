"""Score files -> the files of a submission: prediction.txt, prediction.json, and the zip of both.

Equal scores give equal bytes.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
from scipy.special import expit

from klassify.errors import KlassifyError
from klassify.files import whole_file
from klassify.scores.score_file import ScoreFile, align, read_scores
from klassify.submission.manifest import supervision
from klassify.submission.verdict import MAX_ROWS
from klassify.systems.base import System
from klassify.systems.linear import Linear
from klassify.systems.scores import answered

PLACEHOLDER = [[0.0, 0.0, 0.0]]  # "nothing found"; an empty list makes the evaluator abort


def write_task1(
    path: Path,
    system: System,
    split: str,
    frame: pd.DataFrame,
    *,
    prior: float | None = None,
    sigmoid: bool = False,
) -> dict[str, Any]:
    """Write `name;probability` lines in the order of the list, with nine significant digits, so
    that close scores do not tie; returns the manifest's entry.
    """
    scores, where = system.clip_scores(split), system.path(split, "clips")
    scores = ScoreFile(scores.header, align(scores, frame["file"].tolist(), where=where))
    probability = _probabilities(scores, system, sigmoid)
    prior = system.prior if prior is None else prior
    empty = np.isnan(probability)
    answers = np.where(empty, prior, probability)
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8", newline="") as handle:
        handle.writelines(f"{name};{answer:.9g}\n" for name, answer in zip(frame["file"], answers))
    return {
        "system": system.name,
        "supervision": supervision(system),
        "n_answers": len(answers),
        "n_prior": int(empty.sum()),
        "n_without_evidence": int((~answered(scores)).sum()),
        "prior": prior,
    }


def write_task2(
    path: Path, system: System, split: str, frame: pd.DataFrame, *, sigmoid: bool = False
) -> dict[str, Any]:
    """Write `{file: [[score, start_s, end_s], ...]}` in the order of the list; returns the
    manifest's entry.

    Rows by descending score, at most 50 per clip, cut at the clip's ends, scores rounded to 4 and
    times to 3 decimals. Rows without length and repeated segments are dropped. A clip without a row
    gets the placeholder [[0.0, 0.0, 0.0]], a proposal that matches nothing.
    """
    where = system.path(split, "segments")
    scores = read_scores(where)
    position = pd.Series(np.arange(len(frame)), index=frame["file"])
    clip = scores.table["file"].map(position)
    if clip.isna().any():
        extra = sorted(set(scores.table["file"][clip.isna()]))
        raise KlassifyError(
            f"Proposals for {len(extra)} clips that are not listed, such as {extra[0]!r}.",
            where=where,
        )
    clip = clip.to_numpy(np.int64)
    length = frame["duration"].fillna(np.inf).to_numpy(float)[clip]
    score = _probabilities(scores, system, sigmoid)
    # rounded down, so that no end is beyond the clip's
    end = np.floor(np.minimum(scores.table["end"].to_numpy(float), length) * 1000 + 1e-6) / 1000
    start = scores.table["start"].to_numpy(float).round(3)
    rows = pd.DataFrame({"clip": clip, "score": score, "start": start, "end": end})
    rows = rows[rows["end"] > rows["start"]]
    rows = rows.sort_values(["clip", "score"], ascending=[True, False], kind="stable")
    rows = rows.drop_duplicates(["clip", "start", "end"])
    rows = rows[rows.groupby("clip").cumcount() < MAX_ROWS].round({"score": 4})
    table = np.ascontiguousarray(rows[["score", "start", "end"]].to_numpy(float))
    edges = np.searchsorted(rows["clip"].to_numpy(), np.arange(len(frame) + 1))
    with whole_file(path) as partial, open(partial, "wb") as handle:
        for i, name in enumerate(frame["file"]):
            first, stop = edges[i], edges[i + 1]
            answer = table[first:stop] if stop > first else PLACEHOLDER
            text = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
            handle.write((b",\n" if i else b"{\n") + orjson.dumps(name) + b": " + text)
        handle.write(b"\n}\n")
    return {
        "system": system.name,
        "supervision": supervision(system),
        "n_answers": len(frame),
        "n_rows": len(rows),
        "n_placeholder": int((np.diff(edges) == 0).sum()),
    }


def write_zip(path: Path, members: Sequence[Path]) -> None:
    """A zip of files at its top level; equal files give equal bytes (times and modes are fixed)."""
    with whole_file(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for member in members:
            info = zipfile.ZipInfo(member.name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type, info.create_system = zipfile.ZIP_DEFLATED, 3
            info.external_attr = 0o644 << 16
            info.file_size = member.stat().st_size  # decides whether zipfile writes 64-bit fields
            with open(member, "rb") as source, archive.open(info, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _probabilities(scores: ScoreFile, system: System, sigmoid: bool) -> np.ndarray:
    score, scale = scores.table["score"].to_numpy(float), scores.header.scale
    if scale == "probability":
        return score
    # the sigmoid of a linear fusion's log-odds is its softmax
    if scale == "log_odds" and (sigmoid or isinstance(system, Linear)):
        return expit(score)
    fix = f"calibrate it first: klassify calibrate {system.folder} ..."
    if scale == "log_odds":
        fix += ", or give --sigmoid to take the log-odds as they are"
    raise KlassifyError(
        f"The scores of {scores.header.system} are of scale {scale}; the server wants"
        " probabilities.",
        where=system.folder,
        fix=fix,
    )
