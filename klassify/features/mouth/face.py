"""Face landmarks, frame by frame: MediaPipe Face Mesh, or points computed elsewhere.

A source offers `track(file, frames)`, which yields each frame with the landmarks of the one face
that is followed, or None where there is none. Landmarks are float32 (K, 2) pixel coordinates (x, y)
in the Face Mesh numbering, K = 468, or 478 with irises. Everything streams: no more than the frames
of one gap are held at a time.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from klassify.errors import KlassifyError

LANDMARK_COUNTS = (468, 478)
MAX_FACES = 4
MAX_GAP_FRAMES = 5

Tracked = Iterator[tuple[np.ndarray, np.ndarray | None]]  # (RGB frame, landmarks or None)


class LandmarkSource(Protocol):
    """Where landmarks come from."""

    def track(self, file: str, frames: Iterable[np.ndarray]) -> Tracked:
        """Each frame of the clip `file` with the landmarks of the followed face, or None."""
        ...


def open_source(folder: str | os.PathLike | None = None, *, refine: bool = True) -> LandmarkSource:
    """Precomputed landmarks where a folder of them is given, Face Mesh otherwise."""
    return FaceMesh(refine) if folder is None else PrecomputedLandmarks(folder)


def source_settings(
    folder: str | os.PathLike | None = None, *, refine: bool = True
) -> dict[str, Any]:
    """What features depend on in such a source, for their settings; does not load anything."""
    if folder is not None:
        return {"landmarks": "precomputed"}
    try:
        version = importlib.metadata.version("mediapipe")
    except importlib.metadata.PackageNotFoundError:
        raise KlassifyError(
            "MediaPipe is not installed.",
            fix="pip install mediapipe==0.10.14, or give --landmarks DIR",
        ) from None
    return {"landmarks": f"mediapipe {version} face_mesh", "refine": refine, "max_faces": MAX_FACES}


class FaceMesh:
    """MediaPipe Face Mesh. Every clip starts from a blank state, so results do not depend on order.

    A tracker for several faces looks for further ones in every frame, which costs half of the
    tracking, and nearly every clip shows one person. So faces are counted only while none is
    followed (at the start and after a loss); the clip goes on with a one-face tracker unless there
    are several, and with one for up to MAX_FACES then.

    refine: the attention mesh (478 points), sharper on the lips and about 1 ms a frame dearer.
    """

    def __init__(
        self,
        refine: bool = True,
        tracker: Callable[[int, bool], FaceTracker] | None = None,
        counter: Callable[[], Callable[[np.ndarray], int]] | None = None,
    ):
        tracker = tracker or FaceTracker
        self._count = (counter or FaceCounter)()
        self._one, self._several = tracker(1, refine), tracker(MAX_FACES, refine)

    def track(self, file: str, frames: Iterable[np.ndarray]) -> Tracked:
        """Each frame with the face that `choose` follows, None where Face Mesh finds none.

        A picture that the grid repeats, the same array again, is looked at once and keeps its
        landmarks.
        """
        self._one.forget()
        self._several.forget()
        follower, previous, last, face = None, None, None, None
        for frame in frames:
            if frame is not last:
                if follower is None:
                    follower = self._several if self._count(frame) > 1 else self._one
                faces = follower(frame)
                if not faces and follower is self._one:
                    follower = None
                face = choose(faces, previous)
                previous, last = previous if face is None else face, frame
            yield frame, face


class FaceTracker:
    """One Face Mesh graph: call it with an RGB frame for a list of (K, 2) landmarks in pixels."""

    BLANK = np.zeros((64, 64, 3), np.uint8)

    def __init__(self, max_faces: int, refine: bool):
        # MediaPipe against the protobuf that it asks for
        warnings.filterwarnings("ignore", message=r"SymbolDatabase\.GetPrototype")
        with _quiet():
            from mediapipe.python.solutions import face_mesh

            self._mesh = face_mesh.FaceMesh(max_num_faces=max_faces, refine_landmarks=refine)
            self._mesh.process(self.BLANK)
        self._tracking = False

    def __call__(self, rgb: np.ndarray) -> list[np.ndarray]:
        """The faces of a frame (H, W, 3) uint8, each (K, 2) float32 in pixels; at most
        `max_faces`.
        """
        found = self._mesh.process(rgb).multi_face_landmarks or []
        self._tracking = bool(found)
        size = np.array([rgb.shape[1], rgb.shape[0]], np.float32)
        return [_points(face) * size for face in found]

    def forget(self) -> None:
        """Drop the tracked regions: a blank frame does so exactly, ten times faster than a
        restart.
        """
        if self._tracking and self(self.BLANK):
            self._mesh.reset()
        self._tracking = False


class FaceCounter:
    """The number of faces in an RGB frame, by the detector that Face Mesh itself starts from."""

    def __init__(self):
        with _quiet():
            from mediapipe.python.solutions import face_detection

            self._detector = face_detection.FaceDetection()
            self._detector.process(FaceTracker.BLANK)

    def __call__(self, rgb: np.ndarray) -> int:
        """How many faces the detector finds in a frame (H, W, 3) uint8."""
        return len(self._detector.process(rgb).detections or [])


class PrecomputedLandmarks:
    """Landmarks read from `<folder>/<file without suffix>.npz`.

    Array `landmarks` (T, 468|478, 2|3) in pixels, T = the clip's frames on the 25 fps grid; a row
    that holds NaN is a frame without a face.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def track(self, file: str, frames: Iterable[np.ndarray]) -> Tracked:
        """Each frame with its row of the clip's file; KlassifyError where their numbers differ."""
        path = self.folder / PurePosixPath(file).with_suffix(".npz")
        landmarks = _read_landmarks(path)
        n = 0
        for n, frame in enumerate(frames, start=1):
            if n <= len(landmarks):
                points = landmarks[n - 1]
                yield frame, points if np.isfinite(points).all() else None
        if n != len(landmarks):
            raise KlassifyError(
                f"There are landmarks for {len(landmarks)} frames, the clip has {n}.", where=path
            )


