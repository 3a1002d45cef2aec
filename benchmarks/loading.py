"""How many clips a second the data classes deliver, and what worker processes change in scoring.

    python benchmarks/loading.py train --lists DIR --media DIR --features DIR
        [--workers 0 2 8] [--seconds 10] [--batch-size 14] [--only mouth audio codecs ...]
    python benchmarks/loading.py score --lists DIR --media DIR --features DIR
        [--workers 0 2 8] [--clips 2000] [--split val]
    python benchmarks/loading.py lists [--clips 1100000] [--workers 2]

`train`: examples of the training clips, read, augmented and collated, from mouth features, mouth
crops, and audio (from its cache if there is one, else from the media) with each set of
augmentations. One GPU asks for 222 clips a second of Wav2Vec-AASIST (docs/gpu-costs.md). CPU time
includes that of workers and decoders.

`score`: the windows of clips as the TCN is scored on: with one loader for all chunks, whose workers
stay and send windows stacked, and, as before that, with a new loader for each chunk of 130 clips
that sends clip by clip. In turn, in one run; ratios of CPU and wall time.

`lists`: memory of a process that holds the examples of so many clips with segments, and what each
worker adds once it has read names and targets of all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import itertools
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from klassify.augmentation.sets import SETS, AudioAugment
from klassify.data.audio import AudioClips
from klassify.data.base import ClipWindows, Examples, Sources
from klassify.data.lips import LipCrops
from klassify.data.loading import Loader, Rows, Texts, Together
from klassify.data.mouth import MouthFeatures
from klassify.errors import KlassifyError
from klassify.media import isolated
from klassify.scores.clip_loader import ClipLoader

CHUNK = 130  # clips of a chunk of scores
PR_SET_CHILD_SUBREAPER = 36  # of Linux


def cpu_s() -> float:
    """CPU seconds of this process and of its children that ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def timed(run: Callable[[], int]) -> tuple[int, float, float]:
    """What `run` returns, its wall and its CPU seconds, workers and decoders included."""
    gc.collect()
    wall, cpu = time.monotonic(), cpu_s()
    n = run()
    gc.collect()
    took_s = time.monotonic() - wall
    isolated.close()
    time.sleep(1)  # decoders of workers end after them
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return n, took_s, cpu_s() - cpu


def data_classes(only: list[str] | None) -> dict[str, object]:
    """What is measured, by name."""
    found = {
        "mouth": MouthFeatures(train_split="train"),
        "lips": LipCrops(train_split="train"),
        "audio": AudioClips(train_split="train"),
        **{name: AudioClips(train_split="train", augment=AudioAugment(set=name)) for name in SETS},
    }
    return {name: data for name, data in found.items() if only is None or name in only}


def measure_training(args: argparse.Namespace) -> None:
    """Print clips a second of each data class."""
    sources = Sources(args.lists, args.media, args.features)
    print("| data | workers | clips/s | CPU ms a clip |\n|---|---|---|---|")
    for name, data in data_classes(args.only).items():
        try:
            examples = Examples(data, sources, "train", seed=1)
        except KlassifyError as error:
            print(f"| {name} | | {error.what} | |")
            continue
        examples[0, 0]  # imports what it needs
        for workers in args.workers:
            n, wall, cpu = timed(lambda: delivered(examples, workers, args))  # noqa: B023
            print(f"| {name} | {workers} | {n / wall:.1f} | {1000 * cpu / n:.2f} |", flush=True)


def delivered(examples: Examples, workers: int, args: argparse.Namespace) -> int:
    """Clips of whole batches within the time, the start of the workers included."""
    loader = Loader(examples, examples.collate, workers=workers)
    keys = ((epoch, i) for epoch in itertools.count() for i in range(len(examples)))
    ends, n = time.monotonic() + args.seconds, 0

    def lists() -> Iterator[list[tuple[int, int]]]:
        while time.monotonic() < ends:
            yield list(itertools.islice(keys, args.batch_size))

    for _, failed in loader(lists()):
        n += args.batch_size - len(failed)
    return n


