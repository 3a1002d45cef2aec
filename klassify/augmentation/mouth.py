"""Augmentations of a training batch of mouth features.

The five of paper 1, section 5.2: feature shifting, temporal dropout, index swap, full channel
dropout, Gaussian noise. The paper does not give their strengths; the defaults here are our choice.

Every function works on a batch: x (B, T, C) normalised features, 0 where a frame is invalid; valid
(B, T), False for padding and for frames without a face; tags (B, T), optional, IGNORE where
unknown. Randomness comes from torch's global generator, so that a resumed run repeats the
uninterrupted one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from klassify.grid.frames import IGNORE, O
from klassify.settings import check_shares, check_sizes, check_weights


class FeatureAugment(nn.Module):
    """Applies each augmentation to each clip with its own probability, in the arguments' order.

    Args:
        shift, temporal_dropout, swap, channel_dropout, noise: probability of each augmentation.
        max_shift: most frames by which a clip moves.
        max_spans: most spans that are dropped.
        span_frames: shortest and longest length of a dropped span.
        swaps: pairs of frames that are swapped.
        swap_distance: largest distance of two swapped frames.
        channel_share: probability that a feature is dropped.
        noise_std: standard deviation, in units of the normalised features.
    """

    def __init__(
        self,
        shift: float = 0.5,
        temporal_dropout: float = 0.5,
        swap: float = 0.5,
        channel_dropout: float = 0.5,
        noise: float = 0.5,
        max_shift: int = 8,
        max_spans: int = 3,
        span_frames: tuple[int, int] = (4, 16),
        swaps: int = 4,
        swap_distance: int = 4,
        channel_share: float = 0.1,
        noise_std: float = 0.05,
    ):
        super().__init__()
        check_shares(
            shift=shift,
            temporal_dropout=temporal_dropout,
            swap=swap,
            channel_dropout=channel_dropout,
            noise=noise,
            channel_share=channel_share,
        )
        check_sizes(0, max_shift=max_shift, swaps=swaps)
        check_sizes(max_spans=max_spans, span_frames=span_frames, swap_distance=swap_distance)
        check_weights(noise_std=noise_std)
        if len(span_frames) != 2 or span_frames[0] > span_frames[1]:
            raise ValueError(f"span_frames must be (shortest, longest), not {span_frames}")
        self.shift, self.temporal_dropout, self.swap = shift, temporal_dropout, swap
        self.channel_dropout, self.noise = channel_dropout, noise
        self.max_shift, self.max_spans, self.span_frames = max_shift, max_spans, span_frames
        self.swaps, self.swap_distance = swaps, swap_distance
        self.channel_share, self.noise_std = channel_share, noise_std

    def forward(
        self, x: Tensor, valid: Tensor, tags: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Augmented copies of (x, valid, tags)."""
        frames = clip_lengths(valid)
        if (hit := _draw(self.shift, x)) is not None:
            offset = torch.randint(-self.max_shift, self.max_shift + 1, (len(x),), device=x.device)
            x, valid, tags = shift_in_time(x, valid, tags, offset * hit)
        if (hit := _draw(self.temporal_dropout, x)) is not None:
            kept = ~random_spans(frames, x.shape[1], self.max_spans, self.span_frames)
            x = torch.where(hit[:, None, None], x * kept[..., None], x)
        if (hit := _draw(self.swap, x)) is not None:
            order = random_swaps(valid, tags, frames, self.swaps, self.swap_distance)
            x = torch.where(hit[:, None, None], take_frames(x, order), x)
        if (hit := _draw(self.channel_dropout, x)) is not None:
            kept = random_channels(len(x), x.shape[2], self.channel_share, device=x.device)
            x = torch.where(hit[:, None, None], x * kept[:, None], x)
        if (hit := _draw(self.noise, x)) is not None:
            x = x + self.noise_std * torch.randn_like(x) * (hit[:, None] & valid)[..., None]
        return x, valid, tags


