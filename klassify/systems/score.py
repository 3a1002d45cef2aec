"""Score any system on a split: trained models from their inputs, derived ones from the scores of
others.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from klassify.errors import KlassifyError
from klassify.lists import subsets
from klassify.scores.chunks import Layout, Parts, parts_folder
from klassify.scores.score_file import (
    Header,
    ScoreFile,
    made_with,
    read_scores,
    score_path,
    write_scores,
)
from klassify.settings import already_done, file_hash, settings_hash
from klassify.systems import calibrated, experiment, fused
from klassify.systems.linear import derive_frames
from klassify.systems.scores import answered, clip_scores
from klassify.systems.system import (
    FRAMES_RULE,
    PROPOSALS_RULE,
    System,
    input_folders,
    load_model,
    load_system,
    system_hash,
)

APPLY = {"calibrated": calibrated.apply, "fusion": fused.apply}


def derive(system: System, inputs: Sequence[ScoreFile]) -> pd.DataFrame:
    """The clip table of a calibrated or fused system from its inputs' clip scores."""
    return APPLY[system.kind](system, inputs)


def derive_scores(folder: str | os.PathLike, split: str, *, force: bool = False) -> ScoreFile:
    """Compute and write a derived system's clip scores, or keep them where nothing has changed."""
    system = load_system(folder)
    if system.parameters.get("rule") == PROPOSALS_RULE:
        raise KlassifyError(
            f"{system.name} joins proposals and has no clip scores.",
            where=folder,
            fix=f"klassify localise {folder} --split {split}",
        )
    if system.parameters.get("rule") == FRAMES_RULE:
        return derive_frames(folder, split, force=force)
    path = score_path(folder, split, "clips")
    inputs = [clip_scores(input_folder, split) for input_folder in input_folders(folder)]
    made_from = [
        f"{scores.header.system} {settings_hash(scores.header.settings)}" for scores in inputs
    ]
    settings = {"system": system_hash(folder), "inputs": made_from}
    if not already_done(path, made_with(path), settings, force=force):
        header = Header(system.name, split, "clips", system.scale, system.supervision, settings)
        write_scores(path, derive(system, inputs), header)
    return read_scores(path)


def _derive(folder: Path, split: str, *, force: bool) -> str:
    """Derive scores from those of other systems; returns what to say."""
    scores = derive_scores(folder, split, force=force)
    return _said(score_path(folder, split, "clips"), int((~answered(scores)).sum()))


def _said(path: Path, n_unanswered: int) -> str:
    return f"{path}{f', {n_unanswered} clips without an answer' if n_unanswered else ''}"


def score(
    folder: Path, split: str, sources: Any, *, device: str = "auto", loaded: Any = None
) -> None:
    """Score a split with the system of a folder.

    sources: the data.base.Sources of a trained model. loaded: its (model, data), where it scores
    several splits.
    """
    from klassify.scores import shards

    system = load_system(folder)
    if system.kind != "model":
        derive_scores(folder, split)
        return
    model, data = loaded or load_model(folder)
    how = SimpleNamespace(aggregate=None, approximate=False)
    parts = _parts(folder, system, split, data, sources, how)
    options = {"batch_size": 16, "workers": 0, "device": device, "approximate": False}
    shards.score_share(parts, model, data, sources, 1, 1, **options)
    shards.finish(parts)
    _clip_scores(folder, parts, sources)


def _score_model(
    folder: Path, system: System, split: str, shard: tuple[int, int], args: argparse.Namespace
) -> str:
    """Score a share of a split with a trained model; returns what to say: which file is there,
    or what it lacks.
    """
    from klassify.scores import shards

    parts, sources = _planned(folder, system, split, args)
    if not shards.is_done(parts, force=args.force):
        model, data = load_model(folder)
        how = {
            name: getattr(args, name) for name in ("batch_size", "workers", "device", "approximate")
        }
        shards.score_share(parts, model, data, sources, *shard, **how)
        if not shards.finish(parts):
            i, n = shard
            return (
                f"{parts.folder}: shard {i}/{n} is done, {shards.missing_text(parts, n)}. Who"
                f" does the last one joins them; so does `klassify merge {folder} --split {split}`"
            )
    return _clip_scores(folder, parts, sources)


def _clip_scores(folder: Path, parts: Parts, sources: Any) -> str:
    """Write the clip scores of what is scored, if there are none of this aggregation; returns
    what to say.
    """
    from klassify.scores import clip_scores

    reasons = clip_scores.read_failures(folder, parts.header.split)
    path = score_path(folder, parts.header.split, parts.header.kind)
    if parts.aggregate is not None:
        clips = clip_scores.keep_or_write(folder, parts.header, sources, reasons, parts.aggregate)
        path = clips if parts.header.kind == "windows" else path
    return _said(path, len(reasons))


def _check_scored(folder: Path, system: System) -> None:
    if system.scale == "none":
        raise KlassifyError(
            f"{system.name} has no scores: other systems use what it makes.", where=folder
        )


def _check_sources(args: argparse.Namespace) -> None:
    if not (args.lists and args.media and args.features):
        raise KlassifyError(
            "Give --lists, --media and --features: a model is scored from its inputs."
        )


def _planned(
    folder: Path, system: System, split: str, args: argparse.Namespace
) -> tuple[Parts, Any]:
    """What is to be scored and the Sources of it, before anything of the model's size is made or
    read.
    """
    _check_scored(folder, system)
    _check_sources(args)
    import torch

    from klassify.data.base import Sources
    from klassify.systems.experiment import load_experiment

    sources = Sources(args.lists, args.media, args.features)
    with torch.device("meta"):
        data = load_experiment(folder / experiment.CONFIG).data
    return _parts(folder, system, split, data, sources, args), sources


def _parts(
    folder: Path, system: System, split: str, data: Any, sources: Any, args: argparse.Namespace
) -> Parts:
    """What is to be scored, in chunks, and what the scores depend on."""
    from klassify.scores.clip_scores import check_how

    kind = "frames" if data.unit == "frame" else "windows"
    default = data.aggregate if kind == "windows" else "max" if hasattr(data, "aggregate") else None
    settings = {
        "system": system_hash(folder),
        "list": file_hash(subsets.existing_list(sources.lists, split)),
        **data.settings(sources, split),
        **({"approximate": True} if args.approximate else {}),
    }
    if args.aggregate:
        check_how(kind, args.aggregate)
    header = Header(system.name, split, kind, system.scale, system.supervision, settings)
    layout = Layout.of(sources.table(split)["duration"].to_numpy(float))
    return Parts(
        parts_folder(folder, split), header, layout, default and (args.aggregate or default)
    )
