"""Face landmarks of a clip, picture by picture: Face Mesh, or points computed elsewhere.

A source offers `track(file, shown)`, which yields the pictures of a clip with the landmarks of the
one face that is followed, or None where there is none. Landmarks are float32 (K, 2) pixel
coordinates (x, y) in the Face Mesh numbering, K = 468, or 478 with irises. Everything streams: no
more than the pictures of one gap are held at a time.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from klassify.errors import KlassifyError
from klassify.features.mouth import by_mediapipe
from klassify.media import decoder
from klassify.media.picture import Picture

LANDMARK_COUNTS = (468, 478)
EYE_CORNERS = [33, 263]  # the outer ones
MAX_GAP_FRAMES = 5
MAX_GAP_S = (MAX_GAP_FRAMES + 1) / decoder.GRID_FPS  # between two pictures
MIN_STEP_S = 0.026  # between two pictures that are looked at: from 39 fps on, some are left out

LOOK_EVERY = 5  # pictures, while no face is followed
CONFIRM_EVERY = 100  # pictures, while one is
VIEW_PX = 192  # what the detector sees of a view
MAX_WHOLE_PX = 640  # of a picture's longer side: a larger picture is looked at in tiles too
TILE_PX = 1080  # side of a tile at most, in which a face of 60 pixels keeps 10
MIN_CANDIDATE, MIN_SCORE = 0.3, 0.5  # of the detector: of a candidate, and of a face in its square
SQUARE = 4.5  # widths of a face: the square that its score is measured on
MAX_CANDIDATES = 4
SAME_FACE = 0.3  # overlap (IoU) of two boxes of one face
REGION = 1.5  # of the face's box: what Face Mesh sees
REGION_PX, LEAST_PX = 192, 240  # that it takes; of which they are made at least
WARM_UP = 3  # looks at a face that is taken up, each at the region of the one before

# a cut: gray levels between two pictures' sketches, and eye distances that the landmarks jump, far
# where a quarter of the picture stays; beyond the second level of change a face is looked for anew
CUT_CHANGE, NEW_SCENE, CUT_JUMP, FAR_JUMP = 6.0, 20.0, 0.25, 0.6

Shown = Iterable[tuple[float, float, Picture]]  # start and stop in seconds, picture


class Seen(NamedTuple):
    """A picture that is on screen from start to stop, in seconds from the clip's zero.

    landmarks: (K, 2) float32 pixels of the followed face, None where there is none. cut: another
    scene starts with this picture.
    """

    start: float
    stop: float
    picture: Picture | None
    landmarks: np.ndarray | None
    cut: bool = False


Tracked = Iterator[Seen]


class LandmarkSource(Protocol):
    """Where landmarks come from."""

    def track(self, file: str, shown: Shown) -> Tracked:
        """The pictures of the clip `file` with the landmarks of the followed face."""
        ...


def open_source(folder: str | os.PathLike | None = None, *, refine: bool = True) -> LandmarkSource:
    """Precomputed landmarks where a folder of them is given, Face Mesh by MediaPipe otherwise."""
    return FaceMesh(refine) if folder is None else PrecomputedLandmarks(folder)


TORCH = "torch"  # Face Mesh's networks in torch, in place of MediaPipe or a folder of landmarks


def source_settings(
    landmarks: str | os.PathLike | None = None, *, refine: bool = True
) -> dict[str, Any]:
    """What features depend on in a source (None, TORCH or a folder), for their settings; does not
    load anything.
    """
    if landmarks not in (None, TORCH):
        return {"landmarks": "precomputed"}
    try:
        version = importlib.metadata.version("mediapipe")
    except importlib.metadata.PackageNotFoundError:
        raise KlassifyError(
            "MediaPipe is not installed.",
            fix="pip install mediapipe==0.10.14, or give --landmarks DIR",
        ) from None
    by = f"{TORCH} " if landmarks == TORCH else ""
    return {"landmarks": f"{by}mediapipe {version} face_mesh", "refine": refine}


def is_by_torch(settings: Mapping[str, Any]) -> bool:
    """Whether such settings are those of TORCH."""
    return str(settings.get("landmarks")).startswith(TORCH)


class FaceMesh:
    """MediaPipe's full-range detector where no face is followed, its Face Mesh where one is.

    mesh, detector: a Mesh and a Detector; by default MediaPipe runs their networks.

    A face is taken up with a detector's score of MIN_SCORE on the square around it, and given up
    when the mesh, or the detector every CONFIRM_EVERY pictures, no longer finds it. Every clip
    starts from nothing, so results do not depend on the order of clips.

    refine: the attention mesh (478 points), sharper on the lips and about 1 ms a picture dearer.
    """

    def __init__(self, refine: bool = True, mesh: Any = None, detector: Any = None):
        self._mesh = mesh or Mesh(by_mediapipe.Landmarks(refine, REGION_PX))
        self._detect = detector or Detector(by_mediapipe.Faces(MIN_CANDIDATE, VIEW_PX))

    def track(self, file: str, shown: Shown) -> Tracked:
        """The pictures, at most 38 a second, each with the face that is followed."""
        face, last, sketch = None, None, None
        waited, age, self._n_looks = LOOK_EVERY, 0, 0
        for start, stop, picture in thinned(shown):
            before, sketch = sketch, picture.sketch()
            changes = np.abs(sketch - (sketch if before is None else before))
            change, jump = float(changes.mean()), CUT_JUMP
            now = None if face is None else self._mesh(picture, region_of(face))
            age, waited = age + 1, waited + 1
            if now is not None and age % CONFIRM_EVERY == 0:
                now = now if self._score(picture, box_of(now)) >= MIN_CANDIDATE else None
            scene = change > NEW_SCENE
            if not scene and change > CUT_CHANGE and face is not None:
                jump = CUT_JUMP if np.quantile(changes, 0.25) >= 1 else FAR_JUMP
                scene = _jumps(face, now, jump)
            lost = face is not None and now is None
            if scene or lost or (face is None and waited > LOOK_EVERY):
                now = self._find(picture, None if scene else last)
                waited, age = 0, 0
            yield Seen(start, stop, picture, now, scene and _jumps(face, now, jump))
            face, last = now, last if now is None else now

    def _find(self, picture: Picture, near: np.ndarray | None) -> np.ndarray | None:
        """The landmarks of a face: the largest, or the one that is nearest to `near`.

        Where the whole picture shows none, it is looked for in one tile a time; in all at first.
        """
        last = None if near is None else box_of(near)
        views = [] if last is None else [square_around(last, picture)]
        views.append((0, 0, picture.width, picture.height))
        parts = tiles(picture)
        views += [parts[self._n_looks % len(parts)]] if self._n_looks and parts else parts
        self._n_looks += 1
        for view in dict.fromkeys(views):
            found = self._detect(picture, view)
            for _, box in ranked(found, last)[:MAX_CANDIDATES]:
                if self._score(picture, box, {view: found}) >= MIN_SCORE:
                    points = self._settled(picture, region_of_box(box))
                    if points is not None:
                        return points
        return None

    def _settled(self, picture: Picture, region: Region) -> np.ndarray | None:
        """Landmarks after several looks at a picture, each at the region of the one before."""
        for _ in range(WARM_UP):
            points = self._mesh(picture, region)
            if points is None:
                return None
            region = region_of(points)
        return points

    def _score(self, picture: Picture, box: np.ndarray, known: Mapping = {}) -> float:
        """The detector's score of a face, on the square around it."""
        square = square_around(box, picture)
        found = known[square] if square in known else self._detect(picture, square)
        return max((score for score, other in found if overlap(box, other) >= SAME_FACE), default=0)