def clip_lengths(valid: Tensor) -> Tensor:
    """(B,) frames up to and including each clip's last valid one; the rest counts as padding."""
    place = torch.arange(1, valid.shape[1] + 1, device=valid.device)
    return (place * valid).amax(dim=1)


def take_frames(x: Tensor, index: Tensor) -> Tensor:
    """Frame index[b, t] of each clip: (B, T, ...) and (B, T) -> (B, T, ...)."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def shift_in_time(
    x: Tensor, valid: Tensor, tags: Tensor | None, offset: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Move each clip by its offset (B,) in frames (> 0: later); the edge frame is repeated.

    The clip keeps its length, and padding keeps its place. A repeated frame would repeat its B or L
    tag, which occurs once per segment, so tags of repeated frames other than O become IGNORE.
    """
    place = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
    frames = clip_lengths(valid)[:, None]
    wanted = place - offset[:, None]
    source = torch.minimum(wanted.clamp(min=0), (frames - 1).clamp(min=0))
    source = torch.where(place < frames, source, place)
    if tags is not None:
        repeated = (source != wanted) & (place < frames)
        tags = take_frames(tags, source)
        tags = tags.masked_fill(repeated & (tags != O), IGNORE)
    return take_frames(x, source), take_frames(valid, source), tags


def random_spans(
    frames: Tensor, length: int, max_spans: int, span_frames: tuple[int, int]
) -> Tensor:
    """(B, length) bool: 1 to max_spans random spans per clip, each at most a quarter of it."""
    shape = (len(frames), max_spans)
    size = torch.randint(span_frames[0], span_frames[1] + 1, shape, device=frames.device)
    size = torch.minimum(size, frames[:, None] // 4)
    wanted = torch.randint(1, max_spans + 1, (len(frames), 1), device=frames.device)
    size = size * (torch.arange(max_spans, device=frames.device) < wanted)
    start = (torch.rand(shape, device=frames.device) * (frames[:, None] - size + 1)).long()
    place = torch.arange(length, device=frames.device)[:, None]
    return ((start[:, None] <= place) & (place < (start + size)[:, None])).any(dim=2)


def random_swaps(
    valid: Tensor, tags: Tensor | None, frames: Tensor, swaps: int, distance: int
) -> Tensor:
    """(B, T) order of the frames of each clip after `swaps` swaps, one after the other.

    Two frames are swapped if both are valid and have the same tag.
    """
    clip = torch.arange(len(valid), device=valid.device)
    order = torch.arange(valid.shape[1], device=valid.device).repeat(len(valid), 1)
    for _ in range(swaps):
        first = (torch.rand(len(valid), device=valid.device) * frames).long()
        second = first + torch.randint(1, distance + 1, first.shape, device=valid.device)
        second = torch.where(second < frames, second, first)
        allowed = valid[clip, first] & valid[clip, second]
        if tags is not None:
            allowed &= tags[clip, first] == tags[clip, second]
        second = torch.where(allowed, second, first)
        order[clip, first], order[clip, second] = order[clip, second], order[clip, first]
    return order


def random_channels(
    batch: int, channels: int, share: float, device: torch.device | None = None
) -> Tensor:
    """(batch, channels) bool, False where dropped; at least one feature of each clip is kept.

    Feature c is dropped together with its difference, channel c + C/2.
    """
    features = channels // 2
    kept = torch.rand(batch, features, device=device) >= share
    spared = torch.randint(features, (batch,), device=device)
    lost_all = ~kept.any(dim=1, keepdim=True)
    kept |= lost_all & (torch.arange(features, device=device) == spared[:, None])
    return kept.repeat(1, 2)


def _draw(probability: float, x: Tensor) -> Tensor | None:
    """(B,) bool: which clips are augmented; None, on a CPU, if none is. A GPU is not asked, since
    that would wait for it.
    """
    hit = torch.rand(len(x), device=x.device) < probability
    return hit if x.device.type != "cpu" or hit.any() else None
