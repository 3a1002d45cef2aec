"""Data for the localisers: segment labels in, one row a 40 ms frame out.

These classes read the segment columns of a list (supervision `segment`), which Task 2 allows. A
clip is cut into overlapping windows, `outputs` runs the model on a batch of them, `join` puts a
clip's windows back on its timeline, and `COLUMNS` names what a frame row holds beside its score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from klassify import media, segments, windows
from klassify.augment import AudioAugment, require_aligned
from klassify.clip_data import ClipData, Window
from klassify.datasets import AudioClips, MouthFeatures, Wave
from klassify.segments import FRAME_S, IGNORE

SEGMENT_COLUMNS = {
    "video": "fake_segments",
    "audio": "audio_fake_segments",
    "visual": "visual_fake_segments",
}
UNSEEN = np.array([0.97, 0.01, 0.01, 0.01])  # tag probabilities of a frame without a face
FRAME_SAMPLES = round(FRAME_S * media.SAMPLE_RATE)  # 640


class FrameData(ClipData):
    """What the localisers' data classes share; mixed into the class that reads the modality."""

    unit = "frame"
    supervision = "segment"
    COLUMNS: tuple[str, ...]

    def segments_of(self, table: pd.DataFrame) -> list[np.ndarray]:
        """The fake segments (n, 2) in seconds of each clip, in the modality or (label=video) in
        either.
        """
        column = SEGMENT_COLUMNS["video" if self.label == "video" else self.modality]
        return [np.asarray(cell or [], float).reshape(-1, 2) for cell in table[column]]

    def targets(self, table: pd.DataFrame) -> Sequence[Any]:
        """Fake segments (n, 2) in seconds and label of each clip."""
        return list(zip(self.segments_of(table), self.labels(table).tolist()))

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> np.ndarray:
        """What `join` takes, for each window of a batch: (B, F, C)."""
        raise NotImplementedError

    def join(self, outputs: np.ndarray, starts: np.ndarray, n_frames: int) -> np.ndarray:
        """The rows of a clip, (n_frames, 1 + len(COLUMNS)): score, then the named columns.

        outputs: (W, F, C) of its windows, which start at these frames.
        """
        raise NotImplementedError


class MouthTags(FrameData, MouthFeatures):
    """Mouth features with a tag for each frame: outside, begin, inside, last (paper 1, section
    4.2).

    Example: as MouthFeatures, and {"tags": (T,) long}. Rows: score = log((1 - p_O) / p_O) and the
    logs of the four tag probabilities, averaged over the windows that cover a frame.
    """

    COLUMNS = ("log_o", "log_b", "log_i", "log_l")

    def example(
        self, clip: dict[str, Tensor], target: tuple[np.ndarray, int], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """That of MouthFeatures with the tags of its frames."""
        fake, label = target
        tags = torch.from_numpy(segments.encode_tags(fake, len(clip["valid"])))
        return super().example(clip | {"tags": tags}, label, rng)

    def collate(self, inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """That of MouthFeatures; "tags" (B, T) are IGNORE in the padding and at frames without a
        face.
        """
        batch = super().collate(inputs)
        if "tags" in inputs[0]:
            tags = [torch.where(item["valid"], item["tags"], IGNORE) for item in inputs]
            batch["tags"] = torch.nn.utils.rnn.pad_sequence(
                tags, batch_first=True, padding_value=IGNORE
            )
        return batch

    def cut(self, clip: dict[str, Tensor]) -> list[Window]:
        """All windows, also those without a face: every frame gets a row."""
        n_frames = len(clip["valid"])
        return [
            Window(
                s * FRAME_S,
                min(s + self.window, n_frames) * FRAME_S,
                {key: value[s : s + self.window] for key, value in clip.items()},
            )
            for s in windows.cut(n_frames, self.window, self.stride).tolist()
        ]

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> np.ndarray:
        """Tag probabilities; a frame without a face is outside, as far as the picture can tell."""
        seen = batch["valid"][..., None].cpu().numpy()
        return np.where(seen, model.tag_log_probs(batch).float().exp().cpu().numpy(), UNSEEN)

    def join(self, outputs: np.ndarray, starts: np.ndarray, n_frames: int) -> np.ndarray:
        """Rows (n_frames, 5): score and log-probabilities of the tags, averaged as
        probabilities.
        """
        probabilities = np.clip(windows.overlap_mean(outputs, starts, n_frames), 1e-9, None)
        log = np.log(probabilities / probabilities.sum(axis=1, keepdims=True))
        fake = np.logaddexp.reduce(log[:, 1:], axis=1)
        return np.column_stack([fake - log[:, 0], log])


class AudioFrames(FrameData, AudioClips):
    """16 kHz audio in 4 s windows of 100 frames for BAM (paper 1, sections 4.2 and 5.2).

    Example: {"wave": (window,), "frame_label": (F,) long, "boundary_label": (F,)}: a random crop
    that starts on a frame, or the clip padded with zeros, whose frames are ignored. Never wrapped
    around: time counts. Rows: score (log-odds, triangular mean over the windows that cover a frame)
    and boundary probability.

    Args:
        window, stride: samples a window and between window starts in scoring, multiples of 640.
        augment: as in AudioClips, but of effects that keep every sound at its time.
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
    ):
        require_aligned(augment)
        super().__init__(
            window, stride, keep_in_memory, train_split, val_split, label, augment=augment
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
        self, clip: Wave, target: tuple[np.ndarray, int], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """A random crop of whole frames, augmented, with their labels and boundaries."""
        fake, label = target
        n_frames, size = self.frames_of(clip), self.window // FRAME_SAMPLES
        first = int(rng.integers(max(n_frames - size, 0) + 1))
        labels = segments.encode_labels(fake, n_frames)[first : first + size]
        padding = size - len(labels)
        return {
            "wave": self._augmented(self._padded(clip, first, size), rng),
            "frame_label": torch.from_numpy(np.pad(labels, (0, padding), constant_values=IGNORE)),
            "boundary_label": (
                torch.from_numpy(np.pad(segments.boundary_labels(labels), (0, padding))).float()
            ),
            "label": torch.tensor(label),
        }

    def cut(self, clip: Wave) -> list[Window]:
        """Windows of whole frames, zeros behind the clip; of a clip shorter than one, its own
        frames.
        """
        clip = clip[:]  # windows overlap: read it once
        n_frames, size = self.frames_of(clip), self.window // FRAME_SAMPLES
        starts = windows.cut(n_frames, size, self.stride // FRAME_SAMPLES).tolist()
        size = min(size, n_frames)  # a clip shorter than a window runs at its own length
        end_s = len(clip) / media.SAMPLE_RATE
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
        """Rows (n_frames, 2): score and boundary, averaged with a weight that falls off from a
        window's middle.
        """
        return windows.overlap_mean(outputs, starts, n_frames, windows.triangle(outputs.shape[1]))
