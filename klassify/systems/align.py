"""Frame scores of several systems on one timeline; frame k is [0.04 k, 0.04 (k + 1)) s of a clip.

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
    parts = [one.read(files, names) for one, names in zip(inputs, columns)]
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
