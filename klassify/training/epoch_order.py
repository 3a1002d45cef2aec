"""Which clips a rank sees in an epoch, and in which order.

An epoch is one permutation of all clips, drawn from (seed, epoch) and cut into global batches of
`size` clips for each of `world` ranks. These go round the ranks like cards, so that two ranks with
8 clips each take together what one takes with 16. No clip stands twice; the last global batch may
be smaller, and then uneven.
"""

from __future__ import annotations

import dataclasses

Key = tuple[int, int]  # (epoch, index) of an example


@dataclasses.dataclass(frozen=True)
class Batch:
    """The examples of one rank in one step. counts: False where they only keep the rank in step
    with the others.
    """

    keys: list[Key]
    counts: bool = True


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """The numbers 0 .. n - 1 in the order of this epoch."""
    import numpy as np

    return np.random.default_rng([seed, epoch]).permutation(n).tolist()


def batches_of_rank(keys: list[Key], size: int, rank: int = 0, world: int = 1) -> list[Batch]:
    """This rank's batches, as many as every other rank's.

    A rank for which the last global batch has no clip left runs its first one, which then does not
    count.
    """
    whole = [keys[start : start + size * world] for start in range(0, len(keys), size * world)]
    return [
        Batch(part[rank::world]) if rank < len(part) else Batch(part[:1], counts=False)
        for part in whole
    ]


def group_sizes(n_batches: int, accumulate: int) -> list[int]:
    """For each batch, how many share its update: `accumulate`, or what is left at the end of the
    epoch.
    """
    return [
        min(accumulate, n_batches - number // accumulate * accumulate)
        for number in range(n_batches)
    ]
