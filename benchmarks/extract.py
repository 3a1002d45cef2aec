"""Speed and memory of `klassify extract`, against the floor: decoding and Face Mesh alone.

    python benchmarks/extract.py media/demo/train [--clips 20] [--rounds 3] [--min-ratio 0.85]

Clips are measured as they are, and the first one enlarged to real sizes, there against decoding it
and Face Mesh on the small one. A clip without a face must not cost more than 1.3 times of looking
for one in each frame.

Speed is in frames per second of processor time, so that a busy machine does not matter; both sides
run in this process, by turns, on the same clips. Memory is the largest resident set of a whole run,
for a clip and one four times as long, and for a list and one four times as long. Exits with 1 below
--min-ratio.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

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


SIZES = {  # width, height, pixel format, least ratio
    "720p": (1280, 720, "yuv420p", 0.0),
    "720p yuv444p": (1280, 720, "yuv444p", 0.0),
    "1080p": (1920, 1080, "yuv420p", 0.80),
    "4K": (3840, 2160, "yuv420p", 0.0),
}
MAX_WITHOUT_FACE = 1.3  # times the cost of looking for a face in every frame


def main() -> int:
    """Print the figures; 1 where extraction is slower than it should be."""
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
    bench = Bench(args.rounds, args.refine)
    met = [bench.speed(f"{len(clips)} clips as they are", clips) >= args.min_ratio]
    with tempfile.TemporaryDirectory() as folder:
        for name, (width, height, pix_fmt, least) in SIZES.items():
            large = scaled(clips[0], Path(folder) / f"{name}.mp4", width, height, pix_fmt)
            met.append(bench.speed(name, [large], small=clips[0]) >= least)
        for name, size in (("224 px", 224), ("1080p", 1080)):
            empty = without_face(Path(folder) / f"empty {name}.mp4", size)
            met.append(bench.speed(f"{name} without a face", [empty]) >= 1 / MAX_WITHOUT_FACE)
    memory(clips[0], args.seconds)
    return int(not all(met))


class Bench:
    """Frames per second of extraction and of its floor.

    The floor decodes and runs MediaPipe's Face Mesh on each frame, or on a small clip's frames
    where one is given.
    """

    def __init__(self, rounds: int, refine: bool):
        from mediapipe.python.solutions import face_detection, face_mesh

        self.rounds = rounds
        self.mesh = face_mesh.FaceMesh(max_num_faces=1, refine_landmarks=refine)
        self.detector = face_detection.FaceDetection()
        self.extractor = ClipExtractor(Path(), refine=refine)

    def floor(self, path: Path) -> int:
        """Decode and track; without a face, Face Mesh looks for one in each frame."""
        n = 0
        for frame in decoder.iter_frames(path):
            n += 1
            if self.mesh.process(frame).multi_face_landmarks is None:
                self.detector.process(frame)  # for several faces, as version 2 of the features did
        return n

    def small_floor(self, small: list[np.ndarray], path: Path) -> int:
        """Decode a clip without converting it and track a small one."""
        pairs = zip(decoder.pictures(path), small)
        return sum(self.mesh.process(frame) is not None for _, frame in pairs)

    def ours(self, path: Path) -> int:
        """Extract."""
        self.extractor.root = path.parent
        return len(self.extractor(path.name).valid)

    def speed(self, title: str, clips: list[Path], small: Path | None = None) -> float:
        """Print frames per second of both sides, each clip in its best round; their ratio."""
        floor = self.floor
        if small is not None:
            floor = functools.partial(self.small_floor, list(decoder.iter_frames(small)))
        best: dict[tuple[str, Path], float] = {}
        frames = {}
        for path in clips * self.rounds:
            for name, function in (("floor", floor), ("extract", self.ours)):
                seconds, n = cpu_seconds(function, path)
                best[name, path] = min(seconds, best.get((name, path), seconds))
                if frames.setdefault(path, n) != n:
                    raise SystemExit(f"{path}: {frames[path]} frames on one side, {n} on the other")
        total = sum(frames.values())
        rates = [total / sum(best[name, path] for path in clips) for name in ("floor", "extract")]
        ratio = rates[1] / rates[0]
        print(
            f"{title:<24} floor {rates[0]:6.1f} frames/s, extract {rates[1]:6.1f}:"
            f" {100 * ratio:.1f} %",
            flush=True,
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
    write(out, (frames[t % len(frames)] for t in range(seconds * decoder.GRID_FPS)))


def scaled(clip: Path, out: Path, width: int, height: int, pix_fmt: str) -> Path:
    """Write a clip as high as a larger picture, in its middle."""

    def enlarge(frame: np.ndarray) -> np.ndarray:
        large = cv2.resize(frame, (height, height), interpolation=cv2.INTER_CUBIC)
        side = (width - height) // 2
        return cv2.copyMakeBorder(large, 0, 0, side, side, cv2.BORDER_REFLECT)

    return write(out, map(enlarge, decoder.iter_frames(clip)), pix_fmt)


def without_face(out: Path, size: int, n: int = 100) -> Path:
    """Write a clip of moving stripes."""
    x = np.arange(size)
    waves = (127 + 100 * np.sin((x + 5 * t) / 20) for t in range(n))
    return write(
        out, (np.tile(wave[None, :, None], (size, 1, 3)).astype(np.uint8) for wave in waves)
    )


def write(out: Path, frames: Iterable[np.ndarray], pix_fmt: str = "yuv420p") -> Path:
    """Write a clip at 25 fps."""
    with av.open(str(out), "w") as container:
        stream = container.add_stream("libx264", rate=decoder.GRID_FPS)
        stream.options, stream.pix_fmt = {"preset": "ultrafast"}, pix_fmt
        for t, image in enumerate(frames):
            if not t:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = t, Fraction(1, decoder.GRID_FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out


if __name__ == "__main__":
    sys.exit(main())
