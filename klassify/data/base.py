"""Clips -> examples for training and windows for scoring: what every data class shares."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from klassify.data.loading import Rows, Texts, Together
from klassify.errors import KlassifyError
from klassify.features.shards import FeatureStore
from klassify.grid import frames, windows
from klassify.grid.frames import FRAME_S
from klassify.lists import subsets
from klassify.lists.data_list import SEGMENTS_OF
from klassify.settings import check_shares


class NoAnswer(Exception):
    """This clip cannot be scored by this modality; the text is the recorded reason."""


@dataclasses.dataclass(frozen=True)
class Sources:
    """The folders of one data set: lists, media (one folder per split), features.

    readers: of splits that are read again and again, such as the validation's, so that they are
    opened once.
    """

    lists: Path
    media: Path
    features: Path
    readers: dict[str, Reader] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def table(self, split: str, *, segments: Collection[str] = ()) -> pd.DataFrame:
        """The clips of a split or named subset, with these segment columns."""
        return subsets.load_split(self.lists, split, segments=segments)

    def media_folder(self, split: str) -> Path:
        """The folder that a list's `file` column is relative to."""
        return subsets.media_folder(
            self.media, _folder_of(split), self.table(split)["file"].tolist()
        )

    def feature_folder(self, kind: str, split: str) -> Path:
        """The folder of one kind of feature shards of a split."""
        return self.features / kind / _folder_of(split)


def _folder_of(split: str) -> str:
    return subsets.base_split(subsets.own_split(split))


@dataclasses.dataclass(frozen=True)
class Window:
    """One span of a clip, ready for the model. Times in seconds."""

    start_s: float
    end_s: float
    inputs: dict[str, Tensor]

    def padded(self, size: int) -> Window:
        """The same with zeros behind its inputs, up to `size`."""
        inputs = {name: zero_padded(values, size) for name, values in self.inputs.items()}
        return Window(self.start_s, self.end_s, inputs)


class ClipData:
    """How one modality is read; each subclass is one kind of input.

    `supervision` says which labels are read: only `segment` classes see a segment column; `self`
    classes train on clips labelled real, of which `example` edits some. `scale` is that of the
    scores (score_file.SCALES), or `none` for a model without scores.

    Args:
        train_split, val_split: a list or named subset (see klassify.lists.subsets).
        label: the label learned and validated against: `own` (the modality's) or `video`.
        aggregate: how window scores become a clip score (see windows.aggregate_by_clip).
    """

    modality: str
    unit = "clip"  # what a score is of: `clip`, `frame`, or `image` for a model without scores
    supervision = "clip"
    scale = "log_odds"
    feature_kinds: tuple[str, ...] = ()  # of the feature shards that it reads
    padding: Mapping[str, float] = {}  # behind shorter inputs, by their names; 0 for others
    splice = 0.0  # share of the training examples that are edited, see train_with_splice
    fills_batches = False  # windows, all of one shape, of several clips share a forward pass
    streams = False  # `clip_rows` scores a whole clip, instead of `outputs` its windows

    def __init__(self, train_split: str, val_split: str, label: str, aggregate: str):
        if label not in ("own", "video"):
            raise ValueError(f"label is 'own' or 'video', not {label!r}")
        windows.check_aggregate(aggregate)
        self.train_split, self.val_split = train_split, val_split
        self.label, self.aggregate = label, aggregate

    def train_with_splice(self, share: float) -> None:
        """Train on edits made in real clips, with supervision `self`, unless the share is 0.

        ValueError for a share outside [0, 1).
        """
        check_shares(splice=share)
        if share == 1:
            raise ValueError("splice must be below 1: some examples have to stay real")
        self.splice = share
        if share:
            self.supervision = "self"

    def labels(self, table: pd.DataFrame) -> np.ndarray:
        """0/1 for each clip of a list, 1 = fake in what this model hears or sees."""
        return subsets.label(table, "video" if self.label == "video" else self.modality)

    def check_model(self, model: torch.nn.Module) -> None:
        """ValueError for a model that cannot take what this class reads."""

    @property
    def segment_columns(self) -> tuple[str, ...]:
        """The columns of a list that hold the segments to learn from: none."""
        return ()

    def targets(self, table: pd.DataFrame) -> Sequence[Any]:
        """The training target of each clip of a list, as `example` takes it: here the label."""
        return self.labels(table)

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
        """Stack the inputs of several windows or examples, shorter ones padded to the longest."""
        batch = {}
        for name, first in inputs[0].items():
            values = [item[name] for item in inputs]
            if first.ndim:
                filler = self.padding.get(name, 0)
                batch[name] = pad_sequence(values, batch_first=True, padding_value=filler)
            else:
                batch[name] = torch.stack(values)
        return batch

    def shares(self, sources: Sources, split: str, table: pd.DataFrame) -> np.ndarray | pd.Series:
        """(n,) the share of each listed clip that is seen or heard, 0 to 1; NaN where unknown."""
        return np.full(len(table), np.nan)

    def listed(self, sources: Sources, split: str) -> pd.DataFrame:
        """What clip scores need of a split's list: file, duration (s), and `seen` or `heard`."""
        table = sources.table(split)
        shares = np.round(np.clip(np.asarray(self.shares(sources, split, table), float), 0, 1), 4)
        name = "heard" if self.modality == "audio" else "seen"
        return table[["file", "duration"]].assign(**{name: shares})

    def settings(self, sources: Sources, split: str) -> dict[str, Any]:
        """What the inputs of a split depend on besides its list, for the settings record: those of
        the feature shards, by kind.
        """
        return {kind: store.settings for kind, store in self.stores(sources, split).items()}

    def stores(self, sources: Sources, split: str) -> dict[str, FeatureStore]:
        """The feature shards of a split, by kind."""
        return {
            kind: FeatureStore(sources.feature_folder(kind, split)) for kind in self.feature_kinds
        }

    def for_validation(self) -> ClipData:
        """The same data as validation reads it: without augmentation."""
        plain = copy.copy(self)
        plain.augment = None
        return plain

    def for_scoring(self) -> ClipData:
        """The same data as scoring reads it, each clip once: none is kept in memory."""
        once = copy.copy(self)
        once.keep_in_memory, once.kept = False, None
        return once


