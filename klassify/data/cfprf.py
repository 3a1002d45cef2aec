"""Waves as inputs of CFPRF (klassify.models.cfprf): frames of 20 ms, and proposals of the model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from klassify.data.audio import HOP, SEEN, AudioClips, Wave, heard_by
from klassify.data.base import FrameData, Window, check_windows
from klassify.grid import frames, windows
from klassify.grid.frames import IGNORE
from klassify.grid.segments import proposed_columns
from klassify.media.decoder import SAMPLE_RATE


class CFPRFFrames(FrameData, AudioClips):
    """16 kHz audio, clips whole or in windows of about 21 s.

    As in the published model, frame t stands for [0.02 t, 0.02 (t + 1)) s. Example: {"wave": (N,),
    "frame_label": (T,) long}, a random crop, or the clip padded with zeros, whose frames are
    ignored. Rows: score = fake - real, which estimates 2 p - 1; boundary; and on the first frame of
    each run of fake frames the proposal that the model makes of it.

    Each window is scored in a forward pass of its own, and of two that overlap each counts up to
    the middle. The published evaluation leaves out clips above 340,000 samples.

    Args:
        window, stride: frames per window and between window starts in scoring; 1061 frames are
            340,000 samples.
        crop: frames of a training crop.
    """

    COLUMNS = ("boundary", *proposed_columns(1))
    scale = "cosine"
    streams = True
    hop_s, offset_s = HOP / SAMPLE_RATE, 0.0

    def __init__(
        self,
        window: int = 1061,
        stride: int = 530,
        crop: int = 200,
        keep_in_memory: bool = False,
        train_split: str = "train",
        val_split: str = "val_report",
        label: str = "own",
    ):
        super().__init__(
            keep_in_memory=keep_in_memory, train_split=train_split, val_split=val_split, label=label
        )
        check_windows(window, stride)
        check_windows(window, crop)
        self.window, self.stride, self.crop = window, stride, crop

    def check_model(self, model: nn.Module) -> None:
        """ValueError for one that takes fewer frames than a window has."""
        longest = getattr(getattr(model, "fdn", None), "seq_len", self.window)
        if longest < self.window:
            raise ValueError(f"the model takes {longest} frames; data.window is {self.window}")

    @staticmethod
    def _frames_of(n_samples: int) -> int:
        """Frames of the front end; at least one."""
        return max((n_samples - SEEN) // HOP + 1, 1)

    def example(
        self, clip: Wave, target: tuple[np.ndarray, int], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """A random crop of whole frames with their labels: 1 where any part of a frame is fake."""
        fake, label = target
        n_frames = self._frames_of(len(clip))
        first = int(rng.integers(max(n_frames - self.crop, 0) + 1))
        labels = frames.encode_labels(fake, n_frames, hop_s=self.hop_s)[first:][: self.crop]
        padding = (0, self.crop - len(labels))
        return {
            "wave": heard_by(clip, first * HOP, self.crop),
            "frame_label": torch.from_numpy(np.pad(labels, padding, constant_values=IGNORE)),
            "label": torch.tensor(label),
        }

    def cut(self, clip: Wave) -> list[Window]:
        """The clip, or windows of whole frames that cover it."""
        clip = clip[:]  # windows overlap: read it once
        n_frames, end_s = self._frames_of(len(clip)), len(clip) / SAMPLE_RATE
        size = min(self.window, n_frames)
        starts = windows.cut(n_frames, size, self.stride).tolist()
        ends = [(start + size) * self.hop_s for start in starts[:-1]] + [end_s]
        return [
            Window(start * self.hop_s, end, {"wave": heard_by(clip, start * HOP, size)})
            for start, end in zip(starts, ends)
        ]

    def clip_rows(
        self, model: nn.Module, cut: list[Window], *, batch_size: int, device: torch.device
    ) -> np.ndarray:
        """Rows (n_frames, 3 + columns) of a clip: start, end, score, boundary, proposal."""
        outputs = [model(window.inputs["wave"][None].to(device)) for window in cut]
        starts = np.array([round(window.start_s / self.hop_s) for window in cut])
        edges = windows.seams(starts, outputs[0].logit.shape[1])
        spans = np.stack([edges[:-1] - starts, edges[1:] - starts], axis=1).tolist()
        logit, boundary, hidden = (
            torch.cat([values[0, low:high] for values, (low, high) in zip(parts, spans)])
            for parts in zip(*((one.logit, one.boundary, one.hidden) for one in outputs))
        )
        coarse, proposed = model.proposals(logit[:, 1] >= logit[:, 0], hidden)
        rows = torch.zeros(len(logit), 1 + len(self.COLUMNS), dtype=torch.double, device=device)
        rows[:, 0] = logit[:, 1] - logit[:, 0]
        rows[:, 1] = boundary[:, 1].clamp(0, 1)
        scale = torch.tensor([1, self.hop_s, self.hop_s], dtype=torch.double, device=device)
        rows[coarse[:, 0], 2:] = proposed * scale
        return self._timed(rows.cpu().numpy(), cut[-1].end_s)

    def _timed(self, rows: np.ndarray, end_s: float) -> np.ndarray:
        """The rows with start and end in front, up to the end of the clip: what the front end has
        no frame for scores as the last one.
        """
        n_frames = max(int(np.ceil(end_s / self.hop_s - 1e-6)), 1)
        rest = np.repeat(rows[-1:], max(n_frames - len(rows), 0), axis=0)
        rest[:, 2:] = 0
        rows = np.concatenate([rows, rest])[:n_frames]
        edges = np.arange(n_frames + 1) * self.hop_s
        edges[-1] = min(edges[-1], end_s)
        return np.column_stack([edges[:-1], edges[1:], rows])
