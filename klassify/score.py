"""Run a system on a split and write its score files.

    klassify score exp/demo/klassify/tcn --split val,testA \
        --lists data_lists/demo --media media/demo --features features/demo

A trained detector writes `scores/<split>.windows.tsv` (kept, so that another aggregation is a cheap re-run) and
`scores/<split>.clips.tsv`, a localiser `scores/<split>.frames.parquet` and the highest of each clip's frames as its
clip score (`--aggregate top`: the mean of the highest tenth), on the scale of the frames; a calibrated or fused
system derives its scores from those of its inputs. Every clip of the list gets exactly one row; one that cannot be
scored has an empty score with the reason, and stands in `scores/<split>.failures.tsv` too.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from klassify import lists, systems
from klassify.errors import KlassifyError
from klassify.files import already_done, file_hash, whole_file
from klassify.scorefile import Header, read_header, read_scores, score_path, write_scores


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("systems", nargs="+", type=Path, metavar="SYSTEM_DIR", help="folders with a system.yaml")
    parser.add_argument("--split", required=True, help="splits or named subsets, with commas between")
    parser.add_argument("--lists", type=Path, help="folder of the data lists, such as data_lists/demo")
    parser.add_argument("--media", type=Path, help="folder of the media, one folder a split")
    parser.add_argument("--features", type=Path, help="folder of the features, such as features/demo")
    parser.add_argument("--aggregate", help="window or frame scores -> clip score (default: the system's own)")
    parser.add_argument("--batch-size", type=int, default=16, help="windows a forward pass (default 16)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read inputs (default 0: none)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default)")
    parser.add_argument("--force", action="store_true", help="replace scores made with other settings")


def run(args: argparse.Namespace) -> int:
    for folder in args.systems:
        system = systems.load_system(folder)
        for split in args.split.split(","):
            if system.kind == "model":
                path, n_unanswered = _score_model(folder, system, split, args)
            else:
                scores = systems.derive_scores(folder, split, force=args.force)
                path, n_unanswered = (
                    score_path(folder, split, "clips"),
                    int((~systems.answered(scores)).sum()),
                )
            print(f"{path}{f', {n_unanswered} clips without an answer' if n_unanswered else ''}")
    return 0


def _score_model(folder: Path, system: systems.System, split: str, args: argparse.Namespace) -> tuple[Path, int]:
    """Score a trained model; returns the file that later steps read, and how many clips have no answer."""
    if system.scale == "none":
        raise KlassifyError(f"{system.name} has no scores: other systems use what it makes.", where=folder)
    if not (args.lists and args.media and args.features):
        raise KlassifyError("Give --lists, --media and --features: a model is scored from its inputs.", where=folder)
    from klassify.datasets import Sources

    sources = Sources(args.lists, args.media, args.features)
    model, data = systems.load_model(folder)
    kind = "frames" if hasattr(data, "COLUMNS") else "windows"
    path = score_path(folder, split, kind)
    settings = {
        "system": systems.system_hash(folder),
        "list": file_hash(lists.existing_list(sources.lists, split)),
        **data.settings(sources, split),
    }
    header = Header(system.name, split, kind, system.scale, system.supervision, settings)
    reasons = _score_parts(path, header, model, data, sources, args)
    if kind == "windows":
        path = _write_clips(folder, header, sources, args.aggregate or data.aggregate, reasons)
    elif hasattr(data, "aggregate"):
        _write_clips(folder, header, sources, args.aggregate or "max", reasons)
    return path, len(reasons)


def _score_parts(path: Path, header: Header, model, data, sources, args: argparse.Namespace) -> dict[str, str]:
    """Window or frame scores, made or kept; returns {file: reason} of the clips without any."""
    failures = path.with_name(f"{header.split}.failures.tsv")
    if already_done(path, _made_with(path), header.settings, force=args.force):
        return _read_failures(failures)
    from klassify.inference import score_clips, score_frames

    make = score_frames if header.kind == "frames" else score_clips
    table, reasons = make(
        model,
        data,
        sources,
        header.split,
        batch_size=args.batch_size,
        workers=args.workers,
        device=args.device,
    )
    _write_failures(failures, reasons)  # before the scores: these must never stand without it
    write_scores(path, table, header)
    return reasons


def _write_clips(folder: Path, header: Header, sources, aggregate: str, reasons: Mapping[str, str]) -> Path:
    """Clip scores from window or frame scores, unless they are there for these and this aggregation."""
    from klassify.inference import clip_table

    path = score_path(folder, header.split, "clips")
    scored_path = score_path(folder, header.split, header.kind)
    settings = {**header.settings, "aggregate": aggregate}
    if _made_with(path) != settings:
        if header.kind == "frames":  # one row a clip is left, so that any aggregation of clip_table will do
            scored, aggregate = _pooled_frames(scored_path, aggregate), "max"
        else:
            scored = read_scores(scored_path).table
        header = dataclasses.replace(header, kind="clips", settings=settings)
        write_scores(path, clip_table(scored, sources.table(header.split), reasons, aggregate), header)
    return path


def _pooled_frames(path: Path, aggregate: str) -> pd.DataFrame:
    from klassify.frame_file import FrameFile, clip_scores

    blocks = clip_scores(FrameFile(path), aggregate)
    parts = [pd.DataFrame({"file": files, "score": scores}) for files, scores in blocks]
    return pd.concat(parts) if parts else pd.DataFrame({"file": [], "score": []})


def _made_with(path: Path) -> dict[str, Any] | None:
    return dict(read_header(path).settings) if path.exists() else None


def _write_failures(path: Path, reasons: Mapping[str, str]) -> None:
    rows = pd.DataFrame(sorted(reasons.items()), columns=["file", "reason"])
    rows.insert(1, "stage", "score")
    with whole_file(path) as partial:
        rows.to_csv(partial, sep="\t", index=False, lineterminator="\n")


def _read_failures(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    rows = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    return dict(zip(rows["file"], rows["reason"]))
