"""Speed and memory of BAM at full size.

    python benchmarks/bam.py pairs  [--batches 1 2 4 8] [--rows 5 10 20] [--threads 2]
    python benchmarks/bam.py memory [--seconds 15 30 60] [--threads 2]

`pairs`: the pairwise attention of 100 frames of 1024 dimensions (three times in a forward pass), computed
once for each unordered pair in blocks of rows, against its plain form. For both: wall time (the best of
several alternating runs) in inference and in training (forward and backward), the largest difference of
the scores, and the peak memory above what the process had before, in a process of its own.

`memory`: peak memory of a process that builds a WavLM-Large with random weights and BAM on top and scores
one clip with `score_long`, one process for each duration. Fails if the peaks differ by 5 % or reach 3 GB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from klassify.models.bam import BAM, PAIR_ROWS, SAMPLE_RATE, pair_scores

FRAMES, DIM = 100, 1024
GIB = 2**20  # ru_maxrss counts KiB


def plain_pair_scores(x: Tensor, proj: nn.Linear, weight: Tensor) -> Tensor:
    """tanh(proj(x_i * x_j)) . weight of every ordered pair at once: (B, F, D) -> (B, F, F)."""
    return (torch.tanh(proj(x[:, :, None] * x[:, None])) @ weight).squeeze(3)


def attention(rows: int, batch: int) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """A call of the plain form (rows = 0) or of ours on fixed random input, and its trainable tensors."""
    torch.manual_seed(0)
    x, proj = torch.randn(batch, FRAMES, DIM, requires_grad=True), nn.Linear(DIM, DIM)
    weight = nn.init.xavier_normal_(torch.empty(DIM, 1)).requires_grad_()
    leaves = [x, weight, proj.weight, proj.bias]
    if not rows:
        return lambda: plain_pair_scores(x, proj, weight), leaves
    return lambda: pair_scores(x, proj, weight, rows), leaves


def run_once(rows: int, batch: int, train: bool) -> float:
    """Wall time of one forward pass, with the backward pass if `train`."""
    score, leaves = attention(rows, batch)
    start = time.perf_counter()
    if train:
        torch.autograd.grad(score().sum(), leaves)
    else:
        with torch.inference_mode():
            score()
    return time.perf_counter() - start


def largest_difference(rows: int, batch: int) -> float:
    with torch.inference_mode():
        return float((attention(rows, batch)[0]() - attention(0, batch)[0]()).abs().max())


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB


def pair_peak(rows: int, batch: int, train: bool) -> dict[str, float]:
    """Peak memory of one run above that of a process which has done the same on a tenth of the frames."""
    global FRAMES
    full, FRAMES = FRAMES, FRAMES // 10
    run_once(rows, batch, train)
    FRAMES, before = full, peak_gib()
    run_once(rows, batch, train)
    return {"gib": peak_gib() - before}


def clip_peak(seconds: float) -> dict[str, float]:
    """Peak memory and wall time of scoring one clip with WavLM-Large and BAM."""
    from klassify.models.ssl import SSLFrontEnd

    torch.manual_seed(0)
    model = BAM(SSLFrontEnd(normalize_input=True, architecture="wavlm-large")).eval()
    loaded, start = peak_gib(), time.perf_counter()
    model.score_long(0.1 * torch.randn(round(seconds * SAMPLE_RATE)))
    return {"gib": peak_gib(), "loaded": loaded, "seconds": time.perf_counter() - start}


MEASURES = {"pair_peak": pair_peak, "clip_peak": clip_peak}


def in_own_process(measure: str, threads: int, *arguments: float) -> dict[str, float]:
    """Run a function of MEASURES in a fresh process, as memory peaks never fall."""
    command = [sys.executable, __file__, "measure", json.dumps([measure, *arguments]), "--threads", str(threads)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def compare_pairs(batches: list[int], rows_tried: list[int], repeats: int, threads: int) -> None:
    for batch in batches:
        for train in (False, True):
            forms = [0, *rows_tried]
            best = dict.fromkeys(forms, float("inf"))
            for _ in range(repeats):  # in turn, so that other load on the machine meets all of them
                best = {rows: min(best[rows], run_once(rows, batch, train)) for rows in forms}
            what = f"batch {batch} {'training ' if train else 'inference'}"
            gib = in_own_process("pair_peak", threads, 0, batch, train)["gib"]
            print(f"{what} plain        {best[0]:6.3f} s              +{gib:.2f} GiB", flush=True)
            for rows in rows_tried:
                gib = in_own_process("pair_peak", threads, rows, batch, train)["gib"]
                ratio, difference = best[0] / best[rows], largest_difference(rows, batch)
                print(
                    f"{what} blocks of {rows:2d} {best[rows]:6.3f} s, {ratio:4.2f} x faster, +{gib:.2f} GiB, "
                    f"difference {difference:.1e}",
                    flush=True,
                )


def compare_memory(durations: list[float], threads: int) -> None:
    peaks = []
    for duration in durations:
        result = in_own_process("clip_peak", threads, duration)
        peaks.append(result["gib"])
        print(
            f"{duration:g} s of audio: peak {result['gib']:.2f} GiB ({result['loaded']:.2f} after loading), "
            f"{result['seconds']:.0f} s, {result['seconds'] / duration:.2f} s a second of audio",
            flush=True,
        )
    spread = max(peaks) / min(peaks) - 1
    print(f"the peaks differ by {100 * spread:.1f} %")
    if spread >= 0.05 or max(peaks) * 2**30 >= 3e9:
        sys.exit("memory is not flat, or not under 3 GB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    pairs = commands.add_parser("pairs")
    pairs.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    pairs.add_argument("--rows", type=int, nargs="+", default=[5, PAIR_ROWS, 20])
    pairs.add_argument("--repeats", type=int, default=5)
    memory = commands.add_parser("memory")
    memory.add_argument("--seconds", type=float, nargs="+", default=[15, 30, 60])
    measure = commands.add_parser("measure")
    measure.add_argument("call", type=json.loads)
    for command in (pairs, memory, measure):
        command.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "pairs":
        compare_pairs(args.batches, args.rows, args.repeats, args.threads)
    elif args.command == "memory":
        compare_memory(args.seconds, args.threads)
    else:
        name, *arguments = args.call
        print(json.dumps(MEASURES[name](*arguments)))


if __name__ == "__main__":
    main()
