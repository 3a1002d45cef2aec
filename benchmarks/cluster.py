"""What stage 1 of a large data set takes on a cluster, from the rates of this machine: the table of
docs/cluster.md.

    python benchmarks/cluster.py media/demo/train [--clips 2000000] [--frames 240] [--cores 256] \\
        [--shards 1024]

Runs `klassify extract` whole, with one process, on a short list and on one that holds it several
times. Processor seconds against frames (for the audio cache: against seconds of sound) give two
numbers: what a frame costs, and what a task costs before its first one. Processor time, so that a
busy machine does not matter; a core that shares its memory bandwidth with 63 others is slower than
one alone, so measure on a node that is as busy as yours will be.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from klassify.media import decoder, info

FPS = decoder.GRID_FPS


class Cost(NamedTuple):
    """Processor seconds a unit and a start, bytes on disk a unit."""

    unit_s: float
    start_s: float
    unit_bytes: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of .mp4 clips, searched through")
    parser.add_argument(
        "--sample", type=int, default=10, help="clips of the short list (default 10)"
    )
    parser.add_argument(
        "--times",
        type=int,
        default=4,
        help="the long list is so many times the short one (default 4)",
    )
    parser.add_argument(
        "--rounds", type=int, default=2, help="the best of so many runs counts (default 2)"
    )
    parser.add_argument("--clips", type=int, default=2_000_000)
    parser.add_argument("--frames", type=int, default=240, help="of a clip (default 240)")
    parser.add_argument("--cores", type=int, default=256)
    parser.add_argument("--shards", type=int, default=1024)
    args = parser.parse_args()
    clips = sorted(args.folder.rglob("*.mp4"))[: args.sample]
    if not clips:
        parser.error(f"no .mp4 below {args.folder}; `klassify corpus` makes some")
    infos = [info.probe(clip) for clip in clips]
    amounts = {
        "mouth": sum(info.n_frames for info in infos),
        "audio": sum(info.duration for info in infos),
    }
    for kind, (unit, per_clip) in {
        "mouth": ("frames", args.frames),
        "audio": ("s of sound", args.frames / FPS),
    }.items():
        cost = measured(kind, clips, amounts[kind], args.times, args.rounds)
        show(kind, unit, per_clip, cost, args)


def measured(kind: str, clips: list[Path], amount: float, times: int, rounds: int) -> Cost:
    """The line through a run on the clips and one on `times` as many; `amount`: units in the
    clips.
    """
    runs = [min(extracted(kind, clips, n) for _ in range(rounds)) for n in (1, times)]
    (short, size), (long, larger) = runs
    unit = (long - short) / (amount * (times - 1))
    return Cost(unit, max(short - unit * amount, 0.0), (larger - size) / (amount * (times - 1)))


def extracted(kind: str, clips: list[Path], times: int) -> tuple[float, int]:
    """Processor seconds of one `klassify extract` with one process, its children included; bytes
    of the shard.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = [f"{k:03d}-{i:03d}.mp4" for k in range(times) for i in range(len(clips))]
        for name in names:
            (root / name).symlink_to(clips[int(name[4:7])].absolute())
        (root / "list.tsv").write_text("\n".join(["file", *names]) + "\n")
        command = [
            sys.executable,
            "-m",
            "klassify.cli",
            "extract",
            "--kind",
            kind,
            "--list",
            str(root / "list.tsv"),
            "--root",
            str(root),
            "--out",
            str(root / "out"),
            "--jobs",
            "1",
        ]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return seconds, sum(path.stat().st_size for path in (root / "out").glob("part-*"))


def show(kind: str, unit: str, per_clip: float, cost: Cost, args: argparse.Namespace) -> None:
    """Print the estimate for one kind."""
    work_s = cost.unit_s * per_clip * args.clips
    shard_s = cost.start_s + work_s / args.shards
    rounds = -(-args.shards // args.cores)
    total = work_s + cost.start_s * args.shards
    print(
        f"--kind {kind}: {1 / cost.unit_s:,.0f} {unit} a core and second, {cost.start_s:.1f} s to"
        " start a task"
    )
    print(
        f"  {args.clips:,} clips of {per_clip:g} {unit}: {total / 3600:,.0f} core-hours, "
        f"{cost.unit_bytes * per_clip * args.clips / 1e9:,.0f} GB"
    )
    print(
        f"  {args.shards:,} shards of {args.clips / args.shards:,.0f} clips: {shard_s / 60:.0f} min"
        f" each; {args.cores} at once: {rounds} rounds, {rounds * shard_s / 3600:.1f} h"
    )


if __name__ == "__main__":
    main()
