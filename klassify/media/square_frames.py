"""Square RGB frames of a clip on the 25 fps grid, for the models that look at pixels.

Which frames there are is decided by klassify.media.decoder; here they are only cut to one size. A
frame loses what lies outside its centre square, or outside a given one, and is then scaled: by area
where it shrinks, bilinearly where it grows. A frame that has the size already passes bit by bit.
Cutting before scaling makes the same picture as the other order (to less than a pixel at the
border) and keeps the memory of odd shapes bounded.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np

from klassify.media import decoder
from klassify.media.container import MediaError

Square = Sequence[int]  # left, top, side in pixels


def read_frames(
    path: str | os.PathLike,
    *,
    size: int = 224,
    first: int = 0,
    count: int | None = None,
    squares: Sequence[Square] | None = None,
) -> np.ndarray:
    """Frames first, first + 1, ... of a clip, (T, size, size, 3) uint8 RGB; T = count where the
    clip reaches so far.

    count: None reads to the end; T is smaller, perhaps 0, where the clip ends earlier. Decoding
    stops after the last frame asked for, so that damage behind it is not noticed. squares: of
    these frames; the last one holds for those that follow. None: the centre. Raises MediaError.
    """
    if first < 0 or (count is not None and count < 0):
        raise ValueError(f"frames are counted from 0: first {first}, count {count}")
    stop = None if count is None else first + count
    with contextlib.closing(decoder.iter_frames(path)) as frames:
        found = list(_scaled(itertools.islice(frames, first, stop), size, squares))
    return np.stack(found) if found else np.zeros((0, size, size, 3), np.uint8)


def iter_frames(
    path: str | os.PathLike,
    *,
    size: int = 224,
    chunk: int = 64,
    squares: Sequence[Square] | None = None,
) -> Iterator[np.ndarray]:
    """All frames of a clip in blocks of `chunk`, (n, size, size, 3) uint8 RGB; the last block may
    be shorter.

    No more than one block is held. squares: as in read_frames. Raises MediaError, perhaps after
    some blocks, for a file that cannot be decoded whole.
    """
    if chunk < 1:
        raise ValueError(f"a block holds at least one frame, not {chunk}")
    with contextlib.closing(decoder.iter_frames(path)) as frames:
        scaled = _scaled(frames, size, squares)
        while block := list(itertools.islice(scaled, chunk)):
            yield np.stack(block)


def pick_frames(path: str | os.PathLike, indices: Sequence[int], *, size: int = 224) -> np.ndarray:
    """The frames at these ascending indices, (len(indices), size, size, 3) uint8 RGB; others are
    not scaled.

    Decoding stops after the last one. Raises MediaError, also where the clip ends before it.
    """
    steps = [later - earlier for earlier, later in itertools.pairwise([-1, *indices])]
    if any(step < 1 for step in steps):
        raise ValueError(f"indices ascend from 0: {list(indices)}")
    picked = np.empty((len(indices), size, size, 3), np.uint8)
    with contextlib.closing(decoder.iter_frames(path)) as frames:
        for row, step in enumerate(steps):
            frame = next(itertools.islice(frames, step - 1, None), None)
            if frame is None:
                raise MediaError(f"The clip ends before frame {indices[row]}.", where=path)
            picked[row] = square(frame, size)
    return picked


def n_frames(path: str | os.PathLike) -> int:
    """How many frames the grid of a clip has, from its packets' time stamps, without decoding.

    Equal to the decoded count for an undamaged file. Raises MediaError where there is no video.
    """
    return decoder.count_frames(path)


def square(frame: np.ndarray, size: int, at: Square | None = None) -> np.ndarray:
    """A square of a frame (H, W, 3) uint8, scaled to (size, size, 3); the frame itself where it
    fits.

    at: the square, moved and shrunk so that it lies in the frame; None: the centre square.
    """
    height, width = frame.shape[:2]
    side = min(height, width) if at is None else max(1, min(height, width, at[2]))
    left, top = ((width - side) // 2, (height - side) // 2) if at is None else at[:2]
    left, top = max(0, min(left, width - side)), max(0, min(top, height - side))
    part = frame[top : top + side, left : left + side]
    if side == size:
        return part
    return cv2.resize(
        part, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    )


def _scaled(
    frames: Iterable[np.ndarray], size: int, squares: Sequence[Square] | None
) -> Iterator[np.ndarray]:
    """`square` of each frame; one that the grid repeats is scaled once, where its square stays."""
    if size < 1:
        raise ValueError(f"frames have at least one pixel, not {size}")
    last, scaled = None, None
    for number, frame in enumerate(frames):
        at = None if squares is None else tuple(squares[min(number, len(squares) - 1)])
        if last is None or frame is not last[0] or at != last[1]:
            last, scaled = (frame, at), square(frame, size, at)
        yield scaled