class Mesh:
    """The landmark model of Face Mesh; call it with a picture and the region of a face.

    landmarks: what runs it on an RGB image (REGION_PX, REGION_PX, 3): landmarks (K, 2) float32 in
    units of the image, or None where it shows no face.
    """

    def __init__(self, landmarks: Callable[[np.ndarray], np.ndarray | None]):
        self._landmarks = landmarks

    def __call__(self, picture: Picture, region: Region) -> np.ndarray | None:
        """Landmarks (K, 2) float32 in pixels of the picture; None where there is no face."""
        centre, side, angle = region
        cos, sin = np.cos(angle), np.sin(angle)
        turn = side / REGION_PX * np.array([[cos, -sin], [sin, cos]])
        corner = centre - turn @ [REGION_PX / 2, REGION_PX / 2]
        image = warped(picture, turn, corner, REGION_PX, LEAST_PX)
        found = None if image is None else self._landmarks(image)
        if found is None:
            return None
        return (found * REGION_PX @ turn.T + corner).astype(np.float32)


class Detector:
    """The full-range face detector; call it with a picture and a box to look at.

    faces: what runs it on an RGB image whose longer side has VIEW_PX pixels: score and box (x, y,
    width, height in units of the image) of each face.
    """

    def __init__(self, faces: Callable[[np.ndarray], list[Detection]]):
        self._faces = faces

    def __call__(self, picture: Picture, view: Box) -> list[Detection]:
        """Score and box (x0, y0, x1, y1 in pixels of the picture) of each face in the view."""
        image, n = picture.halved(view, VIEW_PX)
        size = n * np.array(image.shape[1::-1])
        found = []
        for score, box in self._faces(_scaled(image, VIEW_PX)):
            low = box[:2] * size + view[:2]
            found.append((score, np.concatenate([low, low + box[2:] * size])))
        return found


