"""Mouth features and audio as clip classifiers read them: examples for training, windows for
scoring.

The localisers' classes are in frame_datasets, partialspoof_data and visual_datasets;
klassify.clip_data says what all of them share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klassify import decoding, media, windows
from klassify.audio_file import NO_AUDIO, quantised
from klassify.audio_store import CachedClip, audio_source, open_cache
from klassify.augment import AudioAugment
from klassify.clip_data import ClipData, NoAnswer, Reader, Sources, Window, check_windows
from klassify.errors import KlassifyError
from klassify.features import mouth
from klassify.segments import FRAME_S
from klassify.store import FeatureStore

Wave = np.ndarray | CachedClip  # float32 audio: len(wave), wave[start:stop]


class MouthFeatures(ClipData):
    """The handcrafted mouth features of paper 1 (section 4.1) with their first differences.

    Example: {"features": (T, 2 * n) float32, "valid": (T,) bool}, n features of the chosen groups.

    Args:
        groups: of the feature groups 1 blur, 2 non-mouth MSE, 3 colour shift, 4 landmark
        kinematics. window, stride: frames (25 fps) a window, and between window starts in scoring.
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
        check_windows(window, stride)
        unknown = set(groups) - set(mouth.GROUPS)
        if unknown or not groups:
            raise ValueError(f"groups are some of {sorted(mouth.GROUPS)}, not {sorted(groups)}")
        single = [column for group in sorted(groups) for column in mouth.GROUPS[group]]
        self.channels = single + [column + len(mouth.FEATURES) for column in single]
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
        """Reads feature shards; NoAnswer where no frame has a face, KlassifyError for a clip not
        extracted.
        """
        return _MouthReader(sources.feature_folder("mouth", split), self.channels)

    def example(
        self, clip: dict[str, Tensor], target: int, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Up to `window` frames from a random place, with the clip's label."""
        n_frames = len(clip["valid"])
        start = int(rng.integers(max(n_frames - self.window, 0) + 1))
        crop = {key: value[start : start + self.window] for key, value in clip.items()}
        return crop | {"label": torch.tensor(target)}

    def cut(self, clip: dict[str, Tensor]) -> list[Window]:
        """Windows each `stride` frames and one up to the end, but for those without a valid
        frame.
        """
        n_frames = len(clip["valid"])
        cuts = []
        for start in windows.cut(n_frames, self.window, self.stride).tolist():
            inputs = {key: value[start : start + self.window] for key, value in clip.items()}
            if inputs["valid"].any():
                cuts.append(
                    Window(start * FRAME_S, min(start + self.window, n_frames) * FRAME_S, inputs)
                )
        return cuts

    def collate(self, inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Pad to the longest; padding is invalid, so that it changes nothing."""
        pad = torch.nn.utils.rnn.pad_sequence
        batch = {
            key: pad([item[key] for item in inputs], batch_first=True)
            for key in ("features", "valid")
        }
        if "label" in inputs[0]:
            batch["label"] = torch.stack([item["label"] for item in inputs])
        return batch

    def settings(self, sources: Sources, split: str) -> dict[str, Any]:
        """Those of the feature shards of the split."""
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

    Example: {"wave": (window,) float32}: a random crop, or the clip wrapped around from its
    beginning. Scoring: windows at multiples of `stride`, and one more for an uncovered tail on the
    20 ms frame grid.

    Args:
        window, stride: samples a window, and between window starts in scoring.
        keep_in_memory: decode each clip once and keep it (64 kB a second of audio).
        augment: what training crops go through (klassify.augment); scoring hears clips as they are.
    """

    modality = "audio"
    tail_grid = (
        320  # samples: the hop of every front end, so that the tail is a slice of the clip's frames
    )

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
        check_windows(window, stride)
        self.window, self.stride, self.keep_in_memory, self.augment = (
            window,
            stride,
            keep_in_memory,
            augment,
        )

    def reader(self, sources: Sources, split: str) -> Reader:
        """Reads the audio cache or the media; see AudioReader."""
        return AudioReader(sources, split, self.keep_in_memory)

    def _wrapped(self, wave: Wave, start: int) -> Tensor:
        part = wave[start : start + self.window]
        return torch.from_numpy(part if len(part) == self.window else np.resize(part, self.window))

    def example(self, clip: Wave, target: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """A random crop, augmented, with the clip's label."""
        start = int(rng.integers(max(len(clip) - self.window, 0) + 1))
        return {
            "wave": self._augmented(self._wrapped(clip, start), rng),
            "label": torch.tensor(target),
        }

    def _augmented(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        return wave if self.augment is None else torch.from_numpy(self.augment(wave.numpy(), rng))

    def cut(self, clip: Wave) -> list[Window]:
        """Windows within the clip; one that is wrapped around where the clip is shorter."""
        clip = clip[:]  # windows overlap: read it once
        starts = windows.cut(
            len(clip), self.window, self.stride, tail="grid", grid=self.tail_grid
        ).tolist()
        ends = [min(start + self.window, len(clip)) for start in starts]
        rate = media.SAMPLE_RATE
        return [
            Window(s / rate, e / rate, {"wave": self._wrapped(clip, s)})
            for s, e in zip(starts, ends)
        ]


class AudioReader(Reader):
    """16 kHz mono audio of clips, float32 in steps of 2^-15: from the audio cache, or decoded from
    the media.

    Each clip comes from the cache where `features/audio/<split>` holds it, and only what is sliced
    is read (see klassify.audio_store, also for how to say no); else its whole wave is decoded. Both
    are equal to the bit.
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
        """A clip of len(clip) samples, clip[start:stop] of which are float32. NoAnswer if it has
        no audio.
        """
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
