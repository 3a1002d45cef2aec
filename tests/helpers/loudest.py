"""A model of one parameter that says what it scores."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from klassify.systems.base import System, write_system
from klassify.systems.experiment import load_experiment

LOG = "SCORED_WINDOWS"  # in the environment: a file that gets one line per window
CONFIG = """
model: {{class_path: loudest.Loudest}}
data: {{class_path: klassify.{data}, init_args: {{window: 32, stride: 16}}}}
"""
DATA = {"windows": "data.mouth.MouthFeatures", "frames": "data.mouth.MouthTags"}


class Loudest(nn.Module):
    """A detector and tagger of one parameter; logs each window by its first number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        if LOG in os.environ:
            with open(os.environ[LOG], "a") as log:
                windows = batch["features"][batch["valid"].any(dim=1)]  # not what fills the batch
                log.writelines(f"{first:.6f}\n" for first in windows[:, 0, 0].tolist())
        return (batch["features"][..., 0].amax(dim=1) - 2) * self.weight

    def tag_log_probs(self, batch: dict[str, Tensor]) -> Tensor:
        fake = torch.sigmoid((batch["features"][..., 0] - 2) * self.weight)
        return torch.stack([1 - fake, fake / 3, fake / 3, fake / 3], dim=-1).clamp_min(1e-6).log()


def make_system(folder: Path, kind: str = "windows", weight: float = 1.0) -> Path:
    """A system as a training would have left it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(data=DATA[kind]))
    model = load_experiment(folder / "config.yaml").model
    save_file({"weight": model.weight.detach() * weight}, folder / "model.safetensors")
    supervision = "clip" if kind == "windows" else "segment"
    write_system(folder, System(folder.name, "model", "visual", supervision, "log_odds"))
    return folder