class PrecomputedLandmarks:
    """Landmarks read from `<folder>/<file without suffix>.npz`.

    Array `landmarks` (T, 468|478, 2|3) in pixels, T = the clip's frames on the 25 fps grid; a row
    that holds NaN is a frame without a face.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def track(self, file: str, shown: Shown) -> Tracked:
        """Each frame on the grid with its row of the clip's file; else KlassifyError."""
        path = self.folder / PurePosixPath(file).with_suffix(".npz")
        landmarks, n = None, 0
        for n, picture in enumerate(decoder.on_grid(shown), start=1):
            if landmarks is None:  # here, so that what is wrong with the clip is said first
                landmarks = _read_landmarks(path)
            if n <= len(landmarks):
                points = landmarks[n - 1]
                there = picture is not None and np.isfinite(points).all()
                time = (n - 1) / decoder.GRID_FPS
                yield Seen(time, n / decoder.GRID_FPS, picture, points if there else None)
        if landmarks is not None and n != len(landmarks):
            raise KlassifyError(
                f"There are landmarks for {len(landmarks)} frames, the clip has {n}.", where=path
            )


def thinned(shown: Shown) -> Shown:
    """Without the pictures that follow the one before by less than MIN_STEP_S, which stays."""
    held = None
    for start, stop, picture in shown:
        if held is not None and start - held[0] < MIN_STEP_S:
            held = held[0], stop, held[2]
            continue
        if held is not None:
            yield held
        held = start, stop, picture
    if held is not None:
        yield held


def fill_gaps(tracked: Tracked) -> Tracked:
    """Interpolate landmarks linearly in time between two detections at most MAX_GAP_S apart.

    Longer gaps, those at either end of a clip and those that hold a cut stay None.
    """
    last: Seen | None = None
    waiting: list[Seen] = []
    for seen in tracked:
        over = seen.cut or (last is not None and seen.start - last.start > MAX_GAP_S + 1e-6)
        if over or last is None:
            yield from waiting
            last, waiting = None, []
        if seen.landmarks is None and last is not None:
            waiting.append(seen)
            continue
        for held in waiting:
            weight = (held.start - last.start) / (seen.start - last.start)
            between = (1 - weight) * last.landmarks + weight * seen.landmarks
            yield held._replace(landmarks=between.astype(np.float32))
        last, waiting = None if seen.landmarks is None else seen, []
        yield seen
    yield from waiting


