"""AuViRe: where picture and sound of a clip no longer predict each other.

Koutlis and Papadopoulos, "AuViRe: Audio-visual Speech Representation Reconstruction for Deepfake
Temporal Localization" (WACV 2026; project mever-team/auvire), the convolutional variant that is
released. It reads AV-HuBERT features of mouth and sound (klassify.features.avhubert). One network
reconstructs sound -> mouth, sound -> sound and mouth -> mouth; the three residuals go through a
pyramid of convolutions, whose levels each say at every position how likely it is fake, and how far
the fake reaches to the left and to the right.

What is unusual in the published model, and kept:
- The layer norms are over channels and time together and have a weight for each of both, so that an
  input has exactly `length` frames. There is no mask: the zeros behind a shorter clip take part.
- The pyramid's 3 x 3 convolutions see maps of width 1, so only their middle column acts.
- Levels of a halved rate learn offsets in frames of the full rate.

Axes: B clips, T = `length` frames of 40 ms, C channels, D = `d_model`, L levels of T / factor
positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.models.span_loss import focal, overlaps
from klassify.settings import check_sizes

FPS = 25
ALPHA = 0.98  # of the focal loss, the weight of fakes
RELEASED = {
    "av-deepfake1m": {"halvings": 1, "retain": 1, "downsample": 1},
    "lav-df": {"halvings": 3, "retain": 2, "downsample": 2},
}


class Block(nn.Module):
    """A convolution, a layer norm over channels and time, a ReLU: (B, C, T) -> (B, C', length)."""

    def __init__(self, convolution: nn.Module, length: int):
        super().__init__()
        self.conv = convolution
        self.norm = nn.LayerNorm([convolution.out_channels, length])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', length)."""
        return F.relu(self.norm(self.conv(x)))


def _block(in_dim: int, out_dim: int, kernel: int, length: int, stride: int = 1) -> Block:
    return Block(nn.Conv1d(in_dim, out_dim, kernel, stride, kernel // 2), length)


class Reconstruction(nn.Module):
    """Features of one stream from those of another: (B, C, T) -> (B, C, T), not negative."""

    def __init__(self, in_dim: int, dim: int, length: int, halvings: int, kernel: int):
        super().__init__()
        lengths = [length >> i for i in range(halvings + 1)]
        self.pre = nn.Sequential(_block(in_dim, dim, 3, length), _block(dim, dim, 3, length))
        self.down = nn.Sequential(*(_block(dim, dim, kernel, n, stride=2) for n in lengths[1:]))
        up = {"stride": 2, "padding": kernel // 2, "output_padding": 1}
        self.up = nn.Sequential(
            *(Block(nn.ConvTranspose1d(dim, dim, kernel, **up), n) for n in lengths[-2::-1])
        )
        self.post = nn.Sequential(_block(dim, dim, 3, length), _block(dim, in_dim, 3, length))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        return self.post(self.up(self.down(self.pre(x))))


class FlatConv(nn.Conv2d):
    """A square convolution on maps of width 1: (B, C, T) -> (B, C', T)."""

    def __init__(self, dim: int, kernel: int):
        super().__init__(dim, dim, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T)."""
        middle = self.weight.shape[3] // 2
        return F.conv1d(x, self.weight[..., middle], self.bias, padding=middle)


class Outputs(NamedTuple):
    """levels: L times (B, T / factor, 3): logit of fake, frames to the left and to the right end.
    dissimilarity: (B, T), sum over the pairs of |target - reconstruction|, mean over channels.
    """

    levels: list[Tensor]
    dissimilarity: Tensor


class AuViRe(nn.Module):
    """(B, T, in_dim) of mouth and of sound -> Outputs.

    The defaults are the sizes of the model released for AV-Deepfake1M, 8,934,790 parameters; that
    of LAV-DF has 12,101,516 (RELEASED).

    Args:
        in_dim: C of the features.
        d_model: D, channels inside.
        length: T, a multiple of 2 ** halvings and of 2 ** downsample.
        halvings: of the rate within the reconstruction.
        retain, downsample: levels of the pyramid at the full rate, and below it at half the rate of
            the level before.
        kernel: of the convolutions that change the rate and of the pyramid; odd.
    """

    supervision = "segment"

    def __init__(
        self,
        in_dim: int = 768,
        d_model: int = 128,
        length: int = 512,
        halvings: int = 1,
        retain: int = 1,
        downsample: int = 1,
        kernel: int = 15,
    ):
        super().__init__()
        check_sizes(in_dim=in_dim, d_model=d_model, length=length, retain=retain)
        check_sizes(0, halvings=halvings, downsample=downsample)
        if kernel % 2 == 0 or length % (1 << max(halvings, downsample)):
            raise ValueError("kernel is odd, and length a multiple of the steps of every level")
        self.length = length
        self.factors = [1] * retain + [2 << i for i in range(downsample)]
        lengths = [length // factor for factor in self.factors]
        self.reconstruction = Reconstruction(in_dim, d_model, length, halvings, kernel)
        self.encoder = nn.ModuleList(
            _block(d_model if i else 3 * in_dim, d_model, kernel, n, stride=1 + (i >= retain))
            for i, n in enumerate(lengths)
        )
        self.lateral = nn.ModuleList(FlatConv(d_model, 1) for _ in lengths)
        self.smooth = nn.ModuleList(FlatConv(d_model, 3) for _ in lengths)
        self.classify, self.regress = (
            nn.ModuleList(
                nn.Sequential(
                    _block(d_model, d_model, 3, n),
                    _block(d_model, d_model, 3, n),
                    nn.Conv1d(d_model, out_dim, 3, padding=1),
                )
                for n in lengths
            )
            for out_dim in (1, 2)
        )

    def forward(self, video: Tensor, audio: Tensor) -> Outputs:
        """(B, T, in_dim) twice -> Outputs."""
        video, audio = video.transpose(1, 2), audio.transpose(1, 2)
        from_audio, from_video = self.reconstruction(audio), self.reconstruction(video)
        residuals = torch.cat([from_audio - video, from_audio - audio, from_video - video], dim=1)
        dissimilarity = residuals.abs().sum(dim=1) / video.shape[1]
        maps = self._pyramid(residuals)
        levels = [
            torch.cat([classify(x), F.relu(regress(x))], dim=1).transpose(1, 2).float()
            for x, classify, regress in zip(maps, self.classify, self.regress)
        ]
        return Outputs(levels, dissimilarity.float())

    def _pyramid(self, x: Tensor) -> list[Tensor]:
        """Residuals (B, 3 C, T) -> a map (B, D, T / factor) of each level."""
        maps: list[Tensor] = []
        for block in self.encoder:
            x = block(x)
            maps.append(x)
        below, merged = None, []
        for x, lateral, smooth in zip(maps[::-1], self.lateral[::-1], self.smooth[::-1]):
            x = lateral(x)
            if below is not None:
                x = x + F.interpolate(below, size=x.shape[2], mode="nearest")
            below = x
            merged.append(smooth(x))
        return merged[::-1]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Half of the mean over clips of localisation_loss plus, on real clips, the dissimilarity.

        batch: "video" and "audio" (B, T, in_dim), "target" (B, T, 3): see `targets`.
        """
        outputs = self(batch["video"], batch["audio"])
        total = localisation_loss(outputs.levels, batch["target"], self.factors)
        real = ~batch["target"][..., 0].any(dim=1)
        return (total + outputs.dissimilarity.mean(dim=1) * real).mean() / 2


def targets(periods: Sequence[Sequence[float]], length: int) -> np.ndarray:
    """(length, 3) float32: label 1 = fake, frames to the first and to the last one of the period.

    periods: [start, end] in seconds; both of their frames count. Of periods that overlap the later
    one in the list decides the distances.
    """
    target = np.zeros((length, 3), np.float32)
    for start, end in periods:
        first, last = int(FPS * start), int(FPS * end)
        frames = np.arange(first, min(last + 1, length))
        target[frames] = np.stack([np.ones(len(frames)), frames - first, last - frames], axis=1)
    return target


def localisation_loss(levels: Sequence[Tensor], target: Tensor, factors: Sequence[int]) -> Tensor:
    """Focal loss of all positions and DIoU loss of the fake ones, summed over the positions of a
    level, divided by the number of fake ones (at least 1); mean over levels: (B,).
    """
    losses = []
    for level, factor in zip(levels, factors):
        wanted = target[:, ::factor]
        label = wanted[..., 0]
        _, apart = overlaps(level[..., 1:], wanted[..., 1:])
        each = focal(level[..., 0], label, ALPHA) + apart * label
        losses.append(each.sum(dim=1) / label.sum(dim=1).clamp(min=1))
    return torch.stack(losses).mean(dim=0)


def proposals(levels: Sequence[Tensor], factors: Sequence[int]) -> list[Tensor]:
    """The proposal of each position of each level (B, T / factor, 3): probability of fake, start
    and end in frames, not cut to the clip.
    """
    found = []
    for level, factor in zip(levels, factors):
        centre = torch.arange(level.shape[1], device=level.device) * factor
        logit, left, right = level.unbind(dim=2)
        found.append(torch.stack([logit.sigmoid(), centre - left, centre + right], dim=2))
    return found