def choose(faces: list[np.ndarray], previous: np.ndarray | None) -> np.ndarray | None:
    """The face to follow: the largest at first, then the best overlap with the last one seen.

    Where nothing overlaps, the one whose centre is closest.
    """
    if len(faces) < 2:
        return faces[0] if faces else None
    boxes = [_box(face) for face in faces]
    if previous is None:
        return faces[int(np.argmax([np.prod(box[2:] - box[:2]) for box in boxes]))]
    last = _box(previous)
    ranks = [
        (_iou(box, last), -float(np.linalg.norm(box[:2] + box[2:] - last[:2] - last[2:])))
        for box in boxes
    ]
    return faces[max(range(len(faces)), key=ranks.__getitem__)]


def fill_gaps(tracked: Tracked, max_gap: int = MAX_GAP_FRAMES) -> Tracked:
    """Interpolate landmarks linearly over gaps of at most `max_gap` frames between two detections.

    Longer gaps, and those at either end of a clip, stay None.
    """
    last, waiting = None, []
    for frame, landmarks in tracked:
        if landmarks is None and last is not None:
            waiting.append(frame)
            if len(waiting) > max_gap:
                yield from ((held, None) for held in waiting)
                last, waiting = None, []
            continue
        for i, held in enumerate(waiting, start=1):
            weight = i / (len(waiting) + 1)
            yield held, (1 - weight) * last + weight * landmarks
        last, waiting = landmarks, []
        yield frame, landmarks
    yield from ((held, None) for held in waiting)


def _box(landmarks: np.ndarray) -> np.ndarray:
    return np.concatenate([landmarks.min(axis=0), landmarks.max(axis=0)])


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    inter = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter
    return float(inter / union) if union > 0 else 0.0


def _points(face: Any) -> np.ndarray:
    """(K, 2) float32 of a NormalizedLandmarkList, in units of the frame's width and height.

    Each landmark is 17 bytes on the wire (tag, length, then tag and float32 for x, y, z), which
    numpy reads ten times faster than attribute access does.
    """
    n, wire = len(face.landmark), face.SerializeToString()
    if len(wire) == 17 * n and wire[:3] == b"\x0a\x0f\x0d":
        rows = np.frombuffer(wire, np.uint8).reshape(n, 17)
        return np.ascontiguousarray(rows[:, [3, 4, 5, 6, 8, 9, 10, 11]]).view("<f4")
    return np.array([(point.x, point.y) for point in face.landmark], np.float32)


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what MediaPipe's native parts write to the standard error stream while they start."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as sink:
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
