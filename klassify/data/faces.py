"""Which frames of a clip show a face, and where: the evidence behind a visual answer.

Read from the shards of mouth features or of mouth crops, whose rows say why a clip shows too little
of a face.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from klassify.data.base import NoAnswer, Sources
from klassify.errors import KlassifyError
from klassify.features.kinds import Row
from klassify.features.mouth.kind import MouthRow
from klassify.features.shards import FeatureStore
from klassify.parts import parts_in, read_rows

REACH = 12  # frames to either side over which the place of a face is smoothed


def read_row(store: FeatureStore, file: str) -> Row:
    """The row of a clip; NoAnswer where it holds too little of a face."""
    row = store[file]
    if not row.valid.any():
        raise NoAnswer(row.reason or "no face")
    return row


def seen_shares(
    sources: Sources, split: str, table: pd.DataFrame, kind: str = "mouth"
) -> pd.Series:
    """The share of each listed clip's frames that show a face; NaN where unknown."""
    parts = parts_in(sources.feature_folder(kind, split))
    rows = (row for part in parts for row in read_rows(part, ("file", "valid")))
    shares = {row["file"]: np.mean(row["valid"] or [False]) for row in rows}
    return table["file"].map(shares)


def squares_of(row: MouthRow, part: tuple[float, float, float]) -> np.ndarray:
    """left, top and side in pixels of a square part of the face in each frame, (T, 3) int.

    part: (x, y) of its centre in widths and heights of the box around the face, from the upper left
    corner, and its side in heights. The squares follow the face without its jitter; a frame without
    a face takes the square of the frame before it.
    """
    if row.boxes is None:
        raise KlassifyError(
            f"The mouth features of {row.file} hold no boxes of faces.",
            fix="extract them again: make stage1 force=1",
        )
    x, y, side = part
    x0, y0, x1, y1 = row.boxes[row.valid].T
    width, height = x1 - x0, y1 - y0
    corner = x0 + x * width - side * height / 2, y0 + y * height - side * height / 2
    placed = np.pad(np.column_stack([*corner, side * height]), ((REACH, REACH), (0, 0)), "edge")
    smooth = np.median(sliding_window_view(placed, 2 * REACH + 1, axis=0), axis=-1)
    latest = np.maximum(np.cumsum(row.valid) - 1, 0)
    return np.rint(smooth[latest]).astype(int)
