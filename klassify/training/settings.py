"""What a training depends on, what it may start from, whether a folder already holds it, and its
result.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError, first_few
from klassify.files import read_json, whole_file, write_json
from klassify.lists import subsets
from klassify.models.weights.load import WEIGHTS
from klassify.settings import already_done, file_hash
from klassify.systems.experiment import METRICS, STATE, Experiment, TrainSettings, finished_training

SETTINGS = "settings.json"


def training_settings(
    experiment: Experiment, sources: Any, args: argparse.Namespace, ranks: int = 1
) -> dict[str, Any]:
    """Everything the trained weights depend on. ranks: processes, each of which takes
    `batch_size` clips a step.
    """
    data = experiment.data
    start = (
        {}
        if args.init
        else {str(path): file_hash(path) for path in starting_weights(experiment, args)}
    )
    splits = (data.train_split, data.val_split)
    hashes = {split: file_hash(subsets.existing_list(sources.lists, split)) for split in splits}
    return {
        "config": experiment.resolved,
        "seed": args.seed,
        "init": file_hash(args.init) if args.init else None,
        **({"starts_from": start} if start else {}),
        **({"ranks": ranks} if ranks > 1 else {}),
        "lists": hashes,
        **data.settings(sources, data.train_split),
    }


def starting_weights(experiment: Experiment, args: argparse.Namespace) -> list[Path]:
    """Files of systems trained before that this training starts from."""
    if args.init:
        return [args.init]
    paths = [Path(path) for path in getattr(experiment.model, "starting_weights", list)()]
    for path in paths:
        if not path.exists():
            raise KlassifyError(
                "The weights that the model starts from are missing.",
                where=path,
                fix="train that system first: make stage2 makes all of them in order",
            )
    return paths


def check_start(experiment: Experiment, args: argparse.Namespace) -> None:
    """What learns from clip labels alone must not start from what learned from segments (the
    rule of Task 1).
    """
    from klassify.systems.system import SYSTEM, load_system

    for path in starting_weights(experiment, args) if experiment.data.supervision == "clip" else ():
        if (path.parent / SYSTEM).exists() and load_system(path.parent).supervision == "segment":
            raise KlassifyError(
                "These weights learned from segment labels, and what starts from them is not"
                " clip-supervised.",
                where=path,
                fix="start from other weights, or train with data.init_args.supervision=segment",
            )


def finished(out: Path, settings: dict[str, Any], force: bool) -> bool:
    """Whether the folder holds this very training, complete. Another one is refused, or cleared
    by force.
    """
    record = out / SETTINGS
    if force:
        # what says that a training is complete goes first: killed here, the folder must not be
        # taken for one
        for name in ("training.json", "system.yaml", STATE, METRICS, WEIGHTS, SETTINGS):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / "scores", ignore_errors=True)
        return False
    if not record.exists():
        if (out / "system.yaml").exists():
            raise KlassifyError(
                "This folder holds a system that was not trained here.",
                where=out,
                fix="train into another folder, or give --force to replace it",
            )
        return False
    already_done(record, _brief(read_json(record)), _brief(settings))
    return finished_training(out) is not None


def _brief(settings: dict[str, Any]) -> dict[str, Any]:
    """Without train settings at their defaults, so that a record of before there was one says
    the same.
    """
    config = settings.get("config", {})
    defaults = dataclasses.asdict(TrainSettings())
    changed = {
        k: v for k, v in config.get("train", {}).items() if k not in defaults or v != defaults[k]
    }
    return settings | {"config": config | {"train": changed}}


def write_result(out: Path, data: Any, state: dict[str, Any], failed: dict[str, str]) -> str:
    """What a finished training leaves beside its weights: system.yaml, training.json, failures.tsv.
    Says it.

    data: the ClipData that was trained on. state: with `epoch`, `best_epoch` and `history`. failed:
    {file: reason}.
    """
    from klassify.systems.system import System, write_system

    said = ""
    if failed:
        names = first_few(f"{file} ({reason})" for file, reason in sorted(failed.items()))
        said = f"{len(failed)} training clips could not be read: {names}\n"
        with whole_file(out / "failures.tsv") as partial:
            lines = [
                f"{file}\ttrain\t{reason.splitlines()[0]}\n"
                for file, reason in sorted(failed.items())
            ]
            partial.write_text("file\tstage\treason\n" + "".join(lines), encoding="utf-8")
    write_system(
        out,
        System(
            name=out.name,
            kind="model",
            modality=data.modality,
            supervision=data.supervision,
            scale=data.scale,
        ),
    )
    best = state["history"][state["best_epoch"]]
    record = {"epochs": state["epoch"], "best_epoch": best["epoch"], **_validation(best)}
    write_json(out / "training.json", record | {"failed_clips": len(failed)})
    return f"{said}best epoch {best['epoch']}: {shown(best)}"


def _validation(row: dict[str, Any]) -> dict[str, float]:
    """What a row of the history says about validation: `val_loss`, and `val_auc` or another
    measure.
    """
    return {key: value for key, value in row.items() if key.startswith("val_")}


def shown(row: dict[str, Any]) -> str:
    """The validation of an epoch in words."""
    return " ".join(f"{key} {value:.4f}" for key, value in _validation(row).items())