def check_windows(window: int, stride: int) -> None:
    """ValueError unless windows have a positive size and leave no gaps between them."""
    if not 1 <= stride <= window:
        raise ValueError(
            f"window is at least 1 and stride between 1 and window, not {window} and {stride}"
        )


class Reader:
    """Reads a clip by its name in the list; raises NoAnswer or KlassifyError if it cannot."""

    def read(self, file: str) -> Any:
        """The clip, as the data class's `example` and `cut` take it."""
        raise NotImplementedError


def reader_of(data: ClipData, sources: Sources, split: str) -> Reader:
    """The open reader of a split, or a new one."""
    return sources.readers.get(split) or data.reader(sources, split)


class Examples(Dataset):
    """Training examples by (epoch, index). A clip that cannot be read yields its name and the
    reason. With supervision `self` they are of the clips labelled real alone.

    min_s, max_s: clips that the list says are shorter or longer (0: no limit) are left out;
    `left_out` counts them. by_source: keep the source of each clip, (n,) as numbers, in `source`.
    pseudo: further clips, labelled, of another split: (split, list).
    """

    def __init__(
        self,
        data: ClipData,
        sources: Sources,
        split: str,
        seed: int,
        *,
        min_s: float = 0.0,
        max_s: float = 0.0,
        by_source: bool = False,
        pseudo: tuple[str, pd.DataFrame] | None = None,
    ):
        table = sources.table(split, segments=data.segment_columns)
        if data.supervision == "self":
            table = table[subsets.label(table, "video") == 0].reset_index(drop=True)
        seconds = table["duration"]
        # False where the list knows no duration
        outside = (seconds < min_s) | (seconds > (max_s or np.inf))
        self.left_out, table = int(outside.sum()), table[~outside].reset_index(drop=True)
        self.n_own, self.reader = len(table), reader_of(data, sources, split)
        if pseudo:
            self.pseudo_reader = reader_of(data, sources, pseudo[0])
            table = pd.concat([table, pseudo[1]], ignore_index=True)
        self.seconds = table["duration"].to_numpy(float)
        self.source = pd.factorize(subsets.sources_of(table))[0] if by_source else None
        self.files, self.targets = Texts(table["file"]), data.targets(table)
        self.data, self.seed = data, seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor] | tuple[str, str]:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        reader = self.reader if index < self.n_own else self.pseudo_reader
        try:
            return self.data.example(reader.read(self.files[index]), self.targets[index], rng)
        except NoAnswer as error:
            return self.files[index], str(error)
        except KlassifyError as error:
            return self.files[index], error.what

    def longest(self, count: int) -> list[int]:
        """The indexes of the longest clips, longest first; unknown lengths come last."""
        return np.argsort(-np.nan_to_num(self.seconds, nan=-1.0), kind="stable")[:count].tolist()

    def collate(self, items: Sequence) -> tuple[dict[str, Tensor] | None, list[tuple[str, str]]]:
        """A batch of those that could be read (None if none could), and the failures."""
        good = [item for item in items if isinstance(item, dict)]
        failed = [item for item in items if not isinstance(item, dict)]
        return (self.data.collate(good) if good else None), failed


