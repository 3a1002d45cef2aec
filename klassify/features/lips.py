"""Mouth crops: 96 x 96 gray pictures of the followed face's lips at 25 a second.

The face is followed as for the mouth features. Of each frame a similarity transform takes the
corners of the eyes and the base of the nose to a mean face of 256 x 256 pixels, and the crop lies
around the middle of the lips there. Landmarks are averaged over 13 frames (about 12, as published)
and moved to where the face is in the frame itself, so that a crop neither shakes nor lags. The mean
face is that of published lip readers, so that their weights fit these crops.

Crops are stored as JPEG of quality 90, about 2 kB each. A frame without a face has none, and its
`valid` is False.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
import pyarrow as pa

from klassify.features.base import Columns, Kind, Row, common, ragged, schema, values
from klassify.features.mouth import channels, face
from klassify.features.mouth.kind import (
    FACE_ARGUMENTS,
    ClipExtractor,
    FaceExtractor,
    MouthRow,
    face_extraction,
)
from klassify.media.decoder import About, on_grid
from klassify.media.picture import Picture

VERSION = 1  # raise when a crop changes: it is part of the shards' settings
SIZE = 96
QUALITY = 90
REACH = 6  # frames before and after one, over which landmarks are averaged
# outer and inner corner of the right eye, inner and outer corner of the left one, base of the nose
STABLE = [33, 133, 362, 263, 2]
# where they are in the mean face of the word data set LRW, 256 x 256 pixels (points 37, 40, 43, 46
# and 34 of 68, as published with RAVEn)
MEAN_FACE = np.array([[92.5, 94.4], [112.8, 94.9], [145.5, 94.5], [166.7, 93.6], [128.9, 137.3]])
POINTS = np.concatenate([STABLE, channels.LIPS])


class Cell(NamedTuple):
    """What the 25 fps grid shows at a time: a picture and POINTS (n, 2) of its face, and the number
    of the scene that it belongs to.
    """

    picture: Picture | None
    points: np.ndarray | None
    scene: int = 0


NOTHING = Cell(None, None)


def lip_crops(tracked: face.Tracked) -> tuple[list[bytes], np.ndarray]:
    """JPEGs of the crops, empty ones without a face, and valid (T,) bool on the 25 fps grid.

    Holds the pictures of a few frames.
    """
    crops = list(_crops(tracked))
    return crops, np.array([bool(crop) for crop in crops], bool)


def _crops(tracked: face.Tracked) -> Iterator[bytes]:
    for cells in _surrounded(on_grid(_cells(tracked))):
        yield b"" if cells[REACH].points is None else _crop(cells)


def _cells(tracked: face.Tracked) -> Iterator[tuple[float, float, Cell]]:
    scene = 0
    for seen in tracked:
        scene += seen.cut
        cell = NOTHING
        if seen.landmarks is not None and channels.mouth_boxes(seen.picture, seen.landmarks):
            cell = Cell(seen.picture, seen.landmarks[POINTS].astype(float), scene)
        yield seen.start, seen.stop, cell


def _surrounded(cells: Iterable[Cell | None]) -> Iterator[Sequence[Cell]]:
    """Each cell in the middle of REACH cells before it, which have no picture any more, and as many
    after it.
    """
    held = collections.deque([NOTHING] * REACH, maxlen=2 * REACH + 1)
    for cell in itertools.chain(cells, [NOTHING] * REACH):
        held.append(cell or NOTHING)
        if len(held) == held.maxlen:
            yield list(held)
            held[REACH] = held[REACH]._replace(picture=None)


def _crop(cells: Sequence[Cell]) -> bytes:
    """The JPEG of the middle one of the cells; b"" where its face is out of sight."""
    here = cells[REACH]
    run = [here.points]
    for side in (cells[:REACH][::-1], cells[REACH + 1 :]):
        same = itertools.takewhile(lambda cell: cell.points is not None, side)
        run += [cell.points for cell in same if cell.scene == here.scene]
    points = np.mean(run, axis=0)
    n = len(STABLE)
    points += (here.points[:n] - points[:n]).mean(axis=0)
    rgb = face.warped(here.picture, *aligned(points[:n], points[n:].mean(axis=0)), SIZE, SIZE)
    if rgb is None:
        return b""
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def aligned(stable: np.ndarray, middle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """turn (2, 2) and corner (2,): pixel p of a crop shows the picture at turn @ p + corner.

    stable: STABLE (5, 2) in the picture, which the least-squares similarity takes to MEAN_FACE.
    middle: of the lips, (2,), which comes to the middle of the crop.
    """
    # a similarity is a product with a complex number, and a shift
    here, there = (points[:, 0] + 1j * points[:, 1] for points in (stable, MEAN_FACE))
    here, there = here - here.mean(), there - there.mean()
    back = np.vdot(here, here) / np.vdot(here, there)
    turn = np.array([[back.real, -back.imag], [back.imag, back.real]])
    return turn, middle - turn @ [SIZE / 2, SIZE / 2]


def opened(crops: Sequence[bytes]) -> np.ndarray:
    """(T, 96, 96) uint8 of JPEGs; zeros where there is none."""
    pictures = np.zeros((len(crops), SIZE, SIZE), np.uint8)
    for picture, crop in zip(pictures, crops):
        if crop:
            picture[:] = cv2.imdecode(np.frombuffer(crop, np.uint8), cv2.IMREAD_GRAYSCALE)
    return pictures


@dataclasses.dataclass(frozen=True)
class LipsRow(Row):
    """One clip: a JPEG for each frame, b"" for one without a face; valid (T,) bool, the file's own
    fps. `opened` makes pictures of the JPEGs.

    A clip without crops says why: `reason` in words, `stage` (path, decode, face, worker). notes:
    on damage, which are not written.
    """

    file: str
    fps: float
    crops: Sequence[bytes]
    valid: np.ndarray
    reason: str = ""
    stage: str = ""
    notes: Sequence[str] = ()

    SCHEMA: ClassVar = schema(("crops", pa.list_(pa.binary())), ("valid", pa.list_(pa.bool_())))
    NOTHING: ClassVar = ([], np.zeros(0, bool))
    ROWS_A_GROUP: ClassVar = 4

    @classmethod
    def columns(cls, rows: Sequence[LipsRow], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The rows as columns of SCHEMA. Raises ValueError unless each valid frame has a crop."""
        for row in rows:
            if [bool(crop) for crop in row.crops] != row.valid.tolist():
                raise ValueError(f"{row.file}: its crops are not those of its valid frames")
        return {
            "n_frames": [len(row.valid) for row in rows],
            "crops": [list(row.crops) for row in rows],
            "valid": ragged([row.valid.astype(bool) for row in rows], pa.bool_()),
        }

    @classmethod
    def from_columns(cls, columns: Columns, i: int, settings: Mapping[str, Any]) -> LipsRow:
        """Row i of a row group."""
        crops = columns["crops"][i].as_py()
        return cls(
            crops=crops, valid=values(columns, "valid", i).astype(bool), **common(columns, i)
        )


