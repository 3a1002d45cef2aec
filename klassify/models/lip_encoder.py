"""Lip encoders: gray mouth crops (and sound) in, one vector per 40 ms frame out.

A 3D convolution and a ResNet read each frame; a network over time puts the frames into context.
Three kinds are built from these parts:

- `tiny`: small enough to be trained from scratch on a CPU. It reads local sharpness and change
  instead of pixels (`LocalMaps`), which it would take too long to find by itself.
- `av-hubert-*` (Shi et al., 2022): PReLU; the picture and a filterbank of the sound share one
  transformer, and either of the two may be absent.
- `raven-*` (RAVEn and BRAVEn, Haliassos et al., 2023 and 2024): swish, and a transformer with
  relative positions.

Released weights of the last two are read by `klassify import-checkpoint` (docs/checkpoints.md).

Axes: B clips, T frames at 25 a second, D dimensions of a frame's vector.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.errors import KlassifyError
from klassify.models.frame_head import ConvBlock
from klassify.models.frontends.ssl import SWITCHED_OFF, states_of
from klassify.models.frontends.torchaudio_import import import_transformers
from klassify.models.weights.load import import_weights, load_weights

CROP = 88  # pixels a side
GRAY_MEAN, GRAY_STD = 0.421, 0.165  # of crops between 0 and 1, as published
AUDIO_DIM = 104  # of the sound in a frame; see klassify.models.frontends.logfbank

RESNET_18 = {
    "channels": (64, 64, 128, 256, 512),
    "blocks": 2,
    "stem": (5, 7, 7),
    "stride": 2,
    "pool": True,
    "maps": False,
}
HUBERT = {**RESNET_18, "activation": "prelu", "context": "hubert"}
RAVEN = {**RESNET_18, "activation": "swish", "context": "relative"}
BASE = {"dim": 768, "layers": 12, "heads": 12, "hidden": 3072}
LARGE = {"dim": 1024, "layers": 24, "heads": 16, "hidden": 4096}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "tiny": {
        "channels": (16, 16, 32, 64, 64),
        "blocks": 1,
        "stem": (5, 3, 3),
        "stride": 2,
        "pool": False,
        "maps": True,
        "activation": "relu",
        "context": "convolutions",
        "dim": 64,
    },
    "av-hubert-base": HUBERT | BASE,
    "av-hubert-large": HUBERT | LARGE,
    "raven-base": RAVEN | {"dim": 512, "layers": 12, "heads": 8, "hidden": 2048},
    "raven-large": RAVEN | LARGE,
}


class LipEncoder(nn.Module):
    """Mouth crops (B, T, 88, 88) uint8, or normalised float, -> (B, T, dim).

    Args:
        architecture: a name in ARCHITECTURES, or settings that replace some of the named one's, as
            `{"name": "av-hubert-base", "layers": 2}`.
        source: pretrained weights, a published file or one that import-checkpoint made; None
            starts from random weights. They are read by `load_pretrained`, not by the constructor.
        freeze: nothing, the `trunk` that reads single frames, or `all`.
        train_layers: of a frozen network over time, so many of its last layers are trained all the
            same.
    """

    def __init__(
        self,
        architecture: str | dict[str, Any] = "tiny",
        source: str | None = None,
        freeze: Literal["none", "trunk", "all"] = "none",
        train_layers: int = 0,
    ):
        super().__init__()
        settings = _settings(architecture)
        self.source, self.dim = source, settings["dim"]
        self.trunk = Trunk(
            settings["channels"],
            settings["blocks"],
            settings["stem"],
            settings["stride"],
            settings["pool"],
            settings["maps"],
            settings["activation"],
        )
        self.context = CONTEXTS[settings["context"]](self.trunk.dim, settings)
        if freeze != "none":
            self.trunk.requires_grad_(False)
        if freeze == "all":
            self.context.requires_grad_(False)
            for layer in self.context.layers_in_order()[-train_layers:] if train_layers else []:
                layer.requires_grad_(True)
        self.frozen = [self.trunk] * (freeze != "none") + [self.context] * (freeze == "all")

    def train(self, mode: bool = True) -> LipEncoder:
        """As in torch, but the statistics of frozen parts stay as they are."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def load_pretrained(self) -> None:
        """Load `source`, if there is one, and say what its licence allows."""
        if self.source is None:
            return
        if Path(self.source).suffix == ".safetensors":
            load_weights(self, self.source)
            return
        report = import_weights(self, self.source)
        print(f"{self.source}: {report}", file=sys.stderr)

    def forward(self, crops: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, dim) of crops alone; see `features`."""
        return self.features(crops, valid=valid)

    def features(
        self, video: Tensor | None = None, audio: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """(B, T, dim) of mouth crops, of sound, or of both.

        video: (B, T, 88, 88), uint8 or already normalised. audio: (B, T, 104), for av-hubert alone.
        valid: (B, T) bool, False in padding and where nothing is seen; the other frames do not
        depend on it.
        """
        return self.hidden_states(video, audio, valid)[-1]

    def hidden_states(
        self, video: Tensor | None = None, audio: Tensor | None = None, valid: Tensor | None = None
    ) -> list[Tensor]:
        """The inputs of the layers over time, if there are several, and the output."""
        frames = None if video is None else self.trunk(normalised(video), valid)
        return self.context(frames, masked(audio, valid), valid)


def normalised(crops: Tensor) -> Tensor:
    """Crops as float with the published mean and deviation; float crops are so already."""
    if crops.is_floating_point():
        return crops
    return (crops.float() / 255 - GRAY_MEAN) / GRAY_STD


def masked(x: Tensor | None, valid: Tensor | None) -> Tensor | None:
    """x (B, T, ...) with zeros at frames that are not valid."""
    if x is None or valid is None:
        return x
    return x * valid.reshape(valid.shape + (1,) * (x.ndim - 2))


def _settings(architecture: str | dict[str, Any]) -> dict[str, Any]:
    changed = {"name": architecture} if isinstance(architecture, str) else dict(architecture)
    name = changed.pop("name", "tiny")
    if name not in ARCHITECTURES:
        raise KlassifyError(
            f"Unknown lip encoder {name!r}.", fix=f"choose one of {', '.join(ARCHITECTURES)}"
        )
    known = ARCHITECTURES[name]
    if unknown := changed.keys() - known.keys():
        raise KlassifyError(
            f"{name} has no setting {', '.join(sorted(unknown))}.", fix=f"known: {', '.join(known)}"
        )
    return known | changed


Activation = Callable[[int], nn.Module]  # of a number of channels
ACTIVATIONS: dict[str, Activation] = {
    "prelu": lambda channels: nn.PReLU(channels),
    "swish": lambda channels: nn.SiLU(),
    "relu": lambda channels: nn.ReLU(),
}


class Trunk(nn.Module):
    """A 3D convolution, then a ResNet of basic blocks over each frame: (B, T, 88, 88) -> (B, T, C).

    Args:
        channels: of the stem and of each of the four stages.
        blocks: in a stage.
        stem: frames, rows and columns of the 3D convolution.
        stride: of the 3D convolution, in rows and columns.
        pool: halve the pictures after the stem.
        maps: read LocalMaps instead of the pictures.
        activation: one of ACTIVATIONS.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        blocks: int,
        stem: tuple[int, ...],
        stride: int,
        pool: bool,
        maps: bool,
        activation: str,
    ):
        super().__init__()
        make, first = ACTIVATIONS[activation], channels[0]
        padding = tuple(size // 2 for size in stem)
        self.maps = LocalMaps() if maps else None
        self.stem = nn.Sequential(
            nn.Conv3d(N_MAPS if maps else 1, first, stem, (1, stride, stride), padding, bias=False),
            nn.BatchNorm3d(first),
            make(first),
        )
        self.pool = nn.MaxPool2d(3, 2, 1) if pool else nn.Identity()
        for number, (before, after) in enumerate(zip(channels, channels[1:]), start=1):
            stage = [Block(before, after, 1 if number == 1 else 2, make)]
            stage += [Block(after, after, 1, make) for _ in range(blocks - 1)]
            setattr(self, f"layer{number}", nn.Sequential(*stage))
        self.n_stages, self.dim = len(channels) - 1, channels[-1]

    def forward(self, crops: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, rows, columns) -> (B, T, C). valid: (B, T) bool; other frames count as zeros."""
        crops = masked(crops, valid)
        x = crops[:, :, None] if self.maps is None else masked(self.maps(crops), valid)
        x = self.stem(x.transpose(1, 2)).transpose(1, 2)  # (B, T, C, rows, columns)
        x = self.pool(x.flatten(0, 1))
        if x.is_cuda:  # the layout of its fastest convolutions
            x = x.contiguous(memory_format=torch.channels_last)
        for number in range(1, self.n_stages + 1):
            x = getattr(self, f"layer{number}")(x)
        return x.mean(dim=(2, 3)).unflatten(0, crops.shape[:2])


N_MAPS = 6
FLOOR = 1e-4  # added to energies, against log(0) of flat places


class LocalMaps(nn.Module):
    """Maps of 4 x 4 pixels each: (B, T, 88, 88) -> (B, T, 6, 22, 22), normalised over a batch.

    They are the brightness, the sharpness (log energy of the Laplacian) at full and at half size,
    the change since the frame before, its energy, and the sharpness of the change.
    """

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(N_MAPS)

    def forward(self, crops: Tensor) -> Tensor:
        """(B, T, rows, columns) -> (B, T, 6, rows / 4, columns / 4)."""
        with torch.no_grad():
            change = torch.diff(crops, dim=1, prepend=crops[:, :1])
            half = F.avg_pool2d(crops, 2)
            maps = [
                F.avg_pool2d(crops, 4),
                _energy(_laplacian(crops), 4),
                _energy(_laplacian(half), 2),
                F.avg_pool2d(change, 4),
                _energy(change, 4),
                _energy(_laplacian(change), 4),
            ]
            x = torch.stack(maps, dim=2)
        return self.norm(x.flatten(0, 1)).unflatten(0, crops.shape[:2])


def _laplacian(x: Tensor) -> Tensor:
    """(..., rows, columns) -> the same shape; 0 at the edges."""
    middle = x[..., 1:-1, 1:-1]
    around = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    return F.pad(around - 4 * middle, (1, 1, 1, 1))


def _energy(x: Tensor, size: int) -> Tensor:
    """Log of the mean square in squares of `size` pixels."""
    return torch.log(F.avg_pool2d(x.square(), size) + FLOOR)


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int, activation: Activation):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu1 = activation(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu2 = activation(after)
        self.downsample = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, h, w) -> (n, after, h / stride, w / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(x)) + shortcut)


class ConvContext(nn.Module):
    """Two convolutions over time."""

    def __init__(self, trunk_dim: int, settings: dict[str, Any]):
        super().__init__()
        dim = settings["dim"]
        self.project = nn.Linear(trunk_dim, dim)
        self.layers = nn.ModuleList([ConvBlock(dim, 5, dilation) for dilation in (1, 2)])

    def layers_in_order(self) -> list[nn.Module]:
        """What `train_layers` counts."""
        return list(self.layers)

    def forward(self, frames: Tensor, audio: None, valid: Tensor | None) -> list[Tensor]:
        """The inputs of the layers and the output, (B, T, dim) each."""
        states = [self.project(frames)]
        for layer in self.layers:
            states.append(layer(states[-1], valid))
        return states


class HubertContext(nn.Module):
    """AV-HuBERT's: picture and sound side by side through a transformer with norms first."""

    def __init__(self, trunk_dim: int, settings: dict[str, Any]):
        super().__init__()
        transformers, dim = import_transformers(), settings["dim"]
        config = transformers.Wav2Vec2Config(
            hidden_size=dim,
            num_hidden_layers=settings["layers"],
            num_attention_heads=settings["heads"],
            intermediate_size=settings["hidden"],
            do_stable_layer_norm=True,
            **SWITCHED_OFF,
        )
        self.video_proj = nn.Linear(trunk_dim, dim)
        self.audio_proj = nn.Linear(AUDIO_DIM, dim)
        self.both_norm = nn.LayerNorm(2 * dim)
        self.both_proj = nn.Linear(2 * dim, dim)
        self.encoder = transformers.Wav2Vec2Model(config).encoder

    def layers_in_order(self) -> list[nn.Module]:
        """What `train_layers` counts."""
        return list(self.encoder.layers)

    def joined(self, frames: Tensor | None, audio: Tensor | None) -> Tensor:
        """(B, T, dim): the transformer's input. What is absent is zeros after its projection."""
        given = [
            None if audio is None else self.audio_proj(audio),
            None if frames is None else self.video_proj(frames),
        ]
        present = next(part for part in given if part is not None)
        both = [torch.zeros_like(present) if part is None else part for part in given]
        return self.both_proj(self.both_norm(torch.cat(both, dim=-1)))

    def forward(
        self, frames: Tensor | None, audio: Tensor | None, valid: Tensor | None
    ) -> list[Tensor]:
        """The inputs of all layers and the final, normed output, (B, T, dim) each."""
        joined = self.joined(frames, audio)
        layers, encoder = self.encoder.layers, self.encoder
        return states_of(layers, lambda: encoder(joined, valid).last_hidden_state)


class RelativeContext(nn.Module):
    """RAVEn's: a transformer with relative positions."""

    def __init__(self, trunk_dim: int, settings: dict[str, Any]):
        super().__init__()
        dim = settings["dim"]
        self.embed = nn.Linear(trunk_dim, dim)
        self.layers = nn.ModuleList(
            RelativeLayer(dim, settings["heads"], settings["hidden"])
            for _ in range(settings["layers"])
        )
        self.after_norm = nn.LayerNorm(dim, eps=1e-12)

    def layers_in_order(self) -> list[nn.Module]:
        """What `train_layers` counts."""
        return list(self.layers)

    def forward(self, frames: Tensor, audio: None, valid: Tensor | None) -> list[Tensor]:
        """The inputs of all layers but the first, the last layer's output, and that normed."""
        x = self.embed(frames)
        x = x * math.sqrt(x.shape[-1])
        positions = relative_positions(x.shape[1], x.shape[2], x.device).to(x.dtype)
        states = []
        for layer in self.layers:
            x = layer(x, positions, valid)
            states.append(x)
        return [*states, self.after_norm(x)]


class RelativeLayer(nn.Module):
    """Attention by content and relative position, then two linear layers; each with a norm before
    it, a learned scale, and a shortcut.
    """

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.norm_mha = nn.LayerNorm(dim, eps=1e-12)
        self.self_attn = RelativeAttention(dim, heads)
        self.gamma_mha = nn.Parameter(torch.full((dim,), 0.1))
        self.norm_ff = nn.BatchNorm1d(dim)
        self.w_1, self.w_2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.gamma_ff = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x: Tensor, positions: Tensor, valid: Tensor | None) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        x = x + self.gamma_mha * self.self_attn(self.norm_mha(x), positions, valid)
        y = self.norm_ff(x.transpose(1, 2)).transpose(1, 2)
        return x + self.gamma_ff * self.w_2(F.relu(self.w_1(y)))


