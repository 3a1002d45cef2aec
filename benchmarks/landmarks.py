"""`--landmarks torch` against MediaPipe: equality of landmarks and features, and speed.

    python benchmarks/landmarks.py media/demo/train [--clips 20] [--frames 150] [--no-refine]

All follow the face of the same clips in this process. The landmarks of a frame decide which pixels
the next ones come from, so that a difference in the last digit grows until the rounding of pixels
bounds it. Hence a third side, MediaPipe with its landmarks moved by a hundred-thousandth of a pixel
of the network's input: how close MediaPipe is to itself.

Of each clip and side are printed the frames in which both see a face, the share of them whose
landmarks are within 0.3 pixel on average (median, 95 % and most), the same of the worst one, and
the least correlation of the eight mouth features; then the processor time a frame takes in all.
Exits with 1 where less than 95 % of the frames are within 0.3 pixel, a feature of all clips
correlates below 0.99, or torch takes more than 1.5 times as long.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from klassify.features.mouth import by_mediapipe, channels, face
from klassify.features.mouth.by_torch import Networks
from klassify.media import decoder
from klassify.media.container import SUFFIXES
from klassify.models.devices import keep_freed_blocks

LIMIT_PX, MIN_SHARE, MIN_CORRELATION, MAX_RATIO = 0.3, 0.95, 0.99, 1.5
MOVED_PX = 1e-5  # standard deviation, in pixels of the network's input


def main() -> int:
    """Print the figures; 1 where torch is not close enough, or too slow."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of clips, searched through")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--frames", type=int, default=150, help="of each clip, at most")
    parser.add_argument("--batch", type=int, default=8, help="clips at a time in torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--refine", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    keep_freed_blocks()
    paths = [path for path in args.folder.rglob("*") if path.suffix.lower() in SUFFIXES]
    paths = sorted(paths)[: args.clips]
    networks, mesh = Networks(args.refine, args.device), face.FaceMesh(args.refine)
    moved = face.FaceMesh(mesh=face.Mesh(Moved(args.refine)))

    def tracked(source: face.LandmarkSource, path: Path) -> Followed:
        shown = itertools.islice(decoder.pictures(path), args.frames)
        marks: list[np.ndarray | None] = []
        filled = face.fill_gaps(noted(source.track(path.name, shown), marks))
        return marks, *channels.mouth_features(filled)[:2]

    def in_torch() -> list[Followed]:
        groups = [paths[i : i + args.batch] for i in range(0, len(paths), args.batch)]
        return [one for group in groups for one in networks.track_each(tracked, group)]

    networks.track_each(tracked, paths[:1])  # what only the first call costs
    reference, seconds = timed(lambda: [tracked(mesh, path) for path in paths])
    by_torch, seconds_torch = timed(in_torch)
    sides = {"torch": by_torch, "moved": [tracked(moved, path) for path in paths]}
    for i, path in enumerate(paths):
        for name, side in sides.items():
            print(f"{path.name:<28} {name}: {told(*compared([reference[i]], [side[i]]))}")
    for name, side in sides.items():
        print(f"{f'{len(paths)} clips':<28} {name}: {told(*compared(reference, side))}")
    n, ratio = sum(len(marks) for marks, *_ in reference), seconds_torch / seconds
    print(
        f"CPU ms a frame, decoding and features included: MediaPipe {1000 * seconds / n:.2f},"
        f" torch {1000 * seconds_torch / n:.2f}, ratio {ratio:.2f}"
    )
    errors, least, _ = compared(reference, by_torch)
    close = (errors[:, 0] <= LIMIT_PX).mean() >= MIN_SHARE and least >= MIN_CORRELATION
    return int(not close or ratio > MAX_RATIO)


# landmarks of each picture, features (T, 8) and valid (T,)
Followed = tuple[list, np.ndarray, np.ndarray]


class Moved:
    """MediaPipe's landmark model, whose answers are moved a little."""

    def __init__(self, refine: bool):
        self._landmarks = by_mediapipe.Landmarks(refine, face.REGION_PX)
        self._rng = np.random.default_rng(0)

    def __call__(self, image: np.ndarray) -> np.ndarray | None:
        """Landmarks in units of the image."""
        found = self._landmarks(image)
        if found is None:
            return None
        by = self._rng.normal(0, MOVED_PX / face.REGION_PX, found.shape)
        return (found + by).astype(np.float32)


def noted(tracked: face.Tracked, marks: list) -> Iterator[face.Seen]:
    """The same pictures, whose landmarks are kept."""
    for seen in tracked:
        marks.append(seen.landmarks)
        yield seen


def timed(function: Callable) -> tuple:
    """What a function gives, and the processor time of all threads."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def compared(one: list[Followed], other: list[Followed]) -> tuple[np.ndarray, float, int]:
    """Distances (n, 2) in pixels, average and worst of the landmarks, in the frames in which both
    see a face; the least of the features' correlations; the frames in which only one sees a face.
    """
    pairs = [pair for a, b in zip(one, other) for pair in zip(a[0], b[0], strict=True)]
    alone = sum((a is None) != (b is None) for a, b in pairs)
    apart = [np.linalg.norm(a - b, axis=1) for a, b in pairs if a is not None and b is not None]
    errors = np.array([(distance.mean(), distance.max()) for distance in apart]).reshape(-1, 2)
    valid = [a[2] & b[2] for a, b in zip(one, other)]
    mine, theirs = (
        np.concatenate([clip[1][both] for clip, both in zip(side, valid)]) for side in (one, other)
    )
    moves = np.flatnonzero((mine.std(axis=0) > 0) & (theirs.std(axis=0) > 0)) if len(mine) else []
    return (
        errors,
        min((np.corrcoef(mine[:, i], theirs[:, i])[0, 1] for i in moves), default=1),
        alone,
    )


def told(errors: np.ndarray, correlation: float, alone: int) -> str:
    """One comparison in words."""
    if not len(errors):
        return f"no face in both, {alone} frames in one"
    share, whole = 100 * (errors <= LIMIT_PX).mean(axis=0)
    mean, worst = (
        " ".join(f"{value:.3f}" for value in np.quantile(column, [0.5, 0.95, 1]))
        for column in errors.T
    )
    only = f", {alone} in one only" if alone else ""
    return (
        f"{len(errors):4} frames{only}, within {LIMIT_PX} px {share:5.1f} % ({mean}), worst one"
        f" {whole:5.1f} % ({worst}), correlation {correlation:.4f}"
    )


if __name__ == "__main__":
    sys.exit(main())
