"""The mouth TCN: one score per clip, or tags of frames, from mouth features (paper 1, section 4).

Shapes: B clips, T frames of 40 ms, C input channels (features, then their first differences), H
hidden channels. Batches hold raw "features" (B, T, C); "valid" (B, T) bool, False for padding and
frames without a face; "label" (B,) with 1 = fake; and for the tagger "tags" (B, T) in the order of
`segments.TAGS`, IGNORE where unknown.

The paper gives the parts and two parameter counts, 124 K and 140 K; the layout here has exactly
these parts and 123,906 and 140,486 parameters. What is unusual:
- Every layer gets zeros at invalid frames, batch norm counts only valid frames, and attention
  pooling skips invalid ones: padding a clip changes nothing, even in training.
- The normalisation of the input channels is part of the model, as buffers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.augmentation.mouth import FeatureAugment
from klassify.grid.frames import IGNORE, TAGS, O
from klassify.settings import check_shares, check_sizes, check_weights


class TCN(nn.Module):
    """Residual temporal convolutions over mouth features, attention pooling, one logit of "fake".

    Args:
        in_channels: C; even, since each feature comes with its difference.
        hidden, kernel, dilations: width, taps, and one residual block per dilation. The receptive
            field of the defaults is 61 frames (2.44 s).
        dropout: rate of channels after the first convolution of each block, and of units before the
            last layer.
        pos_weight: weight of fake clips in the loss.
        augment: applied to the normalised features in training.
        normalise: subtract the mean and divide by the deviation that `fit_normalisation` found.
    """

    def __init__(
        self,
        in_channels: int = 16,
        hidden: int = 64,
        kernel: int = 3,
        dilations: Sequence[int] = (1, 2, 4, 8),
        dropout: float = 0.1,
        pos_weight: float = 1.0,
        augment: FeatureAugment | None = None,
        normalise: bool = True,
    ):
        super().__init__()
        check_sizes(in_channels=in_channels, kernel=kernel, dilations=dilations)
        check_sizes(2, hidden=hidden)  # the attention pooling has half of them
        check_shares(dropout=dropout)
        check_weights(pos_weight=pos_weight)
        self.in_channels, self.normalise = in_channels, normalise
        self.augment, self.pos_weight = augment, pos_weight
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("std", torch.ones(in_channels))
        self.project = nn.Conv1d(in_channels, hidden, 1)
        self.blocks = nn.ModuleList(
            ResidualBlock(hidden, kernel, dilation, dropout) for dilation in dilations
        )
        self.clip_head: ClipHead | None = ClipHead(hidden, dropout)

    @torch.no_grad()
    def fit_normalisation(self, clips: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set mean and deviation of each channel over the valid frames of clips.

        clips: (features (T, C), valid (T,)) of each, read once; sums are in float64. A constant
        channel gets the deviation 1. ValueError without any valid frame.
        """
        count, mean, spread = 0, torch.zeros_like(self.mean, dtype=torch.float64), 0.0
        for features, valid in clips:
            frames = torch.as_tensor(features)[torch.as_tensor(valid)].to(mean)
            if not len(frames):
                continue
            # Chan's update of the moments: sums of squares would lose precision by cancellation
            delta = frames.mean(dim=0) - mean
            total = count + len(frames)
            spread = spread + frames.var(dim=0, correction=0) * len(frames)
            spread = spread + delta**2 * count * len(frames) / total
            mean = mean + delta * len(frames) / total
            count = total
        if not count:
            raise ValueError("no clip has a valid frame to fit the normalisation on")
        std = (spread / count).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6 * (1 + mean.abs()), std, 1.0))

    def normalised(self, features: Tensor, valid: Tensor) -> Tensor:
        """Normalised features, 0 at invalid frames."""
        if self.normalise:
            features = (features - self.mean) / self.std
        return torch.where(valid[..., None], features, 0.0)

    def encode(self, x: Tensor, valid: Tensor) -> Tensor:
        """Normalised features (B, T, C) -> hidden (B, H, T), 0 at invalid frames."""
        mask = valid[:, None].to(x.dtype)
        hidden = self.project(x.transpose(1, 2)) * mask
        for block in self.blocks:
            hidden = block(hidden, mask)
        return hidden

    @property
    def embedding_dim(self) -> int:
        """H."""
        return self.project.out_channels

    def embedding(self, batch: dict[str, Tensor]) -> Tensor:
        """Hidden frames (B, T, H), 0 at invalid ones."""
        valid = batch["valid"]
        return self.encode(self.normalised(batch["features"], valid), valid).mT

    def forward(self, features: Tensor, valid: Tensor) -> Tensor:
        """Clip logits (B,) of raw features."""
        return self.clip_head(self.encode(self.normalised(features, valid), valid), valid)

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-odds (B,) of "this clip is fake"."""
        return self(batch["features"], batch["valid"]).float()  # bfloat16 would round to ties

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Binary cross-entropy of the clip label."""
        hidden, valid, _ = self._encode_for_training(batch)
        return self._clip_loss(hidden, valid, batch["label"])

    def _encode_for_training(
        self, batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Hidden frames, valid and tags of a batch, augmented in training mode."""
        valid, tags = batch["valid"], batch.get("tags")
        x = self.normalised(batch["features"], valid)
        if self.training and self.augment is not None:
            x, valid, tags = self.augment(x, valid, tags)
        return self.encode(x, valid), valid, tags

    def _clip_loss(self, hidden: Tensor, valid: Tensor, label: Tensor) -> Tensor:
        logits = self.clip_head(hidden, valid)
        weight = torch.full((), self.pos_weight, device=logits.device)
        return F.binary_cross_entropy_with_logits(logits.float(), label.float(), pos_weight=weight)


class TaggingTCN(TCN):
    """The TCN with a head of depthwise separable convolutions that tags each frame O, B, I or L.

    Args:
        tag_hidden: channels of the tagging head.
        tag_weights: weights of the tags in the cross-entropy, in the order of `segments.TAGS`.
        clip_weight: weight of the clip loss; 0 removes the clip head.
        backbone: arguments of TCN.
    """

    def __init__(
        self,
        tag_hidden: int = 96,
        tag_weights: Sequence[float] = (0.05, 0.30, 0.30, 0.35),
        clip_weight: float = 1.0,
        **backbone: Any,
    ):
        super().__init__(**backbone)
        check_sizes(tag_hidden=tag_hidden)
        check_weights(tag_weights=tag_weights, clip_weight=clip_weight)
        if len(tag_weights) != len(TAGS):
            raise ValueError(f"tag_weights needs {len(TAGS)} weights, not {len(tag_weights)}")
        self.clip_weight = clip_weight
        self.register_buffer("tag_weights", torch.tensor(tag_weights).float(), persistent=False)
        self.tagger = Tagger(self.project.out_channels, tag_hidden)
        if clip_weight == 0:
            self.clip_head = None

    def tag_log_probs(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-probabilities (B, T, 4) of the tags of each frame; meaningless at invalid frames."""
        valid = batch["valid"]
        hidden = self.encode(self.normalised(batch["features"], valid), valid)
        return self.tagger(hidden, valid).float().log_softmax(dim=1).transpose(1, 2)

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-odds (B,) of "this clip is fake"; without a clip head, the highest of its frames."""
        if self.clip_head is not None:
            return super().score(batch)
        log_probs = self.tag_log_probs(batch)
        fake = log_probs[..., O + 1 :].logsumexp(dim=2) - log_probs[..., O]
        return fake.masked_fill(~batch["valid"], torch.finfo(fake.dtype).min).amax(dim=1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Weighted cross-entropy of the tags, plus `clip_weight` times that of the clip label."""
        hidden, valid, tags = self._encode_for_training(batch)
        logits = self.tagger(hidden, valid).float()
        tags = tags.masked_fill(~valid, IGNORE)
        # torch's weighted mean, but 0 instead of NaN if no frame counts
        weight = self.tag_weights.to(logits.dtype)
        mass = (weight[tags.clamp(min=0)] * (tags != IGNORE)).sum().clamp(min=1e-6)
        loss = F.cross_entropy(logits, tags, weight, ignore_index=IGNORE, reduction="sum") / mass
        if self.clip_head is None:
            return loss
        return loss + self.clip_weight * self._clip_loss(hidden, valid, batch["label"])


class ResidualBlock(nn.Module):
    """Two dilated convolutions with batch norm beside a 1x1 convolution: (B, H, T) -> (B, H, T)."""

    def __init__(self, channels: int, kernel: int, dilation: int, dropout: float):
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, kernel, padding="same", dilation=dilation)
        self.norm1 = MaskedBatchNorm1d(channels)
        self.conv2 = nn.Conv1d(channels, channels, kernel, padding="same", dilation=dilation)
        self.norm2 = MaskedBatchNorm1d(channels)
        self.shortcut = nn.Conv1d(channels, channels, 1)
        self.dropout = nn.Dropout1d(dropout)  # whole channels, since neighbouring frames are alike

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, H, T) -> (B, H, T), 0 where mask (B, 1, T) is 0."""
        inner = self.dropout(F.relu(self.norm1(self.conv1(x), mask))) * mask
        return F.relu(self.norm2(self.conv2(inner), mask) + self.shortcut(x)) * mask


class MaskedBatchNorm1d(nn.BatchNorm1d):
    """Batch norm of (B, C, T) whose statistics count only the frames where mask (B, 1, T) is 1.

    With a mask of ones it equals nn.BatchNorm1d; its state dict has the same names.
    """

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, C, T) and mask (B, 1, T) -> (B, C, T); the mask only matters in training."""
        if not self.training:
            return super().forward(x)
        mask = mask.float()
        count = mask.sum().clamp(min=1)
        mean = (x * mask).sum(dim=(0, 2)) / count
        centred = x - mean[:, None]
        var = (centred.square() * mask).sum(dim=(0, 2)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1).clamp(min=1), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return centred * scale[:, None] + self.bias[:, None]


