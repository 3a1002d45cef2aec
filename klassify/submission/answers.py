"""Score files -> the files of a submission: prediction.txt, prediction.json, and the zip of both.

Equal scores give equal bytes.
"""

from __future__ import annotations

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
from klassify.progress import Count
from klassify.scores.score_file import Header, ScoreFile, align
from klassify.scores.segment_file import read_segments, rows_of_clips
from klassify.submission.manifest import supervision
from klassify.submission.verdict import MAX_ROWS
from klassify.systems.base import System
from klassify.systems.linear import Linear
from klassify.systems.scores import answered

CLIPS_AT_ONCE = 1 << 12
MB = 1 << 20
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
    given = scores.table["score"].to_numpy(float)
    probability = _probabilities(given, scores.header, system, sigmoid)
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
    found = read_segments(where, texts=())
    position = pd.Index(frame["file"]).get_indexer(found.files)
    if (position < 0).any():
        extra = sorted(found.files[position < 0])
        raise KlassifyError(
            f"Proposals for {len(extra)} clips that are not listed, such as {extra[0]!r}.",
            where=where,
        )
    probability = _probabilities(found.score, found.header, system, sigmoid)
    clip = position.astype(np.int32)[found.clip]
    rows_of = rows_of_clips(clip, len(frame))
    files = frame["file"].tolist()
    length = frame["duration"].fillna(np.inf).to_numpy(float)
    n_rows = n_placeholder = 0
    with (
        whole_file(path) as partial,
        open(partial, "wb") as handle,
        Count(f"write {path.name}", len(files)) as count,
    ):
        for first in range(0, len(files), CLIPS_AT_ONCE):
            stop = min(first + CLIPS_AT_ONCE, len(files))
            some = rows_of(first, stop)
            start, end, _ = found.numbers(some)
            rows = _rows(clip[some], probability[some], start, end, length)
            table = np.ascontiguousarray(rows[["score", "start", "end"]].to_numpy(float))
            edges = np.searchsorted(rows["clip"].to_numpy(), np.arange(first, stop + 1))
            for i, name in enumerate(files[first:stop]):
                answer = table[edges[i] : edges[i + 1]] if edges[i + 1] > edges[i] else PLACEHOLDER
                text = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
                handle.write((b",\n" if first + i else b"{\n") + orjson.dumps(name) + b": " + text)
            n_rows += len(rows)
            n_placeholder += int((np.diff(edges) == 0).sum())
            count.add(stop - first)
        handle.write(b"\n}\n")
    return {
        "system": system.name,
        "supervision": supervision(system),
        "n_answers": len(files),
        "n_rows": n_rows,
        "n_placeholder": n_placeholder,
    }


def _rows(
    clip: np.ndarray, score: np.ndarray, start: np.ndarray, end: np.ndarray, length: np.ndarray
) -> pd.DataFrame:
    """The rows to submit of some clips: clip, score, start, end. length: of all clips."""
    # rounded down, so that no end is beyond the clip's
    end = np.floor(np.minimum(end, length[clip]) * 1000 + 1e-6) / 1000
    rows = pd.DataFrame({"clip": clip, "score": score, "start": start.round(3), "end": end})
    rows = rows[rows["end"] > rows["start"]]
    rows = rows.sort_values(["clip", "score"], ascending=[True, False], kind="stable")
    rows = rows.drop_duplicates(["clip", "start", "end"])
    return rows[rows.groupby("clip").cumcount() < MAX_ROWS].round({"score": 4})


def write_zip(path: Path, members: Sequence[Path]) -> None:
    """A zip of files at its top level; equal files give equal bytes (times and modes are fixed)."""
    with whole_file(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for member in members:
            info = zipfile.ZipInfo(member.name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type, info.create_system = zipfile.ZIP_DEFLATED, 3
            info.external_attr = 0o644 << 16
            info.file_size = member.stat().st_size  # decides whether zipfile writes 64-bit fields
            n_mb = -(-info.file_size // MB)
            with (
                open(member, "rb") as source,
                archive.open(info, "w") as target,
                Count(f"compress {member.name}", n_mb, unit="megabyte") as count,
            ):
                for some in count(iter(lambda: source.read(MB), b"")):
                    target.write(some)


def _probabilities(score: np.ndarray, header: Header, system: System, sigmoid: bool) -> np.ndarray:
    scale = header.scale
    if scale == "probability":
        return score
    # the sigmoid of a linear fusion's log-odds is its softmax
    if scale == "log_odds" and (sigmoid or isinstance(system, Linear)):
        return expit(score)
    fix = f"calibrate it first: klassify calibrate {system.folder} ..."
    if scale == "log_odds":
        fix += ", or give --sigmoid to take the log-odds as they are"
    raise KlassifyError(
        f"The scores of {header.system} are of scale {scale}; the server wants probabilities.",
        where=system.folder,
        fix=fix,
    )
