"""Spatio-temporal windows at full size: each window by itself, against work shared between windows.

    python benchmarks/st_windows.py [--frames 24] [--long 96] [--compared 3] [--threads 2] [--check]

Three forms of one model with random weights, on a drifting random texture:
  published  both stems for every frame of every window, explicit attention, all of the last block
  naive      the same with the fused attention (SDPA), so with the kernels of `shared`
  shared
      klassify.models.spatiotemporal.sliding: each frame through the stems once, FC tokens only at
      the end
`shared` runs over the whole clip at strides 1 and 2. A few windows of the other two forms are timed
in between, so that other load on the machine meets all of them, and count for all windows: they
cost the same. Memory is the peak of a run above what the process held before it. FLOPs (2 a
multiplication) come from torch's counter.

Then the options that change the result, with the difference of the scores (a fixed random head on
the mean FC token, so of interest beside their spread only): bfloat16, and larger strides with
interpolated scores.

--check fails if sharing gains less than 1.25 times over `naive` or 1.7 times over `published` at
stride 1 in CPU time (which other load on the machine disturbs less than the clock), if the forms
differ by more than 1e-4, or if memory grows with the clip by more than 5 %. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import ctypes
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from klassify.models.spatiotemporal import SpatioTemporal, sliding

CHUNK = 8  # frames a pass through the stems
M_MMAP_THRESHOLD = -3  # of malloc.h


def explicit_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V with all weights in memory, as the published code has it."""
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v


def one_window(model: SpatioTemporal, frames: Tensor, reconstructed: Tensor) -> Tensor:
    """FC tokens (1, W, D) of W frames with nothing shared and nothing left out."""
    fc, patches = model.positioned(model.frame_tokens(frames, reconstructed)[None])
    for block in model.blocks:
        fc, patches = block(fc, patches)
    return model.norm(fc)


def published_window(model: SpatioTemporal, frames: Tensor, reconstructed: Tensor) -> Tensor:
    """The same with explicit attention."""
    with mock.patch.object(F, "scaled_dot_product_attention", explicit_attention):
        return one_window(model, frames, reconstructed)


