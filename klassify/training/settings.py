"""What a training depends on and may start from, whether it is done, and its result."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klassify.errors import KlassifyError, first_few
from klassify.failures import Failure, write_failures
from klassify.files import read_json, write_json
from klassify.lists import subsets
from klassify.lists.pseudo import Record, read_pseudo, record_path
from klassify.models.weights import WEIGHTS
from klassify.scores.score_file import strongest
from klassify.settings import already_done, file_hash
from klassify.systems.base import SYSTEM, System, write_system
from klassify.systems.experiment import METRICS, SETTINGS, STATE, Experiment, TrainSettings
from klassify.systems.system import load_system
from klassify.training.loggers import TENSORBOARD

if TYPE_CHECKING:
    import pandas as pd

    from klassify.data.base import ClipData, Sources

RESULT = "training.json"  # its presence marks a complete training


def training_settings(
    experiment: Experiment, sources: Sources, *, seed: int, init: Path | None, ranks: int = 1
) -> dict[str, Any]:
    """Everything the trained weights depend on. KlassifyError if it starts from weights that are
    missing or that it may not start from. ranks: number of processes.
    """
    data = experiment.data
    settings: dict[str, Any] = {
        "config": experiment.resolved,
        "seed": seed,
        "init": file_hash(init) if init else None,
    }
    start = [init] if init else _starting_weights(experiment.model)
    if data.supervision != "segment":
        _refuse_segment_labels(start, data.supervision)
    if start and not init:
        settings["starts_from"] = {str(path): file_hash(path) for path in start}
    if ranks > 1:
        settings["ranks"] = ranks
    settings["lists"] = {
        split: file_hash(subsets.existing_list(sources.lists, split))
        for split in (data.train_split, data.val_split)
    }
    inputs = data.settings(sources, data.train_split)
    if data.supervision != "segment":
        _refuse_segment_embeddings(inputs, data.train_split)
    if pseudo := pseudo_labels(experiment):
        settings["pseudo"] = {
            "list": file_hash(experiment.train.pseudo),
            "record": dataclasses.asdict(pseudo[1]),
            "inputs": data.settings(sources, pseudo[1].split),
        }
    return settings | inputs


def pseudo_labels(experiment: Experiment) -> tuple[pd.DataFrame, Record] | None:
    """The list of pseudo-labels of a training and its record, if any; KlassifyError for one that
    its model may not learn from.
    """
    data = experiment.data
    if not experiment.train.pseudo:
        return None
    table, record = read_pseudo(experiment.train.pseudo)
    where = record_path(experiment.train.pseudo)
    if data.supervision != "clip":
        raise KlassifyError(
            "Pseudo-labels are labels of whole clips; this model learns from"
            f" {'segments' if data.supervision == 'segment' else 'edits of its own'}.",
            where=where,
            fix="leave out train.pseudo",
        )
    if record.supervision == "segment":
        raise KlassifyError(
            f"These are answers of {record.system}, which learned from segment labels; a model that"
            " learns from them is not clip-supervised.",
            where=where,
            fix="choose pseudo-labels of a system that learned from clip labels",
        )
    asked, known = ("both" if data.label == "video" else data.modality), record.modality
    if asked != known:
        names = {"both": "the video", "audio": "the sound", "visual": "the picture"}
        label = "set data.init_args.label=video, or " if known == "both" else ""
        raise KlassifyError(
            f"{record.system} says whether {names[known]} is fake; this model learns whether"
            f" {names[asked]} is.",
            where=where,
            fix=f"{label}choose pseudo-labels of a system that answers for {names[asked]}",
        )
    return table, record


def _refuse_segment_embeddings(inputs: dict[str, Any], split: str) -> None:
    """Task 1's rule: no embeddings of an encoder that learned from segments."""
    for features in inputs.values():
        if isinstance(features, dict) and features.get("supervision") == "segment":
            raise KlassifyError(
                f"The embeddings of {split} are of {features['system']}, which learned from segment"
                " labels; a model that reads them is not clip-supervised.",
                fix="use the embeddings of an encoder that learned from clip labels (audio_mil)",
            )


