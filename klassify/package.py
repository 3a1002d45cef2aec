"""Scores -> a zip that the challenge's server accepts, with a manifest of what made it.

    klassify package exp/demo/klassify/detector.yaml --split testA --list data_lists/demo/testA.tsv \\
        --out submissions/demo/klassify/testA

detector.yaml names the system that answers each task; --task1 and --task2 name others, or stand alone.
Task 1 becomes prediction.txt (`name;probability`), Task 2 prediction.json, both in one submission.zip.
Every clip of the list gets exactly one answer: a clip that its system has no score for gets the prior
(`--prior`, else the system's own) and is counted in manifest.json. Task 1 wants probabilities: calibrated scores, or
the softmax of a linear fusion. The checker reads the result back, and what it refuses is an error here.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
from scipy.special import expit

from klassify import check, lists, systems
from klassify.detector import load_detector
from klassify.errors import KlassifyError
from klassify.files import already_done, file_hash, read_json, whole_file, write_json
from klassify.scorefile import Header, ScoreFile, align, read_scores, score_path

# task: the file that answers it, the scores that the file is made of
TASKS = {"task1": (check.TXT, "clips"), "task2": (check.JSON, "segments")}
MAX_ROWS = check.MAX_ROWS
PLACEHOLDER = [[0.0, 0.0, 0.0]]  # "nothing found"; an empty list makes the evaluator abort
DEMO_NOTICE = "NOT FOR UPLOAD: made from the generated corpus"
SUPERVISION_RULE = (
    "The challenge allows only clip labels for Task 1 (detection with limited label access); "
    "this answer rests on a system that was trained on segment labels."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("detector", nargs="?", type=Path, metavar="detector.yaml", help="what answers the tasks")
    parser.add_argument("--task1", type=Path, metavar="SYSTEM_DIR", help="the system that answers Task 1")
    parser.add_argument("--task2", type=Path, metavar="SYSTEM_DIR", help="the system that answers Task 2")
    parser.add_argument("--split", required=True, help="the scored split, such as testA")
    parser.add_argument("--list", required=True, type=Path, help="the data list whose clips need an answer")
    parser.add_argument("--out", required=True, type=Path, help="folder of the submission")
    parser.add_argument("--prior", type=float, help="probability of a clip without a score; default: the system's")
    parser.add_argument("--sigmoid", action="store_true", help="take log-odds, through a sigmoid")
    parser.add_argument("--force", action="store_true", help="replace a submission of something else")


def run(args: argparse.Namespace) -> int:
    detector = load_detector(args.detector) if args.detector else None
    tasks = {task: detector.answering(task) for task in detector.answers} if detector else {}
    tasks |= {task: folder for task in TASKS if (folder := getattr(args, task))}
    if not tasks:
        raise KlassifyError("Nothing to package.", mend="give a detector.yaml, --task1 or --task2")
    if args.prior is not None and not 0 <= args.prior <= 1:
        raise KlassifyError(f"--prior is a probability, not {args.prior}.")
    options = {"prior": args.prior, "sigmoid": args.sigmoid, "force": args.force}
    manifest = package(args.out, args.list, args.split, tasks, **options)
    for task in TASKS:
        if task in manifest:
            counts = ", ".join(f"{key} {value}" for key, value in manifest[task].items() if key.startswith("n_"))
            print(f"{task}: {manifest[task]['system']}, {counts}")
    for key in ("rule", "notice"):
        if key in manifest:
            print(manifest[key])
    print(args.out / check.ZIP)
    return 0


def package(
    out: str | os.PathLike,
    list_path: str | os.PathLike,
    split: str,
    tasks: Mapping[str, str | os.PathLike],
    *,
    prior: float | None = None,
    sigmoid: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Write prediction files, submission.zip and manifest.json into `out`; returns the manifest.

    tasks: {"task1": folder of the system that answers it, "task2": likewise}, one or both.
    Raises KlassifyError where scores and list differ, scores are no probabilities, `out` holds a
    submission of something else, or the checker refuses the result.
    """
    out, list_path = Path(out), Path(list_path)
    tasks = {name: Path(tasks[name]) for name in TASKS if name in tasks}
    frame = lists.read_list(list_path)
    made_with = {"split": split, "list": file_hash(list_path), "prior": prior, "sigmoid": sigmoid}
    for name, folder in tasks.items():
        made_with |= _inputs(name, folder, split)
    path = out / check.MANIFEST
    before = read_json(path) if path.exists() and (out / check.ZIP).exists() else None
    if already_done(path, before and before.get("made_with"), made_with, force=force):
        _accept(out, list_path)
        return before
    for name in (check.MANIFEST, check.ZIP, check.TXT, check.JSON):  # nothing of an earlier one may stay
        (out / name).unlink(missing_ok=True)
    manifest: dict[str, Any] = {"split": split, "list": {"path": str(list_path), "sha256": made_with["list"]}}
    if "demo" in (list_path.parent.name, _data_of(list_path)):
        manifest["notice"] = DEMO_NOTICE
    if "task1" in tasks:
        manifest["task1"] = write_task1(out / check.TXT, tasks["task1"], split, frame, prior=prior, sigmoid=sigmoid)
        if manifest["task1"]["supervision"] == "segment":
            manifest["rule"] = SUPERVISION_RULE
    if "task2" in tasks:
        manifest["task2"] = write_task2(out / check.JSON, tasks["task2"], split, frame, sigmoid=sigmoid)
    write_zip(out / check.ZIP, [out / TASKS[task][0] for task in tasks])
    try:
        _accept(out, list_path)
    except KlassifyError:
        (out / check.ZIP).unlink()
        raise
    manifest |= {
        "systems": {name: describe(folder, split) for name, folder in tasks.items()},
        "zip_sha256": file_hash(out / check.ZIP),
        "commit": _commit(),
        "command": _command(out, list_path, split, tasks, prior, sigmoid),
        "made_with": made_with,
    }
    write_json(path, manifest)
    return manifest


