"""Where a face is in each frame: squares that follow it smoothly, against a loop."""

from __future__ import annotations

import numpy as np
import pytest

from klassify.data.faces import REACH, squares_of
from klassify.errors import KlassifyError
from klassify.features.mouth.kind import MouthRow


def row_of(boxes: np.ndarray | None, valid: np.ndarray) -> MouthRow:
    return MouthRow("a", 25.0, np.zeros((len(valid), 8)), valid, boxes=boxes)


def test_squares_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    n = 60
    corner = rng.normal(100, 3, (n, 2)) + np.arange(n)[:, None]
    boxes = np.column_stack([corner, corner + rng.normal((80, 100), 2, (n, 2))])
    valid = (np.arange(n) >= 4) & (np.abs(np.arange(n) - 30) > 2)
    boxes[~valid] = 0
    seen = boxes[valid]
    squares = []
    for k in range(len(seen)):
        near = [seen[min(max(i, 0), len(seen) - 1)] for i in range(k - REACH, k + REACH + 1)]
        sides = [0.5 * (y1 - y0) for _, y0, _, y1 in near]
        lefts = [x0 + 0.4 * (x1 - x0) - side / 2 for (x0, _, x1, _), side in zip(near, sides)]
        tops = [y0 + 0.7 * (y1 - y0) - side / 2 for (_, y0, _, y1), side in zip(near, sides)]
        squares.append([round(sorted(values)[REACH]) for values in (lefts, tops, sides)])
    latest = [max(int(valid[: k + 1].sum()) - 1, 0) for k in range(n)]
    found = squares_of(row_of(boxes, valid), (0.4, 0.7, 0.5))
    np.testing.assert_array_equal(found, [squares[i] for i in latest])


def test_a_single_frame_has_a_square():
    row = row_of(np.array([[10.0, 20, 30, 60]]), np.ones(1, bool))
    assert squares_of(row, (0.5, 0.5, 0.5)).tolist() == [[10, 30, 20]]


def test_features_without_boxes_are_refused():
    with pytest.raises(KlassifyError, match="hold no boxes of faces"):
        squares_of(row_of(None, np.ones(3, bool)), (0.5, 0.5, 0.5))