class RelativeAttention(nn.Module):
    """Query i weighs key j by ((q_i + u) k_j + (q_i + v) r_(i-j)) / sqrt(dimensions of a head)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.linear_q, self.linear_k = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.linear_v, self.linear_out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.linear_pos = nn.Linear(dim, dim, bias=False)
        self.pos_bias_u = nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, dim // heads)))
        self.pos_bias_v = nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, dim // heads)))

    def forward(self, x: Tensor, positions: Tensor, valid: Tensor | None) -> Tensor:
        """(B, T, dim) -> (B, T, dim). positions: (2 T - 1, dim) of T - 1 ... -(T - 1)."""
        shape = (self.heads, -1)
        q, k, v = (
            linear(x).unflatten(-1, shape).transpose(1, 2)
            for linear in (self.linear_q, self.linear_k, self.linear_v)
        )  # (B, heads, T, d)
        r = self.linear_pos(positions).unflatten(-1, shape).transpose(0, 1)  # (heads, 2 T - 1, d)
        by_position = (q + self.pos_bias_v[:, None]) @ r.transpose(1, 2)
        n = x.shape[1]
        place = torch.arange(n, device=x.device)
        row = (n - 1 - place[:, None] + place).expand_as(by_position[..., :n])  # of i - j
        scores = (q + self.pos_bias_u[:, None]) @ k.transpose(2, 3) + by_position.gather(3, row)
        scores = scores / math.sqrt(q.shape[-1])
        if valid is not None:
            # a row without any valid key would be NaN
            open_keys = valid | ~valid.any(dim=1, keepdim=True)
            scores = scores.masked_fill(~open_keys[:, None, None], -torch.inf)
        return self.linear_out((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))


def relative_positions(n: int, dim: int, device: torch.device | None = None) -> Tensor:
    """(2 n - 1, dim): sines in even and cosines in odd columns of the positions n - 1 ... 1 - n."""
    place = torch.arange(n - 1, -n, -1, device=device)
    rate = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10_000.0) / dim))
    angle = place[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


CONTEXTS = {"convolutions": ConvContext, "hubert": HubertContext, "relative": RelativeContext}
