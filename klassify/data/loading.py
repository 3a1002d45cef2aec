"""Reads examples and windows ahead of the model, in worker processes.

Worker processes stay for the next epoch or list, read PREFETCH batches ahead, and put batches for a
GPU into pinned memory, from which they are copied while the GPU computes. What all workers read of
a list lies in a few arrays (Texts, Rows): on Linux, workers then share it with the process that
starts them, and nothing is copied to them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from klassify.grid.ragged import row_offsets
from klassify.lists.data_list import flat_segments

PREFETCH = 4  # batches that each worker reads ahead


class Loader:
    """Yields batches of a dataset for lists of keys; its workers stay from one call to the next.

    collate: items -> what is yielded. workers: processes, 0 reads in this one.
    """

    def __init__(
        self,
        dataset: Dataset,
        collate: Callable[[list], Any],
        *,
        workers: int = 0,
        device: torch.device | None = None,
    ):
        self._lists = _Lists()
        self._loader = DataLoader(
            dataset, batch_sampler=self._lists, collate_fn=collate, **arguments(workers, device)
        )

    def __call__(self, lists: Iterable[Sequence]) -> Iterator:
        """The batches of the keys in each of `lists`, in order. Finish one call before the next."""
        self._lists.lists = lists
        return iter(self._loader)


class _Lists:
    """A batch sampler whose lists of keys may be replaced."""

    lists: Iterable[Sequence] = ()

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.lists)


def arguments(workers: int, device: torch.device | None) -> dict[str, Any]:
    """Arguments of torch's DataLoader for so many worker processes and a device."""
    how = {
        "num_workers": workers,
        "pin_memory": device is not None and device.type == "cuda",
        "generator": torch.Generator(),  # the default would draw from the model's generator
    }
    if workers:
        how |= {"persistent_workers": True, "prefetch_factor": PREFETCH}
    return how


def to_device(batch: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    """The batch with its tensors on the device; a copy from pinned memory is not waited for."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


class Texts(Sequence):
    """A list of texts in two arrays. (Reading a text of a list counts its reference up, and so
    copies the memory that a worker shares with its parent.)
    """

    def __init__(self, texts: Iterable[str]):
        encoded = [text.encode(errors="surrogateescape") for text in texts]
        self._offsets = row_offsets(np.array([len(text) for text in encoded], np.int64))
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        first, stop = self._offsets[index], self._offsets[index + 1]
        return self._bytes[first:stop].tobytes().decode(errors="surrogateescape")


class Rows(Sequence):
    """Arrays (n, 2) in two arrays, of the cells of a column of segments; None has no segment."""

    def __init__(self, cells: Sequence[Any]):
        owner, self._rows = flat_segments(cells)
        self._offsets = row_offsets(np.bincount(owner, minlength=len(cells)))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self._rows[self._offsets[index] : self._offsets[index + 1]]


@dataclasses.dataclass(frozen=True)
class Together(Sequence):
    """Sequences of one length side by side: item i is a tuple of their items i."""

    parts: tuple[Sequence, ...]

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, index: int) -> tuple:
        if index >= len(self):
            raise IndexError(index)
        return tuple(part[index] for part in self.parts)
