"""A trained model as a system: config.yaml and model.safetensors in its folder."""

from __future__ import annotations

import functools
import os
import shlex
from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError
from klassify.lists.subsets import list_path
from klassify.models.weights import WEIGHTS
from klassify.systems.base import System
from klassify.systems.experiment import CONFIG, load_data, load_experiment


class Trained(System):
    """A system that is run on media or features."""

    has_frames = True

    def score_command(self, split: str) -> str:
        """The command that scores a split, for messages."""
        return f"{super().score_command(split)} {read_from(self.folder, split)}"

    def data(self) -> Any:
        """Its ClipData, made once, without building or reading the model."""
        return self._data

    @functools.cached_property
    def _data(self) -> Any:
        return load_data(self.folder / CONFIG)

    def load(self) -> tuple[Any, Any]:
        """The trained model, in eval mode, and its ClipData."""
        return load_model(self.folder)


def read_from(folder: Path, split: str) -> str:
    """The options of `klassify score` for a split, for messages; DIR for media in an unknown place.

    folder: exp/<data>/<recipe>/<system>, or with seed-<n> between recipe and system.
    """
    recipe = folder.parent.parent if folder.parent.name.startswith("seed-") else folder.parent
    other = split.rpartition("-")[0]  # DATA-SPLIT: of other data than that of the training
    for data in (other, recipe.parent.name):
        if data and list_path(Path("data_lists", data), split).exists():
            media = Path("media", data) if Path("media", data).is_dir() else "DIR"
            words = ("--lists", f"data_lists/{data}", "--media", media, "--features")
            return shlex.join(map(str, (*words, f"features/{data}")))
    return "--lists ... --media ... --features ..."


def load_model(folder: str | os.PathLike) -> tuple[Any, Any]:
    """(nn.Module in eval mode, ClipData) of a system of kind `model`."""
    from klassify.models.weights.load import load_weights

    folder = Path(folder)
    weights = folder / WEIGHTS
    if not weights.exists():
        raise KlassifyError("This system has no weights.", where=weights, fix="train it first")
    experiment = load_experiment(folder / CONFIG)
    load_weights(experiment.model, weights)
    return experiment.model.eval(), experiment.data
