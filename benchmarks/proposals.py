"""What each way from frame scores to proposals reaches on oracle scores with noise, and how long it
takes.

    python benchmarks/proposals.py [--clips 4000] [--timing-clips 77326]

1. Perfect 40 ms labels ("any part of the frame is fake") of 100,000 segments: the share that
   proposals reach at IoU 0.9 and 0.95, with the runs as they are and by the default.
2. Frame scores 4 * label - 2 plus noise of several strengths, correlated over three frames, with a
   boundary head or a tag head of the same quality: official AP, AR and Score of each method with
   its default settings, against the ceilings of the grid (the truth widened to whole frames; the
   truth to its nearest edges).
3. Wall time for as many clips as the val split has.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
from scipy.special import expit

from klassify.grid.frames import FRAME_S, B, I, L, O
from klassify.grid.ragged import row_offsets
from klassify.grid.segments import Truth
from klassify.localisation import proposals
from klassify.localisation.frame_scores import FrameScores
from klassify.localisation.methods import METHODS
from klassify.metrics.segments import grid_ceiling, score_task2

SHOWN = ("AP@0.5", "AP@0.75", "AP@0.9", "AP@0.95", "AR@50", "AR@5", "Score")


def make_truth(
    n_clips: int, rng: np.random.Generator, n_fake: np.ndarray | None = None
) -> tuple[Truth, np.ndarray]:
    """Clips with segments of lognormal length (median 0.30 s, sigma 0.44), 0.2 s to 3 s apart;
    durations (n,).
    """
    if n_fake is None:  # a quarter of the clips is real
        n_fake = rng.choice([0, 1, 2, 3], n_clips, p=[0.25, 0.45, 0.2, 0.1])
    lengths = rng.lognormal(np.log(0.30), 0.44, n_fake.sum())
    gaps = rng.uniform(0.2, 3.0, len(lengths))
    offsets = row_offsets(n_fake)
    clip = np.repeat(np.arange(n_clips), n_fake)
    end = np.cumsum(lengths + gaps)
    end -= np.append(0.0, end)[offsets[:-1]][clip]
    last = np.zeros(n_clips)
    np.maximum.at(last, clip, end)
    durations = last + rng.uniform(2.0, 8.0, n_clips)
    names = np.array([f"{i:06d}.mp4" for i in range(n_clips)], dtype=object)
    return (
        Truth(names, offsets, np.column_stack([end - lengths, end]).astype(np.float32)),
        durations,
    )


def make_frames(
    truth: Truth,
    durations_s: np.ndarray,
    noise: float,
    rng: np.random.Generator,
    head: str | None = None,
) -> FrameScores:
    """Oracle frame scores with noise on the log-odds; head: "boundary", "tags" or none."""
    counts = np.ceil(np.round(durations_s / FRAME_S, 6)).astype(np.int64)
    offsets = row_offsets(counts)
    clip = np.repeat(np.arange(len(counts)), np.diff(truth.offsets))
    edges = truth.segments.astype(float) / FRAME_S
    first = offsets[clip] + np.floor(edges[:, 0]).astype(np.int64)
    stop = offsets[clip] + np.ceil(edges[:, 1]).astype(np.int64)
    label = np.zeros(offsets[-1] + 1, np.int64)
    np.add.at(label, first, 1)
    np.add.at(label, stop, -1)
    label = np.minimum(np.cumsum(label)[:-1], 1)

    def noisy(target: np.ndarray) -> np.ndarray:
        error = np.convolve(rng.normal(size=len(target) + 2), np.ones(3) / np.sqrt(3), "valid")
        return 4.0 * target - 2.0 + noise * error

    if noise == 0:
        p = label.astype(float)
    else:
        p = expit(noisy(label))
    boundary = log_tags = None
    if head == "boundary":
        mark = np.zeros(len(label))
        mark[first], mark[stop - 1] = 1, 1
        boundary = expit(noisy(mark)) if noise else mark
    if head == "tags":
        tags = np.where(label, I, O)
        tags[stop - 1] = L
        tags[first] = B
        log_tags = np.stack(
            [noisy(tags == tag) if noise else 20.0 * (tags == tag) for tag in range(4)], axis=1
        )
        log_tags -= np.logaddexp.reduce(log_tags, axis=1, keepdims=True)
        p = 1 - np.exp(log_tags[:, O])
    return FrameScores(
        truth.files, offsets, np.clip(p, 0, 1), np.asarray(durations_s, float), boundary, log_tags
    )


def best_overlap(found: proposals.Candidates, truth: Truth) -> np.ndarray:
    """(M,) IoU of each segment with the proposal of its clip whose middle is nearest."""
    clip = np.repeat(np.arange(len(truth.files)), np.diff(truth.offsets))
    far = 1e4  # seconds between clips on one common line
    middle = (found.start_s + found.end_s) / 2 + far * found.clip
    order = np.argsort(middle)
    start, end = truth.segments.astype(float).T
    wanted = (start + end) / 2 + far * clip
    right = np.clip(np.searchsorted(middle[order], wanted), 1, len(order) - 1)
    nearest = np.where(
        middle[order][right] - wanted < wanted - middle[order][right - 1], right, right - 1
    )
    row = order[nearest]
    shared = np.minimum(end, found.end_s[row]) - np.maximum(start, found.start_s[row])
    hull = np.maximum(end, found.end_s[row]) - np.minimum(start, found.start_s[row])
    return np.where(found.clip[row] == clip, np.maximum(shared, 0) / hull, 0)


def perfect_labels() -> None:
    rng = np.random.default_rng(0)
    truth, durations = make_truth(20_000, rng, np.full(20_000, 5))
    frames = make_frames(truth, durations, 0.0, rng)
    print(f"perfect labels of {len(truth.segments)} segments: share at IoU 0.9, 0.95")
    for name, settings in {
        "raw run-length": {"debias_s": 0.0, "merge_s": 0.0},
        "default": {},
        "multi_threshold": {"method": "multi_threshold"},
        "boundary_pairs": {"method": "boundary_pairs"},
        "watershed": {"method": "watershed"},
    }.items():
        overlap = best_overlap(proposals.propose(frames, **settings), truth)
        print(f"  {name:<16} {(overlap >= 0.9).mean():.4f} {(overlap >= 0.95).mean():.4f}")


def noisy_scores(n_clips: int) -> None:
    rng = np.random.default_rng(1)
    truth, durations = make_truth(n_clips, rng)
    print(f"\n{n_clips} clips, {len(truth.segments)} segments")
    print(f"{'':<34}" + "".join(f"{name:>9}" for name in SHOWN))
    for rule in ("touched", "nearest"):
        row(f"ceiling of the grid, {rule}", grid_ceiling(truth, FRAME_S, rule).named())
    for noise in (0.0, 1.0, 2.0, 3.0):
        for head in (None, "boundary", "tags"):
            frames = make_frames(truth, durations, noise, np.random.default_rng(2), head)
            if head is None:
                methods = [method for method in METHODS if method != "viterbi"]
            else:
                methods = ["boundary_pairs", "viterbi"] if head == "tags" else ["boundary_pairs"]
            for method in methods:
                result = score_task2(proposals.propose(frames, method).select(truth.files), truth)
                row(f"noise {noise:g} {method}{f' ({head})' if head else ''}", result.named())
                if noise >= 2:
                    smooth = proposals.propose(frames, method, smooth_s=0.2).select(truth.files)
                    row("  smoothed over 0.2 s", score_task2(smooth, truth).named())
    lengths = np.diff(truth.segments.astype(float), axis=1)[:, 0]
    guesses = proposals.random_proposals(lengths, np.full(n_clips, 10), durations, rng)
    row("random, 10 a clip", score_task2(guesses.select(truth.files), truth).named())


def row(name: str, metrics: dict[str, float]) -> None:
    print(f"{name:<34}" + "".join(f"{metrics[key]:9.4f}" for key in SHOWN))


def timing(n_clips: int) -> None:
    rng = np.random.default_rng(3)
    truth, durations = make_truth(n_clips, rng)
    print(f"\ntime for {n_clips} clips, noise 2")
    for head in ("boundary", "tags"):
        frames = make_frames(truth, durations, 2.0, rng, head)
        for method in METHODS:
            if (method == "viterbi") != (head == "tags"):
                continue
            start, cpu = time.perf_counter(), time.process_time()
            found = proposals.propose(frames, method)
            print(
                f"  {method:<16} {time.perf_counter() - start:6.1f} s"
                f" ({time.process_time() - cpu:.1f} s of CPU), {len(found.clip)} proposals of"
                f" {len(frames.p_fake)} frames"
            )
    print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--clips", type=int, default=4000, help="clips of the comparison (default 4000)"
    )
    parser.add_argument(
        "--timing-clips", type=int, default=77_326, help="clips of the timing, 0 for none"
    )
    args = parser.parse_args()
    perfect_labels()
    noisy_scores(args.clips)
    if args.timing_clips:
        timing(args.timing_clips)


if __name__ == "__main__":
    main()
