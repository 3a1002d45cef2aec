"""Data list + media or feature store -> tensors, for training and for scoring.

A ClipData class says how one modality is read: which clips it trains on, what one training example
is, and into which windows a clip is cut for scoring. Its arguments are hyper-parameters; where the
files lie comes from Sources. Everything random is drawn from (seed, epoch, clip index), so that a
resumed run sees the examples an uninterrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from klassify import decoding, lists, media, windows
from klassify.audio_file import NO_AUDIO, quantised
from klassify.audio_store import CachedClip, audio_source, open_cache
from klassify.augment import AudioAugment
from klassify.errors import KlassifyError
from klassify.features import mouth
from klassify.store import FeatureStore
from klassify.training.ranks import ALONE, Ranks

FRAME_S = 0.04  # seconds a frame of the common 25 fps grid
Wave = np.ndarray | CachedClip  # float32 audio: len(wave), wave[start:stop]


class NoAnswer(Exception):
    """This clip cannot be scored by this modality; the text is the reason that the score file records."""


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the files of one data set lie: its lists, its media (a folder a split), its features.

    readers: of splits that are read again and again, such as the validation's, so that they are opened once.
    """

    lists: Path
    media: Path
    features: Path
    readers: dict[str, Reader] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def table(self, split: str, *, segments: bool = False) -> pd.DataFrame:
        """The clips of a split or named subset; segment columns only where they are asked for."""
        return lists.load_split(self.lists, split, segments=segments)

    def media_folder(self, split: str) -> Path:
        """The folder that a list's `file` column is relative to."""
        return lists.media_folder(self.media, lists.base_split(split), self.table(split)["file"].tolist())

    def feature_folder(self, kind: str, split: str) -> Path:
        """The folder of one kind of feature shards of a split."""
        return self.features / kind / lists.base_split(split)


@dataclasses.dataclass(frozen=True)
class Window:
    """One span of a clip, ready for the model. Times in seconds."""

    start_s: float
    end_s: float
    inputs: dict[str, Tensor]


