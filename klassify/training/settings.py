"""What a training depends on and may start from, whether it is done already, and its result."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError, first_few
from klassify.files import read_json, write_json, write_text
from klassify.lists import subsets
from klassify.models.weights.load import WEIGHTS
from klassify.settings import already_done, file_hash
from klassify.systems.experiment import METRICS, STATE, Experiment, TrainSettings, finished_training

SETTINGS = "settings.json"


def training_settings(
    experiment: Experiment, sources: Any, args: argparse.Namespace, ranks: int = 1
) -> dict[str, Any]:
    """Everything the trained weights depend on. ranks: number of processes."""
    data = experiment.data
    settings = {
        "config": experiment.resolved,
        "seed": args.seed,
        "init": file_hash(args.init) if args.init else None,
    }
    start = starting_weights(experiment, args)
    if start and not args.init:
        settings["starts_from"] = {str(path): file_hash(path) for path in start}
    if ranks > 1:
        settings["ranks"] = ranks
    splits = (data.train_split, data.val_split)
    settings["lists"] = {
        split: file_hash(subsets.existing_list(sources.lists, split)) for split in splits
    }
    return settings | data.settings(sources, data.train_split)


def starting_weights(experiment: Experiment, args: argparse.Namespace) -> list[Path]:
    """Weight files of other systems that this training starts from."""
    if args.init:
        return [args.init]
    paths = [Path(path) for path in getattr(experiment.model, "starting_weights", list)()]
    for path in paths:
        if not path.exists():
            raise KlassifyError(
                "The weights that the model starts from are missing.",
                where=path,
                fix="train that system first; make stage2 trains all systems in order",
            )
    return paths


def check_start(experiment: Experiment, args: argparse.Namespace) -> None:
    """Refuse to start a clip-supervised model from weights trained on segments (rule of Task 1)."""
    from klassify.systems.system import SYSTEM, load_system

    if experiment.data.supervision != "clip":
        return
    for path in starting_weights(experiment, args):
        if (path.parent / SYSTEM).exists() and load_system(path.parent).supervision == "segment":
            raise KlassifyError(
                "These weights were trained on segment labels; a model that starts from them is"
                " not clip-supervised.",
                where=path,
                fix="start from other weights, or train with data.init_args.supervision=segment",
            )


def finished(out: Path, settings: dict[str, Any], force: bool) -> bool:
    """Whether the folder holds this training, complete.

    KlassifyError if it holds another one; with `force` the folder is cleared.
    """
    record = out / SETTINGS
    if force:
        # the mark of a complete training goes first, in case this process is killed here
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
    """Without train settings at their defaults, so that a new setting changes no old record."""
    config = settings.get("config", {})
    train, defaults = config.get("train", {}), dataclasses.asdict(TrainSettings())
    changed = {k: v for k, v in train.items() if k not in defaults or v != defaults[k]}
    return settings | {"config": config | {"train": changed}}


def write_result(out: Path, data: Any, state: dict[str, Any], failed: dict[str, str]) -> str:
    """Write system.yaml, training.json and failures.tsv; returns a summary to print.

    data: the ClipData that was trained on. state: with `epoch`, `best_epoch` and `history`. failed:
    {file: reason}.
    """
    from klassify.systems.system import System, write_system

    said = ""
    if failed:
        names = first_few(f"{file} ({reason})" for file, reason in sorted(failed.items()))
        said = f"{len(failed)} training clips could not be read: {names}\n"
        content = "file\tstage\treason\n"
        for file, reason in sorted(failed.items()):
            content += f"{file}\ttrain\t{reason.splitlines()[0]}\n"
        write_text(out / "failures.tsv", content)
    write_system(out, System(out.name, "model", data.modality, data.supervision, data.scale))
    best = state["history"][state["best_epoch"]]
    record = {"epochs": state["epoch"], "best_epoch": best["epoch"], **_validation(best)}
    write_json(out / "training.json", record | {"failed_clips": len(failed)})
    return f"{said}best epoch {best['epoch']}: {shown(best)}"


def _validation(row: dict[str, Any]) -> dict[str, float]:
    """The validation measures of a row of the history: `val_loss`, `val_auc` and the like."""
    return {key: value for key, value in row.items() if key.startswith("val_")}


def shown(row: dict[str, Any]) -> str:
    """The validation of an epoch in words."""
    return " ".join(f"{key} {value:.4f}" for key, value in _validation(row).items())