def _starting_weights(model: Any) -> list[Path]:
    """Weight files of other systems that a model starts from."""
    paths = getattr(model, "starting_weights", list)()
    for path in paths:
        if not path.exists():
            raise KlassifyError(
                "The weights that the model starts from are missing.",
                where=path,
                fix="train that system first; make stage2 trains all systems in order",
            )
    return paths


def learned_from(experiment: Experiment, sources: Sources, init: Path | None) -> str:
    """The supervision of a trained model: its data's, or a stronger one of weights that it starts
    from, of an encoder whose embeddings it reads, or of its pseudo-labels.
    """
    data = experiment.data
    start = [init] if init else _starting_weights(experiment.model)
    inputs = data.settings(sources, data.train_split).values()
    read = [one["supervision"] for one in inputs if isinstance(one, dict) and "supervision" in one]
    if pseudo := pseudo_labels(experiment):
        read += ["pseudo", pseudo[1].supervision]
    return strongest([data.supervision, *read, *map(_supervision_of, start)])


def _supervision_of(weights: Path) -> str:
    """That of the system in whose folder the weights are; `clip` for weights of no system."""
    folder = weights.parent
    return load_system(folder).supervision if (folder / SYSTEM).exists() else "clip"


def _refuse_segment_labels(start: list[Path], supervision: str) -> None:
    """Task 1's rule: a model that reads no segments does not start from weights trained on them."""
    for path in start:
        if _supervision_of(path) == "segment":
            raise KlassifyError(
                "These weights were trained on segment labels; the supervision of a model that"
                f" starts from them is segment, not {supervision}.",
                where=path,
                fix="start from other weights, or train with data.init_args.supervision=segment",
            )


def clear(folder: Path) -> None:
    """Remove a training and its scores; the mark of a complete one goes first."""
    for name in (RESULT, SYSTEM, STATE, METRICS, WEIGHTS, SETTINGS):
        (folder / name).unlink(missing_ok=True)
    for name in ("scores", TENSORBOARD):
        shutil.rmtree(folder / name, ignore_errors=True)


def is_finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a folder holds this training, complete; KlassifyError if it holds another one."""
    record = folder / SETTINGS
    if not record.exists() and (folder / SYSTEM).exists():
        raise KlassifyError(
            "This folder holds a system that was not trained here.",
            where=folder,
            fix="train into another folder, or pass --force to replace it",
        )
    made_with = _brief(read_json(record)) if record.exists() else None
    return already_done(record, made_with, _brief(settings)) and (folder / RESULT).exists()


def _brief(settings: dict[str, Any]) -> dict[str, Any]:
    """Without train settings at their defaults, so that a new setting changes no old record."""
    config = settings.get("config", {})
    train, defaults = config.get("train", {}), dataclasses.asdict(TrainSettings())
    changed = {k: v for k, v in train.items() if k not in defaults or v != defaults[k]}
    return settings | {"config": config | {"train": changed}}


def write_result(
    out: Path, data: ClipData, supervision: str, state: dict[str, Any], failed: dict[str, str]
) -> str:
    """Write system.yaml, training.json and failures.tsv; returns a summary to print.

    supervision: see learned_from. state: with `epoch`, `best_epoch` and `history`. failed: {file:
    reason}.
    """
    said = ""
    if failed:
        names = first_few(f"{file} ({reason})" for file, reason in sorted(failed.items()))
        said = f"{len(failed)} training clips could not be read: {names}\n"
        failures = [
            Failure(file, "train", reason.splitlines()[0])
            for file, reason in sorted(failed.items())
        ]
        write_failures(out / "failures.tsv", failures)
    write_system(out, System(out.name, "model", data.modality, supervision, data.scale))
    best = state["history"][state["best_epoch"]]
    record = {"epochs": state["epoch"], "best_epoch": best["epoch"], **_validation(best)}
    write_json(out / RESULT, record | {"failed_clips": len(failed)})
    return f"{said}best epoch {best['epoch']}: {shown(best)}"


def _validation(row: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key.startswith("val_")}


def shown(row: dict[str, Any]) -> str:
    """The validation measures of an epoch, as text."""
    return " ".join(f"{key} {value:.4f}" for key, value in _validation(row).items())
