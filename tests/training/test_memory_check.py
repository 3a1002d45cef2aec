"""The memory check before a training."""

from __future__ import annotations

import copy
import types

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from together import PLAIN, command, in_threads, write_config

from klassify import cli
from klassify.data.base import Examples
from klassify.data.mouth import MouthFeatures
from klassify.errors import KlassifyError
from klassify.lists import subsets
from klassify.training import memory_check, ranks, trainer
from klassify.training.ranks import Ranks


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path)


def test_the_memory_check_changes_nothing(config, small_data, tmp_path, monkeypatch):
    tcn = tmp_path / "tcn.yaml"
    model = "model: {class_path: klassify.models.tcn.TCN, init_args: {hidden: 8}}\n"
    tcn.write_text(model + PLAIN.split("\n", 2)[2])
    assert cli.main(command(tcn, tmp_path / "checked", small_data)) == 0
    monkeypatch.setattr(trainer.Trainer, "_check_memory", lambda self: None)
    assert cli.main(command(tcn, tmp_path / "plain", small_data)) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("checked", "plain"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nmore"), MemoryError()],
)
def test_too_little_memory_is_reported_before_training(
    config, small_data, tmp_path, monkeypatch, capsys, error
):
    import plain_model

    def too_large(self, batch):
        raise error

    monkeypatch.setattr(plain_model.Plain, "loss", too_large)
    assert cli.main(command(config, tmp_path / "out", small_data)) == 2
    said = capsys.readouterr().err
    for part in ("does not fit into the memory", "train.batch_size", "features (32, "):
        assert part in said


def test_a_failed_step_leaves_the_model_unchanged():
    from plain_model import Plain

    class Fails(Plain):
        def loss(self, batch):
            with torch.no_grad():
                self.inner.weight.add_(1)
            raise torch.OutOfMemoryError("out of memory")

    model, batch = Fails(), {"features": torch.zeros(2, 3, 16)}
    before = copy.deepcopy(model.state_dict())
    fabric, one = ranks.launch("cpu", None, None, precision="32-true")
    with pytest.raises(KlassifyError, match="does not fit"):
        memory_check.try_step(model, batch, fabric, one, needs_all=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_parameters_without_gradient_are_named_for_ranks():
    from plain_model import Plain

    batch = {
        "features": torch.randn(2, 3, 16),
        "valid": torch.ones(2, 3, dtype=torch.bool),
        "label": torch.ones(2),
    }
    fabric, _ = ranks.launch("cpu", None, None, precision="32-true")

    def tried(rank, model):
        try:
            memory_check.try_step(model, batch, fabric, rank, needs_all=True)
        except (KlassifyError, SystemExit) as error:
            return str(error)

    first, second = in_threads(lambda rank: tried(rank, Plain(spare=True)), world=2)
    for part in ("no gradient", "spare", "find_unused_parameters=true"):
        assert part in first
    assert second == "2"
    assert in_threads(lambda rank: tried(rank, Plain()), world=2) == [None, None]
    assert tried(Ranks(), Plain(spare=True)) is None  # one process does not wait


def test_only_readable_clips_are_tried(small_data):
    sources = small_data.sources
    examples = Examples(MouthFeatures(train_split="train"), sources, "train", seed=1)
    no_face = subsets.load_split(small_data.lists, "train")["file"][2]
    examples.files = [no_face, no_face, examples.files[3]]
    examples.seconds = np.array([9.0, 8.0, 1.0])
    assert len(memory_check.longest_items(examples, 3)) == 3
    examples.files, examples.seconds = [no_face], np.array([9.0])
    with pytest.raises(KlassifyError, match="no face"):
        memory_check.longest_items(examples, 3)


def test_memory_use_of_a_gpu_is_reported(monkeypatch):
    card = types.SimpleNamespace(total_memory=80 * memory_check.GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    batch = {"wave": torch.zeros(4, 16000), "label": torch.zeros(4)}
    told = memory_check.in_words(3 * memory_check.GIB // 2, batch, torch.device("cuda", 0))
    assert told == "a batch of the longest clips (wave (4, 16000)) needs 1.5 of 80.0 GiB"
