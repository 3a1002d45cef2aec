"""A training over two nodes: a process dies, and the weights are undisturbed ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import slurm
from places import ROOT

pytestmark = pytest.mark.slow
CONFIG = ROOT / "recipes/klassify/conf/demo/tcn.yaml"
OPTIONS = (
    *("train.epochs=2", "train.patience=9", "train.batch_size=4", "--seed", 3, "--accelerator"),
    "cpu",
)


def train(site, small_data, out: Path, *more) -> None:
    launched = ("--launcher", "slurm", "--time", "00:05:00", *more)
    site.klassify("train", CONFIG, *OPTIONS, "--out", out, *small_data.arguments, *launched)


def test_a_training_on_two_gpus_of_a_node_is_two_processes(site, small_data, tmp_path):
    """The GPUs are only counted; the processes compute on CPUs, started alike."""
    out = tmp_path / "tcn"
    train(site, small_data, out, "--gpus", 2, "--sbatch-arg=--partition=gpu", "--wait")
    assert json.loads((out / "settings.json").read_text())["ranks"] == 2
    assert "done" in site.status(out), site.logs_of(out, "train")


def rank(number: int) -> int | None:
    """The process id of one rank of the training in the queue."""
    for process, line in slurm.processes().items():
        try:
            environment = Path(f"/proc/{process}/environ").read_bytes()
        except OSError:
            continue
        ours = " klassify.cli train " in line and line.split()[0].endswith("python")
        if (
            ours
            and f"\0SLURM_PROCID={number}\0".encode() in environment
            and b"\0SLURM_STEPID=0\0" in environment
        ):
            return process
    return None


def test_training_over_two_nodes_survives_a_dead_process(site, small_data, tmp_path):
    undisturbed, killed = tmp_path / "a" / "tcn", tmp_path / "b" / "tcn"
    train(site, small_data, undisturbed, "--nodes", 2)
    site.finished(90)
    assert "done" in site.status(undisturbed), site.logs_of(undisturbed, "train")
    site.slow(3)
    train(site, small_data, killed, "--nodes", 2)
    slurm.until((killed / "checkpoints/last.pt").exists, "a checkpoint", 60)
    slurm.kill(rank(1))
    slurm.until(
        lambda: "back into the queue" in site.logs_of(killed, "train"), "the end of the others", 60
    )
    site.fast()
    site.finished(90)
    log = site.logs_of(killed, "train")
    assert "start 1, on" in log and "resuming after epoch" in log, log
    assert "done" in site.status(killed)
    for name in ("model.safetensors", "metrics.csv"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
