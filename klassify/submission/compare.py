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
class Task1Change:
    """files: the n clips that both answer; old and new: (n,) probabilities; old_rank and new_rank:
    (n,), 1 = surest fake.

    spearman: rank correlation, NaN if one side has a single score throughout.
    """

    files: list[str]
    old: np.ndarray
    new: np.ndarray
    old_rank: np.ndarray
    new_rank: np.ndarray
    spearman: float

    @property
    def n_changed(self) -> int:
        """How many clips have another probability, however small the difference."""
        return int((self.old != self.new).sum())

    def moves(self, count: int) -> np.ndarray:
        """Indices of the clips whose score moved, the furthest first, at most `count`."""
        move = np.abs(self.new - self.old)
        order = np.argsort(-move, kind="stable")[:count]
        return order[move[order] > 0]


@dataclasses.dataclass(frozen=True)
class Task2Change:
    """n_clips: that both answer; n_changed: of these, clips with any other row. Of the best
    proposals, by score:

    n_found: clips where both have one; n_gained and n_lost: where only the new or only the old has
    one; n_moved: of n_found. mean_iou: over all these, with 0 where only one side has one; NaN for
    none.
    """

    n_clips: int
    n_changed: int
    n_found: int
    n_gained: int
    n_lost: int
    n_moved: int
    mean_iou: float


def compare_task1(new: Mapping[str, float], old: Mapping[str, float]) -> Task1Change:
    """What changed between two {file: probability}; joined by name."""
    from scipy.stats import rankdata

    files = [file for file in new if file in old]
    sides = [np.array([answers[file] for file in files], float) for answers in (old, new)]
    ranks = [rankdata(-side) for side in sides]
    varied = len(files) > 1 and all(np.ptp(rank) > 0 for rank in ranks)
    spearman = float(np.corrcoef(*ranks)[0, 1]) if varied else np.nan
    return Task1Change(files, *sides, *ranks, spearman)


def compare_task2(new: Mapping[str, Answer], old: Mapping[str, Answer]) -> Task2Change:
    """What changed between two {file: Answer}; joined by name."""
    pairs = [(new[file], old[file]) for file in new if file in old]
    spans = np.array([[one[1:] for one in pair] for pair in pairs], float).reshape(-1, 2, 2)
    in_new, in_old = (spans[..., 1] > spans[..., 0]).T
    both, either = in_new & in_old, in_new | in_old
    iou = np.where(both, overlap(spans[:, 0], spans[:, 1]), 0.0)
    return Task2Change(
        n_clips=len(pairs),
        n_changed=sum(a.digest != b.digest for a, b in pairs),
        n_found=int(both.sum()),
        n_gained=int((in_new & ~in_old).sum()),
        n_lost=int((in_old & ~in_new).sum()),
        n_moved=int((spans[both, 0] != spans[both, 1]).any(axis=1).sum()),
        mean_iou=float(iou[either].mean()) if either.any() else np.nan,
    )


def report(new: Verdict, old: Verdict, old_name: str) -> Iterator[str]:
    """Lines that compare two verdicts of `check(..., keep=True)`."""
    if old.accepted:
        yield f"compared with {old_name}"
    else:
        yield f"compared with {old_name}, which is refused ({old.refusals.total} problems):"
        yield from old.refusals.lines()
    for title, member, lines in (("Task 1", TXT, _lines_task1), ("Task 2", JSON, _lines_task2)):
        ours, theirs = (one.kept.get(member, {}) for one in (new, old))
        if not (ours or theirs):
            continue
        yield f"{title}:"
        if not (ours and theirs):
            yield f"  only the {'new' if ours else 'old'} one has answers that can be read"
            continue
        for what, files in (
            ("without an answer now", [file for file in theirs if file not in ours]),
            ("answered only now", [file for file in ours if file not in theirs]),
        ):
            if files:
                yield f"  {len(files)} clips {what}: {first_few(map(repr, files))}"
        yield from lines(ours, theirs)


def _lines_task1(new: Mapping[str, float], old: Mapping[str, float]) -> Iterator[str]:
    change = compare_task1(new, old)
    yield (
        f"  {change.n_changed} of {len(change.files)} answers changed; rank correlation (Spearman)"
        f" {change.spearman:.4f}"
    )
    for i in change.moves(N_MOVES):
        yield (
            f"      {change.files[i]!r}: {change.old[i]:.6g} -> {change.new[i]:.6g}, "
            f"rank {change.old_rank[i]:g} -> {change.new_rank[i]:g}"
        )


def _lines_task2(new: Mapping[str, Answer], old: Mapping[str, Answer]) -> Iterator[str]:
    change = compare_task2(new, old)
    yield f"  the proposals of {change.n_changed} of {change.n_clips} clips changed"
    n = change.n_found + change.n_gained + change.n_lost
    yield (
        f"  best proposal: mean IoU {change.mean_iou:.4f} over {n} clips; moved in"
        f" {change.n_moved}, only the new one has any in {change.n_gained}, only the old one in"
        f" {change.n_lost}"
    )
