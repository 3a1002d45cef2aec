"""Reads the windows of clips for scoring; worker processes stay from one list to the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from klassify.data.base import ClipData, ClipWindows, Sources, Window
from klassify.data.loading import Loader

Clip = tuple[str, list[Window], str]  # file, windows, and why there are none
CLIPS_AT_ONCE = 4  # that a worker sends together


class ClipLoader:
    """Reads clips of a split: called with names, it yields (file, windows, reason) in their order.

    reason: '' for a clip that can be scored. workers: processes, 0 reads in this one.
    """

    def __init__(self, data: ClipData, sources: Sources, split: str, workers: int = 0):
        self.is_packed = workers > 0
        collate = packed if self.is_packed else list
        self._loader = Loader(ClipWindows(data, sources, split), collate, workers=workers)

    def __call__(self, files: Sequence[str]) -> Iterator[Clip]:
        """The clips of these names."""
        lists = (files[i : i + CLIPS_AT_ONCE] for i in range(0, len(files), CLIPS_AT_ONCE))
        for clips in self._loader(lists):
            yield from unpacked(clips) if self.is_packed else clips


class Packed(NamedTuple):
    """Clips whose windows have places in place of tensors, and these tensors, stacked by shape.

    A worker hands each tensor over as a file of shared memory: a few large ones cost less than many
    small ones.
    """

    clips: list[tuple[str, list[Any], str]]
    tensors: list[Tensor]


def packed(clips: Iterable[Clip]) -> Packed:
    """Clips as a worker sends them; what is not a Window stays as it is."""
    stacks: dict[tuple, list[Tensor]] = {}
    numbers: dict[tuple, int] = {}

    def place(tensor: Tensor) -> tuple[int, int]:
        shape = (tensor.dtype, tuple(tensor.shape))
        stack = stacks.setdefault(shape, [])
        stack.append(tensor)
        return numbers.setdefault(shape, len(numbers)), len(stack) - 1

    placed = []
    for file, windows, reason in clips:
        sent: list[Any] = []
        for window in windows:
            if isinstance(window, Window):
                places = {name: place(tensor) for name, tensor in window.inputs.items()}
                window = (window.start_s, window.end_s, places)
            sent.append(window)
        placed.append((file, sent, reason))
    return Packed(placed, [torch.stack(stack) for stack in stacks.values()])


def unpacked(sent: Packed) -> Iterator[Clip]:
    """The clips that were packed; their tensors are views."""
    for file, windows, reason in sent.clips:
        cut = []
        for window in windows:
            if isinstance(window, tuple):
                start_s, end_s, places = window
                inputs = {name: sent.tensors[n][row] for name, (n, row) in places.items()}
                window = Window(start_s, end_s, inputs)
            cut.append(window)
        yield file, cut, reason
