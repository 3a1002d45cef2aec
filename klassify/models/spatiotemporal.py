"""The spatio-temporal branch: one "frame-centric" (FC) token per frame of a window.

Two convolutional stems (image, VQ-VAE reconstruction) are fused to P patch tokens per frame. A
transformer alternates attention over all patches of a window with attention in W groups, each led
by an FC token (MM-Det, in-and-across-frame attention; paper 2, section 2.2).

`SpatioTemporal.frame_tokens` computes what depends only on a single frame,
`SpatioTemporal.windows` the rest; `sliding` combines them, so that each frame passes the stems
once, whatever the stride.

Axes: N frames, B windows, W frames per window, P patches per frame, D dimensions. Submodules have
the published names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.errors import KlassifyError
from klassify.models.hybrid_vit import load_hybrid_vit
from klassify.models.resnetv2 import FrequencyResNet
from klassify.models.weights.load import ImportReport
from klassify.settings import check_sizes

LAYER_NORM_EPS = 1e-6  # as published; torch's default is 1e-5


class PatchEmbed(nn.Module):
    """Frames and reconstructions (N, 3, H, W) -> (N, P, dim): two stems, fused by 1x1."""

    def __init__(self, dim: int, stem_width: int, channels: Sequence[int], layers: Sequence[int]):
        super().__init__()
        out = channels[-1]
        self.rgb_backbone = FrequencyResNet(stem_width, channels, layers)
        self.recons_backbone = FrequencyResNet(stem_width, channels, layers)
        self.transition = nn.Sequential(nn.Conv2d(2 * out, out, 1), nn.BatchNorm2d(out), nn.ReLU())
        self.proj = nn.Conv2d(out, dim, 1)

    def forward(self, frames: Tensor, reconstructed: Tensor) -> Tensor:
        """Two times (N, 3, H, W), normalised -> (N, P, dim)."""
        x = torch.cat([self.rgb_backbone(frames), self.recons_backbone(reconstructed)], dim=1)
        return self.proj(self.transition(x)).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention, (B, n, dim) -> (B, n, dim)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        """(B, n, dim) -> (B, heads, n, dim / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, dim) -> (B, n, dim)."""
        q, k, v = (self._split(part) for part in self.qkv(x).chunk(3, dim=2))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def first(self, x: Tensor) -> Tensor:
        """The output of the first token alone: (B, n, dim) -> (B, 1, dim)."""
        dim = x.shape[2]
        q = F.linear(x[:, :1], self.qkv.weight[:dim], self.qkv.bias[:dim])
        k, v = F.linear(x, self.qkv.weight[dim:], self.qkv.bias[dim:]).chunk(2, dim=2)
        attended = F.scaled_dot_product_attention(self._split(q), self._split(k), self._split(v))
        return self.proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """In-and-across-frame attention of FC tokens (B, W, D) and patches (B, W * P, D).

    First all patches of the window attend to each other, without FC tokens. Then they are split
    into W groups, and each group attends to itself and its FC token, which changes the patches too.

    fc_grouping: with "frame", group i is frame i, as in the papers; with "strided" it is every W-th
    token from token i on, which is what the released weights were trained with.
    """

    def __init__(self, dim: int, heads: int, hidden: int, fc_grouping: str):
        super().__init__()
        self.strided = fc_grouping == "strided"
        for prefix in ("", "temporal_"):
            self.add_module(f"{prefix}norm1", nn.LayerNorm(dim, eps=LAYER_NORM_EPS))
            self.add_module(f"{prefix}attn", Attention(dim, heads))
            self.add_module(f"{prefix}norm2", nn.LayerNorm(dim, eps=LAYER_NORM_EPS))
            self.add_module(f"{prefix}mlp", Mlp(dim, hidden))

    def _grouped(self, fc: Tensor, patches: Tensor) -> Tensor:
        """Each FC token followed by the patches of its group: (B * W, 1 + P, D)."""
        window = fc.shape[1]
        if self.strided:
            groups = patches.unflatten(1, (-1, window)).transpose(1, 2)
        else:
            groups = patches.unflatten(1, (window, -1))
        return torch.cat([fc[:, :, None], groups], dim=2).flatten(0, 1)

    def _ungrouped(self, x: Tensor, window: int) -> tuple[Tensor, Tensor]:
        x = x.unflatten(0, (-1, window))
        groups = x[:, :, 1:].transpose(1, 2) if self.strided else x[:, :, 1:]
        return x[:, :, 0], groups.flatten(1, 2)

    def across(self, patches: Tensor) -> Tensor:
        """The first half: attention over all patches of a window."""
        patches = patches + self.attn(self.norm1(patches))
        return patches + self.mlp(self.norm2(patches))

    def forward(self, fc: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """FC tokens (B, W, D) and patches (B, W * P, D) -> both, in the same shapes."""
        x = self._grouped(fc, self.across(patches))
        x = x + self.temporal_attn(self.temporal_norm1(x))
        x = x + self.temporal_mlp(self.temporal_norm2(x))
        return self._ungrouped(x, fc.shape[1])

    def fc_tokens(self, fc: Tensor, patches: Tensor) -> Tensor:
        """Only the FC tokens of forward(), (B, W, D): for the last block."""
        x = self._grouped(fc, self.across(patches))
        x = x[:, :1] + self.temporal_attn.first(self.temporal_norm1(x))
        x = x + self.temporal_mlp(self.temporal_norm2(x))
        return x.view_as(fc)


class SpatioTemporal(nn.Module):
    """Windows of frames and their reconstructions to FC tokens, (B, W, dim).

    Args:
        size: height and width of the frames in pixels.
        window: W, frames per window.
        dim, depth, heads, mlp_ratio: size of the transformer.
        stem_width, channels, layers: size of each stem; see klassify.models.resnetv2.
        fc_grouping: "frame" for new trainings, "strided" for released weights; see Block.
        pretrained: file of the ImageNet-21k hybrid ViT with timm's names
            (jx_vit_base_resnet50_224_in21k), as .pth or .safetensors. `load_pretrained` reads it
            when a training starts; until then, or until trained weights are loaded, the model
            refuses to run.

    The defaults are the published 197,909,760 parameters. `cls_token`, `pos_embed` and the first
    position of `window_pos_embed` are part of the published state but not used.
    """

    def __init__(
        self,
        size: int = 224,
        window: int = 10,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4,
        stem_width: int = 64,
        channels: Sequence[int] = (256, 512, 1024),
        layers: Sequence[int] = (3, 4, 9),
        fc_grouping: Literal["frame", "strided"] = "frame",
        pretrained: str | None = None,
    ):
        super().__init__()
        check_sizes(window=window, dim=dim, heads=heads)
        check_sizes(stem_width=stem_width, channels=channels, layers=layers)
        check_sizes(0, depth=depth)
        check_sizes(16, size=size)  # the blurs mirror three pixels at a quarter of the size
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide {dim} dimensions")
        self.size, self.window, self.dim, self.pretrained = size, window, dim, pretrained
        self.grid = math.ceil(size / 2 ** (1 + len(layers)))  # patches per side, rounded up
        self.n_patches = self.grid**2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.fc_token = nn.Parameter(torch.zeros(1, window, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.n_patches, dim))
        self.window_pos_embed = nn.Parameter(torch.zeros(1, 1 + self.n_patches, dim))
        self.temporal_pos_embed = nn.Parameter(torch.zeros(1, window, dim))
        self.time_embed = nn.Parameter(torch.zeros(1, window, dim))
        self.patch_embed = PatchEmbed(dim, stem_width, channels, layers)
        hidden = int(dim * mlp_ratio)
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, fc_grouping) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        # training on several devices fails on parameters that get no gradient
        self.cls_token.requires_grad_(False)
        self.pos_embed.requires_grad_(False)
        self._initialise()
        self._has_weights = pretrained is None
        self.register_load_state_dict_post_hook(
            lambda module, _: setattr(module, "_has_weights", True)
        )

    def _initialise(self) -> None:
        """As usual for a ViT: narrow normal weights, positions and tokens; biases of 0."""
        for parameter in self.parameters(recurse=False):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def load_pretrained(self, path: str | Path | None = None) -> ImportReport | None:
        """Start from the hybrid ViT in `path` or `pretrained`. Call before training, never after.

        The report, which is also printed, names what was left out and what keeps its random start.
        None if neither names a file.
        """
        path = path or self.pretrained
        if path is None:
            return None
        report = load_hybrid_vit(self, path, window=self.window, grid=self.grid)
        print(f"spatio-temporal model: {report}")
        return report

    def frame_tokens(self, frames: Tensor, reconstructed: Tensor) -> Tensor:
        """The work on single frames: two times (N, 3, size, size), normalised -> (N, P, dim).

        In evaluation frames do not influence each other here; in training, batch norm couples them.
        """
        if not self._has_weights:
            raise KlassifyError(
                "The spatio-temporal model still has random weights, though its settings name"
                " pretrained ones.",
                where=self.pretrained,
                fix="call load_pretrained() before a training, or load the trained weights",
            )
        return self.patch_embed(frames, reconstructed)

    def windows(self, tokens: Tensor) -> Tensor:
        """The work on windows: patch tokens (B, W, P, dim) -> FC tokens (B, W, dim)."""
        fc, patches = self.positioned(tokens)
        for block in self.blocks[:-1]:
            fc, patches = block(fc, patches)
        return self.norm(self.blocks[-1].fc_tokens(fc, patches))

    def positioned(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The input of the first block: FC tokens (B, W, dim) and patches (B, W * P, dim)."""
        fc = self.fc_token + self.temporal_pos_embed + self.time_embed
        patches = tokens + self.window_pos_embed[:, None, 1:] + self.time_embed[:, :, None]
        return fc.expand(len(tokens), -1, -1), patches.flatten(1, 2)

    def forward(self, frames: Tensor, reconstructed: Tensor) -> Tensor:
        """Windows (B, W, 3, size, size), normalised, and their reconstructions -> (B, W, dim)."""
        tokens = self.frame_tokens(frames.flatten(0, 1), reconstructed.flatten(0, 1))
        return self.windows(tokens.unflatten(0, frames.shape[:2]))


