"""The mouth features as a kind: row, settings and extractor."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa

from klassify.arguments import between_0_and_1
from klassify.errors import KlassifyError
from klassify.features.base import (
    MODEL_ARGUMENTS,
    Columns,
    Extraction,
    Kind,
    Row,
    attempt,
    common,
    in_workers,
    in_workers_together,
    ragged,
    schema,
    values,
)
from klassify.features.mouth import channels, face
from klassify.media import decoder

MIN_FACE_SHARE = 0.1
CLIPS_TOGETHER = 8  # that a process takes at a time, by default, with the networks in torch


def face_extraction(
    kind: str,
    extractor: type[FaceExtractor],
    settings: dict[str, Any],
    *,
    landmarks: Path | str | None = None,
    refine: bool = True,
    min_face_share: float = MIN_FACE_SHARE,
    device: str | None = None,
    batch: int | None = None,
    jobs: int | None = None,
) -> Extraction:
    """The extraction of a kind that follows a face, by Face Mesh (face.TORCH: in torch) or in
    `landmarks`, a folder of <file>.npz.

    settings: the kind's own, to which those of the face are added. min_face_share: of a clip's
    frames, in which a face must be seen; 0 takes any clip with a face. device, batch: of torch, and
    the clips that a process takes at a time.
    """
    if landmarks != face.TORCH and not device is batch is None:
        raise KlassifyError(
            "--device and --batch belong to --landmarks torch; MediaPipe uses the CPU alone.",
            fix="--landmarks torch",
        )
    settings = settings | {
        "fps": decoder.GRID_FPS,
        "max_gap_frames": face.MAX_GAP_FRAMES,
        "min_face_share": min_face_share,
        **face.source_settings(landmarks, refine=refine),
    }

    def inputs(root: Path, file: str) -> list[Path]:
        if landmarks in (None, face.TORCH):
            return [root / file]
        return [root / file, landmarks / PurePosixPath(file).with_suffix(".npz")]

    how = {"landmarks": landmarks, "refine": refine, "min_face_share": min_face_share}
    row_class = extractor.row_class
    if landmarks == face.TORCH:
        setup = functools.partial(extractor, device=device or "auto", **how)
        clips = batch or CLIPS_TOGETHER
        given = row_class, FaceExtractor.together, setup, jobs, clips
        rows = functools.partial(in_workers_together, *given)
    else:
        setup = functools.partial(extractor, **how)
        rows = functools.partial(in_workers, row_class, FaceExtractor.__call__, setup, jobs)
    return Extraction(kind, settings, inputs, rows)


class FaceExtractor:
    """Extracts what the followed face shows, one clip after another; no clip depends on those
    before it.

    Args:
        root: the folder that clip names are relative to.
        landmarks: a folder of precomputed landmarks; None runs Face Mesh, face.TORCH runs it in
            torch.
        refine: Face Mesh with refined lips.
        min_face_share: of a clip's frames, in which a face must be seen.
        device: that torch uses.
    """

    row_class: type

    def __init__(
        self,
        root: Path,
        landmarks: Path | str | None = None,
        refine: bool = True,
        min_face_share: float = MIN_FACE_SHARE,
        device: str = "auto",
    ):
        cv2.setNumThreads(1)  # clips run side by side
        self.root, self._min_face_share = root, min_face_share
        self._networks = None
        if landmarks == face.TORCH:
            import torch

            from klassify.features.mouth.by_torch import Networks
            from klassify.models.devices import keep_freed_blocks

            torch.set_num_threads(1)
            keep_freed_blocks()
            self._networks = Networks(refine, device)
            return
        self._open_source = functools.partial(face.open_source, landmarks, refine=refine)
        self._source = self._open_source()

    def __call__(self, file: str) -> Any:
        """The clip's row; whatever is wrong with the clip is said in the row and raises nothing."""
        if self._networks is not None:
            return self.together([file])[0]
        row = self._attempt(self._source, file)
        if row.stage == "features":
            self._source = self._open_source()
        return row

    def together(self, files: Sequence[str]) -> list[Any]:
        """The rows of clips, whose faces the networks in torch follow together."""
        return self._networks.track_each(self._attempt, files)

    def _attempt(self, source: face.LandmarkSource, file: str) -> Any:
        make = functools.partial(self._row, source, file)
        return attempt(self.row_class, self.root, file, make, own_stage="landmarks")

    def _row(self, source: face.LandmarkSource, file: str, path: Path) -> Any:
        about = decoder.About()
        tracked = face.fill_gaps(source.track(file, decoder.pictures(path, about)))
        fields = self.measure(tracked)  # first: `about` is complete once all is decoded
        return self.row(file, about, self._min_face_share, fields)

    @classmethod
    def row(cls, file: str, about: decoder.About, share: float, fields: Any) -> Any:
        """The row of what was measured; without features where less than `share` shows a face."""
        valid, made = fields["valid"], cls.row_class
        if not len(valid):
            return dataclasses.replace(made.failed(file, "decode", "no frames"), notes=about.notes)
        reason = too_little(valid, share)
        if reason:
            fields = cls.nothing(len(valid))
        told = {"reason": reason, "stage": "face" if reason else "", "notes": about.notes}
        return made(file=file, fps=about.fps, **told, **fields)

    @staticmethod
    def measure(tracked: face.Tracked) -> Any:
        """The row's fields of each frame on the 25 fps grid, among them valid (T,) bool."""
        raise NotImplementedError

    @staticmethod
    def nothing(n_frames: int) -> dict[str, Any]:
        """The same of frames without a face."""
        raise NotImplementedError


