"""The convolutional stem of the spatio-temporal branch: BiT's ResNet-V2 with a frequency branch.

Weight-standardised convolutions with TensorFlow's "same" padding, group norm, and the layout of the
ImageNet-21k hybrid ViT (stages 3, 4, 9, activation after the sum). A second first stage processes
what three Gaussian blurs remove from the image's low-level features (MM-Det, "frequency enhancer").

Axes: N frames, C channels, H x W pixels. Submodules have the published names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLUR_KERNELS = (3, 5, 7)


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around (N, C, H, W), so that a convolution gives ceil(H / stride) rows.

    If the number of zeros is odd, there is one more at the end.
    """
    if kernel == 1:
        return x
    missing = [
        max((math.ceil(size / stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:]
    ]
    top, left = (total // 2 for total in missing)
    return F.pad(x, (left, missing[1] - left, top, missing[0] - top))


class StdConv2d(nn.Conv2d):
    """A "same" convolution without bias; its filters are normalised before use."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel, stride, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), rounded up."""
        flat = self.weight.flatten(1)
        weight = F.layer_norm(flat, flat.shape[1:], eps=1e-8).view_as(self.weight)
        return F.conv2d(
            pad_same(x, self.kernel_size[0], self.stride[0]), weight, stride=self.stride
        )


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups as published; fewer for narrow or odd widths, if possible of two channels each."""
    groups = math.gcd(32, channels)
    return nn.GroupNorm(max(groups // 2, 1) if groups == channels else groups, channels)


class Stem(nn.Module):
    """A 7x7 convolution and a pooling: (N, 3, H, W) -> (N, width, H / 4, W / 4)."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = StdConv2d(3, width, 7, stride=2)
        self.norm = group_norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, width, H / 4, W / 4), rounded up."""
        x = F.relu(self.norm(self.conv(x)))
        # after a ReLU, the zeros of the padding change no maximum
        return F.max_pool2d(pad_same(x, 3, 2), 3, stride=2)


class Shortcut(nn.Module):
    """The shortcut of a bottleneck that changes the shape."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv = StdConv2d(in_channels, out_channels, 1, stride)
        self.norm = group_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), rounded up."""
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions of a quarter width, beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        width = out_channels // 4
        if stride != 1 or in_channels != out_channels:
            self.downsample = Shortcut(in_channels, out_channels, stride)
        self.conv1 = StdConv2d(in_channels, width, 1)
        self.norm1 = group_norm(width)
        self.conv2 = StdConv2d(width, width, 3, stride)
        self.norm2 = group_norm(width)
        self.conv3 = StdConv2d(width, out_channels, 1)
        self.norm3 = group_norm(out_channels)
        nn.init.zeros_(self.norm3.weight)  # each block starts as its shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), rounded up."""
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return F.relu(self.norm3(self.conv3(x)) + shortcut)


class Stage(nn.Module):
    """`layers` bottlenecks, the first of which changes width and resolution."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, stride: int):
        super().__init__()
        rest = (Bottleneck(out_channels, out_channels) for _ in range(layers - 1))
        self.blocks = nn.Sequential(Bottleneck(in_channels, out_channels, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), rounded up."""
        return self.blocks(x)


def gaussian_blur(x: Tensor, kernel: int) -> Tensor:
    """(N, C, H, W) blurred with a `kernel` x `kernel` Gaussian and mirrored borders.

    Sigma is what image libraries derive from the size: 0.8, 1.3 and 1.8 for 3, 5 and 7. (The
    published code draws it from an interval of that one value.)
    """
    half, channels = kernel // 2, x.shape[1]
    sigma = 0.5 * (half - 1) + 0.8
    offset = torch.arange(-half, half + 1, dtype=x.dtype, device=x.device)
    weight = torch.exp(-0.5 * (offset / sigma) ** 2)
    weight = (weight / weight.sum()).expand(channels, 1, -1)
    x = F.pad(x, (half, half, half, half), mode="reflect")
    x = F.conv2d(x, weight[:, :, :, None], groups=channels)  # a Gaussian separates: columns, rows
    return F.conv2d(x, weight[:, :, None], groups=channels)


def high_frequencies(x: Tensor) -> Tensor:
    """What each of the three blurs removes: (N, C, H, W) -> (N, 3 C, H, W)."""
    return torch.cat([x - gaussian_blur(x, kernel) for kernel in BLUR_KERNELS], dim=1)


class FrequencyResNet(nn.Module):
    """Normalised images (N, 3, H, W) -> (N, channels[-1], H / 16, W / 16), sizes rounded up.

    Args:
        width: channels of the 7x7 convolutions.
        channels, layers: width and number of bottlenecks of each stage; each stage after the first
            halves the resolution. The frequency stage has the size of the first.

    The defaults are the published 12,292,736 parameters.
    """

    def __init__(
        self,
        width: int = 64,
        channels: Sequence[int] = (256, 512, 1024),
        layers: Sequence[int] = (3, 4, 9),
    ):
        super().__init__()
        if len(channels) != len(layers) or any(count % 4 for count in channels):
            raise ValueError(
                f"each stage needs layers and a multiple of 4 channels, not {channels} and {layers}"
            )
        first = channels[0]
        self.stem = Stem(width)
        self.freq_stem = Stem(width)
        self.freq_stem.load_state_dict(self.stem.state_dict())
        self.stems_transition_conv_1x1 = nn.Sequential(
            nn.Conv2d(2 * first, first, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU()
        )
        inputs = (width, *channels)
        self.stages = nn.ModuleList(
            Stage(inputs[index], channels[index], layers[index], stride=2 if index else 1)
            for index in range(len(layers))
        )
        self.freq_stage = Stage(len(BLUR_KERNELS) * width, first, layers[0], stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, channels[-1], H / 16, W / 16)."""
        plain = self.stages[0](self.stem(x))
        frequency = self.freq_stage(high_frequencies(self.freq_stem(x)))
        x = self.stems_transition_conv_1x1(torch.cat([plain, frequency], dim=1))
        for stage in self.stages[1:]:
            x = stage(x)
        return x
