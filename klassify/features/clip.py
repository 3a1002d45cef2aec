"""One clip after another -> its row of features, or the reason why it has none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import cv2

from klassify import media
from klassify.errors import KlassifyError
from klassify.features import face, mouth
from klassify.store import MouthRow

T = TypeVar("T")


def attempt(
    row_class: type,
    root: Path,
    file: str,
    make: Callable[[Path], T],
    *,
    own_stage: str = "features",
) -> T:
    """make(path of the clip); whatever is wrong with the clip becomes a row that says so, and
    raises nothing.

    own_stage: where a KlassifyError of `make` that is no MediaError comes from.
    """
    try:
        path = media.inside(root, file)
    except media.MediaError as error:
        return row_class.failed(file, "path", error.what)
    try:
        return make(path)
    except media.MediaError as error:
        return row_class.failed(file, "decode", error.what)
    except KlassifyError as error:
        return row_class.failed(file, own_stage, error.what)
    except Exception as error:  # native libraries raise what they like; the other clips must go on
        return row_class.failed(file, "features", f"{type(error).__name__}: {error}")


class ClipExtractor:
    """Extracts the mouth features of one clip after another; no clip depends on those before it.

    Args:
        root: the folder that clip names are relative to.
        landmarks: a folder of precomputed landmarks; None runs Face Mesh.
        refine: Face Mesh with refined lips.
    """

    def __init__(self, root: Path, landmarks: Path | None = None, refine: bool = True):
        cv2.setNumThreads(1)  # clips run side by side
        self.root = root
        self._open_source = functools.partial(face.open_source, landmarks, refine=refine)
        self._source = self._open_source()

    def __call__(self, file: str) -> MouthRow:
        """The clip's row; whatever is wrong with the clip is said in the row and raises nothing."""
        row = attempt(
            MouthRow,
            self.root,
            file,
            functools.partial(self._features, file),
            own_stage="landmarks",
        )
        if row.stage == "features":
            self._source = self._open_source()
        return row

    def _features(self, file: str, path: Path) -> MouthRow:
        fps = media.probe(path).fps
        tracked = self._source.track(file, media.iter_frames(path))
        features, valid = mouth.mouth_features(face.fill_gaps(tracked))
        if not len(valid):
            return MouthRow.failed(file, "decode", "no frames")
        reason, stage = ("", "") if valid.any() else ("no face", "face")
        return MouthRow(file, fps, features, valid, reason, stage)


def extract_clip(extractor: ClipExtractor, file: str) -> MouthRow:
    """The task of a worker process, whose state is an extractor."""
    return extractor(file)
