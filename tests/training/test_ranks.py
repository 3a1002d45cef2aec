"""Impossible devices and processes are refused before a training starts."""

from __future__ import annotations

import pytest
import torch
from together import command, write_config

from klassify import cli
from klassify.errors import KlassifyError
from klassify.training import ranks, state


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--devices", "0"], "at least one device"),
        (["--devices", "two"], "not 'two'"),
        (["--devices", "0,1"], "Only GPUs have numbers"),
        (["--devices", "-1"], "not '-1'"),
        (["--nodes", "2"], "torchrun"),
        (["train.batch_size=0"], "batch_size is at least 1"),
        (["train.precision=bf17"], "precision"),
    ],
)
def test_impossible_devices_are_refused(config, small_data, tmp_path, capsys, arguments, expected):
    assert cli.main([*command(config, tmp_path / "out", small_data), *arguments]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(KlassifyError, match="no CUDA GPU"):
        ranks.launch("cuda", "1", None, precision="32-true")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for devices in ("3", "1,2"):
        with pytest.raises(KlassifyError, match="2 GPUs here, but no number 2"):
            ranks.launch("auto", devices, None, precision="32-true")


def test_missing_devices_are_refused_in_scoring():
    from klassify.models.devices import pick_device

    assert pick_device("cpu") == torch.device("cpu")
    for name in ("nonsense", "cuda:99"):
        with pytest.raises(KlassifyError, match="no device"):
            pick_device(name)


def test_seeds_of_ranks_differ():
    seeds = [state.seed_of_rank(7, rank) for rank in range(4)]
    assert seeds[0] == 7 and len(set(seeds)) == 4
