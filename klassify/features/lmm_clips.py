"""Clips -> rows of kind lmm: the sampled frames of many clips go through the LMM together.

Writing 64 tokens reads all weights of the LMM 64 times, whether for one frame or for eight, so that
frames of several clips share a batch. All prompts have the same length: nothing is padded, and a
frame's features do not depend on its neighbours beyond the rounding of another batch size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from klassify import decoding, media
from klassify.features.clip import attempt
from klassify.features.lmm import INTERVAL, LMM, sampled
from klassify.store import LMMRow


@dataclasses.dataclass(frozen=True)
class Shown:
    """The frames of one clip that the LMM is to see, (H, W, 3) uint8 each; the clip has n_frames
    on the grid.
    """

    file: str
    fps: float
    n_frames: int
    indices: np.ndarray
    frames: Sequence[np.ndarray]


class LMMExtractor:
    """Extracts clips in the order of a list; one bad clip does not touch the others.

    Args:
        root: the folder that clip names are relative to.
        lmm: the models.
        interval: every how many frames of the 25 fps grid the LMM looks.
        batch_size: frames a batch.
    """

    def __init__(self, root: Path, lmm: LMM, interval: int = INTERVAL, batch_size: int = 8):
        self.root, self.lmm, self.interval, self.batch_size = root, lmm, interval, batch_size

    def rows(self, files: Sequence[str]) -> Iterator[LMMRow]:
        """One row for each clip, in any order."""
        waiting: list[Shown] = []
        for file in files:
            shown = attempt(LMMRow, self.root, file, lambda path, file=file: self.look(file, path))
            if isinstance(shown, LMMRow):
                yield shown
                continue
            waiting.append(shown)
            if sum(len(clip.frames) for clip in waiting) >= self.batch_size:
                yield from self.extract(waiting)
                waiting = []
        yield from self.extract(waiting)

    def look(self, file: str, path: Path) -> Shown | LMMRow:
        """Decode a clip to its end and keep the frames 0, interval, 2 interval, ..."""
        fps = decoding.probe(path).fps
        n_frames = decoding.call(media.count_frames, path)
        looked_at = range(0, n_frames, self.interval)
        frames = list(decoding.stream(media.frames_at, path, list(looked_at), to_end=True))
        if not frames:
            return LMMRow.failed(file, "decode", "no frames")
        if len(frames) < len(looked_at):
            return LMMRow.failed(
                file, "decode", f"The clip ends before frame {looked_at[len(frames)]}."
            )
        return Shown(file, fps, n_frames, sampled(n_frames, self.interval), frames)

    def extract(self, clips: Sequence[Shown]) -> Iterator[LMMRow]:
        """The rows of these clips. Where they fail together, each is tried by itself."""
        try:
            rows = self._together(clips)
        except (
            Exception
        ) as error:  # native libraries raise what they like; the other clips must go on
            if len(clips) > 1:
                rows = (row for clip in clips for row in self.extract([clip]))
            else:
                rows = [
                    LMMRow.failed(clips[0].file, "features", f"{type(error).__name__}: {error}")
                ]
        yield from rows

    def _together(self, clips: Sequence[Shown]) -> list[LMMRow]:
        frames = [frame for clip in clips for frame in clip.frames]
        blocks = [
            self.lmm(frames[first : first + self.batch_size])
            for first in range(0, len(frames), self.batch_size)
        ]
        if not blocks:
            return []
        visual, textual = (np.concatenate([block[i] for block in blocks]) for i in (0, 1))
        texts = [text for block in blocks for text in block[2]]
        rows, first = [], 0
        for clip in clips:
            part = slice(first, first + len(clip.frames))
            rows.append(self._row(clip, visual[part], textual[part], texts[part]))
            first = part.stop
        return rows

    @staticmethod
    def _row(clip: Shown, visual: np.ndarray, textual: np.ndarray, texts: list[str]) -> LMMRow:
        if not (np.isfinite(visual).all() and np.isfinite(textual).all()):
            return LMMRow.failed(
                clip.file, "features", "the LMM's states are beyond the range of float16"
            )
        return LMMRow(clip.file, clip.fps, clip.n_frames, clip.indices, visual, textual, texts)