class ClipHead(nn.Module):
    """Attention pooling over the valid frames and an MLP: hidden (B, H, T) -> logits (B,).

    A clip without a valid frame gets the finite logit of a hidden vector of zeros.
    """

    def __init__(self, hidden: int, dropout: float):
        super().__init__()
        self.attention = nn.Sequential(
            nn.Linear(hidden, hidden // 2), nn.Tanh(), nn.Linear(hidden // 2, 1)
        )
        self.mlp = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 1)
        )

    def forward(self, hidden: Tensor, valid: Tensor) -> Tensor:
        """Hidden (B, H, T) and valid (B, T) -> logits (B,)."""
        frames = hidden.transpose(1, 2)
        relevance = self.attention(frames).squeeze(2).float()
        weights = relevance.masked_fill(~valid, torch.finfo(relevance.dtype).min).softmax(dim=1)
        # invalid frames are zeros, so that even a clip without valid ones pools to zeros
        return self.mlp(torch.einsum("bt,bth->bh", weights.to(frames.dtype), frames)).squeeze(1)


class Tagger(nn.Module):
    """Two depthwise separable convolutions and a 1x1: hidden (B, H, T) -> tag logits (B, 4, T)."""

    def __init__(self, hidden: int, channels: int, kernel: int = 3):
        super().__init__()
        self.separable1 = _depthwise_separable(hidden, channels, kernel)
        self.separable2 = _depthwise_separable(channels, channels, kernel)
        self.output = nn.Conv1d(channels, len(TAGS), 1)

    def forward(self, hidden: Tensor, valid: Tensor) -> Tensor:
        """Hidden (B, H, T) and valid (B, T) -> tag logits (B, 4, T)."""
        inner = F.relu(self.separable1(hidden)) * valid[:, None]
        return self.output(F.relu(self.separable2(inner)))


def _depthwise_separable(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    depthwise = nn.Conv1d(inputs, inputs, kernel, padding="same", groups=inputs)
    return nn.Sequential(depthwise, nn.Conv1d(inputs, outputs, 1))
