"""Which device computes, in which precision, and how much of a batch it takes at a time."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from klassify.errors import KlassifyError, first_line

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT_BYTES = 1 << 30
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
    _mallopt({M_MMAP_THRESHOLD: BLOCK_BYTES})


def keep_freed_blocks() -> None:
    """Keep the memory of freed tensors for the next ones.

    Where an image passes a network in milliseconds, getting memory from the system and giving it
    back takes nearly as long. For processes that do nothing else; does nothing except on Linux.
    """
    _mallopt({M_MMAP_THRESHOLD: KEPT_BYTES, M_TRIM_THRESHOLD: KEPT_BYTES})


def _mallopt(options: dict[int, int]) -> None:
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            for option, value in options.items():
                mallopt(option, value)


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


@contextlib.contextmanager
def computing(device: torch.device, precision: str | None = None) -> Iterator[None]:
    """Compute in `32`, `tf32` or `bf16`; None: TF32 on a CUDA GPU, float32 elsewhere.

    `32`: all products in float32. `tf32`: those of a CUDA GPU round their factors to 10 bits, and
    sum in float32. `bf16`: automatic casts to bfloat16, 7 bits; scores are float32. KlassifyError
    for TF32 on another device.
    """
    on_cuda = device.type == "cuda"
    if precision == "tf32" and not on_cuda:
        raise KlassifyError(
            "TF32 is a precision of CUDA GPUs.",
            where=f"device {device}",
            fix="--precision 32, or --precision bf16",
        )
    with contextlib.ExitStack() as stack:
        if on_cuda:
            stack.enter_context(_products(tf32=precision != "32"))
        if precision == "bf16":
            stack.enter_context(torch.autocast(device.type, torch.bfloat16))
        yield


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in float32 whatever is set: for choices of the highest, which rounding would tie."""
    with torch.autocast(device.type, enabled=False), contextlib.ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(_products(tf32=False))
        yield


@contextlib.contextmanager
def _products(*, tf32: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    allow_tf32(tf32)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def allow_tf32(allowed: bool) -> None:
    """Whether products and convolutions of float32 on a CUDA GPU may be in TF32, from now on."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
