"""Reads the windows of clips for scoring; worker processes stay from one list to the next."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from klassify.data.base import ClipData, ClipWindows, Sources, Window
from klassify.data.loading import Loader

Clip = tuple[str, list[Window], str]  # file, windows, and why there are none
CLIPS_AT_ONCE = 4  # that a worker sends together
CLIPS_TIMED = 16  # that are read here before it is decided whether workers are started
SENDING_S = 0.002  # what a clip from a worker costs this process, with some margin
STARTING_S = 5.0  # of reading that pays for the start of workers


class ClipLoader:
    """Reads clips of a split: called with names, it yields (file, windows, reason) in their order.

    reason: '' for a clip that can be scored. workers: processes at most; 0 reads in this one. They
    are started once reading has proved slow enough to pay for starting them and for sending what
    they read (mouth features are read faster than they are sent). n_clips: of all calls together;
    None means each call is alone.
    """

    def __init__(
        self,
        data: ClipData,
        sources: Sources,
        split: str,
        workers: int = 0,
        n_clips: int | None = None,
    ):
        windows = ClipWindows(data, sources, split)
        self._here = Loader(windows, list)
        self._workers = Loader(windows, packed, workers=workers) if workers else None
        self._n_clips, self._took_s = n_clips, []

    def __call__(self, files: Sequence[str]) -> Iterator[Clip]:
        """The clips of these names."""
        if self._workers:
            n_clips = self._n_clips or len(files)
            n_timed = max(CLIPS_TIMED - len(self._took_s), 0)
            yield from self._timed(files[:n_timed])
            files = files[n_timed:]
        lists = (files[i : i + CLIPS_AT_ONCE] for i in range(0, len(files), CLIPS_AT_ONCE))
        if self._workers and files and self._pay(n_clips):
            for clips in self._workers(lists):
                yield from unpacked(clips)
        else:
            for clips in self._here(lists):
                yield from clips

    def _timed(self, files: Sequence[str]) -> Iterator[Clip]:
        for file in files:
            began = time.perf_counter()
            (clip,) = next(self._here([[file]]))
            self._took_s.append(time.perf_counter() - began)
            yield clip

    def _pay(self, n_clips: int) -> bool:
        """Whether workers save time; the median leaves out what is opened at the first clip."""
        typical_s = statistics.median(self._took_s)
        return typical_s > SENDING_S and typical_s * n_clips > STARTING_S


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
