"""Scores -> a leaderboard zip with its manifest."""

from __future__ import annotations

import datetime
import os
import shlex
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from klassify.errors import KlassifyError
from klassify.files import read_json_mapping, write_json
from klassify.lists import data_list
from klassify.settings import already_done, file_hash
from klassify.submission import check, ledger
from klassify.submission.answers import write_task1, write_task2, write_zip
from klassify.submission.manifest import (
    TASKS,
    describe,
    is_text,
    made_with,
    provenance,
    read_manifest,
    refuse_unreadable,
)
from klassify.submission.verdict import JSON, MANIFEST, TXT, ZIP, Listed
from klassify.systems.base import System
from klassify.systems.detector import GENERATED_NOTICE, on_generated_corpus

DEMO_NOTICE = "NOT FOR UPLOAD: made from the generated corpus"
TASK1_RULE = (
    "The challenge allows only clip labels for Task 1 (detection with limited label access)"
)
SUPERVISION_RULES = {  # what is said of a Task 1 answer by its supervision
    "segment": f"{TASK1_RULE}; this answer rests on a system that was trained on segment labels.",
    "self": (
        f"{TASK1_RULE}; this answer rests on a system that was trained on edits that its training"
        " made in clips labelled real. It read no segment label of the data set, so we read the"
        " rule as allowing it; say so in a submission."
    ),
    "pseudo": (
        f"{TASK1_RULE}; this answer rests on a system that was trained on pseudo-labels, answers of"
        " another system about clips without labels. The rules name train and val as what systems"
        " are trained on: if the clips are of a test split, ask the organisers first, and say so in"
        " a submission."
    ),
}


def package(
    out: str | os.PathLike,
    list_path: str | os.PathLike,
    split: str,
    tasks: Mapping[str, System],
    *,
    prior: float | None = None,
    sigmoid: bool = False,
    force: bool = False,
    ledger_path: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Write prediction files, submission.zip and manifest.json into `out`, and its row in the
    ledger; returns the manifest.

    tasks: {"task1": the system that answers it, "task2": likewise}, one or both. ledger_path: None
    stands for klassify.submission.ledger.find_ledger(out). KlassifyError if scores and list differ,
    scores are not probabilities, `out` holds another submission, the checker refuses the result, or
    the ledger cannot be read.
    """
    out, list_path = Path(out), Path(list_path)
    tasks = {name: tasks[name] for name in TASKS if name in tasks}
    if not is_text(str(list_path)):
        raise KlassifyError(
            "No manifest can say what this is made of: the list's name has characters that a"
            " terminal cannot show.",
            where=list_path,
            fix="rename it, or its folder",
        )
    frame = data_list.read_list(list_path)  # one that cannot be read is refused first
    _is_demo(list_path)
    wanted = made_with(list_path, split, tasks, prior=prior, sigmoid=sigmoid)
    path = out / MANIFEST
    manifest = read_manifest(path) if path.exists() and (out / ZIP).exists() and not force else None
    if already_done(path, manifest and manifest["made_with"], wanted, force=force):
        _accept(out, Listed.from_table(frame, list_path.name))
        if file_hash(out / ZIP) != manifest["zip_sha256"]:
            what = "This is not the package that the manifest describes."
            raise KlassifyError(what, where=out / ZIP, fix="--force")
    else:
        refuse_unreadable(list_path, split, tasks, wanted)
        for name in (MANIFEST, ZIP, TXT, JSON):  # nothing of an earlier one may stay
            (out / name).unlink(missing_ok=True)
        manifest = build(out, list_path, frame, split, tasks, prior=prior, sigmoid=sigmoid)
        options = [] if prior is None else ["--prior", prior]
        options += ["--sigmoid"] if sigmoid else []
        named = chain.from_iterable((f"--{name}", tasks[name].folder) for name in tasks)
        words = [*named, "--split", split, "--list", list_path, "--out", out, *options]
        manifest["command"] = shlex.join(["klassify", "package", *map(str, words)])
        manifest["made_with"] = wanted
        write_json(path, manifest)
    ledger.record(ledger_path or ledger.find_ledger(out), manifest, out)
    return manifest


def build(
    out: Path,
    list_path: Path,
    frame: pd.DataFrame,
    split: str,
    tasks: Mapping[str, System],
    *,
    prior: float | None,
    sigmoid: bool,
) -> dict[str, Any]:
    """Write predictions and submission.zip into `out`, check them; returns the manifest.

    frame: the list, as read from list_path.
    """
    manifest: dict[str, Any] = {
        "split": split,
        "list": {"path": str(list_path), "sha256": file_hash(list_path)},
    }
    if notice := _notice(list_path, tasks):
        manifest["notice"] = notice
    if "task1" in tasks:
        manifest["task1"] = write_task1(
            out / TXT, tasks["task1"], split, frame, prior=prior, sigmoid=sigmoid
        )
        if rule := SUPERVISION_RULES.get(manifest["task1"]["supervision"]):
            manifest["rule"] = rule
    if "task2" in tasks:
        manifest["task2"] = write_task2(out / JSON, tasks["task2"], split, frame, sigmoid=sigmoid)
    members = [TASKS[task][0] for task in tasks]
    write_zip(out / ZIP, [out / name for name in members])
    try:
        _accept(out, Listed.from_table(frame, list_path.name))
    except KlassifyError:
        (out / ZIP).unlink()
        raise
    return manifest | {
        "systems": {name: describe(system, split) for name, system in tasks.items()},
        "zip_sha256": file_hash(out / ZIP),
        "files": {name: file_hash(out / name) for name in members},
        "made": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **provenance(),
    }


def _notice(list_path: Path, tasks: Mapping[str, System]) -> str:
    """What anybody who might upload this must know, or ''."""
    if _is_demo(list_path):
        return DEMO_NOTICE
    generated = any(on_generated_corpus(system.folder.parent) for system in tasks.values())
    return GENERATED_NOTICE if generated else ""


def _is_demo(list_path: Path) -> bool:
    """Whether a list is of the generated corpus: by its folder, or by its record."""
    record = list_path.with_suffix(".json")
    data = read_json_mapping(record).get("data") if record.exists() else None
    return "demo" in (list_path.parent.name, data)


def _accept(out: Path, listed: Listed) -> None:
    found = check.check(out / ZIP, listed)
    if not found.accepted:
        raise KlassifyError(
            "\n".join(["The checker refuses this:", *found.refusals.lines()]), where=out / ZIP
        )
