"""Makes AV-HuBERT features: `klassify extract --kind avhubert`.

They come from the mouth crops of the kind `lips` and the sound of the media; the output is the last
layer, normed. Up to 600 frames (24 s) are one pass; a longer clip is cut into equal pieces. A frame
without a face shows the nearest crop. What follows the published extraction only in kind: the crops
themselves, which are made with another face detector.

AV-HuBERT's licence covers what its weights produce, so that these features are not to be passed on;
klassify prints what it says when it reads the weights.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from klassify.errors import KlassifyError
from klassify.features.audio_cache import no_sound, to_int16
from klassify.features.avhubert import VERSION, AVHubertRow
from klassify.features.base import Extraction, attempt, in_process, media_only
from klassify.features.lips import SIZE, LipsRow, opened
from klassify.features.shards import FeatureStore
from klassify.media import decoder, isolated
from klassify.models.devices import pick_device
from klassify.models.frontends.logfbank import audio_frames
from klassify.models.lip_encoder import CROP, LipEncoder
from klassify.settings import file_hash, settings_hash

ARCHITECTURE = "av-hubert-base"
MOST_FRAMES = 600  # of a pass
CENTRE = slice((SIZE - CROP) // 2, (SIZE + CROP) // 2)  # of the rows and columns of a crop


def extraction(
    list_path: Path,
    *,
    weights: Path | None = None,
    features: Path | None = None,
    device: str | torch.device = "auto",
    jobs: int | None = None,
) -> Extraction:
    """AV-HuBERT features of the clips of a list. weights: a published file; features: the folder of
    the data set's features, with mouth crops of the list.
    """
    if weights is None or features is None:
        raise KlassifyError(
            "--kind avhubert needs --weights FILE and --features FOLDER.",
            fix="make mouth crops first: klassify extract --kind lips",
        )
    crops = FeatureStore(features / "lips" / list_path.stem)
    settings = settings_of(weights, crops.settings)

    def extractor(root: Path) -> Extractor:
        return Extractor(root, load_encoder(weights, device), crops)

    return Extraction(
        "avhubert", settings, media_only, functools.partial(in_process, extractor, jobs)
    )


def settings_of(weights: Path, lips: Mapping[str, Any]) -> dict[str, Any]:
    """What the features depend on: the weights and the settings of the mouth crops."""
    if not weights.is_file():
        raise KlassifyError("This file of weights does not exist.", where=weights)
    return {"version": VERSION, "weights": file_hash(weights)[:16], "lips": settings_hash(lips)}


def load_encoder(weights: Path, device: str | torch.device = "auto") -> LipEncoder:
    """The encoder of a published file, in eval mode."""
    model = LipEncoder(ARCHITECTURE, source=str(weights))
    model.load_pretrained()
    return model.eval().to(pick_device(str(device)))


class Extractor:
    """Features of clips in the order of a list.

    Args:
        root: the folder that clip names are relative to.
        model: with `features`, in eval mode, on the device that is to be used.
        crops: the row of kind `lips` of each clip, such as its shards.
    """

    def __init__(self, root: Path, model: LipEncoder, crops: Mapping[str, LipsRow] | FeatureStore):
        self.root, self.model, self.crops = root, model, crops
        self.device = next(model.parameters()).device

    def rows(self, files: Sequence[str]) -> Iterator[AVHubertRow]:
        """One row for each clip."""
        for file in files:
            yield attempt(AVHubertRow, self.root, file, functools.partial(self.row, file))

    def row(self, file: str, path: Path) -> AVHubertRow:
        """The features of one clip, as long as the shorter stream. Raises KlassifyError."""
        lips = self.crops[file]
        if not lips.valid.any():
            return AVHubertRow.failed(file, "face", lips.reason or "no face")
        wave = isolated.call(decoder.read_audio, path)
        reason = no_sound(to_int16(wave))
        if reason:
            return AVHubertRow.failed(file, "decode", reason)
        video = self._passes(video=shown(lips))
        audio = self._passes(audio=audio_frames(wave))
        n_frames = min(len(video), len(audio))
        return AVHubertRow(file, lips.fps, video[:n_frames], audio[:n_frames])

    def _passes(self, **stream: np.ndarray) -> np.ndarray:
        """(T, C) float16 of one stream (T, ...)."""
        ((name, values),) = stream.items()
        pieces = np.array_split(values, -(-len(values) // MOST_FRAMES))
        with torch.inference_mode():
            found = [
                self.model.features(**{name: torch.from_numpy(piece)[None].to(self.device)})[0]
                for piece in pieces
            ]
        return torch.cat(found).half().cpu().numpy()


def shown(lips: LipsRow) -> np.ndarray:
    """The middle of the crops of a clip, (T, 88, 88) uint8; a frame without one has the nearest."""
    valid = np.flatnonzero(lips.valid)
    middles = (valid[1:] + valid[:-1]) / 2
    nearest = np.searchsorted(middles, np.arange(len(lips.valid)))
    return opened([lips.crops[k] for k in valid])[nearest][:, CENTRE, CENTRE]
