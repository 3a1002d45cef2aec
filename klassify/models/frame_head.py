"""The head of the frame encoders: an embedding, a logit of "fake", and edges for each frame.

Sound and mouth encoders share it, with segment labels (`frame_losses`) or clip labels (`pooled`).
Its embeddings are what `klassify extract --kind embedding` stores.

Axes: B clips, T frames, D dimensions of the embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.settings import check_sizes

POS_WEIGHT = 3.0  # of fake frames, which are rare
EDGE_WEIGHT = 0.5  # of the loss of starts and ends, beside 1 of the frames
R_RANGE = (0.5, 4.0)  # of the sharpness of log-sum-exp pooling


class FrameOutputs(NamedTuple):
    """embedding (B, T, D); log-odds: logit (B, T) of fake, edges (B, T, 2) of start and end."""

    embedding: Tensor
    logit: Tensor
    edges: Tensor


class ConvBlock(nn.Module):
    """A depthwise-separable convolution over time with a shortcut: (B, T, D) -> (B, T, D)."""

    def __init__(self, dim: int, kernel: int, dilation: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        padding = dilation * (kernel // 2)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=padding, dilation=dilation, groups=dim)
        self.pointwise = nn.Linear(dim, dim)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D). valid: (B, T) bool; other frames count as zeros."""
        y = self.norm(x)
        if valid is not None:
            y = y * valid[..., None]
        y = self.depthwise(y.transpose(1, 2)).transpose(1, 2)
        return x + self.pointwise(F.gelu(y))


class FrameHead(nn.Module):
    """A bottleneck and two convolutions over time (5 taps, dilations 1 and 4): (B, T, in_dim) ->
    FrameOutputs.

    Args:
        in_dim: dimensions of a frame of the encoder.
        dim: D.

    166,915 parameters with in_dim=1024 and dim=128.
    """

    def __init__(self, in_dim: int, dim: int = 128):
        super().__init__()
        check_sizes(in_dim=in_dim, dim=dim)
        self.dim = dim
        self.bottleneck = nn.Sequential(nn.Linear(in_dim, dim), nn.LayerNorm(dim), nn.GELU())
        self.blocks = nn.ModuleList([ConvBlock(dim, 5, dilation) for dilation in (1, 4)])
        self.out = nn.Linear(dim, 3)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> FrameOutputs:
        """FrameOutputs of (B, T, in_dim). valid: (B, T) bool, False in padding and where there is
        nothing to see; the outputs of valid frames do not depend on the other frames.
        """
        embedding = self.bottleneck(x)
        frames = embedding
        for block in self.blocks:
            frames = block(frames, valid)
        out = self.out(frames).float()
        return FrameOutputs(embedding, out[..., 0], out[..., 1:])


def frame_losses(outputs: FrameOutputs, target: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Cross-entropy of the frames, fake parts weighted by POS_WEIGHT, plus EDGE_WEIGHT times the
    balanced cross-entropy of starts and ends. A scalar.

    target: (B, T) the fake share of each frame, NaN where the frame does not count. start, end:
    (B, T) in [0, 1], see klassify.grid.frames.edge_targets.
    """
    counts = ~target.isnan()
    each = F.binary_cross_entropy_with_logits(
        outputs.logit,
        torch.where(counts, target, 0.0),
        pos_weight=torch.full((), POS_WEIGHT, device=target.device),
        reduction="none",
    )
    edges = sum(
        balanced_cross_entropy(outputs.edges[..., i], edge, counts)
        for i, edge in enumerate((start, end))
    )
    return (each * counts).sum() / counts.sum().clamp(min=1) + EDGE_WEIGHT * edges


def balanced_cross_entropy(logit: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Half the mean cross-entropy of the positive parts of `target` in [0, 1], plus half that of
    the negative parts; a part that does not occur adds nothing.

    counts: bool, which elements take part. All three have one shape.
    """
    positive, negative = target * counts, (1 - target) * counts
    of_positive = (positive * F.softplus(-logit)).sum() / positive.sum().clamp(min=1)
    of_negative = (negative * F.softplus(logit)).sum() / negative.sum().clamp(min=1)
    return (of_positive + of_negative) / 2


def pooled(logit: Tensor, mask: Tensor | None, r: Tensor | float) -> Tensor:
    """Clip logits (B,): the smooth maximum (1 / r) log mean exp(r z) over valid frames.

    logit: (B, T); mask: (B, T) bool, None for all frames; r: its sharpness, 0 (mean) to infinity
    (maximum). A clip without a valid frame gets 0.
    """
    if mask is None:
        mask = torch.ones_like(logit, dtype=torch.bool)
    some = mask.any(dim=1)
    # a row of -inf alone would have NaN as its gradient
    open_mask = mask | ~some[:, None]
    exponents = (r * logit).masked_fill(~open_mask, -torch.inf)
    mean = exponents.logsumexp(dim=1) - open_mask.sum(dim=1).log()
    return torch.where(some, mean / r, torch.zeros_like(mean))


class SmoothMax(nn.Module):
    """`pooled` with a learned sharpness, 1 at first and always within R_RANGE."""

    def __init__(self):
        super().__init__()
        low, high = R_RANGE
        share = torch.tensor((1 - low) / (high - low))
        self.sharpness = nn.Parameter(share.logit())

    def forward(self, logit: Tensor, mask: Tensor | None = None) -> Tensor:
        """Clip logits (B,) of frame logits (B, T)."""
        low, high = R_RANGE
        return pooled(logit, mask, low + (high - low) * self.sharpness.sigmoid())


class FrameEncoder(nn.Module):
    """An encoder of frames with a FrameHead as `head`; subclasses say `outputs`."""

    head: FrameHead

    def outputs(self, batch: dict[str, Tensor]) -> FrameOutputs:
        """FrameOutputs (B, T, ...) of a batch."""
        raise NotImplementedError

    @property
    def embedding_dim(self) -> int:
        """Dimensions of the embedding."""
        return self.head.dim

    def embedding(self, batch: dict[str, Tensor]) -> Tensor:
        """The embedding of each frame, (B, T, D)."""
        return self.outputs(batch).embedding


class FromSegments(FrameEncoder):
    """Which frames are fake, and where a fake starts and ends, learned from segment labels."""

    supervision = "segment"

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """frame_losses of a batch with "target", "start" and "end" (B, T)."""
        outputs = self.outputs(batch)
        with torch.autocast(outputs.logit.device.type, enabled=False):
            return frame_losses(outputs, batch["target"], batch["start"], batch["end"])

    def frame_scores(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-odds of fake, of a start and of an end, (B, T, 3)."""
        outputs = self.outputs(batch)
        return torch.cat([outputs.logit[..., None], outputs.edges], dim=-1)


class FromClips(FrameEncoder):
    """Is a window fake? Learned from clip labels alone, by a smooth maximum over time
    (multiple-instance learning).
    """

    supervision = "clip"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pool = SmoothMax()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Binary cross-entropy of batch["label"] (B,), 1 = fake."""
        return F.binary_cross_entropy_with_logits(self.score(batch), batch["label"].float())

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-odds of fake (B,); frames outside batch["valid"] (B, T), if there, do not count."""
        return self.pool(self.outputs(batch).logit, batch.get("valid"))
