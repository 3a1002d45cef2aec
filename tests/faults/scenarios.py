"""What is disturbed: a command in a folder with its inputs, and the folder afterwards."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify.files import TEMPORARY
from klassify.lists import data_list
from klassify.scores.score_file import Header, score_path, write_scores
from klassify.systems import base

TCN = """
model: {class_path: klassify.models.tcn.TCN, init_args: {hidden: 8, dilations: [1, 2]}}
data: {class_path: klassify.data.mouth.MouthFeatures}
train: {epochs: 3, batch_size: 8, lr: 0.01, checkpoint_steps: 1}
"""
WHEN = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
SOURCES = ["--lists", "lists", "--media", "media", "--features", "features"]


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A command, run in a folder that `prepare` has filled from the small data set's folder.

    out: where its outputs lie. growing: those that change until the end; each of the others is
    written once.
    """

    name: str
    prepare: Callable[[Path, Path], None]
    command: list[str]
    out: str
    growing: tuple[str, ...] = ()


def outputs(folder: Path, scenario: Scenario) -> dict[str, bytes]:
    """{name: bytes} of a scenario's outputs, without times of day and the content of .pt files,
    which has torch's names of archives.
    """
    top = folder / scenario.out
    return {
        str(path.relative_to(top)): b""
        if path.suffix == ".pt"
        else WHEN.sub(b"then", path.read_bytes())
        for path in sorted(top.rglob("*"))
        if path.is_file()
    }


def finished(folder: Path, scenario: Scenario) -> dict[str, bytes]:
    """The outputs that a reader takes for complete if they exist."""
    return {
        name: content
        for name, content in outputs(folder, scenario).items()
        if TEMPORARY not in name and name not in scenario.growing and ".parts" not in name
    }


def half_finished(folder: Path, undisturbed: Any) -> dict[str, bytes]:
    """The outputs that look complete and are not those of the undisturbed run."""
    found = finished(folder, undisturbed.scenario)
    return {name: found[name] for name in found if undisturbed.finished.get(name) != found[name]}


def _audio(small: Path, folder: Path) -> None:
    for name in ("lists/train.tsv", "lists/val.tsv", "media/train"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (small / name).is_dir() else shutil.copy)(small / name, target)


def _training(small: Path, folder: Path) -> None:
    shutil.copytree(small, folder, dirs_exist_ok=True)
    (folder / "tcn.yaml").write_text(TCN)


def _scoring(small: Path, folder: Path) -> None:
    from klassify.models.weights.safetensors_file import save_weights
    from klassify.systems.experiment import load_experiment, save_config

    _training(small, folder)
    experiment = load_experiment(folder / "tcn.yaml", seed=1)
    save_config(folder / "exp/tcn", experiment.resolved)
    save_weights(experiment.model, folder / "exp/tcn/model.safetensors")
    base.write_system(folder / "exp/tcn", base.System("tcn", "model", "visual", "clip", "log_odds"))


def _packaging(small: Path, folder: Path, n: int = 1500) -> None:
    files = [f"id{i % 70:05d}/{i:06d}.mp4" for i in range(n)]
    data_list.write_list(folder / "lists/testA.tsv", pd.DataFrame({"file": files, "duration": 4.0}))
    scores = np.random.default_rng(0).random(n)
    base.write_system(folder / "exp/s", base.System("s", "model", "audio", "clip", "probability"))
    clips = pd.DataFrame({"file": files, "start": 0.0, "end": 4.0, "score": scores, "reason": ""})
    for kind, table in (
        ("clips", clips),
        ("segments", clips.assign(start=1.0, modality="audio", method="threshold")),
    ):
        header = Header("s", "testA", kind, "probability", "clip" if kind == "clips" else "segment")
        write_scores(score_path(folder / "exp/s", "testA", kind), table, header)


EXTRACT = "extract --kind audio --list lists/train.tsv --root media --chunk 4 --jobs 1"
PACKAGE = "package --task1 exp/s --task2 exp/s --split testA --list lists/testA.tsv"
SCENARIOS = (
    Scenario(
        "extract",
        _audio,
        [*EXTRACT.split(), "--out", "features/audio/train"],
        "features/audio/train",
    ),
    Scenario(
        "train",
        _training,
        ["train", "tcn.yaml", "--out", "exp/tcn", *SOURCES, "--accelerator", "cpu"],
        "exp/tcn",
        growing=("model.safetensors", "metrics.csv"),
    ),
    Scenario(
        "score",
        _scoring,
        ["score", "exp/tcn", "--split", "val", *SOURCES, "--device", "cpu"],
        "exp/tcn",
    ),
    Scenario("package", _packaging, [*PACKAGE.split(), "--out", "submissions/made"], "submissions"),
)