class LipsExtractor(FaceExtractor):
    """Extracts the mouth crops of one clip after another."""

    row_class = LipsRow

    @staticmethod
    def measure(tracked: face.Tracked) -> dict[str, Any]:
        """crops, JPEGs, and valid (T,) bool."""
        crops, valid = lip_crops(tracked)
        return {"crops": crops, "valid": valid}

    @staticmethod
    def nothing(n_frames: int) -> dict[str, Any]:
        """No crops."""
        return {"crops": [b""] * n_frames, "valid": np.zeros(n_frames, bool)}


class BothRows(NamedTuple):
    """A clip's rows of both kinds that follow a face."""

    mouth: MouthRow
    lips: LipsRow

    @property
    def stage(self) -> str:
        """Where it failed, as of a row."""
        return self.mouth.stage

    @classmethod
    def failed(cls, file: str, stage: str, reason: str) -> BothRows:
        """A clip that gave nothing at all."""
        return cls(*(row.failed(file, stage, reason) for row in (MouthRow, LipsRow)))


class BothExtractor(FaceExtractor):
    """Extracts mouth features and crops in one pass, the same as two would give."""

    row_class = BothRows

    @classmethod
    def row(cls, file: str, about: About, share: float, fields: Sequence[Any]) -> BothRows:
        """The rows of what was measured."""
        extractors = (ClipExtractor, LipsExtractor)
        return BothRows(*(e.row(file, about, share, own) for e, own in zip(extractors, fields)))

    @staticmethod
    def measure(tracked: face.Tracked) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of both kinds. Crops are made as far as the features are, so that few pictures
        are held.
        """
        one, other = itertools.tee(tracked)
        crops, n_shown = [], 0

        def counted() -> face.Tracked:
            nonlocal n_shown
            for seen in other:
                n_shown += 1
                yield seen

        waiting = _crops(counted())

        def in_step() -> face.Tracked:
            for number, seen in enumerate(one, start=1):
                yield seen
                while n_shown < number:
                    crops.append(next(waiting))

        features = ClipExtractor.measure(in_step())
        crops += waiting
        return features, {"crops": crops, "valid": np.array([bool(crop) for crop in crops], bool)}


SETTINGS = {"version": VERSION, "size": SIZE, "quality": QUALITY, "reach": REACH}
KIND = Kind(
    "lips",
    LipsRow,
    clips_per_file=500,
    extraction=functools.partial(face_extraction, "lips", LipsExtractor, SETTINGS),
    arguments=FACE_ARGUMENTS,
)
# both in one pass; its settings are those of each kind, so that shards equal those of two passes
both_extraction = functools.partial(face_extraction, "", BothExtractor, {})
