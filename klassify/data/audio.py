"""Waves as inputs: of clip detectors and of frame localisers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from klassify.augmentation.sets import AudioAugment, require_aligned
from klassify.data.base import ClipData, FrameData, NoAnswer, Reader, Sources, Window, check_windows
from klassify.errors import KlassifyError
from klassify.features.audio_cache import (
    NO_AUDIO,
    CachedClip,
    audio_source,
    heard_in,
    no_sound,
    open_cache,
    quantised,
)
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
        window, stride: samples per window, and between window starts in scoring.
        keep_in_memory: decode each clip once and keep it (64 kB a second of audio).
        trim_s: up to this long is cut off either end of training clips, so that silence before or
            after the speech does not give the label away.
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
        """The share of each clip's duration for which there is sound; where the audio cache does
        not tell, up to the end of the sound in its list.
        """
        heard = table["file"].map(heard_in(sources.feature_folder("audio", split)))
        heard = heard.astype(float).fillna(table["n_samples"].astype(float))
        return heard / decoder.SAMPLE_RATE / table["duration"]

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
        # takes a second to import, and scoring does without
        from klassify.augmentation.splice import splice_wave

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
        wave = quantised(isolated.call(decoder.read_audio, inside(self._folder(), file)))
        reason = no_sound(wave)
        if reason:
            raise NoAnswer(reason)
        return wave


class WaveFrames(FrameData, AudioClips):
    """Base of the localisers that hear waves: windows of frames, joined by triangular weights.

    With `interleave` a clip is scored twice, the second time without the first half of a frame, and
    the rows of both passes alternate: their hop is half of the model's, each row being about the
    middle of a frame. Validation in training makes one pass.
    """

    interleave = False

    @property
    def score_grid(self) -> dict[str, float]:
        """hop_s and offset_s of the rows of scores."""
        if not self.interleave:
            return super().score_grid
        return {"hop_s": self.hop_s / 2, "offset_s": self.offset_s + self.hop_s / 4}

    def for_validation(self) -> ClipData:
        """The same without augmentation, in one pass."""
        plain = super().for_validation()
        plain.interleave = False
        return plain

    def windows_of(self, clip: np.ndarray) -> list[Window]:
        """The windows that score a clip in one pass."""
        raise NotImplementedError

    def cut(self, clip: Wave) -> list[Window]:
        """Windows of whole frames, zero-padded; a shorter clip is one window of its own length."""
        clip = clip[:]  # windows overlap: read it once
        cut = self.windows_of(clip)
        if not self.interleave:
            return cut
        half_s, end_s = self.hop_s / 2, len(clip) / decoder.SAMPLE_RATE
        half = round(half_s * decoder.SAMPLE_RATE)
        again = self.windows_of(np.append(clip[half:], np.zeros(half, clip.dtype)))
        moved = [
            (one.start_s + half_s, min(one.end_s + half_s, end_s), one.inputs) for one in again
        ]
        return cut + [Window(*one) for one in moved]

    def join(self, outputs: np.ndarray, starts: np.ndarray, n_frames: int) -> np.ndarray:
        """Rows (n_frames, C): windows averaged with triangular weights."""
        if not self.interleave:
            return super().join(outputs, starts, n_frames)
        rows = np.empty((n_frames, outputs.shape[2]))
        for later in (0, 1):
            mine, length = starts % 2 == later, (n_frames + 1 - later) // 2
            rows[later::2] = super().join(outputs[mine], starts[mine] // 2, length)
        return rows


HOP, SEEN = 320, 400  # samples between a front end's frames, and that one frame reads


def heard_by(wave: Wave, first: int, n_frames: int) -> Tensor:
    """The samples from `first` on that so many frames of a front end read, zeros beyond the end."""
    size = (n_frames - 1) * HOP + SEEN
    part = wave[first : first + size]
    return torch.from_numpy(np.pad(part, (0, size - len(part))))


FRAME_SAMPLES = round(FRAME_S * decoder.SAMPLE_RATE)  # 640


class AudioFrames(WaveFrames):
    """16 kHz audio in 4 s windows of frames for BAM (paper 1, sections 4.2 and 5.2).

    Example: {"wave": (window,), "frame_label": (F,), "boundary_label": (F,)}: a random crop that
    starts on a frame, or the clip padded with zeros, whose frames are ignored. Never wrapped
    around: frames keep their time. Rows: score (log-odds, triangular mean over the windows that
    cover a frame) and boundary probability.

    Args:
        window, stride: samples per window and between window starts in scoring, whole frames.
        augment, splice: as in AudioClips, but of effects that keep every sound at its time.
        hop_s, offset_s: seconds per frame of the model, and where frame 0 of a clip begins: 0 as
            published; the middle of the samples that a pretrained front end reads for a frame
            begins at 0.0025.
        targets: of frames: `any`, long labels, 1 where any part is fake, padding IGNORE, as
            published; or `share`, float, the share of the frame that is fake, padding NaN.
        interleave: score each clip twice for rows of half the hop; see WaveFrames.
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
        hop_s: float = FRAME_S,
        offset_s: float = 0.0,
        targets: Literal["any", "share"] = "any",
        interleave: bool = False,
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
        check_weights(hop_s=hop_s, offset_s=offset_s)
        self.frame_samples = round(hop_s * decoder.SAMPLE_RATE)
        if window % self.frame_samples or stride % self.frame_samples:
            raise ValueError(f"window and stride are multiples of {self.frame_samples} samples")
        if targets not in ("any", "share"):
            raise ValueError(f"targets is 'any' or 'share', not {targets!r}")
        self.hop_s, self.offset_s, self.targets_of = hop_s, offset_s, targets
        self.interleave = interleave

    def check_model(self, model: nn.Module) -> None:
        """ValueError for one whose frames are longer or shorter, where it says how long."""
        wanted = getattr(model, "resolution_s", self.hop_s)
        if wanted != self.hop_s:
            raise ValueError(
                f"the data has hop_s={self.hop_s:g}, the model resolution_s={wanted:g}"
            )

    def frames_of(self, clip: Wave) -> int:
        """Frames of a clip; a partial one at the end counts."""
        return -(-len(clip) // self.frame_samples)

    def _padded(self, wave: Wave, first: int, n_frames: int) -> Tensor:
        part = wave[first * self.frame_samples : (first + n_frames) * self.frame_samples]
        return torch.from_numpy(np.pad(part, (0, n_frames * self.frame_samples - len(part))))

    def example(
        self, clip: Wave, target: tuple[np.ndarray | None, int], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """A random crop of whole frames, augmented, with their labels and boundaries."""
        fake, label = target
        n_frames, size = self.frames_of(clip), self.window // self.frame_samples
        first = int(rng.integers(max(n_frames - size, 0) + 1))
        wave = self._padded(clip, first, size)
        if self.splice:
            wave, fake = self.spliced(wave, rng)
            label, n_frames, first = int(len(fake) > 0), min(size, n_frames), 0
        crop, grid = slice(first, first + size), {"hop_s": self.hop_s, "offset_s": self.offset_s}
        labels = frames.encode_labels(fake, n_frames, **grid)[crop]
        edges, padding = frames.boundary_labels(labels), (0, size - len(labels))
        known, nothing = labels, IGNORE
        if self.targets_of == "share":
            known, nothing = frames.covered_share(fake, n_frames, **grid)[crop], np.nan
        return {
            "wave": self._augmented(wave, rng),
            "frame_label": torch.from_numpy(np.pad(known, padding, constant_values=nothing)),
            "boundary_label": torch.from_numpy(np.pad(edges, padding)).float(),
            "label": torch.tensor(label),
        }

    def windows_of(self, clip: np.ndarray) -> list[Window]:
        """Windows of whole frames; a clip shorter than a window runs at its own length."""
        n_frames, size = self.frames_of(clip), self.window // self.frame_samples
        starts = windows.cut(n_frames, size, self.stride // self.frame_samples).tolist()
        size, end_s = min(size, n_frames), len(clip) / decoder.SAMPLE_RATE
        return [
            Window(
                s * self.hop_s,
                min((s + size) * self.hop_s, end_s),
                {"wave": self._padded(clip, s, size)},
            )
            for s in starts
        ]

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> np.ndarray:
        """Log-odds of fake and boundary probability of each frame: (B, F, 2)."""
        scores = model.frame_scores(**batch)
        return torch.stack([scores["score"], scores["boundary"]], dim=-1).float().cpu().numpy()
