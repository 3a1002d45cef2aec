"""Data for the visual branch of paper 2: windows of frames, their LMM features, and a row for each
frame. Only clips that show a face have an answer.

A window is ten consecutive frames; in training it is fake if any of them is (section 2.2; MM-Det's
loader). In scoring, a window begins at every `stride`-th frame, its logits belong to its centre
frame, and the frames around take over the nearest earlier ones. All that a frame needs by itself is
computed once a frame, and the clip streams through: an hour of video takes no more memory than a
minute.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn

from klassify.augmentation.frames import FrameAugment, draw
from klassify.data.base import FrameData, NoAnswer, Reader, Sources
from klassify.data.faces import read_row, seen_shares, squares_of
from klassify.grid.frames import encode_labels
from klassify.grid.windows import centre_fill
from klassify.media import isolated
from klassify.media.container import MediaError, inside
from klassify.media.square_frames import iter_frames, n_frames, read_frames
from klassify.models.spatiotemporal import sliding
from klassify.settings import check_sizes

CHUNK = 32  # frames that go through the stems at once in scoring
UNSEEN = (1.75, -1.75)  # logits of real and fake of a frame without a face
MAX_FRAMES = 2**20  # of a clip: more than media.MAX_SECONDS


@dataclasses.dataclass(frozen=True)
class LMMFeatures:
    """Features of a clip's sampled frames: their numbers (n,), (n, V), (n, 64, T) float16."""

    frames: np.ndarray
    visual: np.ndarray
    textual: np.ndarray

    def at(self, index: np.ndarray) -> dict[str, Tensor]:
        """Inputs of the sampled frames `index`: "visual" (m, 1, V), "textual" (m, 64, T)."""
        return {
            "visual": torch.from_numpy(self.visual[index])[:, None],
            "textual": torch.from_numpy(self.textual[index]),
        }


@dataclasses.dataclass(frozen=True)
class VisualClip:
    """A clip, read when asked for.

    seen: (n_frames,) bool, the frames with a face; None: all count. squares: (n_frames, 3) of the
    frames, None: their centres. held: all frames, where they are kept in memory. codes: (T, h, w)
    of the VQ-VAE, where they were extracted.
    """

    path: Path
    n_frames: int
    frame_size: int
    seen: np.ndarray | None = None
    squares: np.ndarray | None = None
    lmm: LMMFeatures | None = None
    held: np.ndarray | None = None
    codes: np.ndarray | None = None

    def frame_ids(self, frames: np.ndarray) -> np.ndarray:
        """A number for each of these frames that no other frame of any clip has, in any process."""
        digest = hashlib.blake2b(os.fsencode(self.path), digest_size=5).digest()
        clip = int.from_bytes(digest, "big")
        return clip * MAX_FRAMES + frames.astype(np.int64)

    def frames(self, first: int, count: int) -> np.ndarray:
        """(count, S, S, 3) uint8 from a frame on; beyond the end the last frame repeats."""
        if self.held is not None:
            return extended(self.held[first : first + count], count)
        squares = None if self.squares is None else self.squares[first : first + count]
        found = isolated.call(
            read_frames, self.path, size=self.frame_size, first=first, count=count, squares=squares
        )
        return extended(found, count)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """All frames in blocks (n, S, S, 3), with their codes."""
        if self.held is None:
            how = {"size": self.frame_size, "chunk": CHUNK, "squares": self.squares}
            blocks = isolated.stream(iter_frames, self.path, **how)
        else:
            blocks = (self.held[first : first + CHUNK] for first in range(0, len(self.held), CHUNK))
        first = 0
        for block in blocks:
            codes = None
            if self.codes is not None:
                codes = extended(self.codes[first : first + CHUNK], len(block))
            yield block, codes
            first += len(block)


def extended(values: np.ndarray, count: int) -> np.ndarray:
    """The first `count` of values (n, ...), the last one repeated where there are fewer."""
    if not len(values):
        raise NoAnswer("no frames")
    return np.concatenate([values, np.repeat(values[-1:], max(count - len(values), 0), axis=0)])


