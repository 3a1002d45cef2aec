"""A trained model as a system: config.yaml and model.safetensors in its folder."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError
from klassify.models.weights import WEIGHTS
from klassify.systems.base import System
from klassify.systems.experiment import CONFIG, load_data, load_experiment


class Trained(System):
    """A system that is run on media or features."""

    has_frames = True

    def score_command(self, split: str) -> str:
        """The command that scores a split, for messages."""
        return f"{super().score_command(split)} --lists ... --media ... --features ..."

    def data(self) -> Any:
        """Its ClipData, made once, without building or reading the model."""
        return self._data

    @functools.cached_property
    def _data(self) -> Any:
        return load_data(self.folder / CONFIG)

    def load(self) -> tuple[Any, Any]:
        """The trained model, in eval mode, and its ClipData."""
        return load_model(self.folder)


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
