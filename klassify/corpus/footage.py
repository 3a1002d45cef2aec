"""Pieces of genuine clips: 4 to 10 s of one scene, cut out around the face, with their sound."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from scipy.ndimage import uniform_filter1d

from klassify.augmentation.sound_edits import level
from klassify.corpus.motion import FPS
from klassify.corpus.render import SIZE
from klassify.corpus.speech import SAMPLE_RATE
from klassify.features import lips
from klassify.features.mouth import channels, face
from klassify.media import decoder
from klassify.media.container import MediaError
from klassify.media.info import probe
from klassify.media.picture import Picture

SHORTEST, LEAST, MOST = 2 * FPS, 4 * FPS, 10 * FPS  # frames of a piece; 2 s only of a short clip
FACE_SHARE = 0.8  # of a piece's frames, for fakes of the picture
LEAST_EYES_PX = 24  # between the outer corners: smaller faces have no mouth to speak of
AROUND = 1.6  # side of the square around the face, in faces
SILENT = 1e-3  # full scale: -60 dB
FRAME_SAMPLES = SAMPLE_RATE // FPS


class Cell(NamedTuple):
    """What the 25 fps grid shows: the picture's size, lips.POINTS (n, 2) of its face and the box
    around the face, None without one, and the number of the scene.
    """

    size: tuple[int, int]
    points: np.ndarray | None
    box: np.ndarray | None
    scene: int


@dataclass
class Piece:
    """One piece of a clip.

    start: its first frame in the clip. frames: (T, 224, 224, 3) uint8 RGB. points: (T, n, 2) pixels
    of lips.POINTS in them, averaged as for mouth crops, and seen (T,) bool; None without a face
    worth editing, and `no_face` says why. wave: (640 T,) float32, None without sound. voice: the
    sound of the whole clip but for this piece, maybe empty.
    """

    number: int
    start: int
    frames: np.ndarray
    points: np.ndarray | None
    seen: np.ndarray
    no_face: str
    wave: np.ndarray | None
    voice: np.ndarray

    def lacks(self, used: bool) -> list[tuple[str, str]]:
        """(stage, reason) of what could not be edited: its picture, its sound, or all of it."""
        at = f"{self.start / FPS:.1f} s to {(self.start + len(self.frames)) / FPS:.1f} s"
        lacking = [("face", self.no_face)] if self.no_face else []
        lacking += [("sound", "no sound")] if self.wave is None else []
        if not used:
            lacking.append(("edit", "neither speech nor a face to edit"))
        return [(stage, f"{at}: {reason}") for stage, reason in lacking]


def pieces_of(path: Path, mesh: face.LandmarkSource, rng: np.random.Generator) -> Iterator[Piece]:
    """The pieces of a clip. Decodes it twice, and holds the pictures of one piece at a time.

    Raises MediaError for a clip that cannot be read or is shorter than 2 s.
    """
    wave = decoder.read_audio(path) if probe(path).has_audio else np.zeros(0, np.float32)
    tracked = face.fill_gaps(mesh.track(path.name, decoder.pictures(path)))
    cells = list(decoder.on_grid(_cells(tracked)))
    spans = _spans(cells, rng)
    if not spans:
        raise MediaError(
            f"No scene of the clip lasts {SHORTEST / FPS:g} s; it has {len(cells) / FPS:.1f} s.",
            where=path,
        )
    shown = decoder.on_grid(face.thinned(decoder.pictures(path)))
    at = 0
    for number, (first, stop) in enumerate(spans):
        here = cells[first:stop]
        box = _square(here)
        frames = [
            _cut_out(picture, box) for picture in itertools.islice(shown, first - at, stop - at)
        ]
        at = stop
        points, seen, no_face = _followed(here, box)
        low, high = first * FRAME_SAMPLES, stop * FRAME_SAMPLES
        sound = wave[low:high]
        sound = np.pad(sound, (0, high - low - len(sound)))
        yield Piece(
            number,
            first,
            np.stack(frames),
            points,
            seen,
            no_face,
            sound if level(sound) > SILENT else None,
            np.concatenate([wave[:low], wave[high:]]),
        )


def _cut_out(picture: Picture, box: Sequence[int]) -> np.ndarray:
    """(224, 224, 3) RGB of a square of a picture."""
    how = cv2.INTER_AREA if box[2] - box[0] > SIZE else cv2.INTER_CUBIC
    return cv2.resize(picture.part(box), (SIZE, SIZE), interpolation=how)


def _cells(tracked: face.Tracked) -> Iterator[tuple[float, float, Cell]]:
    scene = 0
    for seen in tracked:
        scene += seen.cut
        points = box = None
        if seen.landmarks is not None and channels.mouth_boxes(seen.picture, seen.landmarks):
            points = seen.landmarks[lips.POINTS].astype(float)
            oval = seen.landmarks[channels.FACE]
            box = np.concatenate([oval.min(axis=0), oval.max(axis=0)])
        size = (seen.picture.width, seen.picture.height)
        yield seen.start, seen.stop, Cell(size, points, box, scene)


def _spans(cells: Sequence[Cell | None], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Frames [first, stop) of the pieces: scenes cut into 4 to 10 s; nothing below 2 s."""
    scenes = [-1 if cell is None else cell.scene for cell in cells]
    edges = [0, *(k for k in range(1, len(cells)) if scenes[k] != scenes[k - 1]), len(cells)]
    spans = []
    for first, end in zip(edges, edges[1:]):
        while first < end and scenes[first] >= 0 and end - first >= SHORTEST:
            size = end - first
            if size > MOST:
                size = int(rng.integers(LEAST, min(MOST, size - SHORTEST) + 1))
            spans.append((first, first + size))
            first += size
    return spans


