"""Training targets and losses of anchor-free span detectors (ActionFormer, TriDet).

A point is a position of a pyramid level; it proposes the segment from `left` before it to `right`
behind it. Everything is in one unit of time, never rounded: segments keep their milliseconds.

Axes: B clips, P points of all levels, S segments of a clip, padded with NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RADIUS = 1.5  # strides around a segment's middle within which points are responsible for it


class Points(NamedTuple):
    """Where the points of all levels lie, each (P,): time, stride of the level, and the range of
    distances to the further edge that the level is responsible for.
    """

    time: Tensor
    stride: Tensor
    low: Tensor
    high: Tensor


def assign(points: Points, segments: Tensor, mask: Tensor, *, all_found: bool = True) -> Tensor:
    """The segment that each point is responsible for, (B, P) long; -1 for none.

    A point inside a segment, within RADIUS strides of its middle, whose distance to the further
    edge lies in its level's range; of several segments the shortest. all_found: a segment without a
    point takes the one of the finest level that is nearest to its middle and not another segment's
    only one.

    segments: (B, S, 2); mask: (B, P) bool, points that exist.
    """
    left = points.time[:, None] - segments[:, None, :, 0]  # (B, P, S)
    right = segments[:, None, :, 1] - points.time[:, None]
    middle = segments.mean(dim=-1)[:, None]
    further = torch.maximum(left, right)
    fits = (left > 0) & (right > 0) & mask[..., None]
    fits &= (points.time[:, None] - middle).abs() < RADIUS * points.stride[:, None]
    fits &= (further >= points.low[:, None]) & (further <= points.high[:, None])
    length = (segments[..., 1] - segments[..., 0])[:, None].expand_as(left)
    if not length.shape[2]:
        return torch.full(mask.shape, -1, device=mask.device)
    shortest, owner = length.masked_fill(~fits, torch.inf).min(dim=2)
    owner = torch.where(shortest.isfinite(), owner, -1)
    if all_found:
        _give_points(owner, points, segments, mask)
    return owner


def _give_points(owner: Tensor, points: Points, segments: Tensor, mask: Tensor) -> None:
    """Give each segment that owns no point one of the finest level, in place: one segment after
    the other, all clips at once.
    """
    there = ~segments[..., 0].isnan()
    numbers = torch.arange(segments.shape[1], device=owner.device)
    lacks = there & ~(owner[:, :, None] == numbers).any(dim=1)
    finest = mask & (points.stride == points.stride.min())
    for number in range(segments.shape[1]):
        counts = (owner[:, :, None] == numbers).sum(dim=1)
        only_one = (owner >= 0) & (counts.gather(1, owner.clamp(min=0)) < 2)
        free = finest & ~only_one
        distance = (points.time - segments[:, number].mean(dim=1, keepdim=True)).abs()
        nearest = distance.masked_fill(~free, torch.inf).argmin(dim=1, keepdim=True)
        given = lacks[:, number, None] & free.any(dim=1, keepdim=True)
        before = owner.gather(1, nearest)
        owner.scatter_(1, nearest, torch.where(given, number, before))


def focal(logit: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al., ICCV 2017) of each logit; target in [0, 1], of the same shape."""
    p = logit.sigmoid()
    loss = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    away = p * (1 - target) + (1 - p) * target
    return (alpha * target + (1 - alpha) * (1 - target)) * away**gamma * loss


def overlaps(found: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and distance-IoU loss of segments around the same points: (...) each.

    found, wanted: (..., 2) distances of the edges to the left and to the right. The loss is 1 - IoU
    + (distance of the centres / length of the hull)^2 (Zheng et al., AAAI 2020).
    """
    shared = torch.minimum(found, wanted).sum(dim=-1).clamp(min=0)
    hull = torch.maximum(found, wanted).sum(dim=-1).clamp(min=1e-8)
    union = found.sum(dim=-1) + wanted.sum(dim=-1) - shared
    iou = shared / union.clamp(min=1e-8)
    apart = (found[..., 1] - found[..., 0] - wanted[..., 1] + wanted[..., 0]) / 2
    return iou, 1 - iou + (apart / hull) ** 2


def distance_loss(logits: Tensor, distance: Tensor) -> Tensor:
    """Cross-entropy of distributions over bins with the two bins next to the true distance (Li et
    al., NeurIPS 2020): (...).

    logits: (..., bins + 1); distance: (...) in bins, cut to what the bins reach.
    """
    last = logits.shape[-1] - 1
    distance = distance.clamp(0, last)
    low = distance.floor().clamp(max=last - 1)
    share = distance - low
    log_p = logits.log_softmax(dim=-1)
    index = low.long()[..., None]
    near = log_p.gather(-1, index)[..., 0], log_p.gather(-1, index + 1)[..., 0]
    return -((1 - share) * near[0] + share * near[1])
