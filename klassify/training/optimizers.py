"""The optimizer and the learning rate schedule of TrainSettings."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import lr_scheduler

from klassify.systems.experiment import TrainSettings


def optimizer_of(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """An optimizer of the trainable parameters."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return kind(trained, lr=settings.lr, weight_decay=settings.weight_decay)


def scheduler_of(
    optimizer: torch.optim.Optimizer, settings: TrainSettings, updates_per_epoch: int, epochs: int
) -> lr_scheduler.LRScheduler:
    """The learning rate schedule, stepped after each update."""
    updates = updates_per_epoch * epochs
    if settings.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, updates)
    if settings.schedule == "one_cycle":
        return lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=updates)
    if settings.schedule == "step":
        updates = updates_per_epoch * settings.step_epochs
        return lr_scheduler.StepLR(optimizer, updates, settings.step_factor)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)
