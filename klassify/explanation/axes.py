"""How a clip is taken apart: into pieces of time, bands of frequency, features, or squares of the
picture, and what the clip is without some of them.

| input | over | what replaces a hidden part |
|---|---|---|
| sound | time | silence, faded in and out |
| sound | frequency | nothing: a band-stop |
| mouth features | time, features | the mean over the training clips |
| mouth crops | time | a frame without a face |
| mouth crops, frames | picture | the mean of the square over the window, or the clip |
| embeddings | time, modalities | frames without a face, or without sound |
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import uniform_filter1d
from torch import Tensor, nn

from klassify.data.audio import AudioClips
from klassify.data.av_embeddings import HOP_S, STREAMS, AVEmbeddings
from klassify.data.base import ClipData, Window
from klassify.data.lips import LipCrops
from klassify.data.mouth import MouthFeatures
from klassify.data.sync import SyncEmbeddings
from klassify.data.visual import VisualClip, VisualWindows
from klassify.explanation.contributions import MODALITIES
from klassify.features.mouth.channels import FEATURES
from klassify.grid.frames import FRAME_S
from klassify.media.decoder import SAMPLE_RATE

PIECE_S = 0.08  # two frames
MOST_PIECES = 150  # of a clip: those of longer ones are longer
FADE = 160  # samples
BANDS_HZ = (0, 150, 350, 600, 900, 1300, 1750, 2350, 3050, 3950, 5000, 6350, 8000)  # mel scale
FADE_HZ = 20.0  # at the edges of a band
CELLS = 8  # squares a side of a picture


@dataclasses.dataclass(frozen=True)
class Axis:
    """The parts of a clip in one respect, and the clip without some of them.

    without: takes (n,) bool, which parts are hidden, and gives what the clip's `cut` would: windows
    to score, none where nothing is left to score. edges: (n + 1,) of the parts, in seconds or Hz.
    names: (n,) of parts without edges.
    """

    over: str
    without: Callable[[np.ndarray], list[Any]]
    edges: np.ndarray | None = None
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names) if self.edges is None else len(self.edges) - 1


def axes_of(data: ClipData, model: nn.Module, clip: Any) -> dict[str, Axis]:
    """The axes of a clip that the data class's reader returned; {} for data that is not known."""
    for kind, make in AXES.items():
        if isinstance(data, kind):
            return {axis.over: axis for axis in make(data, model, clip)}
    return {}


def pieces(end_s: float) -> np.ndarray:
    """Edges (n + 1,) of the pieces of time of a clip, in seconds."""
    longest = max(PIECE_S, math.ceil(end_s / MOST_PIECES / PIECE_S) * PIECE_S)
    edges = np.arange(max(math.ceil(end_s / longest - 1e-6), 1) + 1) * longest
    edges[-1] = max(end_s, edges[-2] + 1e-3)
    return edges