def write_task1(
    path: Path,
    folder: Path,
    split: str,
    frame: pd.DataFrame,
    *,
    prior: float | None = None,
    sigmoid: bool = False,
) -> dict[str, Any]:
    """Write `name;probability` lines in the order of the list; returns the manifest's entry.

    Nine significant digits keep the order of scores that 4 decimals would tie.
    """
    scores = systems.clip_scores(folder, split)
    scores = ScoreFile(scores.header, align(scores, frame["file"].tolist(), where=score_path(folder, split, "clips")))
    probability = _probabilities(scores.table["score"].to_numpy(float), scores.header, folder, sigmoid)
    system = systems.load_system(folder)
    prior = systems.prior_probability(system) if prior is None else prior
    empty = np.isnan(probability)
    answers = np.where(empty, prior, probability)
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8", newline="") as handle:
        handle.writelines(f"{name};{answer:.9g}\n" for name, answer in zip(frame["file"], answers))
    return {
        "system": system.name,
        "supervision": supervision(folder),
        "n_answers": len(answers),
        "n_prior": int(empty.sum()),
        "n_without_evidence": int((~systems.answered(scores)).sum()),
        "prior": prior,
    }


def write_task2(path: Path, folder: Path, split: str, frame: pd.DataFrame, *, sigmoid: bool = False) -> dict[str, Any]:
    """Write `{file: [[score, start_s, end_s], ...]}` in the order of the list; returns the manifest's entry.

    Rows by falling score, at most 50 a clip, cut off at the clip's ends, scores rounded to 4 and times to
    3 decimals; what has no length or stands there already is dropped, and a clip without a row gets the
    placeholder [[0.0, 0.0, 0.0]], a proposal that matches nothing.
    """
    where = score_path(folder, split, "segments")
    scores = read_scores(where)
    position = pd.Series(np.arange(len(frame)), index=frame["file"])
    clip = scores.table["file"].map(position)
    if clip.isna().any():
        extra = sorted(set(scores.table["file"][clip.isna()]))
        raise KlassifyError(f"Proposals for {len(extra)} clips that are not listed, such as {extra[0]!r}.", where=where)
    clip = clip.to_numpy(np.int64)
    length = frame["duration"].fillna(np.inf).to_numpy(float)[clip]
    score = _probabilities(scores.table["score"].to_numpy(float), scores.header, folder, sigmoid)
    # down, so that rounding never puts an end behind the clip
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
        "system": systems.load_system(folder).name,
        "supervision": supervision(folder),
        "n_answers": len(frame),
        "n_rows": len(rows),
        "n_placeholder": int((np.diff(edges) == 0).sum()),
    }