class ClipWindows(Dataset):
    """For scoring: file -> (file, windows, reason); reason is '' for a clip that can be scored."""

    def __init__(self, data: ClipData, sources: Sources, split: str):
        self.data, self.reader = data, reader_of(data, sources, split)

    def __getitem__(self, file: str) -> tuple[str, list[Window], str]:
        try:
            return file, self.data.cut(self.reader.read(file)), ""
        except NoAnswer as error:
            return file, [], str(error)
        except KlassifyError as error:
            return file, [], error.what


def zero_padded(values: Tensor, size: int) -> Tensor:
    """(n, ...) -> (size, ...), zeros behind."""
    return nn.functional.pad(values, (0, 0) * (values.ndim - 1) + (0, size - len(values)))


class FrameData(ClipData):
    """What the localisers' data classes share; mixed into the class that reads the modality.

    The model's frame k of a clip covers [offset_s + k hop_s, offset_s + (k + 1) hop_s) seconds.
    """

    unit = "frame"
    supervision = "segment"
    hop_s = FRAME_S
    offset_s = 0.0
    COLUMNS: tuple[str, ...]

    @property
    def score_grid(self) -> dict[str, float]:
        """hop_s and offset_s of the rows of scores."""
        return {"hop_s": self.hop_s, "offset_s": self.offset_s}

    @property
    def segment_columns(self) -> tuple[str, ...]:
        """That of the modality, or with label=video of any; none without such supervision."""
        if self.supervision != "segment":
            return ()
        return (SEGMENTS_OF["video" if self.label == "video" else self.modality],)

    def segments_of(self, table: pd.DataFrame) -> Rows:
        """Fake segments (n, 2) in seconds of each clip, of `segment_columns`' first."""
        return Rows(table[self.segment_columns[0]].to_list())

    def targets(self, table: pd.DataFrame) -> Sequence[Any]:
        """Fake segments (n, 2) in seconds, None if no segments are read, and label of each clip."""
        labels = self.labels(table)
        fakes = [None] * len(labels)
        if self.supervision == "segment":
            fakes = self.segments_of(table)
        return Together((fakes, labels))

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> np.ndarray:
        """What `join` takes, for each window of a batch: (B, F, C)."""
        raise NotImplementedError

    def clip_rows(
        self, model: nn.Module, cut: Sequence[Any], *, batch_size: int, device: torch.device
    ) -> np.ndarray:
        """The rows of a clip, (n_frames, 3 + len(COLUMNS)): start, end, score, named columns.

        For classes with `streams`. cut: what `cut` gives for the clip. Raises MediaError.
        """
        raise NotImplementedError

    def valid_frames(self, clip: Any, n_frames: int) -> np.ndarray:
        """(n_frames,) bool: the frames of a clip in which there is something to see or hear."""
        return np.ones(n_frames, bool)

    def join(self, outputs: np.ndarray, starts: np.ndarray, n_frames: int) -> np.ndarray:
        """The rows of a clip, (n_frames, 1 + len(COLUMNS)): score, then the named columns; means
        of the windows with triangular weights.

        outputs: (W, F, C) of its windows, which start at these frames.
        """
        return windows.overlap_mean(outputs, starts, n_frames, windows.triangle(outputs.shape[1]))

    def share_targets(self, fake: np.ndarray, known: np.ndarray) -> dict[str, Tensor]:
        """Soft targets of frames: "target" (T,), the share of each that is fake, NaN where it is
        not `known` (T,), and "start" and "end" (T,), Gaussians around the edges of fakes.

        fake: (n, 2) in seconds; the first frame begins at offset_s.
        """
        grid = {"hop_s": self.hop_s, "offset_s": self.offset_s}
        share = frames.covered_share(fake, len(known), **grid)
        share[~known] = np.nan
        start, end = (
            frames.edge_targets(times, len(known), **grid, sigma_s=self.hop_s / 2)
            for times in fake.T
        )
        names = {"target": share, "start": start, "end": end}
        return {name: torch.from_numpy(values) for name, values in names.items()}