def _at(edges: np.ndarray, hidden: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """Whether each of these times is in a piece that is hidden."""
    place = np.searchsorted(edges, times_s, side="right") - 1
    return hidden[np.clip(place, 0, len(hidden) - 1)]


def _sound(data: AudioClips, model: nn.Module, clip: Any) -> list[Axis]:
    wave = clip[:]
    edges = pieces(len(wave) / SAMPLE_RATE)
    times = np.arange(len(wave)) / SAMPLE_RATE
    spectrum, frequencies = np.fft.rfft(wave), np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    bands = np.array(BANDS_HZ, float)
    size = max(round(FADE_HZ * len(wave) / SAMPLE_RATE), 1)

    def without_time(hidden: np.ndarray) -> list[Window]:
        heard = 1.0 - _at(edges, hidden, times)
        return data.cut((wave * uniform_filter1d(heard, FADE)).astype(np.float32))

    def without_bands(hidden: np.ndarray) -> list[Window]:
        kept = uniform_filter1d(1.0 - _at(bands, hidden, frequencies), size, mode="nearest")
        return data.cut(np.fft.irfft(spectrum * kept, len(wave)).astype(np.float32))

    return [Axis("time", without_time, edges), Axis("frequency", without_bands, bands)]


def _mouth(data: MouthFeatures, model: nn.Module, clip: dict[str, Tensor]) -> list[Axis]:
    features, neutral = clip["features"], baseline(model, clip["features"])
    edges = pieces(len(features) * FRAME_S)
    times = (np.arange(len(features)) + 0.5) * FRAME_S
    groups = features_of(data)

    def without_time(hidden: np.ndarray) -> list[Window]:
        there = torch.from_numpy(_at(edges, hidden, times))
        return data.cut(clip | {"features": torch.where(there[:, None], neutral, features)})

    def without_features(hidden: np.ndarray) -> list[Window]:
        gone = torch.from_numpy(np.tile(hidden, 2))  # a feature and its difference
        return data.cut(clip | {"features": torch.where(gone, neutral, features)})

    return [Axis("time", without_time, edges), Axis("features", without_features, names=groups)]


def features_of(data: MouthFeatures) -> tuple[str, ...]:
    """The names of the mouth features that a data class reads."""
    return tuple(FEATURES[column] for column in data.channels[: len(data.channels) // 2])


def baseline(model: nn.Module, features: Tensor) -> Tensor:
    """(C,) the features of a clip that has nothing special: means over the training clips."""
    if getattr(model, "normalise", False):
        return model.mean.detach().to(features)
    return torch.zeros_like(features[0])


def _crops(data: LipCrops, model: nn.Module, clip: Any) -> list[Axis]:
    cut = data.cut(clip)
    edges = pieces(len(clip.valid) * FRAME_S)

    def without_time(hidden: np.ndarray) -> list[Window]:
        found = [_masked(window, edges, hidden, {"valid": FRAME_S}) for window in cut]
        return [one for one in found if data.unit == "frame" or one.inputs["valid"].any()]

    def without_squares(hidden: np.ndarray) -> list[Window]:
        return [without_cells(window, hidden) for window in cut]

    squares = Axis("picture", without_squares, names=_cell_names())
    return [Axis("time", without_time, edges), squares]


def without_cells(window: Window, hidden: np.ndarray) -> Window:
    """A window of mouth crops with squares, (CELLS^2,) bool, replaced by their means over time."""
    crops = window.inputs["crops"]
    mean = crops.float().mean(dim=0).round().to(crops.dtype)
    gone = torch.from_numpy(hidden[cells_of(crops.shape[1:])])
    return _replaced(window, {"crops": torch.where(gone, mean, crops)})


def cells_of(size: Sequence[int]) -> np.ndarray:
    """The number of the square that each pixel of a picture lies in."""
    row, column = (np.arange(n) * CELLS // n for n in size)
    return row[:, None] * CELLS + column


def _cell_names() -> tuple[str, ...]:
    return tuple(f"row {row} column {column}" for row in range(CELLS) for column in range(CELLS))


def _replaced(window: Window, inputs: dict[str, Tensor]) -> Window:
    return dataclasses.replace(window, inputs=window.inputs | inputs)


def _masked(
    window: Window, edges: np.ndarray, hidden: np.ndarray, hops: dict[str, float]
) -> Window:
    """A window with hidden pieces of time marked as not valid. hops: seconds per frame of each
    mask.
    """
    masks = {}
    for name, hop_s in hops.items():
        mask = window.inputs[name]
        times = window.start_s + (np.arange(len(mask)) + 0.5) * hop_s
        masks[name] = mask & ~torch.from_numpy(_at(edges, hidden, times))
    return _replaced(window, masks)


def _pair(data: SyncEmbeddings, model: nn.Module, clip: dict[str, Tensor]) -> list[Axis]:
    cut, edges = data.cut(clip), pieces(len(clip["visual"]) * FRAME_S)
    hops = {"audio_valid": FRAME_S, "visual_valid": FRAME_S}

    def without_time(hidden: np.ndarray) -> list[Window]:
        found = [_masked(window, edges, hidden, hops) for window in cut]
        return [w for w in found if (w.inputs["audio_valid"] & w.inputs["visual_valid"]).any()]

    return [Axis("time", without_time, edges)]


def _streams(data: AVEmbeddings, model: nn.Module, clip: dict[str, Any]) -> list[Axis]:
    cut = data.cut(clip)
    edges = pieces(max(window.end_s for window in cut))
    hops = {f"{name}_valid": frames * HOP_S for name, frames in STREAMS.items()}
    there = [name for name in STREAMS if len(clip[name].valid)]

    def without_time(hidden: np.ndarray) -> list[Window]:
        return [_masked(window, edges, hidden, hops) for window in cut]

    def without_streams(hidden: np.ndarray) -> list[Window]:
        gone = [name for name, is_hidden in zip(there, hidden) if is_hidden]
        keys = [key for name in gone for key in (name, f"{name}_valid")]
        return [_replaced(w, {key: torch.zeros_like(w.inputs[key]) for key in keys}) for w in cut]

    names = tuple(MODALITIES[name] for name in there)
    return [Axis("time", without_time, edges), Axis("modalities", without_streams, names=names)]


def _frames(data: VisualWindows, model: nn.Module, clip: VisualClip) -> list[Axis]:
    frames = clip.frames(0, clip.n_frames)
    mean = frames.mean(axis=0).round().astype(np.uint8)
    edges = pieces(clip.n_frames * FRAME_S)
    times = (np.arange(clip.n_frames) + 0.5) * FRAME_S
    cells = cells_of(frames.shape[1:3])

    def changed(gone: np.ndarray) -> list[VisualClip]:
        held = np.where(gone[..., None], mean, frames)
        return [dataclasses.replace(clip, held=held, codes=None)]

    def without_time(hidden: np.ndarray) -> list[VisualClip]:
        return changed(_at(edges, hidden, times)[:, None, None])

    def without_cells(hidden: np.ndarray) -> list[VisualClip]:
        return changed(hidden[cells][None])

    return [Axis("time", without_time, edges), Axis("picture", without_cells, names=_cell_names())]


AXES: dict[type[ClipData], Callable[[Any, nn.Module, Any], list[Axis]]] = {
    AudioClips: _sound,
    MouthFeatures: _mouth,
    LipCrops: _crops,
    SyncEmbeddings: _pair,
    AVEmbeddings: _streams,
    VisualWindows: _frames,
}
