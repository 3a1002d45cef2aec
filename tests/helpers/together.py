"""Ranks as threads, and a small training with the same result for any number of ranks."""

from __future__ import annotations

import threading
from pathlib import Path

from klassify.training.ranks import Ranks

HERE = Path(__file__).parent
PLAIN = """
model: {class_path: plain_model.Plain}
data:
  class_path: klassify.data.mouth.MouthFeatures
  init_args: {train_split: train, val_split: val}
train: {epochs: 3, lr: 0.01, patience: 9, schedule: constant, accumulate: 2, min_seconds: 2.15,
  checkpoint_steps: 1}
"""


def write_config(folder: Path) -> Path:
    """The config of the small training."""
    path = folder / "plain.yaml"
    path.write_text(PLAIN)
    return path


def command(config, out, small_data, *more):
    options = ["--out", str(out), *small_data.arguments, "--accelerator", "cpu"]
    return ["train", str(config), *more, *options]


class Together(Ranks):
    """Ranks that are threads of one process."""

    def __init__(self, rank: int, world: int, shared: list, barrier: threading.Barrier):
        super().__init__(rank, world)
        self.shared, self.barrier = shared, barrier

    def gather(self, value):
        self.shared[self.rank] = value
        self.barrier.wait(60)
        values = list(self.shared)
        self.barrier.wait(60)
        return values


def in_threads(function, world=3):
    shared, barrier, results = [None] * world, threading.Barrier(world), [None] * world

    def work(rank):
        results[rank] = function(Together(rank, world, shared, barrier))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results