def write_zip(path: Path, members: Sequence[Path]) -> None:
    """A zip of files at its top level; equal files give equal bytes (fixed times and rights)."""
    with whole_file(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for member in members:
            info = zipfile.ZipInfo(member.name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            info.file_size = member.stat().st_size  # zipfile decides by it whether it needs 64-bit fields
            with open(member, "rb") as source, archive.open(info, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def supervision(folder: Path) -> str:
    """`segment` as soon as the system or anything that it is computed from was trained on segment labels."""
    parts = [systems.load_system(folder).supervision, *map(supervision, systems.input_folders(folder))]
    return "segment" if "segment" in parts else "clip"


def describe(folder: Path, split: str) -> dict[str, Any]:
    """A system for the manifest: what it is, hashes, its AUC on val if evaluated, its inputs likewise."""
    system = systems.load_system(folder)
    entry = {name: getattr(system, name) for name in ("name", "kind", "modality", "supervision", "scale")}
    entry |= {"path": str(folder), "hash": systems.system_hash(folder)}
    for _, kind in TASKS.values():
        scores = score_path(folder, split, kind)
        if scores.exists():
            entry[f"{kind}_sha256"] = file_hash(scores)
    metrics = folder / "metrics-val.json"
    if metrics.exists():
        entry["val_auc"] = read_json(metrics).get("auc")
    return entry | {"inputs": [describe(path, split) for path in systems.input_folders(folder)]}


def _probabilities(score: np.ndarray, header: Header, folder: Path, sigmoid: bool) -> np.ndarray:
    if header.scale == "probability":
        return score
    softmax = systems.load_system(folder).parameters.get("rule") == systems.FRAMES_RULE  # is its sigmoid
    if header.scale == "log_odds" and (sigmoid or softmax):
        return expit(score)
    log_odds = ", or give --sigmoid to take the log-odds as they are" if header.scale == "log_odds" else ""
    raise KlassifyError(
        f"The scores of {header.system} are of scale {header.scale}; the server wants probabilities.",
        where=folder,
        mend=f"calibrate it first: klassify calibrate {folder} ...{log_odds}",
    )


def _inputs(task: str, folder: Path, split: str) -> dict[str, str]:
    kind = TASKS[task][1]
    scores = score_path(folder, split, kind)
    if not scores.exists():
        mend = f"klassify score {folder} --split {split}"
        raise KlassifyError(f"{folder.name} has no {kind} scores for {split}.", where=scores, mend=mend)
    return {f"{task}_system": systems.system_hash(folder), f"{task}_scores": file_hash(scores)}


def _data_of(list_path: Path) -> str | None:
    record = list_path.with_suffix(".json")
    return read_json(record).get("data") if record.exists() else None


def _accept(out: Path, list_path: Path) -> None:
    verdict = check.check(out / check.ZIP, check.Listed.read(list_path))
    if not verdict.accepted:
        raise KlassifyError("\n".join(["The checker refuses this:", *verdict.refusals.lines()]), where=out / check.ZIP)


def _commit() -> str | None:
    """The commit of this package's sources, with `+` where they were changed; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _command(out: Path, list_path: Path, split: str, tasks: dict[str, Path], prior: float | None, sigmoid: bool) -> str:
    words = ["klassify", "package"]
    for name, folder in tasks.items():
        words += [f"--{name}", folder]
    words += ["--split", split, "--list", list_path, "--out", out]
    words += (["--prior", prior] if prior is not None else []) + (["--sigmoid"] if sigmoid else [])
    return shlex.join(map(str, words))
