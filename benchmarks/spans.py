"""How long an epoch of `av_spans` takes on embeddings, and how much of it is reading.

    python benchmarks/spans.py [--config recipes/fused/conf/demo/av_spans.yaml] [--clips 500] \\
        [--threads 2]

Makes embeddings of random clips of 10 s, of the size that the config asks for (20 ms of sound and
40 ms of mouth), with the package's own writer, and runs steps of the training over them: batches,
forward, backward and optimizer. Times are scaled to 10,000 clips, in CPU time divided by the
threads as well, which a busy machine changes less. `reading` is what making the batches costs:
shards, crops, padding.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from klassify.data.base import Examples, Sources
from klassify.features import shards
from klassify.features.embedding import EmbeddingRow
from klassify.lists import data_list
from klassify.parts import Place
from klassify.systems.experiment import Experiment, load_experiment
from klassify.training.trainer import optimizer_of

SCALE, SECONDS, CHUNK = 10_000, 10.0, 1000
STREAMS = {"audio": (0.02, 0.0025), "visual": (0.04, 0.0)}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="recipes/fused/conf/demo/av_spans.yaml")
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    experiment = load_experiment(args.config)
    with tempfile.TemporaryDirectory() as folder:
        sources = make(Path(folder), args.clips, experiment)
        size = sum(path.stat().st_size for path in sources.features.rglob("*.parquet"))
        examples = Examples(experiment.data, sources, "train", seed=0)
        print(f"{args.clips} clips of {SECONDS:g} s, {size / args.clips / 1e3:.0f} kB each")
        batch = experiment.train.batch_size
        for _ in batches(examples, batch):  # what comes later finds the files in memory
            pass
        reading = timed(lambda: sum(1 for _ in batches(examples, batch)))
        whole = timed(lambda: train(experiment, examples))
    factor = SCALE / args.clips
    wall, cpu = factor * whole[0], factor * whole[1]
    print(f"an epoch of {SCALE} clips, {args.threads} threads: {wall:.0f} s wall, {cpu:.0f} s CPU")
    print(f"({cpu / args.threads:.0f} s if all threads had a core of their own)")
    print(f"reading: {factor * reading[1]:.0f} s CPU, {reading[1] / whole[1]:.1%} of the CPU time")
    print(f"reading: {1e3 * reading[1] / args.clips:.2f} ms CPU per clip")


def make(folder: Path, n_clips: int, experiment: Experiment) -> Sources:
    """Lists and embeddings of random clips; three quarters of them have one or two fakes."""
    rng = np.random.default_rng(0)
    sources = Sources(folder / "lists", folder / "media", folder / "features")
    files = [f"{number:06d}.mp4" for number in range(n_clips)]
    rows = []
    for number, file in enumerate(files):
        starts = np.sort(rng.uniform(0, SECONDS - 1, number % 4 and 1 + number % 2))
        fakes = json.dumps([[round(s, 3), round(s + rng.uniform(0.1, 0.9), 3)] for s in starts])
        kind = "both_modified" if number % 4 else "real"
        row = {"file": file, "modify_type": kind, "duration": SECONDS, "source": f"s{number // 4}"}
        columns = ("fake_segments", "audio_fake_segments", "visual_fake_segments")
        rows.append(row | dict.fromkeys(columns, fakes))
    data_list.write_list(sources.lists / "train.tsv", pd.DataFrame(rows))
    sizes = experiment.resolved["model"]["init_args"]
    for stream, (hop_s, offset_s) in STREAMS.items():
        n_frames, dim = round(SECONDS / hop_s), sizes[f"{stream}_dim"]
        name = experiment.data.encoders[stream]
        settings = {"kind": "embedding", "dim": dim, "hop_s": hop_s, "offset_s": offset_s}
        parts = -(-n_clips // CHUNK)
        for k in range(parts):
            part = [
                EmbeddingRow(
                    file,
                    1 / hop_s,
                    rng.normal(0, 0.6, (n_frames, dim)).astype(np.float16),
                    np.ones(n_frames, bool),
                )
                for file in files[k * CHUNK : (k + 1) * CHUNK]
            ]
            out = sources.feature_folder(f"embedding-{name}", "train")
            shards.write_part(out, Place(1, 1, k, parts), part, settings, inputs="")
    return sources


def batches(examples: Examples, size: int) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of an epoch in random order, made in this process."""
    order = np.random.default_rng(1).permutation(len(examples)).tolist()
    for first in range(0, len(order), size):
        yield examples.collate([examples[(0, i)] for i in order[first : first + size]])[0]


def train(experiment: Experiment, examples: Examples) -> None:
    """An epoch of the training."""
    model = experiment.model.train()
    optimizer = optimizer_of(model, experiment.train)
    for batch in batches(examples, experiment.train.batch_size):
        model.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()


def timed(run) -> tuple[float, float]:
    """Wall and CPU seconds of a function."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