def measure_scoring(args: argparse.Namespace) -> None:
    """Print what workers change in reading windows, now and as before."""
    sources, data = Sources(args.lists, args.media, args.features), MouthFeatures()
    files = sources.table(args.split)["file"].tolist()
    files = list(itertools.islice(itertools.cycle(files), args.clips))
    sources.readers[args.split] = data.reader(sources, args.split)

    def now(workers: int) -> int:
        loader = ClipLoader(data, sources, args.split, workers, len(files))
        chunks = (files[i : i + CHUNK] for i in range(0, len(files), CHUNK))
        return sum(1 for chunk in chunks for _ in loader(chunk))

    def before(workers: int) -> int:
        clips, n = ClipWindows(data, sources, args.split), 0
        for i in range(0, len(files), CHUNK):
            how = {"sampler": files[i : i + CHUNK], "batch_size": None, "num_workers": workers}
            n += sum(1 for _ in DataLoader(clips, **how))
        return n

    base = timed(lambda: now(0))
    print("| workers | loader | wall s | CPU s | CPU, of no workers |\n|---|---|---|---|---|")
    for workers in args.workers:
        for name, run in (("one", now), ("one per chunk, as before", before)):
            _, wall, cpu = timed(lambda: run(workers))  # noqa: B023
            print(
                f"| {workers} | {name} | {wall:.1f} | {cpu:.1f} | {cpu / base[2]:.2f} |", flush=True
            )


class Targets(Dataset):
    """Names and targets of clips; an item is this process's own memory in MB once it read all."""

    def __init__(self, files, targets):
        self.files, self.targets = files, targets

    def __getitem__(self, key: int) -> float:
        for i in range(len(self.files)):
            self.files[i], self.targets[i]
        return own_mb()


def own_mb() -> float:
    """Memory of this process that it shares with no other, in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    fields = dict(line.split(":") for line in lines[1:])
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) / 1024


def measure_lists(args: argparse.Namespace) -> None:
    """Print what workers add to lists of Python objects and to packed ones."""
    rng = np.random.default_rng(0)
    files = pd.Series([f"id{i % 5000:05d}/clip {i:07d}/fake_video.mp4" for i in range(args.clips)])
    segments = [rng.random((i % 3, 2)) for i in range(args.clips)]
    labels = np.arange(args.clips) % 2
    forms = {
        "objects": (files.tolist(), list(zip(segments, labels.tolist()))),
        "packed": (Texts(files), Together((Rows(segments), labels))),
    }
    del files, segments
    for name, (names, targets) in forms.items():
        loader = Loader(Targets(names, targets), list, workers=args.workers[0])
        added = [mb for batch in loader([[k] for k in range(args.workers[0])]) for mb in batch]
        print(
            f"{args.clips} clips, {name}: a worker has {max(added):.0f} MB of its own", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train, score = commands.add_parser("train"), commands.add_parser("score")
    for command in (train, score):
        for name in ("lists", "media", "features"):
            command.add_argument(f"--{name}", type=Path, required=True)
        command.add_argument("--workers", type=int, nargs="+", default=[0, 2, 8])
    train.add_argument("--seconds", type=float, default=10)
    train.add_argument("--batch-size", type=int, default=14)
    train.add_argument("--only", nargs="+", metavar="NAME")
    score.add_argument("--clips", type=int, default=2000)
    score.add_argument("--split", default="val")
    lists = commands.add_parser("lists")
    lists.add_argument("--clips", type=int, default=1_100_000)
    lists.add_argument("--workers", type=int, nargs=1, default=[2])
    args = parser.parse_args()
    torch.set_num_threads(1)  # as in the workers
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # so that decoders of workers are counted
    measure = {"train": measure_training, "score": measure_scoring, "lists": measure_lists}
    measure[args.command](args)


if __name__ == "__main__":
    main()
