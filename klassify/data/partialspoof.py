"""Data for PartialSpoof: audio and labels at six resolutions in, cosines on one grid out.

Clips are cut at multiples of 640 ms, where all grids meet, so that the scores of a long one's
pieces are put together by concatenation. With `supervision: clip` no segment column of a list is
read, in training or validation.

The 640 ms head hears [640 i - 320, 640 i + 320) ms in its output i (see
klassify.models.partialspoof), which `offset_640` treats in one of two ways, in the labels and on
the way to the grid, of 40 ms here:
- `published`: output i is learned and read as [640 i, 640 (i + 1)) ms, and frame k takes output
  k // 16, as the published training and paper 2's fusion do. What happens within the second half of
  a cell shows one late.
- `corrected`: both go by the span it hears; frame k takes output (k + 8) // 16.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from klassify.data.audio import FRAME_SAMPLES, AudioClips, Wave
from klassify.data.base import FrameData, Window
from klassify.grid import frames
from klassify.grid.frames import FRAME_S, IGNORE
from klassify.grid.windows import repeat_to, seams
from klassify.media import decoder
from klassify.models.partialspoof import (
    CELL_SAMPLES,
    LOOKAHEAD,
    MIN_FRAMES,
    RESOLUTIONS_MS,
    SHIFTS,
    piece_starts,
)

HOP_SAMPLES = FRAME_SAMPLES // 2
CELL_S = CELL_SAMPLES / decoder.SAMPLE_RATE
HALF_CELL = SHIFTS[4]  # 320 ms, in 10 ms
Offset = Literal["published", "corrected"]


def scale_labels(labels: np.ndarray, factor: int) -> np.ndarray:
    """Labels (L,) at a coarser resolution: 1 where any of `factor` labels is 1; a rest at the end
    has none.

    Fewer than `factor` labels give one. With 1 = bona fide this is the published minimum.
    """
    whole = len(labels) // factor
    if not whole:
        return labels.max(keepdims=True)
    return labels[: whole * factor].reshape(whole, factor).max(axis=1)


def labels_by_resolution(
    base: np.ndarray, offset_640: Offset = "published"
) -> dict[str, np.ndarray]:
    """`label_20` to `label_640` of the 10 ms labels (L,) of a clip, 1 = fake.

    offset_640: with `corrected`, label i at 640 ms is that of [640 i - 320, 640 i + 320) ms within
    the clip.
    """
    labels = {f"label_{10 * shift}": scale_labels(base, shift) for shift in SHIFTS}
    if offset_640 == "corrected":
        halves = np.pad(scale_labels(base, HALF_CELL), (1, 0))
        labels["label_640"] = np.append(scale_labels(halves, 2), halves[len(halves) // 2 * 2 :])
    return labels


def on_frames(
    scores: dict[str, np.ndarray], n_frames: int, offset_640: Offset = "published", hop_ms: int = 40
) -> np.ndarray:
    """Scores `ps20` (T_20, B, 2) to `ps640` on a grid of 20 or 40 ms: (n_frames, B, 12), columns as
    COLUMNS.

    A frame of 40 ms has the mean of its two scores at 20 ms. A coarser score is repeated over its
    span, and the last one of a resolution to the end, since what does not fill a span there has
    none.
    """
    ahead = {640: 320 // hop_ms} if offset_640 == "corrected" else {}
    columns = []
    for ms in RESOLUTIONS_MS:
        skipped = ahead.get(ms, 0)
        columns.append(on_grid(scores[f"ps{ms}"], ms, n_frames + skipped, hop_ms)[skipped:])
    return np.concatenate(columns, axis=-1)


def on_grid(values: np.ndarray, resolution_ms: int, n_frames: int, hop_ms: int = 40) -> np.ndarray:
    """Scores (n, ...) of each half a frame of hop_ms, or each multiple of it -> (n_frames, ...)."""
    if resolution_ms < hop_ms:
        if len(values) % 2:
            values = np.concatenate([values, values[-1:]])
        values, resolution_ms = (values[0::2] + values[1::2]) / 2, hop_ms
    return repeat_to(values, resolution_ms // hop_ms, n_frames)


class PartialSpoofFrames(FrameData, AudioClips):
    """16 kHz audio for klassify.models.partialspoof (paper 2, section 2.1).

    Example: {"wave": (N,), "n_frames": 20 ms frames, "label", "label_20" to "label_640": (T_r,)
    long}: a random crop that starts at a multiple of 640 ms, padded with zeros to whole frames of
    40 ms and to 320 ms; in a batch, to its longest, where the losses end with each clip. `label_*`
    only with segment supervision. Rows: cosines by resolution, see on_frames; score = fake - real
    of one of them, in [-2, 2].

    Args:
        window: samples of a training crop, a multiple of 10,240 (640 ms). The published training
            takes whole clips, paper 2's code equal pieces of at most 15 s.
        chunk: samples of a piece in scoring, likewise, and at least three times that. Neighbouring
            pieces share two cells of 640 ms, the last two of a clip often more, and change over in
            the middle of them.
        supervision: `segment`, or `clip`: labels of clips alone (see PartialSpoof.losses).
        offset_640: what the outputs of the 640 ms head stand for; see above.
        hop_s: seconds per row of scores, 0.04 or 0.02.
        score_ms: the resolution whose cosines are the score.
    """

    COLUMNS = tuple(f"ps{ms}_{name}" for ms in RESOLUTIONS_MS for name in ("real", "fake"))
    scale = "cosine"
    padding = {f"label_{ms}": IGNORE for ms in RESOLUTIONS_MS}

    def __init__(
        self,
        window: int = 24 * CELL_SAMPLES,
        chunk: int = 24 * CELL_SAMPLES,
        keep_in_memory: bool = False,
        train_split: str = "train",
        val_split: str = "val_report",
        label: str = "own",
        supervision: Literal["segment", "clip"] = "segment",
        offset_640: Offset = "published",
        hop_s: float = FRAME_S,
        score_ms: int = 160,
    ):
        super().__init__(window, window, keep_in_memory, train_split, val_split, label)
        if chunk < 3 * CELL_SAMPLES or window % CELL_SAMPLES or chunk % CELL_SAMPLES:
            raise ValueError(
                f"window and chunk are multiples of {CELL_SAMPLES} samples (640 ms), chunk of three"
                " or more"
            )
        self.hop_ms, self.hop_s, self.score_ms = round(1000 * hop_s), hop_s, score_ms
        if self.hop_ms not in (20, 40) or score_ms not in RESOLUTIONS_MS:
            raise ValueError(
                f"hop_s is 0.02 or 0.04, not {hop_s:g}, and score_ms one of {RESOLUTIONS_MS}, not"
                f" {score_ms}"
            )
        # not checked against `window`: pieces in scoring may be longer than training crops
        self.stride, self.supervision, self.offset_640 = chunk, supervision, offset_640

    @staticmethod
    def _part(clip: Wave, first_cell: int, size: int) -> np.ndarray:
        """`size` samples from a cell on and what the last frame hears beyond; zero-padded."""
        first = first_cell * CELL_SAMPLES
        part = clip[first : first + size + LOOKAHEAD]
        return np.pad(part, (0, size + LOOKAHEAD - len(part)))

    @staticmethod
    def _whole_frames(n_samples: int) -> int:
        """Samples of whole 40 ms frames, and at least 320 ms."""
        return max(-(-n_samples // FRAME_SAMPLES) * FRAME_SAMPLES, MIN_FRAMES * HOP_SAMPLES)

    def example(
        self, clip: Wave, target: tuple[np.ndarray | None, int], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """A random crop of whole cells of 640 ms, or what is left of the clip, with its labels."""
        fake, label = target
        n_cells, cells = -(-len(clip) // CELL_SAMPLES), self.window // CELL_SAMPLES
        first = int(rng.integers(max(n_cells - cells, 0) + 1))
        n_samples = min(len(clip) - first * CELL_SAMPLES, self.window)
        n_frames = max(-(-n_samples // HOP_SAMPLES), MIN_FRAMES)
        example = {
            "wave": torch.from_numpy(self._part(clip, first, self._whole_frames(n_samples))),
            "n_frames": torch.tensor(n_frames),
            "label": torch.tensor(label),
        }
        if self.supervision == "segment":
            before = first * SHIFTS[-1]
            base = frames.encode_labels(fake, before + 2 * n_frames, hop_s=0.01)[before:]
            labels = labels_by_resolution(base, self.offset_640)
            example |= {name: torch.from_numpy(values).long() for name, values in labels.items()}
        return example

    def cut(self, clip: Wave) -> list[Window]:
        """The whole clip or pieces of `chunk` samples, with what the last frame hears beyond."""
        clip = clip[:]  # pieces overlap: read it once
        starts, size, end_s = [0], self._whole_frames(len(clip)), len(clip) / decoder.SAMPLE_RATE
        if len(clip) > self.stride:
            n_cells, size = -(-len(clip) // CELL_SAMPLES), self.stride
            starts = piece_starts(n_cells, size // CELL_SAMPLES).tolist()
        length_s = size / decoder.SAMPLE_RATE
        return [
            Window(
                s * CELL_S,
                min(s * CELL_S + length_s, end_s),
                {"wave": torch.from_numpy(self._part(clip, s, size))},
            )
            for s in starts
        ]

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> np.ndarray:
        """Cosines on the grid: (B, F, 12)."""
        n_frames = (batch["wave"].shape[1] - LOOKAHEAD) * 640 // (CELL_SAMPLES * self.hop_ms)
        scores = model.frame_scores(batch["wave"])
        by_time = {
            name: values.float().transpose(0, 1).cpu().numpy() for name, values in scores.items()
        }
        return on_frames(by_time, n_frames, self.offset_640, self.hop_ms).swapaxes(0, 1)

    def join(self, outputs: np.ndarray, starts: np.ndarray, n_frames: int) -> np.ndarray:
        """Rows (n_frames, 13): score and cosines, of each piece up to its seam with the next."""
        rows = outputs[0]
        if len(outputs) > 1:
            cell = 640 // self.hop_ms
            starts, size = starts // cell, outputs.shape[1] // cell
            edges = seams(starts, size)
            kept = np.stack([edges[:-1] - starts, edges[1:] - starts], axis=1) * cell
            rows = np.concatenate([piece[begin:end] for piece, (begin, end) in zip(outputs, kept)])
        rows = rows[:n_frames].astype(float)
        fake, real = (
            rows[:, self.COLUMNS.index(f"ps{self.score_ms}_{name}")] for name in ("fake", "real")
        )
        return np.column_stack([fake - real, rows])
