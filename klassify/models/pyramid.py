"""A temporal pyramid of SGP blocks, and distances to edges as distributions over bins.

The blocks and the trident decoding are those of TriDet (Shi et al., CVPR 2023). Their means over
time count padding, so that a clip's result depends on how far its batch is padded; with `masked`,
the default here, they count valid positions only, and padding changes nothing.

Axes: B clips, C channels, T positions of a level, L levels. Masks are (B, 1, T) bool.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 16  # of the norm before a block's last layers


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (B, C, T)."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dim, 1))
        self.bias = nn.Parameter(torch.zeros(1, dim, 1))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        x = x - x.mean(dim=1, keepdim=True)  # on a processor, much faster than torch.var_mean
        variance = x.square().mean(dim=1, keepdim=True)
        return x * (variance + self.eps).rsqrt() * self.weight + self.bias


class AffineDropPath(nn.Module):
    """A learned factor per channel; in training whole branches of some clips are left out.

    Args:
        dim: channels.
        drop: share of clips whose branch is left out.
        start: the factors at first.
    """

    def __init__(self, dim: int, drop: float, start: float = 1e-4):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, dim, 1), start))
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        x = self.scale * x
        if not (self.training and self.drop):
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.drop
        return x * kept / (1 - self.drop)


def depthwise(dim: int, kernel: int) -> nn.Conv1d:
    """A convolution of each channel by itself that keeps the length."""
    return nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)


def masked_group_norm(x: Tensor, mask: Tensor, norm: nn.GroupNorm) -> Tensor:
    """`norm` of (B, C, T) with mean and variance over valid positions only."""
    groups = x.unflatten(1, (norm.num_groups, -1))
    valid = mask[:, None].to(x.dtype)
    count = (valid.sum(dim=(2, 3), keepdim=True) * groups.shape[2]).clamp(min=1)
    mean = (groups * valid).sum(dim=(2, 3), keepdim=True) / count
    groups = groups - mean
    variance = (groups.square() * valid).sum(dim=(2, 3), keepdim=True) / count
    normed = (groups * (variance + norm.eps).rsqrt()).flatten(1, 2)
    return normed * norm.weight[:, None] + norm.bias[:, None]


def halved(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """At every other position the highest of itself and its valid neighbours; and the mask."""
    pooled = F.max_pool1d(x.masked_fill(~mask, -torch.inf), 3, stride=2, padding=1)
    mask = mask[..., ::2]
    return pooled.masked_fill(~mask, 0), mask


class SGPBlock(nn.Module):
    """An SGP block: (B, C, T) and its mask -> (B, C, T') and its mask.

    An instant branch, scaled by the mean over time, and a window branch of two kernel sizes, both
    depthwise; then two 1x1 convolutions. Parameters have the published names.

    Args:
        dim: C, a multiple of 16.
        kernel, large: taps of the two kernel sizes, odd.
        stride: 1, or 2 to halve the length first.
        pool: how it is halved, `max` of three positions or `avg` of two with a 1x1 convolution.
        hidden: channels between the last two convolutions; default: 4 C.
        drop_path, start: see AffineDropPath; None leaves it out.
        masked: whether means over time leave padding out; the published ones do not.
    """

    def __init__(
        self,
        dim: int,
        kernel: int = 3,
        large: int = 13,
        stride: int = 1,
        pool: str = "max",
        hidden: int | None = None,
        drop_path: float | None = None,
        start: float = 1e-4,
        masked: bool = True,
    ):
        super().__init__()
        self.stride, self.masked = stride, masked
        self.ln, self.gn = ChannelNorm(dim), nn.GroupNorm(GROUPS, dim)
        self.psi, self.fc = depthwise(dim, kernel), depthwise(dim, 1)
        self.convw, self.convkw = depthwise(dim, kernel), depthwise(dim, large)
        self.global_fc = depthwise(dim, 1)
        if stride == 2 and pool == "avg":
            self.downsample = nn.Sequential(nn.AvgPool1d(2), nn.Conv1d(dim, dim, 1))
        hidden = hidden or 4 * dim
        self.mlp = nn.Sequential(nn.Conv1d(dim, hidden, 1), nn.GELU(), nn.Conv1d(hidden, dim, 1))
        if drop_path is not None:
            self.drop_path_out = AffineDropPath(dim, drop_path, start)
            self.drop_path_mlp = AffineDropPath(dim, drop_path, start)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T) and (B, 1, T) bool -> both at T / stride, rounded up."""
        if hasattr(self, "downsample"):
            x, mask = self.downsample(x), mask[..., ::2]
        elif self.stride == 2 and self.masked:
            x, mask = halved(x, mask)
        elif self.stride == 2:
            x, mask = F.max_pool1d(x, 3, stride=2, padding=1), mask[..., ::2]
        y = self.ln(x)
        if self.masked:
            y = y * mask
            mean = y.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True).clamp(min=1)
        else:
            mean = y.mean(dim=-1, keepdim=True)
        instant = self.fc(y) * F.relu(self.global_fc(mean))
        window = (self.convw(y) + self.convkw(y)) * self.psi(y)
        x = x * mask + self._scaled("drop_path_out", instant + window + y)
        normed = masked_group_norm(x, mask, self.gn) if self.masked else self.gn(x)
        x = x + self._scaled("drop_path_mlp", self.mlp(normed))
        return (x * mask if self.masked else x), mask

    def _scaled(self, name: str, x: Tensor) -> Tensor:
        return getattr(self, name)(x) if hasattr(self, name) else x


class Tower(nn.Module):
    """Two convolutions of 3 taps with norm and ReLU, and one to `out` channels, for all levels."""

    def __init__(self, in_dim: int, dim: int, out: int):
        super().__init__()
        sizes = (in_dim, dim, dim)
        self.convs = nn.ModuleList(
            nn.Conv1d(a, b, 3, padding=1, bias=False) for a, b in zip(sizes, sizes[1:])
        )
        self.norms = nn.ModuleList(ChannelNorm(dim) for _ in self.convs)
        self.out = nn.Conv1d(dim, out, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, C, T) -> (B, out, T), zero at invalid positions."""
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(norm(conv(x) * mask))
        return self.out(x) * mask


def bin_logits(start: Tensor, end: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the distance of each position from its segment's start and end, 0 to `bins`
    positions: (B, T, bins + 1) twice.

    start, end: (B, T), how likely a position is an edge, 0 beyond the level. left, right: (B, T,
    bins + 1), the position's own opinion of each distance.
    """
    bins = left.shape[-1] - 1
    before = F.pad(start, (bins, 0)).unfold(-1, bins + 1, 1).flip(-1)  # [..., b] is start[t - b]
    behind = F.pad(end, (0, bins)).unfold(-1, bins + 1, 1)
    return before + left, behind + right


def expected_bin(logits: Tensor) -> Tensor:
    """The mean distance of a distribution over bins: (..., bins + 1) -> (...)."""
    bins = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return logits.softmax(dim=-1) @ bins