class VisualWindows(FrameData):
    """Windows of frames for klassify.models.visual.Visual (paper 2, section 2.2).

    Example: see Visual.loss; the windows of a clip share one augmentation. Rows: the logits of the
    window around each frame; score = fake - real.

    Args:
        size: pixels a side that the model takes.
        frame_size: pixels a side to which the square of a frame is scaled; None: `size`. Where it
            is larger than `size`, training takes a random crop and scoring the middle.
        faces: only clips that show a face have an answer, and a frame without one is not fake; read
            from the mouth features.
        face_part: (x, y, side) of the square, see klassify.data.faces.squares_of; None: the
            centre square of the frame.
        window: frames per window.
        stride: frames between window starts, 1 in the paper, 2 in the published code.
        interpolate: between window centres instead of holding the logits; for strides above 2.
        val_stride: coarser stride of the validation after each epoch; None: `stride`.
        windows_per_clip: windows of a clip in an epoch, 1 as published, at random places.
        span: frames; the windows of a clip then lie evenly over a random stretch of this length,
            and a frame of several windows passes the stems once. None: separate frames.
        fake_windows: of the windows (stretches, with `span`) of a fake clip, this share touches a
            fake segment; None: no preference.
        lmm: whether LMM features are read.
        lmm_index: the sampled frame nearest to the window's centre (paper), or the last one up to
            its start ("floor", the published code).
        blur, jpeg, flip: probabilities of the augmentation (klassify.augmentation.frames).
        keep_in_memory: decode each clip once and keep its frames and, in training, their
            reconstruction.
        reconstruction: read the VQ-VAE's codes from feature shards; without a `face_part`.
        supervision: `segment`, or `clip`: only the clip's label is read, for its pooled windows.
    """

    modality = "visual"
    streams = True
    COLUMNS = ("real", "fake")

    def __init__(
        self,
        size: int = 224,
        frame_size: int | None = None,
        faces: bool = True,
        face_part: tuple[float, float, float] | None = None,
        window: int = 10,
        stride: int = 1,
        interpolate: bool = False,
        val_stride: int | None = None,
        windows_per_clip: int = 1,
        span: int | None = None,
        fake_windows: float | None = None,
        lmm: bool = True,
        lmm_index: Literal["nearest", "floor"] = "nearest",
        blur: float = 0.1,
        jpeg: float = 0.1,
        flip: float = 0.5,
        keep_in_memory: bool = False,
        reconstruction: bool = False,
        supervision: Literal["segment", "clip"] = "segment",
        train_split: str = "train",
        val_split: str = "val_report",
        label: str = "own",
    ):
        super().__init__(train_split, val_split, label, aggregate="max")
        self.frame_size = frame_size or size
        check_sizes(size, frame_size=self.frame_size)
        check_sizes(window=window, stride=stride, windows_per_clip=windows_per_clip)
        check_sizes(val_stride=val_stride or stride)
        check_sizes(window, span=span or window)
        if reconstruction and face_part:
            raise ValueError("extracted reconstructions are of whole frames: leave out face_part")
        if face_part and not faces:
            raise ValueError("face_part needs faces")
        self.faces, self.face_part, self.margin = faces, face_part, self.frame_size - size
        self.size, self.window, self.stride, self.interpolate = size, window, stride, interpolate
        self.val_stride, self.lmm_index, self.supervision = val_stride, lmm_index, supervision
        self.windows_per_clip, self.span, self.fake_windows = windows_per_clip, span, fake_windows
        self.augment: FrameAugment | None = FrameAugment(blur, jpeg, flip)
        kinds = {"mouth": faces, "lmm": lmm, "reconstruction": reconstruction}
        self.feature_kinds = tuple(kind for kind, is_read in kinds.items() if is_read)
        self.kept: dict[Path, np.ndarray] | None = {} if keep_in_memory else None

    def check_model(self, model: nn.Module) -> None:
        """ValueError for a model that takes other frames or windows."""
        for name in ("size", "window"):
            ours, wanted = getattr(self, name), getattr(model, name, None)
            if wanted not in (None, ours):
                raise ValueError(f"the data has {name}={ours}, and the model {name}={wanted}")

    def shares(self, sources: Sources, split: str, table: pd.DataFrame) -> pd.Series:
        """The frames with a face, of the clip's; without `faces`, those that its list knows of."""
        if self.faces:
            return seen_shares(sources, split, table)
        return table["n_frames"].astype(float) / table["fps"] / table["duration"]

    def reader(self, sources: Sources, split: str) -> Reader:
        """Gives a VisualClip, whose frames are decoded when they are asked for."""
        return _ClipReader(self, sources, split)

    def example(
        self, clip: VisualClip, target: tuple[np.ndarray | None, int], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Windows of a clip at random places, with their labels or (clip labels) the clip's."""
        fake, label = target
        frame_labels = None
        if self.supervision == "segment":
            frame_labels = encode_labels(fake, max(clip.n_frames, self.window))
        starts, frames = self._draw_windows(clip, frame_labels, rng)
        example = self._inputs(clip, frames) | draw(rng, self.margin, self.augment)
        if frame_labels is not None:
            in_clip = np.minimum(starts, len(frame_labels) - self.window)
            label = sliding_window_view(frame_labels, self.window)[in_clip].max(axis=1)
        if clip.lmm is not None:
            example |= clip.lmm.at(self._sampled(starts, clip.lmm))
        places = np.arange(len(starts)) * self.window if self.span is None else starts - frames[0]
        return example | {"starts": torch.from_numpy(places), "label": torch.as_tensor(label)}

    def _draw_windows(
        self, clip: VisualClip, frame_labels: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """First frames (K,) of windows with a face, and all frames (T,), maybe beyond the clip."""
        count, size = (self.windows_per_clip, self.window) if self.span is None else (1, self.span)
        has_face = np.ones(max(clip.n_frames - size, 0) + 1, bool)
        if clip.seen is not None:
            has_face = sliding_window_view(clip.seen, min(size, clip.n_frames)).any(axis=1)
        possible = np.flatnonzero(has_face)
        places = possible[rng.integers(len(possible), size=count)]
        if self.fake_windows is not None and frame_labels is not None:
            stretches = sliding_window_view(frame_labels, min(size, len(frame_labels)))
            is_fake = stretches.max(axis=1) > 0
            wanted = rng.random(count) < self.fake_windows
            choices = [possible[is_fake[possible] == kind] for kind in wanted]
            drawn = [
                rng.choice(found) if len(found) else place for found, place in zip(choices, places)
            ]
            places = np.array(drawn)
        frames = (places[:, None] + np.arange(size)).ravel()
        if self.span is None:
            return places, frames
        spread = np.linspace(0, size - self.window, self.windows_per_clip).round().astype(int)
        return places + spread, frames

    def _inputs(self, clip: VisualClip, frames: np.ndarray) -> dict[str, Tensor]:
        """ "frames" (T, S, S, 3), and what the model needs to know their reconstruction."""
        first = frames.min()
        inputs = {
            "frames": torch.from_numpy(clip.frames(first, np.ptp(frames) + 1)[frames - first])
        }
        last = np.minimum(frames, clip.n_frames - 1)
        if clip.codes is not None:
            inputs["codes"] = torch.from_numpy(
                clip.codes[np.minimum(last, len(clip.codes) - 1)].astype(np.int64)
            )
        elif self.kept is not None:
            inputs["frame_id"] = clip.frame_ids(last).tolist()
        return inputs

    def collate(self, inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stacked; "lmm_valid" (B,) says which clips have LMM features, the others get zeros: it is
        there if some have and some have not. "frame_id" are lists, read where frames are kept.
        """
        has_lmm = ["visual" in item for item in inputs]
        numbers = {}
        if "frame_id" in inputs[0]:
            numbers = {"frame_id": [item["frame_id"] for item in inputs]}
            inputs = [{k: v for k, v in item.items() if k != "frame_id"} for item in inputs]
        if not any(has_lmm) or all(has_lmm):
            return super().collate(inputs) | numbers
        with_lmm = inputs[has_lmm.index(True)]
        absent = {name: torch.zeros_like(with_lmm[name]) for name in ("visual", "textual")}
        batch = super().collate([absent | item for item in inputs])
        return batch | numbers | {"lmm_valid": torch.tensor(has_lmm)}

    def _sampled(self, starts: np.ndarray, lmm: LMMFeatures) -> np.ndarray:
        """The index (W,) of the sampled frame whose features each window takes.

        "nearest": to the window's centre frame, whose score it gives (paper 2, figure 3), the
        earlier of two equally near; "floor": the last one up to its start, as published.
        """
        if self.lmm_index == "floor":
            return np.maximum(np.searchsorted(lmm.frames, starts, side="right") - 1, 0)
        between = (lmm.frames[:-1] + lmm.frames[1:]) / 2
        return np.searchsorted(between, starts + self.window // 2, side="left")

    def cut(self, clip: VisualClip) -> list[VisualClip]:
        """The clip itself: `clip_rows` streams it, rather than hold its windows."""
        return [clip]

    @torch.inference_mode()
    def clip_rows(
        self, model: nn.Module, cut: Sequence[VisualClip], *, batch_size: int, device: torch.device
    ) -> np.ndarray:
        """The rows of a clip (n_frames, 5): start, end, score, real, fake. Raises MediaError."""
        (clip,) = cut
        length = 0

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal length
            for frames, codes in clip.blocks():
                needed = (length + np.arange(len(frames))) % self.stride < self.window
                length += len(frames)
                if needed.any():
                    if codes is not None:
                        codes = torch.from_numpy(codes[needed].astype(np.int64)).to(device)
                    yield model.scored_pair(torch.from_numpy(frames[needed]).to(device), codes)

        lmm_tokens = self._lmm_tokens(model, clip, device)
        logits, starts = [], []
        step = min(self.stride, self.window)  # between windows on the timeline of the needed frames
        for first, tokens in sliding(model.backbone, pairs(), step, batch_size):
            starts.append(first.numpy() // step * self.stride)
            of_window = None
            if lmm_tokens is not None:
                sampled = torch.from_numpy(self._sampled(starts[-1], clip.lmm))
                of_window = lmm_tokens[sampled.to(device)]
            logits.append(model.fuse(tokens, of_window)[0].double().cpu().numpy())
        if not logits:
            raise MediaError("There are no frames.", where=clip.path)
        filled = self.fill(np.concatenate(logits), np.concatenate(starts), length)
        if clip.seen is not None:
            filled[~extended(clip.seen, length)[:length]] = UNSEEN
        edges = np.arange(length + 1) * self.hop_s
        return np.column_stack([edges[:-1], edges[1:], filled[:, 1] - filled[:, 0], filled])

    @staticmethod
    def _lmm_tokens(model: nn.Module, clip: VisualClip, device: torch.device) -> Tensor | None:
        """LMM tokens (n, L, D) of the clip's sampled frames, projected once."""
        if clip.lmm is None or model.lmm_dims is None:
            return None
        features = clip.lmm.at(np.arange(len(clip.lmm.frames)))
        return model.lmm_tokens(features["visual"].to(device), features["textual"].to(device))

    def fill(self, logits: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        """Logits (N, 2) of windows -> (length, 2), each frame those of the window around it."""
        if not self.interpolate:
            return centre_fill(logits, starts, self.window, length)
        centres = starts + self.window // 2
        return np.column_stack(
            [np.interp(np.arange(length), centres, column) for column in logits.T]
        )

    def for_validation(self) -> VisualWindows:
        """The same without augmentation, its windows `val_stride` frames apart."""
        coarse = super().for_validation()
        coarse.stride = self.val_stride or self.stride
        # a score that is held for long would be misplaced
        coarse.interpolate = self.interpolate or coarse.stride > self.stride
        return coarse


class _ClipReader(Reader):
    def __init__(self, data: VisualWindows, sources: Sources, split: str):
        self.data, self.folder = data, sources.media_folder(split)
        self.stores = data.stores(sources, split)

    def read(self, file: str) -> VisualClip:
        data, path = self.data, inside(self.folder, file)
        seen = squares = held = None
        if data.faces:
            row = read_row(self.stores["mouth"], file)
            seen = row.valid
            squares = None if data.face_part is None else squares_of(row, data.face_part)
        if data.kept is not None:
            held = self._held(path, squares)
        counted = held if seen is None else seen
        count = isolated.call(n_frames, path) if counted is None else len(counted)
        if not count:
            raise NoAnswer("no frames")
        rows = {kind: store[file] for kind, store in self.stores.items()}
        # a row without contents has a reason, and the clip is scored without these features
        lmm = codes = None
        if "lmm" in rows and len(rows["lmm"].frames):
            lmm = LMMFeatures(rows["lmm"].frames, rows["lmm"].visual, rows["lmm"].textual)
        if "reconstruction" in rows and len(rows["reconstruction"].codes):
            codes = rows["reconstruction"].codes
        return VisualClip(path, count, data.frame_size, seen, squares, lmm, held, codes)

    def _held(self, path: Path, squares: np.ndarray | None) -> np.ndarray:
        if path not in self.data.kept:
            how = {"size": self.data.frame_size, "squares": squares}
            self.data.kept[path] = isolated.call(read_frames, path, **how)
        return self.data.kept[path]