def warped(
    picture: Picture, turn: np.ndarray, corner: np.ndarray, size: int, least: int
) -> np.ndarray | None:
    """RGB (size, size, 3) whose pixel p shows the picture at turn @ p + corner; None outside of it.

    least: the part that is seen is halved by area as long as its shorter side keeps that many
    pixels.
    """
    ends = corner + size * np.array([[0, 0], turn[:, 0], turn[:, 1], turn.sum(axis=1)])
    box = _clipped([*ends.min(axis=0), *ends.max(axis=0)], picture)
    if box[2] - box[0] < 2 or box[3] - box[1] < 2:
        return None
    part, n = picture.halved(box, least)
    return cv2.warpAffine(
        part,
        np.column_stack([turn, corner - box[:2] - (n - 1) / 2]) / n,
        (size, size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


Box = tuple[int, int, int, int]  # x0, y0, x1, y1, half open
Detection = tuple[float, np.ndarray]  # score and box
Region = tuple[np.ndarray, float, float]  # centre (x, y), side of a square, angle


def tiles(picture: Picture) -> list[Box]:
    """Overlapping squares that cover a picture; none for a small one."""
    size = picture.width, picture.height
    if max(size) <= MAX_WHOLE_PX:
        return []
    side = min(*size, TILE_PX)
    starts = [
        np.linspace(0, length - side, 1 + math.ceil((length - side) / (0.75 * side))).astype(int)
        // 2
        * 2
        for length in size
    ]
    return [(int(x), int(y), int(x) + side, int(y) + side) for y in starts[1] for x in starts[0]]


def square_around(box: np.ndarray, picture: Picture) -> Box:
    """The square of SQUARE widths of a face around it, as far as it lies in the picture."""
    centre, reach = (box[:2] + box[2:]) / 2, SQUARE / 2 * (box[2] - box[0])
    return _clipped([*(centre - reach), *(centre + reach)], picture)


def region_of(landmarks: np.ndarray) -> Region:
    """What Face Mesh sees next of a face with these landmarks: upright, with a margin."""
    right, left = landmarks[EYE_CORNERS]
    centre, side, _ = region_of_box(box_of(landmarks))
    return centre, side, float(np.arctan2(*(left - right)[::-1]))


def region_of_box(box: np.ndarray) -> Region:
    """What Face Mesh sees of a face in a detector's box."""
    return (box[:2] + box[2:]) / 2, REGION * float(max(box[2:] - box[:2])), 0.0


def ranked(found: list[Detection], near: np.ndarray | None) -> list[Detection]:
    """The faces to follow, best first: the largest, or by their overlap with the last one seen;
    where nothing overlaps, by distance.
    """

    def rank(detection: Detection) -> tuple[float, float]:
        _, box = detection
        if near is None:
            return -float(np.prod(box[2:] - box[:2])), 0.0
        apart = box[:2] + box[2:] - near[:2] - near[2:]
        return -overlap(box, near), float(np.linalg.norm(apart))

    return sorted(found, key=rank)


def box_of(landmarks: np.ndarray) -> np.ndarray:
    """x0, y0, x1, y1 around landmarks."""
    columns = np.ascontiguousarray(landmarks.T)  # seven times as fast as along the other axis
    return np.concatenate([columns.min(axis=1), columns.max(axis=1)])


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    inter = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter
    return float(inter / union) if union > 0 else 0.0


def _clipped(box: Sequence[float], picture: Picture) -> Box:
    """The part of a box in the picture, from even numbers on."""
    low = [max(0, math.floor(value)) // 2 * 2 for value in box[:2]]
    return (
        *low,
        max(low[0], min(picture.width, math.ceil(box[2]))),
        max(low[1], min(picture.height, math.ceil(box[3]))),
    )


def _scaled(image: np.ndarray, longest: int) -> np.ndarray:
    scale = longest / max(image.shape[:2])
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _jumps(before: np.ndarray | None, now: np.ndarray | None, least: float) -> bool:
    """Landmarks are at least so many eye distances from where they were, or there are none."""
    if before is None or now is None:
        return True
    right, left = before[EYE_CORNERS]
    moved = np.linalg.norm(now - before, axis=1).mean()
    return bool(moved > least * np.linalg.norm(left - right))


def _read_landmarks(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as archive:
            landmarks = archive["landmarks"]
    except FileNotFoundError:
        raise KlassifyError("There are no landmarks for this clip.", where=path) from None
    except (KeyError, ValueError, OSError, EOFError) as error:
        raise KlassifyError(f"This is not a readable landmark file: {error}.", where=path) from None
    shape = landmarks.shape
    if (
        len(shape) != 3
        or shape[1] not in LANDMARK_COUNTS
        or shape[2] not in (2, 3)
        or landmarks.dtype.kind != "f"
    ):
        raise KlassifyError(
            f"Landmarks are floats (T, 468 or 478, 2 or 3); here is {landmarks.dtype} {shape}.",
            where=path,
        )
    return landmarks[..., :2].astype(np.float32)
