"""Waves as inputs of localisers on the front end's own frames, 20 ms apart."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from klassify.augmentation.sets import AudioAugment, require_aligned
from klassify.data.audio import HOP, SEEN, Wave, WaveFrames, heard_by
from klassify.data.base import Window, check_windows
from klassify.grid import windows
from klassify.media.decoder import SAMPLE_RATE


class AudioShares(WaveFrames):
    """16 kHz audio in 4 s windows of 200 frames, each with the share of it that is fake.

    Frame t covers the samples [320 t + 40, 320 t + 360): 20 ms around the middle of the 400 samples
    that a front end reads for it. Example: {"wave": (N,), "target": (T,) shares in [0, 1], "start"
    and "end": (T,), Gaussians around the edges of fakes}, of a crop from anywhere; a shorter clip
    is padded with zeros, whose frames have NaN as target. Rows: log-odds of fake, of a start and of
    an end, triangular mean over the windows that cover a frame.

    Args:
        window, stride: frames per window, and between window starts in scoring.
        trim_s: up to this long is cut off either end of training clips, so that silence before or
            after the speech does not give the label away.
        augment, splice: as in AudioClips, but of effects that keep every sound at its time.
        interleave: score each clip twice for rows 10 ms apart; see WaveFrames.
    """

    COLUMNS = ("opens", "closes")
    hop_s, offset_s = HOP / SAMPLE_RATE, (SEEN - HOP) / 2 / SAMPLE_RATE

    def __init__(
        self,
        window: int = 200,
        stride: int = 100,
        trim_s: float = 0.0,
        keep_in_memory: bool = False,
        train_split: str = "train",
        val_split: str = "val_report",
        label: str = "own",
        augment: AudioAugment | None = None,
        splice: float = 0.0,
        interleave: bool = False,
    ):
        require_aligned(augment)
        super().__init__(
            keep_in_memory=keep_in_memory,
            train_split=train_split,
            val_split=val_split,
            label=label,
            trim_s=trim_s,
            augment=augment,
            splice=splice,
        )
        check_windows(window, stride)
        self.window, self.stride, self.interleave = window, stride, interleave

    def frames_of(self, n_samples: int) -> int:
        """Frames that n_samples touch; at least one."""
        return max(-(-(n_samples - (SEEN - HOP) // 2) // HOP), 1)

    def example(
        self, clip: Wave, target: tuple[np.ndarray | None, int], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """A crop from anywhere in the clip, augmented, with the targets of its frames."""
        fake, label = target
        low, high = self.trimmed(len(clip), rng)
        size = (self.window - 1) * HOP + SEEN
        start = low + int(rng.integers(max(high - low - size, 0) + 1))
        heard = clip[start : min(high, start + size)]
        there = min(self.frames_of(len(heard)), self.window)
        wave = heard_by(heard, 0, self.window)
        if self.splice:
            wave, segments = self.spliced(wave, rng)
            label = int(len(segments) > 0)
        else:
            segments = fake - start / SAMPLE_RATE
        return {
            "wave": self._augmented(wave, rng),
            **self.share_targets(segments, np.arange(self.window) < there),
            "label": torch.tensor(label),
        }

    def windows_of(self, clip: np.ndarray) -> list[Window]:
        """Windows of whole frames; a clip shorter than a window runs at its own length."""
        n_frames = self.frames_of(len(clip))
        starts = windows.cut(n_frames, self.window, self.stride).tolist()
        size = min(self.window, n_frames)
        end_s = len(clip) / SAMPLE_RATE
        return [
            Window(
                self.offset_s + s * self.hop_s,
                min(self.offset_s + (s + size) * self.hop_s, end_s),
                {"wave": heard_by(clip, s * HOP, size)},
            )
            for s in starts
        ]

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> np.ndarray:
        """Log-odds of fake, of a start and of an end of each frame: (B, T, 3)."""
        return model.frame_scores(batch).float().cpu().numpy()
