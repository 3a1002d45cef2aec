"""A model whose loss is a plain mean over clips, so that it is the same on any number of ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Plain(nn.Module):
    """The mean of squashed projections of the valid frames. spare: add an unused parameter."""

    supervision = "clip"

    def __init__(self, channels: int = 16, hidden: int = 8, spare: bool = False):
        super().__init__()
        self.inner, self.outer = nn.Linear(channels, hidden), nn.Linear(hidden, 1)
        self.spare = nn.Parameter(torch.zeros(3)) if spare else None

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        weight = batch["valid"].float() / batch["valid"].sum(dim=1, keepdim=True).clamp(min=1)
        features = torch.where(batch["valid"][..., None], batch["features"], 0.0)
        return self.outer((self.inner(features).tanh() * weight[..., None]).sum(dim=1)).squeeze(1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.score(batch), batch["label"].float())
