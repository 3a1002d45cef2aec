"""Speed and memory of BAM's pairwise attention at full size (of the whole of BAM:
benchmarks/score_audio.py).

    python benchmarks/bam.py pairs [--batches 1 2 4 8] [--at-once 1024 4096] [--repeats 5] \\
        [--threads 2]

The pairwise attention of 100 frames of 1024 dimensions (three times in a forward pass), computed
once for each unordered pair in blocks of rows, against its plain form, in inference and in training
(forward and backward). Wall times are the best of alternating runs; memory is the peak of a run
above what the process held before it; the difference is the largest one between scores of the two
forms.

Linux only: peaks come from /proc.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from klassify.models.bam import PAIRS_AT_ONCE, pair_scores

FRAMES, DIM = 100, 1024
PairScores = Callable[[Tensor, nn.Linear, Tensor], Tensor]


def plain_pair_scores(x: Tensor, proj: nn.Linear, weight: Tensor) -> Tensor:
    """tanh(proj(x_i * x_j)) . weight of every ordered pair at once: (B, F, D) -> (B, F, F)."""
    return (torch.tanh(proj(x[:, :, None] * x[:, None])) @ weight).squeeze(3)


def memory_gb(which: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in GB."""
    return (
        int(re.search(rf"{which}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
        * 1024
        / 1e9
    )


def measure_pairs(form: PairScores, batch: int, train: bool) -> tuple[float, float, Tensor]:
    """Wall time in seconds, peak memory in GB, and the scores of a run on fixed random input."""
    torch.manual_seed(0)
    x, proj = torch.randn(batch, FRAMES, DIM, requires_grad=True), nn.Linear(DIM, DIM)
    weight = nn.init.xavier_normal_(torch.empty(DIM, 1)).requires_grad_()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier runs left in the heap would hide this one's use
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = memory_gb("VmRSS"), time.perf_counter()
    with torch.set_grad_enabled(train):
        scores = form(x, proj, weight)
    if train:
        torch.autograd.grad(scores.sum(), [x, weight, *proj.parameters()])
    return time.perf_counter() - start, memory_gb("VmHWM") - before, scores.detach()


def compare_pairs(batch: int, train: bool, block_sizes: list[int], repeats: int) -> None:
    """Print the plain form and ours, with each number of pairs at once, for one batch size."""
    forms: dict[int, PairScores] = {0: plain_pair_scores}
    for size in block_sizes:
        forms[size] = lambda x, proj, weight, size=size: pair_scores(x, proj, weight, size)
    runs = {size: [] for size in forms}
    for _ in range(repeats):  # in turn, so that other load on the machine meets all of them
        for size, form in forms.items():
            runs[size].append(measure_pairs(form, batch, train))
    best = {size: min(run[0] for run in several) for size, several in runs.items()}
    plain = runs[0][0][2]
    print(f"batch {batch}, {'training' if train else 'inference'}")
    for size, several in runs.items():
        name = f"{size} pairs at once" if size else "plain"
        line = f"  {name:>20}: {best[size]:6.3f} s, peak +{max(run[1] for run in several):.2f} GB"
        if size:
            difference = float((several[0][2] - plain).abs().max())
            line += f", {best[0] / best[size]:.2f} times as fast, difference {difference:.1e}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    pairs = commands.add_parser("pairs", help="the pairwise attention against its plain form")
    pairs.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    pairs.add_argument(
        "--at-once", type=int, nargs="+", default=[PAIRS_AT_ONCE], help="frame pairs in a block"
    )
    pairs.add_argument("--repeats", type=int, default=5)
    pairs.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for batch in args.batches:
        for train in (False, True):
            compare_pairs(batch, train, args.at_once, args.repeats)


if __name__ == "__main__":
    main()
