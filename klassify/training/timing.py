"""How long stages 1 to 3 take on this machine, from short trials on a team's own lists and media.

A sample of the clips goes through everything: extraction, reading with augmentation, training steps
and scoring, each for a share of the given time. Models have random weights, which take as long as
trained ones. Hours are the clips of the lists divided by the measured rates.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from klassify import parts
from klassify.data.base import ClipData, Examples, Sources
from klassify.data.loading import Loader, to_device
from klassify.errors import KlassifyError
from klassify.features import shards
from klassify.features.base import Extraction, n_cpus
from klassify.features.kinds import KINDS
from klassify.lists import data_list, subsets
from klassify.models.devices import computing, pick_device
from klassify.scores.clip_loader import ClipLoader
from klassify.scores.inference import score_clips, score_frames
from klassify.systems.experiment import Experiment, TrainSettings, load_experiment
from klassify.training.trainer import optimizer_of

# kinds that are made from media without a model of another project
EXTRACTED = ("mouth", "lips", "audio")
SAMPLE = 96  # clips of a split, and at least 4 for each process


@dataclasses.dataclass(frozen=True)
class Trial:
    """What was measured: `rate` clips a second on one device; 0 if it could not be, see `note`.

    clips: of the lists. devices: that share them.
    """

    stage: int
    what: str
    rate: float
    clips: int
    devices: int = 1
    note: str = ""

    @property
    def hours(self) -> float:
        """All clips at this rate on all devices; NaN if it was not measured."""
        return self.clips / self.rate / self.devices / 3600 if self.rate else float("nan")

    def row(self) -> str:
        """A row of a Markdown table."""
        rate = f"{self.rate:.3g} clips/s" if self.rate else "not measured"
        hours = f"{self.hours:.2g}" if self.rate else ""
        return f"| {self.stage} | {self.what} | {rate} | {self.clips:,} | {hours} | {self.note} |"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What to measure with. devices: GPUs that share the work; one is measured."""

    device: torch.device
    devices: int
    jobs: int
    workers: int

    @classmethod
    def from_options(cls, device: str, devices: int, jobs: int | None, workers: int) -> Machine:
        """With a device by name; KlassifyError if it does not exist."""
        return cls(pick_device(device), devices, jobs or n_cpus(), workers)

    def __str__(self) -> str:
        name = platform.processor() or platform.machine()
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        return (
            f"{self.devices} x {self.device.type} ({name}), {os.cpu_count()} CPU cores,"
            f" {self.jobs} jobs, {self.workers} workers, torch {torch.__version__}"
        )


def measure(
    configs: Sequence[Path],
    sources: Sources,
    machine: Machine,
    *,
    score_splits: Sequence[str],
    seconds: float,
    say: Callable[[str], None],
) -> list[Trial]:
    """Trials of everything that the systems of these configs need, within about `seconds`.

    configs without a model, such as submit.yaml, are left out. say: gets a line as each trial
    begins. What cannot be measured here becomes a Trial with the reason as its note.
    """
    with_model = (path for path in configs if path.name not in ("submit.yaml", "report.yaml"))
    experiments = {path.stem: load_experiment(path) for path in with_model}
    if not experiments:
        raise KlassifyError("None of these configs has a model.", where=configs[0].parent)
    data = [experiment.data for experiment in experiments.values()]
    kinds = sorted({kind for one in data for kind in one.feature_kinds})
    if any(one.modality == "audio" for one in data):
        kinds.append("audio")
    there = {kind for kind in kinds if (sources.features / kind).is_dir()}
    todo = [kind for kind in kinds if kind in EXTRACTED and kind not in there]
    share = seconds / (2 * len(todo) + 3 * len(experiments))
    trials = []
    with tempfile.TemporaryDirectory(prefix="klassify-benchmark-") as folder:
        sample = Sources(Path(folder) / "lists", sources.media, Path(folder) / "features")
        sizes = _sample_lists(sources, sample, machine.jobs)
        sample.features.mkdir()
        for kind in there:
            (sample.features / kind).symlink_to((sources.features / kind).resolve())
        others = [split for split in score_splits if split not in sizes]
        every = sum(sizes.values()) + sum(len(sources.table(split)) for split in others)
        for kind in todo:
            say(f"stage 1, {kind}")
            trials.append(_extraction(kind, sample, machine, 2 * share, every))
        for name, experiment in experiments.items():
            say(f"stages 2 and 3, {name}")
            _without_pretrained(experiment.model)
            trials += _system(name, experiment, sources, sample, machine, share, score_splits)
    return sorted(trials, key=lambda trial: trial.stage)


