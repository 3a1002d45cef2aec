"""Frame scores of several systems on one timeline; frame k is [0.04 k, 0.04 (k + 1)) s of a clip.

A system on another grid is read as the mean over each 40 ms frame, weighted by overlap.

`aligned` joins the frame scores of several systems by the clips' names, a block of clips at a time.
Lengths may differ. The first system that has the clip (the picture, in a fusion) sets its length:
frames of another beyond it are left out, and where another ends early its last frame holds for
`hold_s` (None: to the end, as in the published code); after that the system is silent (NaN). A
system without scores for a clip (no sound, no face, not decodable) is silent throughout. The linear
fusion replaces silence by a neutral value; see klassify.systems.linear.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from klassify.grid.frames import FRAME_S
from klassify.grid.ragged import row_offsets
from klassify.scores.frame_file import FrameFile, Rows

HOLD_S = 0.64  # one frame of the coarsest PartialSpoof head


@dataclasses.dataclass(frozen=True)
class Aligned:
    """Frame scores of B systems for n clips, F frames in all.

    files: (n,) names. offsets: (n + 1,); clip i has frames offsets[i] to offsets[i + 1], none where
    no system has any. ends_s: (n,) where the clip's last frame ends, NaN without frames. present:
    (n, B) which systems have the clip. values: (F, C) of the systems' columns side by side, NaN
    where a system is silent.
    """

    files: np.ndarray
    offsets: np.ndarray
    ends_s: np.ndarray
    present: np.ndarray
    values: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """(n,) frames of each clip."""
        return np.diff(self.offsets)

    def frame_times(self) -> tuple[np.ndarray, np.ndarray]:
        """Start and end of each frame in seconds, two (F,); the last frame ends with its clip."""
        k = np.arange(self.offsets[-1]) - np.repeat(self.offsets[:-1], self.counts)
        end = (k + 1) * FRAME_S
        there = self.counts > 0
        end[self.offsets[1:][there] - 1] = self.ends_s[there]
        return k * FRAME_S, end


def aligned(
    inputs: Sequence[FrameFile],
    columns: Sequence[Sequence[str]],
    files: Sequence[str],
    *,
    hold_s: float | None = HOLD_S,
) -> Aligned:
    """The frames of `files` in order. columns: those wanted of each input; hold_s: see above."""
    parts = [
        on_40_ms(one.read(files, names), one.header.hop_s, one.header.offset_s)
        for one, names in zip(inputs, columns)
    ]
    counts = np.stack([np.diff(part.offsets) for part in parts], axis=1)  # (n, B)
    present = counts > 0
    ruling, clip = present.argmax(axis=1), np.arange(len(files))
    n_frames = counts[clip, ruling]
    offsets = row_offsets(n_frames)
    ends_s = np.stack([part.ends_s for part in parts], axis=1)[clip, ruling]
    owner = np.repeat(clip, n_frames)
    k = np.arange(offsets[-1]) - offsets[owner]
    longest = np.inf if hold_s is None else round(hold_s / FRAME_S)
    values = [_held(part, owner, k, longest) for part in parts]
    names = np.asarray(files, dtype=object)
    return Aligned(names, offsets, ends_s, present, np.concatenate(values, axis=1))


def on_40_ms(part: Rows, hop_s: float, offset_s: float) -> Rows:
    """Rows of a grid as means over the 40 ms frames, weighted by how long each lasts in them.

    What is before the first frame or after the last has the value of that one.
    """
    if (hop_s, offset_s) == (FRAME_S, 0.0):
        return part
    counts = np.diff(part.offsets)
    covered = np.minimum(np.nan_to_num(part.ends_s), offset_s + counts * hop_s)
    n_frames = np.ceil(np.round(covered / FRAME_S, 6)).astype(np.int64)
    offsets = row_offsets(n_frames)
    owner = np.repeat(np.arange(len(counts)), n_frames)
    edges = (np.arange(offsets[-1]) - offsets[owner] + np.array([[0], [1]])) * FRAME_S
    edges = (edges - offset_s) / hop_s  # in rows of the clip
    last = counts[owner] - 1
    summed = np.concatenate([np.zeros((1, part.values.shape[1])), part.values.cumsum(axis=0)])

    def up_to(place: np.ndarray) -> np.ndarray:
        """The integral of the values from the first row of all to this place in the clip."""
        row = np.clip(np.floor(place).astype(np.int64), 0, last)
        value = part.values[part.offsets[owner] + row]
        return summed[part.offsets[owner] + row] + (place - row)[:, None] * value

    start, stop = edges
    values = (up_to(stop) - up_to(start)) / (stop - start)[:, None]
    return Rows(offsets, part.ends_s, values)


def _held(part: Rows, owner: np.ndarray, k: np.ndarray, longest: float) -> np.ndarray:
    """Frame k of clip `owner`: the last frame for up to `longest` frames beyond, then NaN."""
    count = np.diff(part.offsets)[owner]
    silent = k >= count + np.where(count > 0, longest, 0)
    row = np.where(silent, 0, part.offsets[owner] + np.minimum(k, count - 1))
    if not len(part.values):
        return np.full((len(k), part.values.shape[1]), np.nan)
    values = part.values[row]
    values[silent] = np.nan
    return values
