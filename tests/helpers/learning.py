"""The shortest training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


def learn(
    model: nn.Module,
    batch: Batch | Callable[[int], Batch],
    steps: int,
    lr: float,
    kind: type[torch.optim.Optimizer] = torch.optim.Adam,
) -> list[float]:
    """The losses of steps on one batch, or on what batch(number of the step) gives."""
    optimizer, losses = kind(model.parameters(), lr), []
    for step in range(steps):
        optimizer.zero_grad()
        loss = model.loss(batch(step) if callable(batch) else batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
