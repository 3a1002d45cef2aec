"""Grad-CAM (Selvaraju et al., 2017) of models that look at pictures: which parts of them raise the
score.

The channels of a convolutional layer are weighted by the mean gradient of the score in them, and
summed; what is negative counts as 0. Of several windows, the one that decides is explained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from klassify.data.lips import LipCrops
from klassify.data.visual import VisualClip, VisualWindows
from klassify.explanation.answering import Answering
from klassify.grid.frames import FRAME_S
from klassify.models.lips import LipDetector
from klassify.models.visual import Visual

FINEST = 5  # squares a side that a layer must have: a later one has seen more, but is coarser


class Map(NamedTuple):
    """values: (rows, columns), summing to 1, or 0 where nothing raises the score. frame_s: the
    time of the frame that counts most; image: that frame, uint8.
    """

    values: np.ndarray
    frame_s: float
    image: np.ndarray


def grad_cam(answering: Answering, clip: Any) -> Map | None:
    """The map of a clip that the data class's reader returned; None for a model that does not look
    at pictures, or where no window has a face.
    """
    data, model = answering.data, answering.model
    if isinstance(data, LipCrops) and isinstance(model, LipDetector):
        return _of_crops(answering, data.cut(clip))
    if isinstance(data, VisualWindows) and isinstance(model, Visual):
        return _of_frames(answering, clip)
    return None


def _of_crops(answering: Answering, cut: Sequence[Any]) -> Map | None:
    cut = [window for window in cut if window.inputs["valid"].any()]
    if not cut:
        return None
    model, device = answering.model, answering.device
    batches = [{name: x[None].to(device) for name, x in one.inputs.items()} for one in cut]

    def score(batch: dict[str, Tensor]) -> Tensor:
        if not answering.of_frames:
            return model.score(batch)
        frames = model.frame_scores(batch)[..., 0]
        return frames.masked_fill(~batch["valid"], torch.finfo(frames.dtype).min).amax(dim=1)

    with torch.no_grad():
        best = int(np.argmax([float(score(batch)) for batch in batches]))
    batch, window = batches[best], cut[best]
    trunk = model.encoder.trunk
    stages = [getattr(trunk, f"layer{number}") for number in range(1, trunk.n_stages + 1)]
    maps = _maps(_layer(stages, lambda: trunk(batch["crops"][:, :1].float())), lambda: score(batch))
    maps *= window.inputs["valid"].numpy()[:, None, None]
    return _map(maps, window.start_s, window.inputs["crops"].numpy())


def _of_frames(answering: Answering, clip: VisualClip) -> Map | None:
    model, data, device = answering.model, answering.data, answering.device
    scores = answering.rows([clip])[:, 2]
    seen = np.ones(len(scores), bool) if clip.seen is None else clip.seen[: len(scores)]
    if not seen.any():
        return None
    best = int(np.flatnonzero(seen)[scores[: len(seen)][seen].argmax()])
    first = min(best - data.window // 2, clip.n_frames - data.window)
    first = max(first // data.stride * data.stride, 0)
    frames = clip.frames(first, data.window)
    with torch.no_grad():
        pair = model.scored_pair(torch.from_numpy(frames).to(device))
    tokens = data.lmm_of_window(model, clip, first, device)

    def score() -> Tensor:
        logits = model.fuse(model.backbone(*(part[None] for part in pair)), tokens)[0]
        return logits[:, 1] - logits[:, 0]

    maps = _maps(model.backbone.patch_embed.transition, score)
    return _map(maps, first * FRAME_S, frames)


def _layer(layers: Sequence[nn.Module], run: Callable[[], Any]) -> nn.Module:
    """The last layer whose maps have at least FINEST squares a side, else the first."""
    sides: dict[nn.Module, int] = {}
    hooks = [
        layer.register_forward_hook(
            lambda layer, _, out: sides.__setitem__(layer, min(out.shape[-2:]))
        )
        for layer in layers
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    fine = [layer for layer in layers if sides[layer] >= FINEST]
    return fine[-1] if fine else layers[0]


def _maps(layer: nn.Module, score: Callable[[], Tensor]) -> np.ndarray:
    """(T, rows, columns), at least 0, of the frames that go through the layer."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        kept.append(out.detach().requires_grad_())
        return kept[-1]

    hook = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            value = score()
        (gradient,) = torch.autograd.grad(value.sum(), kept[-1])
    finally:
        hook.remove()
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return (weights * kept[-1].detach()).sum(dim=1).clamp(min=0).double().cpu().numpy()


def _map(maps: np.ndarray, start_s: float, frames: np.ndarray) -> Map:
    total = maps.sum()
    best = int(maps.sum(axis=(1, 2)).argmax())
    values = maps.sum(axis=0) / total if total > 0 else maps.sum(axis=0)
    return Map(values, start_s + (best + 0.5) * FRAME_S, frames[best])
