"""Waves as inputs: of clip detectors and of frame localisers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from klassify.augmentation.sets import AudioAugment, require_aligned
from klassify.augmentation.splice import splice_wave
from klassify.data.base import ClipData, FrameData, NoAnswer, Reader, Sources, Window, check_windows
from klassify.errors import KlassifyError
from klassify.features.audio_cache import NO_AUDIO, CachedClip, audio_source, open_cache, quantised
from klassify.grid import frames, windows
from klassify.grid.frames import FRAME_S, IGNORE
from klassify.media import decoder, isolated
from klassify.media.container import inside
from klassify.settings import check_weights

Wave = np.ndarray | CachedClip  # float32 audio: len(wave), wave[start:stop]


class AudioClips(ClipData):
    """16 kHz mono audio in windows of about 4 s, for clip classifiers (paper 1, section 5.2).

    Example: {"wave": (window,) float32}: a random crop, or the clip wrapped around from its
    beginning. Scoring: windows at multiples of `stride`, and one more for an uncovered tail on the
    20 ms frame grid.

    Args:
        window, stride: samples a window, and between window starts in scoring.
        keep_in_memory: decode each clip once and keep it (64 kB a second of audio).
        trim_s: up to this long is cut off either end of training clips, so that silence before or
            after the speech tells nothing.
        augment: what training crops go through (klassify.augmentation.sets); scoring hears clips as
            they are.
        splice: above 0, train on real clips alone (supervision `self`): this share of the crops
            gets fakes of the training's own making (klassify.augmentation.splice).
    """

    modality = "audio"
    # samples: the hop of every front end, so that the tail is a slice of the clip's frames
    tail_grid = 320

    def __init__(
        self,
        window: int = 64_600,
        stride: int = 16_000,
        keep_in_memory: bool = False,
        train_split: str = "train_audio",
        val_split: str = "val_report",
        label: str = "own",
        aggregate: str = "max",
        trim_s: float = 0.0,
        augment: AudioAugment | None = None,
        splice: float = 0.0,
    ):
        super().__init__(train_split, val_split, label, aggregate)
        check_windows(window, stride)
        check_weights(trim_s=trim_s)
        self.train_with_splice(splice)
        self.window, self.stride = window, stride
        self.keep_in_memory, self.trim_s, self.augment = keep_in_memory, trim_s, augment

    def reader(self, sources: Sources, split: str) -> Reader:
        """Reads the audio cache or the media; see AudioReader."""
        return AudioReader(sources, split, self.keep_in_memory)

    def shares(self, sources: Sources, split: str, table: pd.DataFrame) -> pd.Series:
        """The share of each clip's duration that has sound, as its list says."""
        return table["n_samples"].astype(float) / decoder.SAMPLE_RATE / table["duration"]

    def _wrapped(self, wave: Wave, start: int) -> Tensor:
        part = wave[start : start + self.window]
        return torch.from_numpy(part if len(part) == self.window else np.resize(part, self.window))

    def example(self, clip: Wave, target: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """A random crop, augmented, with the clip's label, or that of its own edits."""
        low, high = self.trimmed(len(clip), rng)
        start = low + int(rng.integers(max(high - low - self.window, 0) + 1))
        wave = self._wrapped(clip[start : min(high, start + self.window)], 0)
        if self.splice:
            wave, fake = self.spliced(wave, rng)
            target = int(len(fake) > 0)
        return {"wave": self._augmented(wave, rng), "label": torch.tensor(target)}

    def spliced(self, wave: Tensor, rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
        """The wave with edits, and its fake segments (k, 2) in seconds."""
        edited, fake = splice_wave(wave.numpy(), rng, self.splice)
        return torch.from_numpy(edited), fake

    def trimmed(self, n_samples: int, rng: np.random.Generator) -> tuple[int, int]:
        """The samples [low, high) of a training clip without random cuts of up to trim_s at either
        end, which take at most half of it.
        """
        if not self.trim_s:
            return 0, n_samples
        most = min(round(self.trim_s * decoder.SAMPLE_RATE), n_samples // 4)
        low, cut = rng.integers(0, most + 1, size=2).tolist()
        return low, n_samples - cut

    def _augmented(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        return wave if self.augment is None else torch.from_numpy(self.augment(wave.numpy(), rng))

    def cut(self, clip: Wave) -> list[Window]:
        """Windows within the clip; one that is wrapped around where the clip is shorter."""
        clip = clip[:]  # windows overlap: read it once
        starts = windows.cut(len(clip), self.window, self.stride, grid=self.tail_grid).tolist()
        ends = [min(start + self.window, len(clip)) for start in starts]
        rate = decoder.SAMPLE_RATE
        return [
            Window(s / rate, e / rate, {"wave": self._wrapped(clip, s)})
            for s, e in zip(starts, ends)
        ]


class AudioReader(Reader):
    """16 kHz mono audio of clips, float32 in steps of 2^-15: from the audio cache, or decoded from
    the media.

    A clip in the cache `features/audio/<split>` is read as far as it is sliced; any other is
    decoded whole. Both are equal to the bit. See klassify.features.audio_cache.
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
        """A clip of len(clip) samples; clip[start:stop] is float32. NoAnswer without audio."""
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
        return quantised(isolated.call(decoder.read_audio, inside(self._folder(), file)))


FRAME_SAMPLES = round(FRAME_S * decoder.SAMPLE_RATE)  # 640


class AudioFrames(FrameData, AudioClips):
    """16 kHz audio in 4 s windows of 100 frames for BAM (paper 1, sections 4.2 and 5.2).

    Example: {"wave": (window,), "frame_label": (F,) long, "boundary_label": (F,)}: a random crop
    that starts on a frame, or the clip padded with zeros, whose frames are ignored. Never wrapped
    around: frames keep their time. Rows: score (log-odds, triangular mean over the windows that
    cover a frame) and boundary probability.

    Args:
        window, stride: samples a window and between window starts in scoring, multiples of 640.
        augment, splice: as in AudioClips, but of effects that keep every sound at its time.
    """

    COLUMNS = ("boundary",)

    def __init__(
        self,
        window: int = 64_000,
        stride: int = 32_000,
        keep_in_memory: bool = False,
        train_split: str = "train_bam",
        val_split: str = "val_report",
        label: str = "own",
        augment: AudioAugment | None = None,
        splice: float = 0.0,
    ):
        require_aligned(augment)
        super().__init__(
            window,
            stride,
            keep_in_memory,
            train_split,
            val_split,
            label,
            augment=augment,
            splice=splice,
        )
        if window % FRAME_SAMPLES or stride % FRAME_SAMPLES:
            raise ValueError(f"window and stride are multiples of {FRAME_SAMPLES} samples")

    def frames_of(self, clip: Wave) -> int:
        """Frames of a clip on the 40 ms grid; a partial one at the end counts."""
        return -(-len(clip) // FRAME_SAMPLES)

    def _padded(self, wave: Wave, first: int, n_frames: int) -> Tensor:
        part = wave[first * FRAME_SAMPLES : (first + n_frames) * FRAME_SAMPLES]
        return torch.from_numpy(np.pad(part, (0, n_frames * FRAME_SAMPLES - len(part))))

    def example(
        self, clip: Wave, target: tuple[np.ndarray | None, int], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """A random crop of whole frames, augmented, with their labels and boundaries."""
        fake, label = target
        n_frames, size = self.frames_of(clip), self.window // FRAME_SAMPLES
        first = int(rng.integers(max(n_frames - size, 0) + 1))
        in_crop, wave = min(size, n_frames), self._padded(clip, first, size)
        if self.splice:
            wave, fake = self.spliced(wave, rng)
            labels, label = frames.encode_labels(fake, in_crop), int(len(fake) > 0)
        else:
            labels = frames.encode_labels(fake, n_frames)[first : first + size]
        edges, padding = frames.boundary_labels(labels), size - len(labels)
        return {
            "wave": self._augmented(wave, rng),
            "frame_label": torch.from_numpy(np.pad(labels, (0, padding), constant_values=IGNORE)),
            "boundary_label": torch.from_numpy(np.pad(edges, (0, padding))).float(),
            "label": torch.tensor(label),
        }

    def cut(self, clip: Wave) -> list[Window]:
        """Windows of whole frames, zero-padded; a shorter clip is one window of its own length."""
        clip = clip[:]  # windows overlap: read it once
        n_frames, size = self.frames_of(clip), self.window // FRAME_SAMPLES
        starts = windows.cut(n_frames, size, self.stride // FRAME_SAMPLES).tolist()
        size = min(size, n_frames)  # a clip shorter than a window runs at its own length
        end_s = len(clip) / decoder.SAMPLE_RATE
        return [
            Window(
                s * FRAME_S, min((s + size) * FRAME_S, end_s), {"wave": self._padded(clip, s, size)}
            )
            for s in starts
        ]

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> np.ndarray:
        """Log-odds of fake and boundary probability of each frame: (B, F, 2)."""
        scores = model.frame_scores(**batch)
        return torch.stack([scores["score"], scores["boundary"]], dim=-1).float().cpu().numpy()

    def join(self, outputs: np.ndarray, starts: np.ndarray, n_frames: int) -> np.ndarray:
        """Rows (n_frames, 2): score and boundary, windows averaged with triangular weights."""
        return windows.overlap_mean(outputs, starts, n_frames, windows.triangle(outputs.shape[1]))