class ClipData:
    """How one modality is read. Subclasses: MouthFeatures, AudioClips, and those of frame_datasets.

    `supervision` says which labels are read: `clip` classes never see a segment column. `scale` is that of the
    scores (scorefile.SCALES), or `none` for a model that gives no scores but serves others.

    Args:
        train_split, val_split: a list or named subset (see lists.SUBSETS).
        label: the label learned and validated against: `own` (the modality's) or `video`.
        aggregate: how window scores become a clip score (see windows.aggregate).
    """

    modality: str
    supervision = "clip"
    scale = "log_odds"
    feature_kinds: tuple[str, ...] = ()  # of the feature shards that it reads

    def __init__(self, train_split: str, val_split: str, label: str, aggregate: str):
        if label not in ("own", "video"):
            raise ValueError(f"label is 'own' or 'video', not {label!r}")
        windows.check_aggregate(aggregate)
        self.train_split, self.val_split, self.label, self.aggregate = (
            train_split,
            val_split,
            label,
            aggregate,
        )

    def labels(self, table: pd.DataFrame) -> np.ndarray:
        """0/1 for each clip of a list, 1 = fake in what this model hears or sees."""
        return lists.label(table, "video" if self.label == "video" else self.modality)

    def targets(self, table: pd.DataFrame) -> Sequence[Any]:
        """What is to be learned of each clip of a list, as `example` takes it: here the label."""
        return self.labels(table).tolist()

    def reader(self, sources: Sources, split: str) -> Reader:
        """What reads the clips of a split."""
        raise NotImplementedError

    def example(self, clip: Any, target: Any, rng: np.random.Generator) -> dict[str, Tensor]:
        """One training example, target included, of a clip that the reader returned."""
        raise NotImplementedError

    def cut(self, clip: Any) -> list[Window]:
        """The windows that score a clip; NoAnswer where there is nothing to score."""
        raise NotImplementedError

    def collate(self, inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack the inputs of several windows or examples."""
        return {key: torch.stack([item[key] for item in inputs]) for key in inputs[0]}

    def settings(self, sources: Sources, split: str) -> dict[str, Any]:
        """What the inputs of a split depend on besides its list, for the settings record."""
        return {}

    def validate(
        self, model: torch.nn.Module, sources: Sources, *, ranks: Ranks = ALONE, **how: Any
    ) -> dict[str, float]:
        """`val_loss` and `val_auc` of the validation clips, scored as `klassify score` does.

        ranks: each scores its share, and all have the same result. how: batch_size, workers and device of the
        scoring. KlassifyError unless both classes are there.
        """
        from scipy.special import expit

        from klassify.evaluation.metrics import log_loss, roc_auc
        from klassify.scoring.inference import clip_table, score_clips

        table = sources.table(self.val_split)
        files = ranks.share(table["file"].tolist())
        parts = ranks.gather(score_clips(model, self, sources, self.val_split, files=files, progress=False, **how))
        reasons = {file: reason for _, found in parts for file, reason in found.items()}
        clips = clip_table(pd.concat([scored for scored, _ in parts]), table, reasons, self.aggregate)
        answered = clips["score"].notna().to_numpy()
        labels, scores = self.labels(table)[answered], clips["score"].to_numpy(float)[answered]
        check_two_classes(labels, "clips", self.val_split, sources)
        return {"val_loss": log_loss(labels, expit(scores)), "val_auc": roc_auc(labels, scores)}


def check_two_classes(labels: np.ndarray, unit: str, split: str, sources: Sources) -> None:
    """Validation without real or without fake examples is a KlassifyError that counts them."""
    if len(np.unique(labels)) < 2:
        raise KlassifyError(
            f"Validation needs real and fake {unit}; {split} has {len(labels)} that can be scored, "
            f"{int(np.sum(labels))} of them fake.",
            where=sources.lists,
            mend="validate on a larger list",
        )


class Reader:
    """Reads a clip by its name in the list; raises NoAnswer or KlassifyError for one it cannot give."""

    def read(self, file: str) -> Any:
        raise NotImplementedError


def reader_of(data: ClipData, sources: Sources, split: str) -> Reader:
    """The reader of a split that is open already, or a new one."""
    return sources.readers.get(split) or data.reader(sources, split)


class Examples(Dataset):
    """Training examples by (epoch, index). A clip that cannot be read yields its name and the reason.

    min_s, max_s: clips that the list says are shorter or longer (0: no limit) are left out; `left_out` counts them.
    """

    def __init__(
        self, data: ClipData, sources: Sources, split: str, seed: int, *, min_s: float = 0.0, max_s: float = 0.0
    ):
        table = sources.table(split, segments=data.supervision == "segment")
        seconds = table["duration"]
        outside = (seconds < min_s) | (seconds > (max_s or np.inf))  # False where the list knows no duration
        self.left_out, table = int(outside.sum()), table[~outside].reset_index(drop=True)
        self.seconds = table["duration"].to_numpy(float)
        self.files, self.targets = table["file"].tolist(), data.targets(table)
        self.data, self.seed, self.reader = data, seed, reader_of(data, sources, split)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor] | tuple[str, str]:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        try:
            return self.data.example(self.reader.read(self.files[index]), self.targets[index], rng)
        except NoAnswer as error:
            return self.files[index], str(error)
        except KlassifyError as error:
            return self.files[index], error.what

    def longest(self, count: int) -> list[int]:
        """The indexes of the longest clips, the longest first; those of unknown length come last."""
        return np.argsort(-np.nan_to_num(self.seconds, nan=-1.0), kind="stable")[:count].tolist()

    def collate(self, items: Sequence) -> tuple[dict[str, Tensor] | None, list[tuple[str, str]]]:
        """A batch of those that could be read (None if none could), and the failures."""
        good = [item for item in items if isinstance(item, dict)]
        failed = [item for item in items if not isinstance(item, dict)]
        return (self.data.collate(good) if good else None), failed


class ClipWindows(Dataset):
    """For scoring: index -> (file, windows, reason); reason is '' for a clip that can be scored."""

    def __init__(self, data: ClipData, sources: Sources, split: str, files: Sequence[str]):
        self.data, self.files, self.reader = data, list(files), reader_of(data, sources, split)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[str, list[Window], str]:
        file = self.files[index]
        try:
            return file, self.data.cut(self.reader.read(file)), ""
        except NoAnswer as error:
            return file, [], str(error)
        except KlassifyError as error:
            return file, [], error.what


def batches(loader: Iterator, size: int) -> Iterator[tuple[list[tuple[str, Window]], list[tuple[str, str]]]]:
    """Group the windows of many clips into lists of `size`; clips without an answer come along as failures."""
    waiting: list[tuple[str, Window]] = []
    failed: list[tuple[str, str]] = []
    for file, cut, reason in loader:
        waiting += [(file, window) for window in cut]
        if not cut:
            failed.append((file, reason))
        while len(waiting) >= size:
            yield waiting[:size], failed
            waiting, failed = waiting[size:], []
    if waiting or failed:
        yield waiting, failed


class MouthFeatures(ClipData):
    """The handcrafted mouth features of paper 1 (section 4.1) with their first differences.

    Example: {"features": (T, 2 * n) float32, "valid": (T,) bool}, n features of the chosen groups.

    Args:
        groups: of the feature groups 1 blur, 2 non-mouth MSE, 3 colour shift, 4 landmark kinematics.
        window, stride: frames (25 fps) a window, and between window starts in scoring.
    """

    modality = "visual"
    feature_kinds = ("mouth",)

    def __init__(
        self,
        groups: tuple[int, ...] = (1, 2, 3, 4),
        window: int = 256,
        stride: int = 128,
        train_split: str = "train_video",
        val_split: str = "val_report",
        label: str = "own",
        aggregate: str = "mean",
    ):
        super().__init__(train_split, val_split, label, aggregate)
        unknown = set(groups) - set(mouth.GROUPS)
        if unknown or not groups:
            raise ValueError(f"groups are some of {sorted(mouth.GROUPS)}, not {sorted(groups)}")
        single = [column for group in sorted(groups) for column in mouth.GROUPS[group]]
        self.channels = single + [column + len(mouth.FEATURES) for column in single]
        self.window, self.stride = window, stride

    def reader(self, sources: Sources, split: str) -> Reader:
        return _MouthReader(sources.feature_folder("mouth", split), self.channels)

    def example(self, clip: dict[str, Tensor], target: int, rng: np.random.Generator) -> dict[str, Tensor]:
        n_frames = len(clip["valid"])
        start = int(rng.integers(max(n_frames - self.window, 0) + 1))
        crop = {key: value[start : start + self.window] for key, value in clip.items()}
        return crop | {"label": torch.tensor(target)}

    def cut(self, clip: dict[str, Tensor]) -> list[Window]:
        n_frames = len(clip["valid"])
        cuts = []
        for start in windows.cut(n_frames, self.window, self.stride).tolist():
            inputs = {key: value[start : start + self.window] for key, value in clip.items()}
            if inputs["valid"].any():
                cuts.append(Window(start * FRAME_S, min(start + self.window, n_frames) * FRAME_S, inputs))
        return cuts

    def collate(self, inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Pad to the longest; padding is invalid, so that it changes nothing."""
        pad = torch.nn.utils.rnn.pad_sequence
        batch = {key: pad([item[key] for item in inputs], batch_first=True) for key in ("features", "valid")}
        if "label" in inputs[0]:
            batch["label"] = torch.stack([item["label"] for item in inputs])
        return batch

    def settings(self, sources: Sources, split: str) -> dict[str, Any]:
        return {"features": FeatureStore(sources.feature_folder("mouth", split)).settings}


class _MouthReader(Reader):
    def __init__(self, folder: Path, channels: list[int]):
        self.store, self.channels = FeatureStore(folder), channels

    def read(self, file: str) -> dict[str, Tensor]:
        if file not in self.store:
            raise KlassifyError(f"No features were extracted for {file}.", where=self.store.folder)
        row = self.store[file]
        if not row.valid.any():
            raise NoAnswer(row.reason or "no face")
        stacked = mouth.stack_channels(row.features, row.valid)[:, self.channels]
        return {"features": torch.from_numpy(stacked), "valid": torch.from_numpy(row.valid)}


class AudioClips(ClipData):
    """16 kHz mono audio in windows of about 4 s, for clip classifiers (paper 1, section 5.2).

    Example: {"wave": (window,) float32}: a random crop, or the clip wrapped around from its beginning.
    Scoring: windows at multiples of `stride`, and one more for an uncovered tail on the 20 ms frame grid.

    Args:
        window, stride: samples a window, and between window starts in scoring.
        keep_in_memory: decode each clip once and keep it (64 kB a second of audio).
        augment: what training crops go through (klassify.augment); scoring hears clips as they are.
    """

    modality = "audio"
    tail_grid = 320  # samples: the hop of every front end, so that the tail is a slice of the clip's frames

    def __init__(
        self,
        window: int = 64_600,
        stride: int = 16_000,
        keep_in_memory: bool = False,
        train_split: str = "train_audio",
        val_split: str = "val_report",
        label: str = "own",
        aggregate: str = "max",
        augment: AudioAugment | None = None,
    ):
        super().__init__(train_split, val_split, label, aggregate)
        self.window, self.stride, self.keep_in_memory, self.augment = window, stride, keep_in_memory, augment

    def reader(self, sources: Sources, split: str) -> Reader:
        return AudioReader(sources, split, self.keep_in_memory)

    def _wrapped(self, wave: Wave, start: int) -> Tensor:
        part = wave[start : start + self.window]
        return torch.from_numpy(part if len(part) == self.window else np.resize(part, self.window))

    def example(self, clip: Wave, target: int, rng: np.random.Generator) -> dict[str, Tensor]:
        start = int(rng.integers(max(len(clip) - self.window, 0) + 1))
        return {"wave": self._augmented(self._wrapped(clip, start), rng), "label": torch.tensor(target)}

    def _augmented(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        return wave if self.augment is None else torch.from_numpy(self.augment(wave.numpy(), rng))

    def cut(self, clip: Wave) -> list[Window]:
        clip = clip[:]  # windows overlap: read it once
        starts = windows.cut(len(clip), self.window, self.stride, tail="grid", grid=self.tail_grid).tolist()
        ends = [min(start + self.window, len(clip)) for start in starts]
        rate = media.SAMPLE_RATE
        return [Window(s / rate, e / rate, {"wave": self._wrapped(clip, s)}) for s, e in zip(starts, ends)]


class AudioReader(Reader):
    """16 kHz mono audio of clips, float32 in steps of 2^-15: from the audio cache, or decoded from the media.

    Each clip comes from the cache where `features/audio/<split>` holds it, and only what is sliced is read (see
    klassify.audio_store, also for how to say no); else its whole wave is decoded. Both are equal to the bit.
    """

    def __init__(self, sources: Sources, split: str, keep_in_memory: bool = False):
        self.cache = open_cache(sources.feature_folder("audio", split))
        self.sources, self.split, self.folder = sources, split, None
        self.kept: dict[str, np.ndarray] | None = {} if keep_in_memory else None
        self.only_cache = audio_source() == "cache"
        if not self.only_cache and (self.cache is None or self.cache.missing):
            self._folder()  # here, not in each worker; a whole cache needs no media

    def _folder(self) -> Path:
        if self.folder is None:
            self.folder = self.sources.media_folder(self.split)
        return self.folder

    def read(self, file: str) -> Wave:
        """A clip of len(clip) samples, clip[start:stop] of which are float32. NoAnswer if it has no audio."""
        if self.kept is not None and file in self.kept:
            return self.kept[file]
        clip = self._clip(file)
        if not len(clip):
            raise NoAnswer(NO_AUDIO)
        if self.kept is not None:
            clip = self.kept[file] = clip[:]
        return clip

    def _clip(self, file: str) -> Wave:
        clip = self.cache.get(file) if self.cache is not None else None
        if clip is not None:
            return clip
        if self.only_cache:
            raise KlassifyError(f"{file} is not in the audio cache.", where=self.cache.folder)
        return quantised(decoding.call(media.read_audio, media.inside(self._folder(), file)))
