"""Two submissions of one split side by side: which answers changed, and by how much.

    klassify check NEW.zip --against OLD.zip --list data_lists/demo/testA.tsv

Both are read as the checker reads them, so that a hostile archive does no more harm here than
there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from klassify.errors import first_few
from klassify.metrics.matching import overlap
from klassify.submission.check_task2 import Answer
from klassify.submission.verdict import JSON, TXT, Verdict

N_MOVES = 5


@dataclasses.dataclass(frozen=True)
class Names:
    """Whom both packages answer, and whom only one does, each in the order of its file."""

    common: list[str]
    missing: list[str]  # only the old one
    extra: list[str]  # only the new one

    @classmethod
    def of(cls, new: Mapping[str, object], old: Mapping[str, object]) -> Names:
        """Those of two {file: answer}."""
        return cls(
            [f for f in new if f in old],
            [f for f in old if f not in new],
            [f for f in new if f not in old],
        )


@dataclasses.dataclass(frozen=True)
class Task1Change:
    """names.common has n clips: old and new (n,) probabilities and their ranks (n,), 1 = surest
    fake.

    spearman: rank correlation, NaN where one side has the same score throughout, or there is one
    clip.
    """

    names: Names
    old: np.ndarray
    new: np.ndarray
    old_rank: np.ndarray
    new_rank: np.ndarray
    spearman: float

    @property
    def n_changed(self) -> int:
        """How many clips have another probability, be it by ever so little."""
        return int((self.old != self.new).sum())

    def moves(self, count: int) -> np.ndarray:
        """Indices of the clips whose score moved furthest, the furthest first; none that did not
        move.
        """
        move = np.abs(self.new - self.old)
        order = np.argsort(-move, kind="stable")[:count]
        return order[move[order] > 0]


@dataclasses.dataclass(frozen=True)
class Task2Change:
    """n_changed: clips of names.common whose rows differ in any way. Of the best proposals, by
    score:

    n_found: clips where both have one; n_gained and n_lost: where only the new or only the old has
    one. mean_iou: over all these, with 0 where only one side has one; NaN where there is none.
    n_moved: of n_found.
    """

    names: Names
    n_changed: int
    n_found: int
    n_gained: int
    n_lost: int
    n_moved: int
    mean_iou: float


def compare_task1(new: Mapping[str, float], old: Mapping[str, float]) -> Task1Change:
    """What changed between two {file: probability}; joined by name."""
    from scipy.stats import rankdata

    names = Names.of(new, old)
    sides = [np.array([answers[file] for file in names.common], float) for answers in (old, new)]
    ranks = [rankdata(-side) for side in sides]
    varied = len(names.common) > 1 and all(np.ptp(rank) > 0 for rank in ranks)
    return Task1Change(
        names, *sides, *ranks, float(np.corrcoef(*ranks)[0, 1]) if varied else np.nan
    )


def compare_task2(new: Mapping[str, Answer], old: Mapping[str, Answer]) -> Task2Change:
    """What changed between two {file: Answer}; joined by name."""
    names = Names.of(new, old)
    pairs = [(new[file], old[file]) for file in names.common]
    spans = np.array([[one[1:] for one in pair] for pair in pairs], float).reshape(-1, 2, 2)
    in_new, in_old = (spans[..., 1] > spans[..., 0]).T
    both = in_new & in_old
    iou = np.where(both, overlap(spans[:, 0], spans[:, 1]), 0.0)
    either = in_new | in_old
    return Task2Change(
        names,
        n_changed=sum(a.digest != b.digest for a, b in pairs),
        n_found=int(both.sum()),
        n_gained=int((in_new & ~in_old).sum()),
        n_lost=int((in_old & ~in_new).sum()),
        n_moved=int((spans[both, 0] != spans[both, 1]).any(axis=1).sum()),
        mean_iou=float(iou[either].mean()) if either.any() else np.nan,
    )


def report(new: Verdict, old: Verdict, old_name: str) -> Iterator[str]:
    """Lines that set two verdicts of `check(..., keep=True)` side by side."""
    yield f"compared with {old_name}" + (
        "" if old.accepted else f", which is refused ({old.refusals.total} problems):"
    )
    if not old.accepted:
        yield from old.refusals.lines()
    for title, member, lines in (("Task 1", TXT, _lines_task1), ("Task 2", JSON, _lines_task2)):
        sides = [one.kept.get(member, {}) for one in (new, old)]
        if not any(sides):
            continue
        yield f"{title}:"
        if not all(sides):
            yield f"  only the {'new' if sides[0] else 'old'} one has answers that can be read"
            continue
        yield from lines(*sides)


def _lines_task1(new: Mapping[str, float], old: Mapping[str, float]) -> Iterator[str]:
    change = compare_task1(new, old)
    yield from _lines_names(change.names)
    n = len(change.names.common)
    yield (
        f"  {change.n_changed} of {n} answers changed; rank correlation (Spearman)"
        f" {change.spearman:.4f}"
    )
    for i in change.moves(N_MOVES):
        yield (
            f"      {change.names.common[i]!r}: {change.old[i]:.6g} -> {change.new[i]:.6g}, "
            f"rank {change.old_rank[i]:g} -> {change.new_rank[i]:g}"
        )


def _lines_task2(new: Mapping[str, Answer], old: Mapping[str, Answer]) -> Iterator[str]:
    change = compare_task2(new, old)
    yield from _lines_names(change.names)
    yield f"  the proposals of {change.n_changed} of {len(change.names.common)} clips changed"
    n = change.n_found + change.n_gained + change.n_lost
    yield (
        f"  best proposal: mean IoU {change.mean_iou:.4f} over {n} clips; moved in"
        f" {change.n_moved}, only the new one has any in {change.n_gained}, only the old one in"
        f" {change.n_lost}"
    )


def _lines_names(names: Names) -> Iterator[str]:
    for title, files in (
        ("without an answer now", names.missing),
        ("answered only now", names.extra),
    ):
        if files:
            yield f"  {len(files)} clips {title}: {first_few(map(repr, files))}"