def too_little(valid: np.ndarray, share: float) -> str:
    """Why a clip's face is seen too little for an answer, from valid (T,); empty if it is not.

    Needed are a share of the frames and 1 s, or half of a clip that is shorter than 2 s.
    """
    seen, n = int(valid.sum()), len(valid)
    if not seen:
        return "no face"
    needed = max(share * n, min(decoder.GRID_FPS, n / 2)) if share else 0
    if seen >= needed:
        return ""
    return f"a face in {seen} of {n} frames ({seen / n:.1%}), {math.ceil(needed)} are needed"


CHANNELS = 8


@dataclasses.dataclass(frozen=True)
class MouthRow(Row):
    """One clip: features (T, 8) float32, valid (T,) bool, the file's own fps.

    A clip without usable features says why: `reason` in words, `stage` (path, decode, face,
    worker). boxes: (T, 4) float32, x0, y0, x1, y1 in pixels around the landmarks; None in shards
    that were written without them. notes: on damage, which are not written.
    """

    file: str
    fps: float
    features: np.ndarray
    valid: np.ndarray
    reason: str = ""
    stage: str = ""
    boxes: np.ndarray | None = None
    notes: Sequence[str] = ()

    SCHEMA: ClassVar = schema(
        ("features", pa.list_(pa.float32())),
        ("valid", pa.list_(pa.bool_())),
        ("boxes", pa.list_(pa.float32())),
    )
    NOTHING: ClassVar = (np.zeros((0, CHANNELS), np.float32), np.zeros(0, bool))
    ROWS_A_GROUP: ClassVar = 16
    KEPT_GROUPS: ClassVar = 64
    SPLIT_BYTES: ClassVar = ("features.list.element", "boxes.list.element")

    @classmethod
    def columns(cls, rows: Sequence[MouthRow], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The rows as columns of SCHEMA. ValueError for wrong shapes and NaN."""
        for row in rows:
            if (
                row.features.shape != (len(row.valid), CHANNELS)
                or not np.isfinite(row.features).all()
            ):
                raise ValueError(
                    f"{row.file}: features {row.features.shape} for {len(row.valid)} frames, or not"
                    " finite"
                )
        return {
            "n_frames": [len(row.valid) for row in rows],
            "features": ragged(
                [row.features.astype(np.float32).ravel() for row in rows], pa.float32()
            ),
            "valid": ragged([row.valid.astype(bool) for row in rows], pa.bool_()),
            "boxes": [None if row.boxes is None else row.boxes.ravel() for row in rows],
        }

    @classmethod
    def from_columns(cls, columns: Columns, i: int, settings: Mapping[str, Any]) -> MouthRow:
        """Row i of a row group."""
        boxes = None
        if "boxes" in columns and columns["boxes"][i].is_valid:
            boxes = values(columns, "boxes", i).reshape(-1, 4).copy()
        return cls(
            features=values(columns, "features", i).reshape(-1, CHANNELS).copy(),
            valid=values(columns, "valid", i).astype(bool),
            boxes=boxes,
            **common(columns, i),
        )


class ClipExtractor(FaceExtractor):
    """Extracts the mouth features of one clip after another."""

    row_class = MouthRow

    @staticmethod
    def measure(tracked: face.Tracked) -> dict[str, np.ndarray]:
        """features (T, 8) float32, valid (T,) bool and boxes (T, 4) float32."""
        features, valid, boxes = channels.mouth_features(tracked)
        return {"features": features, "valid": valid, "boxes": boxes}

    @staticmethod
    def nothing(n_frames: int) -> dict[str, np.ndarray]:
        """Zeros."""
        features, boxes = np.zeros((n_frames, CHANNELS), np.float32), np.zeros((n_frames, 4))
        return {"features": features, "valid": np.zeros(n_frames, bool), "boxes": boxes}


def _source_named(text: str) -> Path | str | None:
    """What --landmarks means; a folder of such a name is written ./torch."""
    return {"mediapipe": None, face.TORCH: face.TORCH}.get(text, Path(text))


FACE_ARGUMENTS = {  # of every kind that follows a face
    "--landmarks": {
        "type": _source_named,
        "metavar": "SOURCE",
        "help": "mediapipe (the default), torch (the same networks, many clips at a time), or a"
        " folder DIR of <DIR>/<file>.npz",
    },
    "--refine": {
        "action": argparse.BooleanOptionalAction,
        "help": "Face Mesh with refined lips and irises (the default)",
    },
    "--min-face-share": {
        "type": between_0_and_1,
        "metavar": "SHARE",
        "help": "least share of a clip's frames with a face (default: 0.1)",
    },
    **MODEL_ARGUMENTS,
}
KIND = Kind(
    "mouth",
    MouthRow,
    clips_per_file=2000,
    extraction=functools.partial(
        face_extraction, "mouth", ClipExtractor, {"version": channels.VERSION}
    ),
    arguments=FACE_ARGUMENTS,
)
