"""Mouth features as inputs: of the clip detector (TCN) and of the tagging TCN."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from klassify.data.base import ClipData, FrameData, Reader, Sources, Window, check_windows
from klassify.data.faces import read_row, seen_shares
from klassify.features.mouth.channels import FEATURES, GROUPS, stack_channels
from klassify.features.shards import FeatureStore
from klassify.grid import frames, windows
from klassify.grid.frames import FRAME_S, IGNORE


class MouthFeatures(ClipData):
    """The handcrafted mouth features of paper 1 (section 4.1) with their first differences.

    Example: {"features": (T, 2 * n) float32, "valid": (T,) bool}, n features of the chosen groups.

    Args:
        groups: of the feature groups 1 blur, 2 non-mouth MSE, 3 colour shift, 4 landmark
            kinematics.
        window, stride: frames (25 fps) a window, and between window starts in scoring.
    """

    modality = "visual"
    feature_kinds = ("mouth",)
    fills_batches = True
    hop_s = FRAME_S  # seconds per row of features

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
        check_windows(window, stride)
        unknown = set(groups) - set(GROUPS)
        if unknown or not groups:
            raise ValueError(f"groups are some of {sorted(GROUPS)}, not {sorted(groups)}")
        single = [column for group in sorted(groups) for column in GROUPS[group]]
        self.channels = single + [column + len(FEATURES) for column in single]
        self.window, self.stride = window, stride

    def check_model(self, model: torch.nn.Module) -> None:
        """ValueError for one of another number of channels, where it says how many."""
        wanted = getattr(model, "in_channels", len(self.channels))
        if wanted != len(self.channels):
            raise ValueError(
                f"the data has {len(self.channels)} channels, features and their differences, and"
                f" the model in_channels={wanted}"
            )

    def reader(self, sources: Sources, split: str) -> Reader:
        """Reads feature shards; NoAnswer if no frame has a face."""
        return _MouthReader(self.stores(sources, split)["mouth"], self.channels)

    def shares(self, sources: Sources, split: str, table: pd.DataFrame) -> pd.Series:
        """The frames with a face, of the clip's."""
        return seen_shares(sources, split, table)

    def example(
        self, clip: dict[str, Tensor], target: int, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Up to `window` frames from a random place, with the clip's label."""
        n_frames = len(clip["valid"])
        start = int(rng.integers(max(n_frames - self.window, 0) + 1))
        crop = {key: value[start : start + self.window] for key, value in clip.items()}
        return crop | {"label": torch.tensor(target)}

    def cut(self, clip: dict[str, Tensor]) -> list[Window]:
        """Windows each `stride` frames and one up to the end, but for those without a face; all of
        one length, padded with invalid frames.
        """
        with_face = (window for window in self._windows(clip) if window.inputs["valid"].any())
        return [window.padded(self.window) for window in with_face]

    def _windows(self, clip: dict[str, Tensor]) -> Iterator[Window]:
        n_frames = len(clip["valid"])
        for start in windows.cut(n_frames, self.window, self.stride).tolist():
            end = min(start + self.window, n_frames)
            inputs = {key: value[start:end] for key, value in clip.items()}
            yield Window(start * self.hop_s, end * self.hop_s, inputs)

    def settings(self, sources: Sources, split: str) -> dict[str, Any]:
        """Those of the feature shards of the split."""
        return {"features": self.stores(sources, split)["mouth"].settings}


class _MouthReader(Reader):
    def __init__(self, store: FeatureStore, channels: list[int]):
        self.store, self.channels = store, channels

    def read(self, file: str) -> dict[str, Tensor]:
        row = read_row(self.store, file)
        stacked = stack_channels(row.features, row.valid)[:, self.channels]
        return {"features": torch.from_numpy(stacked), "valid": torch.from_numpy(row.valid)}


UNSEEN = np.array([0.97, 0.01, 0.01, 0.01])  # tag probabilities of a frame without a face


class MouthTags(FrameData, MouthFeatures):
    """Mouth features with a tag for each frame: outside, begin, inside, last (paper 1, section
    4.2).

    Example: as MouthFeatures, and {"tags": (T,) long, IGNORE without a face}. Rows: score =
    log((1 - p_O) / p_O) and the logs of the four tag probabilities, averaged over the windows that
    cover a frame.

    Args:
        hop_s: seconds per frame, 0.04 or a whole part of it: features are then interpolated between
            pictures. window and stride count these frames.
        more: arguments of MouthFeatures.
    """

    COLUMNS = ("log_o", "log_b", "log_i", "log_l")
    padding = {"tags": IGNORE}

    def __init__(self, hop_s: float = FRAME_S, **more: Any):
        super().__init__(**more)
        self.hop_s, self.parts = hop_s, round(FRAME_S / hop_s)
        if self.parts < 1 or not np.isclose(self.parts * hop_s, FRAME_S):
            raise ValueError(f"hop_s is {FRAME_S:g} or a whole part of it, not {hop_s:g}")

    def _at_hop(self, clip: dict[str, Tensor]) -> dict[str, Tensor]:
        """The clip with `parts` rows per picture, none mixed with a picture without a face."""
        if self.parts == 1:
            return clip
        features, valid = clip["features"], clip["valid"]
        row = torch.arange(len(valid) * self.parts)
        own, place = row // self.parts, (row + 0.5) / self.parts - 0.5
        other = torch.where(place < own, own - 1, own + 1).clamp(0, len(valid) - 1)
        other = torch.where(valid[other], other, own)
        mixed = torch.lerp(features[own], features[other], (place - own).abs()[:, None])
        return {"features": mixed, "valid": valid[own]}

    def example(
        self, clip: dict[str, Tensor], target: tuple[np.ndarray, int], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """That of MouthFeatures with the tags of its frames."""
        (fake, label), clip = target, self._at_hop(clip)
        tags = torch.from_numpy(frames.encode_tags(fake, len(clip["valid"]), hop_s=self.hop_s))
        tags = torch.where(clip["valid"], tags, IGNORE)
        return super().example(clip | {"tags": tags}, label, rng)

    def cut(self, clip: dict[str, Tensor]) -> list[Window]:
        """All windows, also those without a face: every frame gets a row."""
        return list(self._windows(self._at_hop(clip)))

    def valid_frames(self, clip: dict[str, Tensor], n_frames: int) -> np.ndarray:
        """(n_frames,) bool: the frames with a face."""
        return clip["valid"].numpy()

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> np.ndarray:
        """Tag probabilities; a frame without a face counts as outside."""
        seen = batch["valid"][..., None].cpu().numpy()
        return np.where(seen, model.tag_log_probs(batch).float().exp().cpu().numpy(), UNSEEN)

    def join(self, outputs: np.ndarray, starts: np.ndarray, n_frames: int) -> np.ndarray:
        """Rows (n_frames, 5): score and logs of the tag probabilities, averaged over windows."""
        probabilities = np.clip(windows.overlap_mean(outputs, starts, n_frames), 1e-9, None)
        log = np.log(probabilities / probabilities.sum(axis=1, keepdims=True))
        fake = np.logaddexp.reduce(log[:, 1:], axis=1)
        return np.column_stack([fake - log[:, 0], log])