def _square(cells: Sequence[Cell]) -> list[int]:
    """x0, y0, x1, y1 of a square that holds the face throughout, or of the middle without one."""
    width, height = cells[0].size
    boxes = [cell.box for cell in cells if cell.box is not None]
    if boxes:
        low = np.percentile([box[:2] for box in boxes], 10, axis=0)
        high = np.percentile([box[2:] for box in boxes], 90, axis=0)
    else:
        low, high = np.zeros(2), np.array([width, height], float)
    side = int(min(AROUND * (high - low).max(), width, height))
    corner = np.clip((low + high - side) / 2, 0, [width - side, height - side])
    x, y = (int(value) for value in corner)
    return [x, y, x + side, y + side]


def _followed(
    cells: Sequence[Cell], box: Sequence[int]
) -> tuple[np.ndarray | None, np.ndarray, str]:
    """Points in the piece's frames, averaged over time, and where they were seen; or why not."""
    seen = np.array([cell.points is not None for cell in cells])
    if seen.mean() < FACE_SHARE:
        return None, seen, f"a face in {seen.sum()} of {len(seen)} frames"
    place, there = np.arange(len(cells)), np.flatnonzero(seen)
    nearest = there[np.abs(place[:, None] - there).argmin(axis=1)]
    scale = SIZE / (box[2] - box[0])
    points = np.stack([cells[k].points for k in nearest])
    right, left = (points[:, lips.STABLE.index(corner)] for corner in channels.EYES)
    eyes = np.linalg.norm(left - right, axis=1)
    if np.median(eyes) < LEAST_EYES_PX:
        return None, seen, f"a face with {np.median(eyes):.0f} pixels between the eyes"
    # as for mouth crops: averaged, but where the face is in the frame itself
    averaged = uniform_filter1d(points, 2 * lips.REACH + 1, axis=0, mode="nearest")
    n = len(lips.STABLE)
    averaged += (points[:, :n] - averaged[:, :n]).mean(axis=1, keepdims=True)
    # the middle of a pixel stays the middle of what it becomes
    return (averaged - box[:2] + 0.5) * scale - 0.5, seen, ""
