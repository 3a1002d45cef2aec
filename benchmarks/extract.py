"""Speed and memory of `klassify extract`, against the floor: decoding and Face Mesh alone.

    python benchmarks/extract.py media/demo/train [--clips 20] [--rounds 3] [--min-ratio 0.85]

Speed is in frames per second of processor time, so that a busy machine does not matter; both sides
run in this process, by turns, on the same clips. Memory is the largest resident set of a whole run,
for a clip and one four times as long, and for a list and one four times as long. Exits with 1 below
--min-ratio.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2

from klassify.features.mouth.kind import ClipExtractor
from klassify.media import decoder

MEASURED_RUN = """
import resource, sys
from klassify import cli
status = cli.main(sys.argv[1:])
whom = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
print(*(resource.getrusage(who).ru_maxrss // 1024 for who in whom))
sys.exit(status)
"""


def main() -> int:
    """Print the figures; 1 where extraction is slower than --min-ratio of the floor."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of .mp4 clips, searched through")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=int, default=30, help="length of the shorter clip of the memory test"
    )
    parser.add_argument("--refine", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--min-ratio", type=float, default=0.85)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    clips = sorted(args.folder.rglob("*.mp4"))[: args.clips]
    if not clips:
        parser.error(f"no .mp4 below {args.folder}; `klassify corpus` makes some")
    ratio = speed(clips, args.rounds, args.refine)
    memory(clips[0], args.seconds)
    return int(ratio < args.min_ratio)


def speed(clips: list[Path], rounds: int, refine: bool) -> float:
    """Print frames per second of both sides, each clip in its best round; returns their ratio."""
    from mediapipe.python.solutions import face_mesh

    mesh = face_mesh.FaceMesh(max_num_faces=1, refine_landmarks=refine)
    extractor = ClipExtractor(clips[0].parent, refine=refine)

    def floor(path: Path) -> int:
        return sum(mesh.process(frame) is not None for frame in decoder.iter_frames(path))

    def ours(path: Path) -> int:
        extractor.root = path.parent
        return len(extractor(path.name).valid)

    best: dict[tuple[str, Path], float] = {}
    frames = {}
    for path in clips * rounds:
        for name, function in (("floor", floor), ("extract", ours)):
            seconds, n = cpu_seconds(function, path)
            best[name, path] = min(seconds, best.get((name, path), seconds))
            if frames.setdefault(path, n) != n:
                raise SystemExit(f"{path}: {frames[path]} frames on one side, {n} on the other")
    total = sum(frames.values())
    rate = {name: total / sum(best[name, path] for path in clips) for name in ("floor", "extract")}
    ratio = rate["extract"] / rate["floor"]
    print(
        f"{len(clips)} clips, {total} frames, refine={refine}, best of {rounds} rounds a clip, on"
        " one core:"
    )
    print(f"  decode + Face Mesh alone  {rate['floor']:6.1f} frames/s")
    print(
        f"  klassify extract          {rate['extract']:6.1f} frames/s  = {100 * ratio:.1f} % of"
        " that"
    )
    return ratio


def cpu_seconds(function: Callable[[Path], int], path: Path) -> tuple[float, int]:
    """Processor time of this process and its threads, and the number of frames."""
    start = time.process_time()
    frames = function(path)
    return time.process_time() - start, frames


def memory(clip: Path, seconds: int) -> None:
    """Print the largest resident sets of runs on short and long clips and lists."""
    print("largest resident set, MiB:                   parent  worker")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for times in (1, 4):
            long = root / f"length{times}.mp4"
            loop(clip, long, times * seconds)
            report(f"one clip of {times * seconds} s", root, [long.name])
        for times in (1, 4):
            names = [f"copy{i}.mp4" for i in range(5 * times)]
            for name in names:
                (root / name).unlink(missing_ok=True)
                (root / name).symlink_to(clip.absolute())
            report(f"a list of {len(names)} short clips", root, names)


def report(title: str, root: Path, names: list[str]) -> None:
    """Extract the named clips in a process of its own and print what it and its worker took."""
    (root / "list.tsv").write_text("\n".join(["file", *names]) + "\n")
    arguments = [
        "extract",
        "--list",
        f"{root}/list.tsv",
        "--root",
        f"{root}",
        "--out",
        f"{root}/out",
        "--jobs",
        "1",
    ]
    command = [sys.executable, "-c", MEASURED_RUN, *arguments, "--force", "--strict"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    parent, worker = done.stdout.splitlines()[-1].split()
    print(f"  {title:<40} {parent:>8} {worker:>7}")


def loop(clip: Path, out: Path, seconds: int) -> None:
    """Write a clip of the given length that repeats another one."""
    frames = list(decoder.iter_frames(clip))
    with av.open(str(out), "w") as container:
        stream = container.add_stream(
            "libx264", rate=decoder.GRID_FPS, options={"preset": "ultrafast"}
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for t in range(seconds * decoder.GRID_FPS):
            frame = av.VideoFrame.from_ndarray(frames[t % len(frames)], format="rgb24")
            frame.pts, frame.time_base = t, Fraction(1, decoder.GRID_FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


if __name__ == "__main__":
    sys.exit(main())