def _sample_lists(sources: Sources, sample: Sources, jobs: int) -> dict[str, int]:
    """Write lists of a few clips of train and val; the numbers of clips in the whole lists."""
    sizes = {}
    for split in ("train", "val"):
        table = subsets.load_split(sources.lists, split, segments=True)
        sizes[split] = len(table)
        n = min(max(SAMPLE, 4 * jobs), len(table))
        rows = np.sort(np.random.default_rng(0).permutation(len(table))[:n])
        data_list.write_list(sample.lists / f"{split}.tsv", table.iloc[rows])
    return sizes


def _extraction(
    kind: str, sample: Sources, machine: Machine, seconds: float, n_clips: int
) -> Trial:
    """Extract the sample's features for a time; its lists keep the clips that were done."""
    made_by: Extraction = KINDS[kind].extraction(jobs=machine.jobs)
    rates = []
    for split in ("train", "val"):
        files = sample.table(split)["file"].tolist()
        rows: dict[int, Any] = {}
        numbered = made_by.rows(sample.media_folder(split), [files])
        # the first clips wait for the processes to start
        rate = _rate(_noted(numbered, rows), seconds / 2, skip=min(machine.jobs, len(files) // 4))
        rates.append(rate)
        if kind != "audio":  # which is decoded again when it is read
            settings = {"kind": kind, **made_by.settings}
            done = [rows[number] for number in sorted(rows)]
            folder = sample.feature_folder(kind, split)
            shards.write_part(folder, parts.Place(1, 1, 0, 1), done, settings, "")
        table = subsets.load_split(sample.lists, split, segments=True)
        kept = table[table["file"].isin([files[number] for number in rows])]
        data_list.write_list(sample.lists / f"{split}.tsv", kept)
    return Trial(1, kind, float(np.mean(rates)), n_clips, note=f"with {machine.jobs} jobs")


def _noted(numbered: Iterable[tuple[int, Any]], rows: dict[int, Any]) -> Iterator[int]:
    for number, row in numbered:
        rows[number] = row
        yield 1


def _rate(counts: Iterable[int], seconds: float, skip: int = 1) -> float:
    """Things a second: their numbers as they come, after the first `skip`, for a time."""
    began, n = None, 0
    for place, count in enumerate(counts):
        if began is None:
            if place + 1 >= skip:
                began = time.monotonic()
            continue
        n += count
        if time.monotonic() - began >= seconds:
            break
    return n / max(time.monotonic() - began, 1e-9) if n else 0.0


def _system(
    name: str,
    experiment: Experiment,
    sources: Sources,
    sample: Sources,
    machine: Machine,
    seconds: float,
    score_splits: Sequence[str],
) -> Iterator[Trial]:
    """Trials of reading, of training steps and of scoring with one system."""
    data, settings = copy.copy(experiment.data), experiment.train
    val_split = data.val_split
    n_train = len(sources.table(data.train_split)) * settings.repeats
    # a few clips may have too few sources for a subset, or none that fit its rule
    data.train_split, data.val_split = map(subsets.base_split, (data.train_split, val_split))
    try:
        examples = Examples(data, sample, data.train_split, seed=1)
        if not len(examples):
            raise KlassifyError("None of the sampled clips is trained on.")
        loader = Loader(examples, examples.collate, workers=machine.workers, device=machine.device)
        read, batch = _reading(loader, len(examples), settings.batch_size, seconds)
        step = _steps(experiment.model, batch, settings, machine.device, seconds)
        splits = dict.fromkeys((val_split, *score_splits))
        sizes = {split: len(sources.table(split)) for split in splits}
        longest = max(sizes.values())
        scored = _scoring(experiment.model, data, sample, machine, seconds, longest)
    except KlassifyError as error:
        yield Trial(2, name, 0.0, n_train, note=f"{error.what} {error.where or ''}".strip())
        return
    slower = "reading" if read < step else "the model"
    epochs = _epochs(settings, n_train, machine.devices)
    note = f"an epoch; read {read:.3g}, learned {step:.3g}: {slower} is slower; up to {epochs}"
    yield Trial(2, name, min(read, step), n_train, machine.devices, note)
    for split, size in sizes.items():
        stage = 2 if split == val_split else 3
        what = f"{name}, {'validation' if stage == 2 else split}"
        note = "after each epoch" if stage == 2 else ""
        yield Trial(stage, what, scored, size, machine.devices, note)


def _epochs(settings: TrainSettings, n_train: int, devices: int) -> int:
    """The most epochs of a training."""
    each = settings.batch_size * settings.accumulate * devices
    updates = -(-n_train // each)
    most = -(-settings.max_updates // updates) if settings.max_updates else settings.epochs
    return min(settings.epochs, most)


def _reading(loader: Loader, n: int, size: int, seconds: float) -> tuple[float, dict[str, Any]]:
    """Clips a second that are read, augmented and collated, and one batch of them."""
    kept: list[dict[str, Any]] = []
    keys = ((epoch, i) for epoch in itertools.count() for i in range(n))
    lists = iter(lambda: list(itertools.islice(keys, size)), [])

    def counts() -> Iterator[int]:
        for batch, failed in loader(itertools.islice(lists, 1_000_000)):
            if batch is not None:
                kept[:] = [batch]
            yield size - len(failed)

    rate = _rate(counts(), seconds)
    if not kept:
        raise KlassifyError("None of the sampled clips can be read.")
    return rate, kept[0]


def _steps(
    model: torch.nn.Module,
    batch: dict[str, Any],
    settings: TrainSettings,
    device: torch.device,
    seconds: float,
) -> float:
    """Clips a second of training steps, without reading."""
    model = model.to(device).train()
    optimizer = optimizer_of(model, settings, device)
    size = len(next(iter(batch.values())))
    precision = "bf16" if settings.precision.endswith("mixed") else None

    def counts() -> Iterator[int]:
        while True:
            with computing(device, precision):
                loss = model.loss(to_device(batch, device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            yield size

    return _rate(counts(), seconds, skip=2)


def _scoring(
    model: torch.nn.Module,
    data: ClipData,
    sample: Sources,
    machine: Machine,
    seconds: float,
    n_clips: int,
) -> float:
    """Clips a second that are read and scored, as in a list of n_clips."""
    if data.scale == "none":
        return 0.0
    files = sample.table(data.val_split)["file"].tolist()
    make = score_frames if data.unit == "frame" else score_clips
    loader = ClipLoader(data, sample, data.val_split, machine.workers, n_clips)
    how = {"workers": loader, "device": machine.device, "progress": False}
    step = max(machine.workers, 8)

    def counts() -> Iterator[int]:
        for first in itertools.cycle(range(0, len(files), step)):
            part = files[first : first + step]
            with computing(machine.device):
                make(model, data, sample, data.val_split, files=part, **how)
            yield len(part)

    return _rate(counts(), seconds)


def _without_pretrained(model: torch.nn.Module) -> None:
    """Let a model run with the random weights that it has."""
    for module in model.modules():
        for name in ("_has_weights", "_has_vqvae"):
            if hasattr(module, name):
                setattr(module, name, True)


def table(trials: Sequence[Trial], machine: Machine) -> str:
    """The trials as a Markdown table, with sums by stage."""
    lines = [
        f"Measured by `klassify benchmark` on {machine}.",
        "",
        "| stage | what | rate of one device | clips | hours | |",
        "|---|---|---|---|---|---|",
        *(trial.row() for trial in trials),
        "",
        "Hours are estimates: clips divided by the rate, and by the number of devices; one device"
        " was measured. Models had random weights. Of stage 2, one epoch is shown.",
    ]
    return "\n".join(lines)
