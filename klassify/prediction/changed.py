"""What becomes of a detector's answers when the media change and the fake does not: both ends are
cut, the loudness is normalised, the clip is encoded again.

A detector that rests on a shortcut loses it with the change. Answers are those of
`klassify.prediction.predict`, from media; they are kept in parts, so that an interrupted run
continues.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from klassify import workers
from klassify.errors import KlassifyError
from klassify.evaluation.shortcuts import FALLS, SYSTEM_COLUMNS, WITHIN
from klassify.evaluation.tables import with_ends
from klassify.features.base import CLIP_LIMIT_S, Extraction, media_only, n_cpus
from klassify.features.extract import Shard, extract, extraction_settings
from klassify.files import whole_file
from klassify.lists import subsets
from klassify.media.container import inside
from klassify.metrics import clips
from klassify.parts import Place, header_of, read_rows
from klassify.perturbation.clip import Clip, perturb
from klassify.perturbation.families import family_of
from klassify.perturbation.labels import changed_row
from klassify.settings import settings_hash
from klassify.systems.detector import DetectorFile

UNCHANGED = "unchanged"
CHANGES = {  # family of klassify.perturbation: level, and its value in words
    "trim": (3, "{:g} ms cut from both ends"),
    "loudness": (3, "loudness of {:g} LUFS"),
    "reencode": (3, "encoded again, CRF {:g}"),
}
SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("probability", pa.float64()),
        ("stage", pa.string()),
        ("reason", pa.string()),
    ]
)
CLIPS_A_PART = 50  # their changed media lie in a temporary folder


class Answer(NamedTuple):
    """The answer about one clip, NaN with stage and reason where it could not be changed."""

    file: str
    probability: float
    stage: str = ""
    reason: str = ""


def measure(
    detector: DetectorFile,
    name: str,
    frame: pd.DataFrame,
    root: Path,
    out: Path,
    *,
    device: str = "auto",
    jobs: int | None = None,
    n_bootstrap: int = 200,
) -> pd.DataFrame:
    """The AUC of a detector's Task 1 before and after each of CHANGES; columns SYSTEM_COLUMNS.

    frame: a labelled list with segments; root: its media; out: folder of the answers. A clip whose
    label changes, because its fake part is cut away, is left out of both sides, and so is one that
    cannot be changed.
    """
    detector = _task1_of(detector)
    how = {"device": device, "jobs": jobs}
    before = _answers(detector, frame, root, out / UNCHANGED, None, how)
    rows = []
    for family, (level, words) in CHANGES.items():
        after = _answers(detector, frame, root, out / family, family, how)
        both = np.flatnonzero(~np.isnan(before) & ~np.isnan(after))
        label = subsets.label(frame, "video")[both]
        rankings = [clips.Ranking(label, one[both]) for one in (before, after)]
        measured, drawn = clips.resampled(
            functools.partial(_aucs, rankings), subsets.sources_of(frame)[both], n=n_bootstrap
        )
        row = {"detector": name, "change": words.format(family_of(family).value(level))}
        for column, value, samples in zip(("auc", "auc_after", "difference"), measured, drawn):
            row |= with_ends(column, value, samples)
        row |= {"n": len(both), "reading": FALLS if row["difference_high"] < 0 else WITHIN}
        rows.append(row)
    return pd.DataFrame(rows, columns=SYSTEM_COLUMNS)


def _aucs(rankings: Sequence[clips.Ranking], weights: np.ndarray) -> np.ndarray:
    before, after = (one.auc_and_eer(weights)[0] for one in rankings)
    return np.stack([before, after, after - before])


def _task1_of(detector: DetectorFile) -> DetectorFile:
    """The detector with the systems that answer Task 1 alone."""
    detector.answering("task1")
    wanted = {detector.answers["task1"]}
    for name, entry in reversed(detector.systems.items()):  # users before their inputs
        if name in wanted:
            wanted.update(entry["inputs"])
    systems = {name: entry for name, entry in detector.systems.items() if name in wanted}
    answers = {"task1": detector.answers["task1"]}
    return dataclasses.replace(detector, answers=answers, systems=systems)


def _answers(
    detector: DetectorFile,
    frame: pd.DataFrame,
    root: Path,
    out: Path,
    family: str | None,
    how: Mapping[str, Any],
) -> np.ndarray:
    """(n,) probabilities of the clips of a list, changed by a family; those that exist are read."""
    files = frame["file"].tolist()
    settings = {
        "answers": settings_hash({"answers": detector.answers, "systems": detector.systems}),
        "family": family,
        "level": CHANGES[family][0] if family else 0,
    }
    rows = dict(zip(files, frame.to_dict("records")))
    make = functools.partial(_predicted, detector, rows, family, how)
    made_by = Extraction("answers", settings, media_only, make, write_part)
    shard = Shard(out, 1, 1, files, extraction_settings(made_by, files, CLIPS_A_PART))
    extract(shard, root, made_by)
    found = [
        row
        for place in shard.places
        for row in read_rows(out / place.name, ("file", "probability"))
    ]
    return np.array([row["probability"] for row in found], float)


def _predicted(
    detector: DetectorFile,
    rows: Mapping[str, Mapping[str, Any]],
    family: str | None,
    how: Mapping[str, Any],
    root: Path,
    parts: Sequence[Sequence[str]],
) -> Iterator[tuple[int, Answer]]:
    """The numbered answers of all clips of the parts."""
    from klassify.prediction.predict import predict  # loads torch, which no worker needs

    first = 0
    for part in parts:
        with tempfile.TemporaryDirectory(prefix="klassify-audit-") as folder:
            made = _changed([rows[file] for file in part], family, root, Path(folder), how["jobs"])
            answers = predict(detector, [one for one in made if isinstance(one, Path)], **how)
            for number, (file, one) in enumerate(zip(part, made), first):
                if isinstance(one, Path):
                    yield number, Answer(file, next(answers).probability)
                else:
                    yield number, Answer(file, np.nan, "change", one)
        first += len(part)


def _changed(
    rows: Sequence[Mapping[str, Any]],
    family: str | None,
    root: Path,
    folder: Path,
    jobs: int | None,
) -> list[Path | str]:
    """The changed files of clips, or why there is none; the clips themselves without a family."""
    if family is None:
        return [root / row["file"] for row in rows]
    tasks = [(row, family, folder / f"{k:06d}.mp4") for k, row in enumerate(rows)]
    setup: Callable[[], Path] = functools.partial(Path, root)
    limits = {"jobs": jobs or n_cpus(), "limit_s": CLIP_LIMIT_S}
    results = dict(workers.each(change_clip, tasks, setup, **limits))
    return [
        result.reason if isinstance(result, workers.Died) else result or task[2]
        for task, (_, result) in zip(tasks, sorted(results.items()))
    ]


def change_clip(root: Path, task: tuple[Mapping[str, Any], str, Path]) -> str:
    """Write one changed clip; why there is none, or ''."""
    row, family, target = task
    try:
        clip = Clip(inside(root, row["file"]), row["file"])
        changed = changed_row(row, perturb(clip, family, CHANGES[family][0], target))
    except KlassifyError as error:
        return error.what
    except Exception as error:  # native libraries raise anything; the other clips continue
        return f"{type(error).__name__}: {error}"
    return "" if changed["modify_type"] == row["modify_type"] else "its fake part was cut away"


def write_part(
    folder: Path, place: Place, rows: Sequence[Answer], settings: dict[str, Any], inputs: str
) -> None:
    """Write the answers of one part."""
    table = pa.Table.from_pylist([row._asdict() for row in rows], SCHEMA)
    table = table.replace_schema_metadata(header_of(place, settings, inputs))
    with whole_file(folder / place.name) as partial:
        pq.write_table(table, partial)