def make_frames(first: int, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Frames of a texture that drifts one pixel a frame, and smoothed copies: two times (count,
    3, size, size).
    """
    generator = torch.Generator().manual_seed(5)
    texture = F.interpolate(
        torch.randn(1, 3, 32, 32, generator=generator), (2 * size, 2 * size), mode="bicubic"
    )[0]
    offsets = [index % size for index in range(first, first + count)]
    frames = torch.stack(
        [texture[:, offset : offset + size, offset : offset + size] for offset in offsets]
    )
    return frames, F.avg_pool2d(frames, 5, stride=1, padding=2, count_include_pad=False)


def chunks(n_frames: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, n_frames, CHUNK):
        yield make_frames(first, min(CHUNK, n_frames - first), size)


def memory_gb(which: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in GB."""
    return (
        int(re.search(rf"{which}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
        * 1024
        / 1e9
    )


class Cost(NamedTuple):
    """Seconds on the clock, seconds of all cores, and GB above what the process held before."""

    wall: float
    cpu: float
    peak: float


def measured(function: Callable[[], Any]) -> tuple[Any, Cost]:
    """The function's result and what it cost."""
    ctypes.CDLL(None).malloc_trim(0)  # what earlier runs left in the heap would hide this one's use
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, wall, cpu = memory_gb("VmRSS"), time.perf_counter(), time.process_time()
    result = function()
    cost = Cost(time.perf_counter() - wall, time.process_time() - cpu, memory_gb("VmHWM") - before)
    return result, cost


def total(costs: list[Cost], times: float = 1.0) -> Cost:
    """Several runs as one, `times` over; their peaks are not added."""
    return Cost(
        times * sum(cost.wall for cost in costs),
        times * sum(cost.cpu for cost in costs),
        max(cost.peak for cost in costs),
    )


def count_flops() -> tuple[int, int, int]:
    """FLOPs of a window with nothing shared, of one frame's own work, and of a window of shared
    tokens.
    """
    with torch.device("meta"):
        model = SpatioTemporal().eval()
        frames = torch.empty(model.window, 3, model.size, model.size)
        tokens = torch.empty(1, model.window, model.n_patches, model.dim)
    work = (
        lambda: one_window(model, frames, frames),
        lambda: model.frame_tokens(frames[:1], frames[:1]),
        lambda: model.windows(tokens),
    )
    counts = []
    for function in work:
        with FlopCounterMode(display=False) as counter:
            function()
        counts.append(counter.get_total_flops())
    return tuple(counts)


def compare_at_stride_1(
    model: SpatioTemporal, n_frames: int, compared: int
) -> tuple[dict[str, list[Cost]], Tensor, float]:
    """Costs of each shared window and of `compared` windows of the other forms; shared FC
    tokens; how far off.
    """
    n_windows = n_frames - model.window + 1
    picked = set(np.linspace(0, n_windows - 1, compared).round().astype(int).tolist())
    forms = {"naive": one_window, "published": published_window}
    costs, tokens, difference = {name: [] for name in ("shared", *forms)}, [], 0.0
    run = sliding(model, chunks(n_frames, model.size), stride=1, at_once=1)
    for index in range(n_windows):
        (_, result), cost = measured(lambda: next(run))
        costs["shared"].append(cost)
        tokens.append(result)
        for name, form in forms.items() if index in picked else ():
            pair = make_frames(index, model.window, model.size)
            other, cost = measured(lambda form=form, pair=pair: form(model, *pair))
            costs[name].append(cost)
            difference = max(difference, float((other - result).abs().max()))
        print(f"window {index + 1} of {n_windows}", end="\r", file=sys.stderr, flush=True)
    return costs, torch.cat(tokens), difference


def run_shared(model: SpatioTemporal, n_frames: int, stride: int) -> tuple[int, Cost]:
    """Windows and cost of a whole shared run."""

    def work() -> int:
        return sum(
            len(starts)
            for starts, _ in sliding(model, chunks(n_frames, model.size), stride, at_once=1)
        )

    return measured(work)


def report_stride(
    n_frames: int,
    stride: int,
    n_windows: int,
    shared: Cost,
    single: dict[str, list[Cost]],
    flops: tuple[int, int, int],
) -> dict[str, float]:
    """Print the three forms at one stride; returns how many times as fast sharing is, in CPU
    time.
    """
    naive_work, shared_work = n_windows * flops[0], n_frames * flops[1] + n_windows * flops[2]
    print(f"\n{n_frames} frames, stride {stride}: {n_windows} windows")
    gains = {}
    for name in ("published", "naive", "shared"):
        cost = shared if name == "shared" else total(single[name], n_windows / len(single[name]))
        work = shared_work if name == "shared" else naive_work
        line = f"  {name:>9}: {cost.wall:6.1f} s, CPU {cost.cpu:6.1f} s, {work / 1e12:5.2f} TFLOP"
        line += f", peak +{cost.peak:.2f} GB"
        if name != "shared":
            gains[name] = cost.cpu / shared.cpu
            line += (
                f"; shared is {cost.wall / shared.wall:.2f} times as fast, in CPU time"
                f" {gains[name]:.2f}"
            )
            line += f", with {work / shared_work:.2f} times fewer FLOPs"
        print(line, flush=True)
    return gains


def memory_peaks(model: SpatioTemporal, lengths: tuple[int, int], stride: int) -> dict[int, float]:
    """Print and return the peaks of shared runs over a short and a long clip, in GB."""
    # freed blocks go back at once from now on: the peaks are those of the work, not of the
    # allocator's habits
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1_000_000)
    peaks = {n_frames: run_shared(model, n_frames, stride)[1].peak for n_frames in lengths}
    print(
        "\nmemory of the shared form: "
        + ", ".join(f"{n} frames +{peak:.3f} GB" for n, peak in peaks.items())
    )
    return peaks


def scores(tokens: Tensor) -> np.ndarray:
    """(n, W, D) -> (n,): a fixed random head on the mean FC token."""
    head = (
        torch.randn(tokens.shape[2], generator=torch.Generator().manual_seed(6))
        / tokens.shape[2] ** 0.5
    )
    return (tokens.float().mean(dim=1) @ head).double().numpy()


def report_options(model: SpatioTemporal, exact: np.ndarray, shared_windows: int = 2) -> None:
    """Larger strides from the scores at hand, and bfloat16 on a few windows, against float32 at
    stride 1.
    """
    print(
        "\noptions that change the scores (their spread at stride 1: standard deviation"
        f" {exact.std():.4f})"
    )
    for stride in (2, 4, 8):
        kept = np.arange(0, len(exact), stride)
        off = np.abs(np.interp(np.arange(len(exact)), kept, exact[kept]) - exact)[: kept[-1] + 1]
        print(
            f"  stride {stride}, interpolated: 1/{stride} of the windows, largest difference"
            f" {off.max():.4f}"
        )
    n_frames, cpu, results = model.window + shared_windows - 1, {}, {}
    for name, context in (
        ("float32", nullcontext()),
        ("bfloat16", torch.autocast("cpu", torch.bfloat16)),
    ):
        run = sliding(model, chunks(n_frames, model.size), stride=1, at_once=1)
        with context:
            outputs, cost = measured(lambda run=run: [tokens for _, tokens in run])
        results[name], cpu[name] = scores(torch.cat(outputs)), cost.cpu
    off, gain = (
        np.abs(results["bfloat16"] - results["float32"]).max(),
        cpu["float32"] / cpu["bfloat16"],
    )
    print(
        f"  bfloat16 (autocast): {gain:.2f} times as fast on {shared_windows} windows, largest"
        f" difference {off:.4f}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=24, help="length of the clip, 12 or more")
    parser.add_argument(
        "--long", type=int, default=72, help="length of a longer clip, to see memory stay flat"
    )
    parser.add_argument("--compared", type=int, default=3, help="windows of the other forms")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model, flops = SpatioTemporal().eval(), count_flops()
    with torch.no_grad():
        model.frame_tokens(*make_frames(0, 1, model.size))  # warm up
        costs, tokens, difference = compare_at_stride_1(model, args.frames, args.compared)
        gains = report_stride(args.frames, 1, len(tokens), total(costs["shared"]), costs, flops)
        print(f"  largest difference of FC tokens between the forms: {difference:.1e}")
        report_stride(args.frames, 2, *run_shared(model, args.frames, 2), costs, flops)
        report_options(model, scores(tokens))
        peaks = memory_peaks(model, (args.frames, args.long), stride=args.frames)
    reached = gains["naive"] >= 1.25 and gains["published"] >= 1.7 and difference < 1e-4
    reached = reached and peaks[args.long] <= 1.05 * peaks[args.frames]
    print("all targets reached" if reached else "a target is missed")
    return int(args.check and not reached)


if __name__ == "__main__":
    sys.exit(main())
