"""Which clips a rank trains on in an epoch, and in which order.

An epoch is a permutation of all clips, drawn from (seed, epoch) and cut into global batches of
`size` clips for each of `world` ranks. The clips of a global batch are dealt to the ranks in turn,
so that two ranks with 8 clips each take the same clips as one rank with 16. No clip appears twice;
the last global batch may be smaller and uneven.
"""

from __future__ import annotations

import dataclasses

Key = tuple[int, int]  # (epoch, index) of an example


@dataclasses.dataclass(frozen=True)
class Batch:
    """The examples of one rank in one step. counts: False if they only keep the rank in step."""

    keys: list[Key]
    counts: bool = True


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """The numbers 0 .. n - 1 in the order of this epoch."""
    import numpy as np

    return np.random.default_rng([seed, epoch]).permutation(n).tolist()


def batches_of_rank(keys: list[Key], size: int, rank: int = 0, world: int = 1) -> list[Batch]:
    """This rank's batches, as many as every other rank's.

    If the last global batch has no clip left for a rank, it runs the batch's first clip, which does
    not count.
    """
    whole = [keys[start : start + size * world] for start in range(0, len(keys), size * world)]
    return [
        Batch(part[rank::world]) if rank < len(part) else Batch(part[:1], counts=False)
        for part in whole
    ]


def group_sizes(n_batches: int, accumulate: int) -> list[int]:
    """For each batch, how many share its update: `accumulate`, or fewer at the epoch's end."""
    firsts = (number // accumulate * accumulate for number in range(n_batches))
    return [min(accumulate, n_batches - first) for first in firsts]
