"""Which clips a rank trains on in an epoch, and in which order.

An epoch is a permutation of all clips, drawn from (seed, epoch) and cut into global batches of
`size` clips for each of `world` ranks. The clips of a global batch are dealt to the ranks in turn,
so that two ranks with 8 clips each take the same clips as one rank with 16. No clip appears twice;
the last global batch may be smaller and uneven. In the epochs of `train.by_source`, clips of one
source are neighbours in the permutation, so that most batches hold fakes beside the clip they were
made from.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

Key = tuple[int, int]  # (epoch, index) of an example


@dataclasses.dataclass(frozen=True)
class Batch:
    """The examples of one rank in one step. counts: False if they only keep the rank in step."""

    keys: list[Key]
    counts: bool = True


def epoch_order(n: int, seed: int, epoch: int, source: np.ndarray | None = None) -> np.ndarray:
    """(n,) the numbers 0 .. n - 1 in the order of this epoch.

    source: (n,) of each clip, to bring those of one source together.
    """
    order = np.random.default_rng([seed, epoch]).permutation(n)
    if source is None:
        return order
    _, first, which = np.unique(source[order], return_index=True, return_inverse=True)
    return order[np.argsort(first[which], kind="stable")]


@dataclasses.dataclass(frozen=True)
class EpochBatches(Sequence):
    """A rank's batches of an epoch, as many as every other rank's, made when they are asked for.

    If the last global batch has no clip left for a rank, it runs the batch's first clip, which does
    not count.

    n: clips. size: of a batch. repeats: how often each clip is drawn; its examples then have the
    epochs epoch * repeats and following as keys. source: of each clip; see epoch_order.
    """

    n: int
    size: int
    seed: int
    epoch: int
    source: np.ndarray | None = None
    repeats: int = 1
    rank: int = 0
    world: int = 1

    @functools.cached_property
    def order(self) -> np.ndarray:
        """Of the n * repeats examples."""
        source = None if self.source is None else np.tile(self.source, self.repeats)
        return epoch_order(self.n * self.repeats, self.seed, self.epoch, source)

    def __len__(self) -> int:
        return -(-self.n * self.repeats // (self.size * self.world))

    def __getitem__(self, number: int) -> Batch:
        if not 0 <= number < len(self):
            raise IndexError(number)
        every = self.size * self.world
        together = self.order[number * every : (number + 1) * every]
        mine = together[self.rank :: self.world]
        counts = len(mine) > 0
        first = self.epoch * self.repeats
        examples = (mine if counts else together[:1]).tolist()
        return Batch([(first + one // self.n, one % self.n) for one in examples], counts)


def group_size(number: int, n_batches: int, accumulate: int) -> int:
    """How many batches share the update of batch `number`: `accumulate`, or fewer at the end."""
    return min(accumulate, n_batches - number // accumulate * accumulate)
