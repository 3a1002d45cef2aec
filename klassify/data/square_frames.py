"""Square frames of a clip as inputs: of clip detectors that look at pixels. Only clips that show a
face have an answer.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from klassify.data.base import ClipData, NoAnswer, Reader, Sources, Window, check_windows
from klassify.data.faces import read_row, seen_shares
from klassify.features.shards import FeatureStore
from klassify.grid import windows
from klassify.grid.frames import FRAME_S
from klassify.media import isolated, square_frames
from klassify.media.container import inside
from klassify.settings import check_sizes


class SquareFrames(ClipData):
    """`frames` square frames, evenly spaced over a window of the clip, for clip classifiers.

    Example: {"frames": (frames, size, size, 3) uint8 RGB} of a window at a random place. Scoring:
    windows each `stride` frames and one up to the end, but for those without a face; all in memory
    at once: 0.5 GB for an hour at the defaults. Which frames show a face is read from the mouth
    features.

    Args:
        size: pixels a side to which the centre square of a frame is scaled.
        frames: pictures per window; a clip with fewer frames repeats some.
        window, stride: frames (25 fps) a window, and between window starts in scoring.
    """

    modality = "visual"
    feature_kinds = ("mouth",)

    def __init__(
        self,
        size: int = 112,
        frames: int = 8,
        window: int = 50,
        stride: int = 50,
        train_split: str = "train",
        val_split: str = "val_report",
        label: str = "own",
        aggregate: str = "mean",
    ):
        super().__init__(train_split, val_split, label, aggregate)
        check_windows(window, stride)
        check_sizes(size=size, frames=frames)
        self.size, self.frames, self.window, self.stride = size, frames, window, stride

    def reader(self, sources: Sources, split: str) -> Reader:
        """Gives a SquareClip, whose frames are decoded when they are asked for."""
        faces = self.stores(sources, split)["mouth"]
        return SquareReader(sources.media_folder(split), self.size, faces)

    def shares(self, sources: Sources, split: str, table: pd.DataFrame) -> pd.Series:
        """The frames with a face, of the clip's."""
        return seen_shares(sources, split, table)

    def _spaced(self, start: int, clip: SquareClip) -> np.ndarray:
        """The numbers of the frames of a window."""
        last = min(self.window, clip.n_frames) - 1
        return start + np.linspace(0, last, self.frames).round().astype(int)

    def example(self, clip: SquareClip, target: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """The pictures of a window at a random place, with the clip's label."""
        start = int(rng.integers(max(clip.n_frames - self.window, 0) + 1))
        pictures = clip.pick(self._spaced(start, clip))
        return {"frames": torch.from_numpy(pictures), "label": torch.tensor(target)}

    def cut(self, clip: SquareClip) -> list[Window]:
        """Windows within the clip that show a face; a shorter clip is one window."""
        starts = windows.cut(clip.n_frames, self.window, self.stride).tolist()
        starts = [start for start in starts if clip.seen[start : start + self.window].any()]
        numbers = np.stack([self._spaced(start, clip) for start in starts])
        pictures = torch.from_numpy(clip.pick(numbers))
        ends = [min(start + self.window, clip.n_frames) for start in starts]
        return [
            Window(start * FRAME_S, end * FRAME_S, {"frames": frames})
            for start, end, frames in zip(starts, ends, pictures)
        ]


@dataclasses.dataclass(frozen=True)
class SquareClip:
    """A clip of n_frames frames (25 fps); only the frames that `pick` names are decoded.

    seen: (n_frames,) bool, those with a face, where that is known.
    """

    path: Path
    n_frames: int
    size: int
    seen: np.ndarray | None = None

    def pick(self, numbers: np.ndarray) -> np.ndarray:
        """Frames by number, in any order and shape: (*numbers.shape, size, size, 3) uint8 RGB."""
        wanted, place = np.unique(numbers, return_inverse=True)
        found = isolated.call(square_frames.pick_frames, self.path, wanted.tolist(), size=self.size)
        return found[place.reshape(numbers.shape)]


class SquareReader(Reader):
    """Finds the clips of a folder, scaled to `size`; NoAnswer for one without frames, and, with the
    mouth features of the clips, for one that shows too little of a face.
    """

    def __init__(self, folder: Path, size: int, faces: FeatureStore | None = None):
        self.folder, self.size, self.faces = folder, size, faces
        self.found: dict[str, SquareClip] = {}

    def read(self, file: str) -> SquareClip:
        """The clip, of which nothing is decoded yet."""
        if file not in self.found:
            path = inside(self.folder, file)
            seen = None if self.faces is None else read_row(self.faces, file).valid
            n_frames = isolated.call(square_frames.n_frames, path) if seen is None else len(seen)
            if not n_frames:
                raise NoAnswer("no frames")
            self.found[file] = SquareClip(path, n_frames, self.size, seen)
        return self.found[file]
