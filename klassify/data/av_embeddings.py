"""Embeddings of sound and mouth on one timeline, as input of span detectors.

Time in a window is in frames of 20 ms from its first frame on, as floating-point numbers: edges of
segments are never rounded to frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from klassify.data.base import FrameData, NoAnswer, Reader, Sources, Window, check_windows
from klassify.data.loading import Rows, Together
from klassify.errors import KlassifyError
from klassify.features.shards import FeatureStore
from klassify.grid import windows
from klassify.grid.segments import proposed_columns
from klassify.settings import check_shares

HOP_S, OFFSET_S = 0.02, 0.0025  # of the frames of sound; those of the mouth are twice as long
STREAMS = {"audio": 1, "visual": 2}  # frames of sound for each frame of the stream
SEGMENTS = {
    "segments": "fake_segments",
    "audio_segments": "audio_fake_segments",
    "visual_segments": "visual_fake_segments",
}


class Stream(NamedTuple):
    """One stream of a clip: values (T, D) float16 and valid (T,) bool."""

    values: np.ndarray
    valid: np.ndarray


class AVEmbeddings(FrameData):
    """Embeddings of a sound encoder (20 ms) and of a mouth encoder (40 ms), for AVSpans.

    Example: {"audio": (T, D), "audio_valid": (T,), "visual": (T / 2, D), "visual_valid": (T / 2,),
    "valid": (T,), "segments", "audio_segments" and "visual_segments": (S, 2) in frames}. A stream
    that a clip does not have is zero and invalid. Rows: log-odds of "fake" of each frame and two
    proposals (see klassify.grid.segments.proposed_columns): of the frame's own point of the finest
    level, and of one of a coarser level.

    Args:
        audio, visual: names of the encoders: features are read from
            features/<data>/embedding-<name>/<split>. None: without that stream.
        window, stride: frames of sound, and between window starts in scoring; even.
        whole: share of the crops of longer fakes that hold a whole segment.
        kept: a segment is left out if the crop holds less than this share of it.
        warp: training crops are up to this much faster or slower.
    """

    modality = "both"
    COLUMNS = proposed_columns(2)
    hop_s, offset_s = HOP_S, OFFSET_S
    padding = dict.fromkeys(SEGMENTS, float("nan"))

    def __init__(
        self,
        audio: str | None = "audio_frames",
        visual: str | None = "lips_frames",
        window: int = 512,
        stride: int = 256,
        whole: float = 0.7,
        kept: float = 0.5,
        warp: float = 0.1,
        train_split: str = "train",
        val_split: str = "val_report",
    ):
        super().__init__(train_split, val_split, "video", "max")
        check_windows(window, stride)
        check_shares(whole=whole, kept=kept, warp=warp)
        if window % 2 or stride % 2:
            raise ValueError(f"window and stride are even, not {window} and {stride}")
        if not (audio or visual):
            raise ValueError("audio and visual cannot both be missing")
        named = {"audio": audio, "visual": visual}
        self.encoders = {stream: f"embedding-{name}" for stream, name in named.items() if name}
        self.window, self.stride = window, stride
        self.whole, self.kept, self.warp = whole, kept, warp
        self.feature_kinds = tuple(self.encoders.values())

    def reader(self, sources: Sources, split: str) -> Reader:
        """Reads both streams; NoAnswer if a clip has neither."""
        stores = self.stores(sources, split)
        return _EmbeddingReader({stream: stores[kind] for stream, kind in self.encoders.items()})

    def stores(self, sources: Sources, split: str) -> dict[str, FeatureStore]:
        """The embeddings of a split, by kind; KlassifyError for those of other frames."""
        stores = super().stores(sources, split)
        for stream, kind in self.encoders.items():
            wanted, there = HOP_S * STREAMS[stream], stores[kind].settings.get("hop_s")
            if there != wanted:
                raise KlassifyError(
                    f"{stream} embeddings need frames of {wanted:g} s, not {there}.",
                    where=stores[kind].folder,
                )
        return stores

    @property
    def segment_columns(self) -> tuple[str, ...]:
        """Those of either modality, of sound and of the picture."""
        return tuple(SEGMENTS.values())

    def targets(self, table: pd.DataFrame) -> Sequence[Any]:
        """Fake segments (n, 2) in seconds of either modality, and those of sound and of the mouth,
        of each clip.
        """
        one, *parts = (Rows(table[column].to_list()) for column in self.segment_columns)
        return Together((one, Together(tuple(parts))))

    def example(
        self, clip: dict[str, Stream], target: tuple, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """A crop of up to `window` frames, at another speed, with the segments in it."""
        fakes = [(one - OFFSET_S) / HOP_S for one in (target[0], *target[1])]
        n_frames, speed = _n_frames(clip), 1 + self.warp * rng.uniform(-1, 1)
        seen = self.window * speed
        start = self._start(n_frames, seen, fakes[0], rng)
        size = min(self.window, 2 * int(np.ceil((n_frames - start) / speed / 2)))
        example = _crop(clip, start, speed, size)
        for name, fake in zip(SEGMENTS, fakes):
            rows = (_kept(fake, start, start + seen, self.kept) - start) / speed
            example[name] = torch.from_numpy(rows.astype(np.float32))
        example["label"] = torch.tensor(int(len(target[0]) > 0))
        return example

    def _start(self, n_frames: int, seen: float, fake: np.ndarray, rng: np.random.Generator) -> int:
        """Where a crop of `seen` frames begins: an even frame."""
        latest = max(n_frames - seen, 0)
        low, high = 0.0, latest
        if len(fake) and rng.random() < self.whole:
            begin, end = fake[rng.integers(len(fake))]
            if end - begin <= seen:
                low, high = np.clip([end - seen, begin], 0, latest)
        return 2 * int(rng.uniform(low, high) / 2)

    def cut(self, clip: dict[str, Stream]) -> list[Window]:
        """Windows each `stride` frames and one up to the end."""
        n_frames = _n_frames(clip)
        size = min(self.window, n_frames + n_frames % 2)
        starts = windows.cut(n_frames + n_frames % 2, size, min(self.stride, size), grid=2)
        return [
            Window(
                OFFSET_S + start * HOP_S,
                OFFSET_S + min(start + size, n_frames) * HOP_S,
                _crop(clip, start, 1.0, size),
            )
            for start in starts.tolist()
        ]

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> np.ndarray:
        """Log-odds of fake of each frame, and two proposals with times in frames, (B, T, 7)."""
        n_frames = batch["valid"].shape[1]
        spans = model.spans(batch).float().cpu().numpy()
        out = np.zeros((len(spans), n_frames, 7))
        out[..., 0] = -np.inf
        first = 0
        for level in range(model.levels):
            stride = 2**level
            points = spans[:, first : first + -(-n_frames // stride)]
            first += points.shape[1]
            covering = np.repeat(points[..., 3], stride, axis=1)[:, :n_frames]
            out[..., 0] = np.maximum(out[..., 0], covering)
            # level 1 has the odd frames of the second proposal, level 2 every fourth, ...
            frames = np.arange(points.shape[1]) * stride + stride // 2
            there = frames < n_frames
            columns = slice(4, 7) if level else slice(1, 4)
            out[:, frames[there], columns] = points[:, there][..., [2, 0, 1]]
        return out

    def join(self, outputs: np.ndarray, starts: np.ndarray, n_frames: int) -> np.ndarray:
        """Rows (n_frames, 7): each frame's from the window in whose middle it is, with times in
        seconds of the clip.
        """
        size = outputs.shape[1]
        frame = np.arange(n_frames)
        away = np.abs(frame[:, None] - (np.asarray(starts) + (size - 1) / 2))
        window = away.argmin(axis=1)
        rows = outputs[window, frame - np.asarray(starts)[window]]
        times = [2, 3, 5, 6]
        begin = OFFSET_S + np.asarray(starts)[window, None] * HOP_S
        rows[:, times] = begin + rows[:, times] * HOP_S
        return rows


class _EmbeddingReader(Reader):
    def __init__(self, stores: dict[str, FeatureStore]):
        self.stores = stores
        self.widths = {name: store.settings["dim"] for name, store in stores.items()}

    def read(self, file: str) -> dict[str, Stream]:
        """The streams of a clip by name, of no frames where it does not have one."""
        rows = {name: store[file] for name, store in self.stores.items()}
        if not any(row.valid.any() for row in rows.values()):
            raise NoAnswer(", ".join(row.reason or "no face" for row in rows.values()))
        clip = {}
        for name in STREAMS:
            if name in rows and rows[name].valid.any():
                clip[name] = Stream(rows[name].embedding, rows[name].valid)
            else:
                width = self.widths.get(name, next(iter(self.widths.values())))
                clip[name] = Stream(np.zeros((0, width), np.float16), np.zeros(0, bool))
        return clip


def _n_frames(clip: dict[str, Stream]) -> int:
    """Frames of sound in a clip."""
    return max(len(stream.valid) * STREAMS[name] for name, stream in clip.items())


def _crop(clip: dict[str, Stream], start: int, speed: float, size: int) -> dict[str, Tensor]:
    """`size` frames of sound from `start` on, and the mouth beside them, `speed` times as fast."""
    inputs: dict[str, Tensor] = {}
    for name, frames in STREAMS.items():
        values, valid = _resampled(clip[name], start / frames, speed, size // frames)
        inputs[name], inputs[f"{name}_valid"] = torch.from_numpy(values), torch.from_numpy(valid)
    valid = start + (np.arange(size) + 0.5) * speed < _n_frames(clip)
    return inputs | {"valid": torch.from_numpy(valid)}


def _resampled(
    stream: Stream, start: float, speed: float, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """`size` frames, each between the two whose middles are nearest: values (size, D) float32 and
    valid (size,), False beyond the stream.
    """
    last = len(stream.valid) - 1
    if last < 0:
        return np.zeros((size, stream.values.shape[1]), np.float32), np.zeros(size, bool)
    place = start + (np.arange(size) + 0.5) * speed - 0.5
    low = np.clip(np.floor(place).astype(int), 0, last)
    high = np.minimum(low + 1, last)
    valid = stream.valid[low] & stream.valid[high] & (place < last + 0.5)
    share = np.clip(place - low, 0, 1).astype(np.float32)[:, None]
    if not share.any():
        return stream.values[low].astype(np.float32), stream.valid[low] & (place <= last)
    values = stream.values[low] * (1 - share) + stream.values[high] * share
    return values, valid


def _kept(fake: np.ndarray, low: float, high: float, share: float) -> np.ndarray:
    """The segments (n, 2) cut to [low, high); those with less than `share` left are dropped."""
    cut = np.clip(fake, low, high)
    return cut[np.diff(cut, axis=1)[:, 0] >= np.maximum(share * np.diff(fake, axis=1)[:, 0], 1e-6)]
