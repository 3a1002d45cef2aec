"""Embeddings of sound and mouth on the 40 ms grid, with clip labels: for klassify.models.sync."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from klassify.data.base import ClipData, NoAnswer, Reader, Sources, Window, check_windows
from klassify.features.shards import FeatureStore
from klassify.grid import windows
from klassify.grid.frames import FRAME_S

AUDIO_FRAMES = 2  # of 20 ms in one of the mouth


class SyncEmbeddings(ClipData):
    """Embeddings of a sound encoder (20 ms, two frames averaged) and a mouth encoder (40 ms).

    Example: {"audio": (T, D), "visual": (T, D), "audio_valid" and "visual_valid": (T,) bool,
    "label": 1 = fake}.

    Args:
        audio, visual: names of the encoders: features are read from
            features/<data>/embedding-<name>/<split>.
        window, stride: frames of 40 ms, and between window starts in scoring.
    """

    modality = "both"
    fills_batches = True

    def __init__(
        self,
        audio: str = "audio_mil",
        visual: str = "lips_mil",
        window: int = 256,
        stride: int = 128,
        train_split: str = "train",
        val_split: str = "val_report",
        aggregate: str = "max",
        label: str = "video",
    ):
        super().__init__(train_split, val_split, label, aggregate)
        if label != "video":
            raise ValueError("what is fake in sound and picture together has the label 'video'")
        check_windows(window, stride)
        self.window, self.stride = window, stride
        self.feature_kinds = (f"embedding-{audio}", f"embedding-{visual}")

    def reader(self, sources: Sources, split: str) -> Reader:
        """Reads both streams; NoAnswer if one of them is missing."""
        stores = self.stores(sources, split)
        return _SyncReader(*(stores[kind] for kind in self.feature_kinds))

    def example(
        self, clip: dict[str, Tensor], target: int, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Up to `window` frames from a random place, with the clip's label."""
        start = int(rng.integers(max(len(clip["visual"]) - self.window, 0) + 1))
        return _crop(clip, start, self.window) | {"label": torch.tensor(target)}

    def cut(self, clip: dict[str, Tensor]) -> list[Window]:
        """Windows each `stride` frames and one up to the end, all of one length, those without a
        frame with both sound and a face left out.
        """
        found = []
        for start in windows.cut(len(clip["visual"]), self.window, self.stride).tolist():
            inputs = _crop(clip, start, self.window)
            if (inputs["audio_valid"] & inputs["visual_valid"]).any():
                end = min(start + self.window, len(clip["visual"]))
                found.append(Window(start * FRAME_S, end * FRAME_S, inputs).padded(self.window))
        return found


class _SyncReader(Reader):
    def __init__(self, audio: FeatureStore, visual: FeatureStore):
        self.audio, self.visual = audio, visual

    def read(self, file: str) -> dict[str, Tensor]:
        """Both streams, as long as the mouth's."""
        audio, visual = self.audio[file], self.visual[file]
        for row, missing in ((audio, "no audio"), (visual, "no face")):
            if not row.valid.any():
                raise NoAnswer(row.reason or missing)
        n_frames = len(visual.valid)
        sound, heard = pairs(audio.embedding, audio.valid, n_frames)
        if not (heard & visual.valid).any():
            raise NoAnswer("no face while there is sound")
        return {
            "audio": torch.from_numpy(sound),
            "visual": torch.from_numpy(visual.embedding.astype(np.float32)),
            "audio_valid": torch.from_numpy(heard),
            "visual_valid": torch.from_numpy(visual.valid),
        }


def pairs(values: np.ndarray, valid: np.ndarray, n_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of two neighbouring frames, (n_frames, D) float32, and where both are valid; zeros and
    False beyond the end. values: (T, D).
    """
    size = AUDIO_FRAMES * n_frames
    padded = np.zeros((size, values.shape[1]), np.float32)
    there = np.zeros(size, bool)
    padded[: len(values)], there[: len(valid)] = values[:size], valid[:size]
    mean = padded.reshape(n_frames, AUDIO_FRAMES, -1).mean(axis=1)
    return mean, there.reshape(n_frames, AUDIO_FRAMES).all(axis=1)


def _crop(clip: dict[str, Tensor], start: int, size: int) -> dict[str, Tensor]:
    return {key: value[start : start + size] for key, value in clip.items()}