@torch.no_grad()
def sliding(
    model: SpatioTemporal,
    chunks: Iterable[tuple[Tensor, Tensor]],
    stride: int = 1,
    at_once: int = 4,
) -> Iterator[tuple[Tensor, Tensor]]:
    """FC tokens of all windows of a clip.

    chunks: consecutive frames and their reconstructions, (n, 3, size, size) each. Yields the
    windows' first frames (m,), which are 0, stride, 2 * stride, ..., and their tokens (m, W, dim),
    up to `at_once` windows at a time. Each frame passes the stems once; the tokens of at most W - 1
    frames and a chunk are kept, so that memory does not grow with the clip. Frames after the last
    whole window are left out; a clip shorter than W gets one window, its last frame repeated.
    """
    if model.training:
        raise ValueError("call eval() first: in training mode a frame's tokens depend on its batch")
    kept = None  # the tokens of the frames from `first` on
    first = start = 0  # `start`: where the next window begins
    for frames, reconstructed in chunks:
        tokens = model.frame_tokens(frames, reconstructed)
        kept = tokens if kept is None else torch.cat([kept, tokens])
        starts = range(start, first + len(kept) - model.window + 1, stride)
        for index in range(0, len(starts), at_once):
            batch = starts[index : index + at_once]
            windows = torch.stack([kept[begin - first :][: model.window] for begin in batch])
            yield torch.tensor(batch), model.windows(windows)
        start += stride * len(starts)
        drop = min(start - first, len(kept))
        kept, first = kept[drop:].clone(), first + drop  # a view would keep all frames in memory
    if start == 0 and kept is not None and len(kept):
        padding = kept[-1:].expand(model.window - len(kept), -1, -1)
        yield torch.tensor([0]), model.windows(torch.cat([kept, padding])[None])
