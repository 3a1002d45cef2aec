"""One clip -> its row of mouth features, or the reason why it has none."""

from __future__ import annotations

import functools
from pathlib import Path

import cv2

from klassify import media
from klassify.errors import KlassifyError
from klassify.features import face, mouth
from klassify.store import MouthRow


class ClipExtractor:
    """Extracts one clip after another with one landmark source; no clip depends on those before it.

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
        try:
            path = media.inside(self.root, file)
        except media.MediaError as error:
            return MouthRow.failed(file, "path", error.what)
        try:
            return self._features(file, path)
        except media.MediaError as error:
            return MouthRow.failed(file, "decode", error.what)
        except KlassifyError as error:
            return MouthRow.failed(file, "landmarks", error.what)
        except Exception as error:  # native libraries raise what they like; the other clips must go on
            self._source = self._open_source()
            return MouthRow.failed(file, "features", f"{type(error).__name__}: {error}")

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
