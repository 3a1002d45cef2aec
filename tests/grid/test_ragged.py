"""ragged.py against clip-by-clip work."""

from __future__ import annotations

import numpy as np
import pytest

from klassify.grid.ragged import is_top, row_offsets, top_rows


@pytest.mark.parametrize("digits", [0, 8])
@pytest.mark.parametrize("n_clips", [0, 1, 40])
def test_the_top_rows_equal_those_of_each_clip_sorted(n_clips, digits):
    rng = np.random.default_rng(n_clips)
    counts = rng.integers(0, 60, n_clips)
    offsets = row_offsets(counts)
    scores = np.round(rng.normal(size=offsets[-1]), digits)
    rows, kept = [], []
    for first, count in zip(offsets[:-1].tolist(), counts.tolist()):
        best = sorted(range(first, first + count), key=lambda row: -scores[row])
        kept.append(max(1, count // 10) if count else 0)
        rows += best[: kept[-1]]
    found, found_offsets = top_rows(scores, offsets)
    assert found.tolist() == rows
    assert found_offsets.tolist() == row_offsets(np.array(kept, int)).tolist()
    assert np.flatnonzero(is_top(scores, offsets)).tolist() == sorted(rows)
