"""Embeddings of clips by a trained frame encoder: `klassify extract --kind embedding`.

An encoder fits the clips that it learned from better than others, and a head that learns from such
embeddings trusts them too much. With a second encoder, trained on the other half of the sources
(`train_fold1`, `train_fold2`), each training clip is embedded by the one that has not learned from
it. All other clips are embedded by the first encoder: a mean of the two would lie in neither's
space, while the head knows the first one's from half of its training clips. Encoders that start
from the same weights (the same seed) have spaces that are close.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from klassify.data.audio import AudioClips
from klassify.data.audio_shares import AudioShares
from klassify.data.base import FrameData, NoAnswer, Sources
from klassify.data.lips import LipCrops, LipFrames
from klassify.data.mouth import MouthFeatures, MouthTags
from klassify.errors import KlassifyError
from klassify.features import shards
from klassify.features.base import Extraction, attempt, in_process, media_only
from klassify.features.embedding import VERSION, EmbeddingRow
from klassify.lists import subsets
from klassify.models.devices import pick_device
from klassify.parts import Place
from klassify.scores.inference import clip_frames
from klassify.scores.score_file import strongest
from klassify.systems.experiment import CONFIG, load_experiment
from klassify.systems.system import EMBEDDING, load_system
from klassify.systems.trained import Trained

# the classes that cut clips into frames for encoders that were trained on whole clips
FRAMES = {AudioClips: AudioShares, MouthFeatures: MouthTags, LipCrops: LipFrames}
LARGEST = 6e4  # that float16 holds


def extraction(
    list_path: Path,
    *,
    system: Path | None = None,
    fold: Path | None = None,
    features: Path | None = None,
    device: str | torch.device = "auto",
    jobs: int | None = None,
) -> Extraction:
    """The embeddings of the clips of a list by a trained system.

    fold: a system that embeds the clips that `system` learned from. features: the folder of the
    features that the encoder reads, if any.
    """
    if system is None:
        raise KlassifyError(
            "--kind embedding needs --system SYSTEM_DIR.",
            fix="train an encoder first: make stage2 recipe=fused system=audio_frames",
        )
    encoders = [_encoder(folder) for folder in (system, fold) if folder]
    learned = [_learned_from(encoder, list_path) for encoder in encoders]
    if fold and (both := learned[0] & learned[1]):
        raise KlassifyError(
            f"{len(both)} clips are in the training of both encoders, such as {min(both)}.",
            where=fold,
            fix="train one with data.init_args.train_split=train_fold1, the other with train_fold2",
        )
    data = frame_data(encoders[0])

    def extractor(root: Path) -> Embedder:
        sources = Sources(list_path.parent, root, features or Path())
        on = pick_device(str(device))
        loaded = [_Encoder(one.load()[0], data, sources, list_path.stem, on) for one in encoders]
        return Embedder(root, loaded, learned[0] if fold else set())

    rows = functools.partial(in_process, extractor, jobs)
    return Extraction("embedding", _settings(encoders, data), media_only, rows)


def _settings(encoders: Sequence[Trained], data: FrameData) -> dict[str, Any]:
    """What embeddings depend on; encoders: one, or one and that of the other fold."""
    return {
        "version": VERSION,
        "system": encoders[0].name,
        "hash": encoders[0].hash,
        "fold": encoders[1].hash if len(encoders) > 1 else None,
        "hop_s": data.hop_s,
        "offset_s": data.offset_s,
        "dim": _on_meta(encoders[0]).embedding_dim,
        "supervision": strongest(encoder.supervision for encoder in encoders),
    }


def write_embeddings(
    system: Trained, model: Any, sources: Sources, split: str, *, device: str | torch.device
) -> None:
    """Write the feature shards of a split, of a few clips, by an encoder that is already loaded."""
    data, root = frame_data(system), sources.media_folder(split)
    encoder = _Encoder(model, data, sources, split, pick_device(str(device)))
    rows = list(Embedder(root, [encoder], set()).rows(sources.table(split)["file"].tolist()))
    folder = sources.feature_folder(f"{EMBEDDING}{system.name}", split)
    settings = {"kind": "embedding", **_settings([system], data)}
    shards.write_part(folder, Place(1, 1, 0, 1), rows, settings, inputs="")


def _encoder(folder: Path) -> Trained:
    system = load_system(folder)
    if not isinstance(system, Trained) or not hasattr(_on_meta(system), "embedding"):
        raise KlassifyError(
            f"{system.name} is not a frame encoder.",
            where=folder,
            fix="use one that is, such as audio_frames or tcn_tags",
        )
    return system


def _on_meta(system: Trained) -> torch.nn.Module:
    """Its model without any memory."""
    with torch.device("meta"):
        return load_experiment(system.folder / CONFIG).model


def frame_data(system: Trained) -> FrameData:
    """What cuts clips into frames for an encoder: what it was trained from, if that has frames."""
    data = system.data()
    return data if isinstance(data, FrameData) else FRAMES[type(data)]()


def _learned_from(system: Trained, list_path: Path) -> set[str]:
    """The clips of the list that the system was trained on."""
    split = system.data().train_split
    if subsets.base_split(split) != list_path.stem:
        return set()
    return set(subsets.load_split(list_path.parent, split)["file"])


class _Encoder:
    """A loaded model, and the data class that cuts clips into windows of frames for it."""

    def __init__(
        self, model: Any, data: FrameData, sources: Sources, split: str, device: torch.device
    ):
        self.model, self.device = model.to(device), device
        self.data, self.reader = data, data.reader(sources, split)

    def row(self, file: str) -> EmbeddingRow:
        """The embedding of a clip. Raises NoAnswer and KlassifyError."""
        clip = self.reader.read(file)
        cut = self.data.cut(clip)
        rows = clip_frames(self.model, _Embeddings(self.data), cut, device=self.device)[:, 2:]
        valid = self.data.valid_frames(clip, len(rows))
        values = np.clip(rows, -LARGEST, LARGEST).astype(np.float16)
        return EmbeddingRow(file, 1 / self.data.hop_s, values, valid)


class _Embeddings:
    """A frame data class whose outputs are embeddings instead of scores."""

    def __init__(self, data: FrameData):
        self.data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def outputs(self, model: Any, batch: dict[str, torch.Tensor]) -> np.ndarray:
        """The embedding of each frame of a batch, (B, T, D)."""
        return model.embedding(batch).float().cpu().numpy()

    join = FrameData.join


class Embedder:
    """Makes rows in the order of a list, of each clip with an encoder that has not seen it."""

    def __init__(self, root: Path, encoders: Sequence[_Encoder], learned: set[str]):
        self.root, self.encoders, self.learned = root, encoders, learned

    @torch.inference_mode()
    def rows(self, files: Sequence[str]) -> Iterator[EmbeddingRow]:
        """One row for each clip."""
        for file in files:
            encoder = self.encoders[file in self.learned]
            yield attempt(EmbeddingRow, self.root, file, lambda _, e=encoder, f=file: _row(e, f))


def _row(encoder: _Encoder, file: str) -> EmbeddingRow:
    try:
        return encoder.row(file)
    except NoAnswer as error:
        return EmbeddingRow.failed(file, "input", str(error))
