"""A training step reads nothing from the device: whatever does would wait for a GPU.

The loss of every shipped config runs on `meta` tensors, which have no values to read: an `.item()`,
a boolean index or a copy to the host raises. Copies from the host, such as tensors made of Python
lists, are counted.
"""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from places import configs
from synthetic_clips import batch_of
from together import command, write_config
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from klassify import cli
from klassify.models.cfprf import CFPRF
from klassify.systems.experiment import load_experiment
from klassify.training import trainer

FOLDERS = sorted({path.parent for path in configs()})
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::bincount")
COPIES = ("aten::_to_copy", "aten::copy_", "aten::lift_fresh")


class Waits(TorchDispatchMode):
    """Counts what a device would be waited for. device: its type."""

    def __init__(self, device: str):
        super().__init__()
        self.device, self.found = device, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        result = func(*args, **(kwargs or {}))
        tensors = [
            one for one in tree_leaves((args, kwargs, result)) if isinstance(one, torch.Tensor)
        ]
        devices = {one.device.type for one in tensors}
        moves = len(devices) > 1 or name == "aten::lift_fresh"
        masks = name.startswith("aten::index") and any(
            isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8)
            for one in tree_leaves(args[1:2])
        )
        if self.device in devices and (name in READS or masks or (name in COPIES and moves)):
            self.found.append(name)
        return result


def on_meta(batch):
    return {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def step(model, batch) -> Waits:
    """The second of two steps: the first may copy constants to the device."""
    model.zero_grad()
    model.loss(batch).backward()
    with Waits("meta") as waits:
        model.loss(batch).backward()
    return waits


@pytest.fixture
def no_autocast(monkeypatch):
    """Meta tensors have none."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


@pytest.mark.long
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: "/".join(folder.parts[-3:]))
def test_the_losses_of_shipped_configs_read_nothing(folder, no_autocast):
    tried, waiting = set(), {}
    for path in (one for one in configs() if one.parent == folder):
        with torch.device("meta"):
            experiment = load_experiment(path)
        # an equal model on equal inputs waits for the same
        equal = json.dumps(
            [experiment.resolved["model"], experiment.resolved["data"]["class_path"]]
        )
        model = experiment.model.train()
        if equal in tried or isinstance(model, CFPRF):
            continue  # CFPRF refines runs of its own scores, whose number is read
        tried.add(equal)
        for module in model.modules():
            for name in ("_has_weights", "_has_vqvae"):  # no pretrained weights are needed here
                if hasattr(module, name):
                    setattr(module, name, True)
        waiting[path.stem] = step(model, on_meta(batch_of(experiment))).found
    assert waiting and set(map(tuple, waiting.values())) == {()}, waiting


def test_the_loop_reads_once_in_log_every_steps(small_data, tmp_path, monkeypatch):
    counts = {"_step": 0, "_read_loss": 0}
    waits = Waits("cpu")

    def counted(name):
        plain = getattr(trainer.Trainer, name)

        def method(self, *args, **more):
            counts[name] += 1
            with waits:
                return plain(self, *args, **more)

        monkeypatch.setattr(trainer.Trainer, name, method)

    def quiet(plain):
        def step(self, *args, **more):  # on a CPU Adam reads its own counters
            with _disable_current_modes():
                return plain(self, *args, **more)

        return step

    for name in counts:
        counted(name)
    for function in ("step", "zero_grad"):
        plain = getattr(torch.optim.AdamW, function)
        monkeypatch.setattr(torch.optim.AdamW, function, quiet(plain))
    more = ["train.batch_size=1", "train.log_every=20", "train.checkpoint_steps=0"]
    more += ["train.clip_norm=1", "train.epochs=2"]
    config = write_config(tmp_path)
    assert cli.main(command(config, tmp_path / "out", small_data, *more)) == 0
    n_steps, n_reads = counts["_step"], counts["_read_loss"]
    assert n_steps >= 40 and n_reads <= n_steps / 20 + 2  # and one at the end of an epoch
    assert waits.found == ["aten::_local_scalar_dense"] * n_reads
