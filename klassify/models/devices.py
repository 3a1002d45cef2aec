"""Which device computes, and how much of a batch it takes at a time."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from klassify.errors import KlassifyError, first_line

M_MMAP_THRESHOLD = -3  # of glibc's mallopt
BLOCK_BYTES = 3 << 19  # below the 1.6 MB of a front end's frames, above a batch of the TCN's
# front-end frames (20 ms) at a time: 8 s, and 32 windows of 4 s
CPU_FRAMES, GPU_FRAMES = 400, 6400


def frames_at_once(device: torch.device) -> int:
    """How many front-end frames a device takes at a time."""
    return CPU_FRAMES if device.type == "cpu" else GPU_FRAMES


def rows_at_once(device: torch.device, frames_a_row: int) -> int:
    """How many rows of `frames_a_row` front-end frames a device takes at a time: at least one."""
    return max(round(frames_at_once(device) / max(frames_a_row, 1)), 1)


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor, rows: int) -> Tensor:
    """function(x), at most `rows` at a time; each row of the result depends only on its own."""
    if torch.is_grad_enabled() or len(x) <= rows:
        return function(x)
    return torch.cat([function(part) for part in x.split(rows)])


def by_time(
    extractor: Callable[[Tensor], Tensor], wave: Tensor, frames: int, hop: int, field: int
) -> Tensor:
    """extractor(wave (B, N)) -> (B, T, C), at most `frames` at a time.

    Frame t depends only on the samples [hop t, hop t + field). Neighbouring pieces share the
    field - hop samples that both need, but no frame.
    """
    total = (wave.shape[1] - field) // hop + 1
    if torch.is_grad_enabled() or total <= frames:
        return extractor(wave)
    edges = [*range(0, total, frames), total]
    spans = [(begin * hop, (end - 1) * hop + field) for begin, end in zip(edges, edges[1:])]
    return torch.cat([extractor(wave[:, start:stop]) for start, stop in spans], dim=1)


def return_freed_blocks() -> None:
    """Make this process return large blocks of memory to the system as soon as they are freed.

    glibc keeps freed blocks of up to 32 MB, and they fragment: the peak of the same work then
    differs by up to a fifth from run to run. For commands that score; does nothing except on Linux.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES)


def pick_device(name: str) -> torch.device:
    """The torch device of a name; `auto`: the GPU if any. KlassifyError for a missing one."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise KlassifyError(
            f"There is no device {name!r} here ({first_line(error)}).",
            fix="auto, cpu, or cuda:0 and so on where torch sees a GPU",
        ) from None
    return device
