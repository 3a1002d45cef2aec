"""AV-HuBERT's view of mouth and of sound as features, each from a pass without the other stream.

AuViRe reads them. They come from the mouth crops of the kind `lips` and the sound of the media; the
output is the last layer, normed, 25 a second. Up to 600 frames (24 s) are one pass; a longer clip
is cut into equal pieces. A frame without a face shows the nearest crop. What follows the published
extraction only in kind: the crops themselves, which are made with another face detector.

A clip of 10 s is 0.77 MB. AV-HuBERT's licence covers what its weights produce, so that these
features are not to be passed on; klassify prints what it says when it reads the weights.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from klassify.errors import KlassifyError
from klassify.features.audio_cache import NO_AUDIO
from klassify.features.base import (
    MODEL_ARGUMENTS,
    Columns,
    Extraction,
    Kind,
    attempt,
    common,
    in_process,
    media_only,
    schema,
)
from klassify.media import decoder, isolated
from klassify.settings import file_hash, settings_hash

if TYPE_CHECKING:
    import torch

    from klassify.models.lip_encoder import LipEncoder

VERSION = 1  # raise when features of the same weights change: it is part of the shards' settings
ARCHITECTURE = "av-hubert-base"
MOST_FRAMES = 600  # of a pass
CENTRE = slice(4, 92)  # of the 96 rows and columns of a crop


def extraction(
    *,
    weights: Path | None = None,
    lips: Path | None = None,
    device: str | torch.device = "auto",
    jobs: int | None = None,
) -> Extraction:
    """AV-HuBERT features. weights: a published file; lips: the folder of the split's crops."""
    if weights is None or lips is None:
        raise KlassifyError(
            "--kind avhubert needs --weights FILE and --lips FOLDER.",
            fix="make the crops first: klassify extract --kind lips",
        )
    from klassify.features.shards import FeatureStore
    from klassify.models.devices import pick_device
    from klassify.models.lip_encoder import LipEncoder

    if not weights.is_file():
        raise KlassifyError("This file of weights does not exist.", where=weights)
    crops = FeatureStore(lips)
    settings = {
        "version": VERSION,
        "weights": file_hash(weights)[:16],
        "lips": settings_hash(crops.settings),
    }

    def extractor(root: Path) -> Extractor:
        model = LipEncoder(ARCHITECTURE, source=str(weights))
        model.load_pretrained()
        return Extractor(root, model.eval().to(pick_device(str(device))), crops)

    return Extraction(
        "avhubert", settings, media_only, functools.partial(in_process, extractor, jobs)
    )


class Extractor:
    """Features of clips in the order of a list.

    Args:
        root: the folder that clip names are relative to.
        model: with `features`, in eval mode, on the device that is to be used.
        crops: the shards of kind `lips`.
    """

    def __init__(self, root: Path, model: LipEncoder, crops: Any):
        self.root, self.model, self.crops = root, model, crops
        self.device = next(model.parameters()).device

    def rows(self, files: Sequence[str]) -> Iterator[AVHubertRow]:
        """One row for each clip."""
        for file in files:
            yield attempt(
                AVHubertRow, self.root, file, lambda path, file=file: self.row(file, path)
            )

    def row(self, file: str, path: Path) -> AVHubertRow:
        """The features of one clip, as long as the shorter stream. Raises KlassifyError."""
        from klassify.models.frontends.logfbank import audio_frames

        lips = self.crops[file]
        if not lips.valid.any():
            return AVHubertRow.failed(file, "face", lips.reason or "no face")
        wave = isolated.call(decoder.read_audio, path)
        if not len(wave):
            return AVHubertRow.failed(file, "decode", NO_AUDIO)
        video = self._passes(video=shown(lips))
        audio = self._passes(audio=audio_frames(wave))
        n_frames = min(len(video), len(audio))
        return AVHubertRow(file, lips.fps, video[:n_frames], audio[:n_frames])

    def _passes(self, **stream: np.ndarray) -> np.ndarray:
        """(T, C) float16 of one stream (T, ...)."""
        import torch

        ((name, values),) = stream.items()
        pieces = np.array_split(values, -(-len(values) // MOST_FRAMES))
        with torch.inference_mode():
            found = [
                self.model.features(**{name: torch.from_numpy(piece)[None].to(self.device)})[0]
                for piece in pieces
            ]
        return torch.cat(found).half().cpu().numpy()


def shown(lips: Any) -> np.ndarray:
    """The middle of the crops of a clip, (T, 88, 88) uint8; a frame without one has the nearest."""
    from klassify.features.lips import opened

    valid = np.flatnonzero(lips.valid)
    middles = (valid[1:] + valid[:-1]) / 2
    nearest = np.searchsorted(middles, np.arange(len(lips.valid)))
    return opened([lips.crops[k] for k in valid])[nearest][:, CENTRE, CENTRE]


@dataclasses.dataclass(frozen=True)
class AVHubertRow:
    """One clip: video and audio (T, C) float16, 25 frames a second. fps: of the file.

    A clip without features has T = 0, and `reason` in words with its `stage`.
    """

    file: str
    fps: float
    video: np.ndarray
    audio: np.ndarray
    reason: str = ""
    stage: str = ""

    SCHEMA: ClassVar = schema(("video", pa.binary()), ("audio", pa.binary()))
    ROWS_A_GROUP: ClassVar = 1  # a random read takes one clip
    KEPT_GROUPS: ClassVar = 16
    SPLIT_BYTES: ClassVar = ()

    @classmethod
    def failed(cls, file: str, stage: str, reason: str) -> AVHubertRow:
        """A clip that gave nothing at all."""
        nothing = np.zeros((0, 0), np.float16)
        return cls(file, 0.0, nothing, nothing, reason, stage)

    @classmethod
    def columns(cls, rows: Sequence[AVHubertRow], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The rows as columns of SCHEMA. Raises ValueError for streams of different shapes and for
        NaN.
        """
        for row in rows:
            if row.video.shape != row.audio.shape or not np.isfinite(row.video + row.audio).all():
                raise ValueError(
                    f"{row.file}: video {row.video.shape} and audio {row.audio.shape}, or not"
                    " finite"
                )
        return {"n_frames": [len(row.video) for row in rows]} | {
            name: [getattr(row, name).astype(np.float16).tobytes() for row in rows]
            for name in ("video", "audio")
        }

    @classmethod
    def from_columns(cls, columns: Columns, i: int, settings: Mapping[str, Any]) -> AVHubertRow:
        """Row i of a row group."""
        n_frames = columns["n_frames"][i].as_py()
        streams = {
            name: np.frombuffer(columns[name][i].as_buffer(), np.float16).reshape(n_frames, -1)
            if n_frames
            else np.zeros((0, 0), np.float16)
            for name in ("video", "audio")
        }
        return cls(**streams, **common(columns, i))


KIND = Kind(
    "avhubert",
    AVHubertRow,
    clips_per_file=200,
    extraction=extraction,
    arguments={
        "--weights": {"type": Path, "metavar": "FILE", "help": "AV-HuBERT, base_lrs3_iter4.pt"},
        "--lips": {"type": Path, "metavar": "FOLDER", "help": "mouth crops of the same list"},
        "--device": MODEL_ARGUMENTS["--device"],
    },
)
