"""Groups of clips: what was faked, by which generator, how long it is, whose face it shows."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from klassify.lists import data_list

LENGTH_EDGES_S = (0, 2, 4, 6, 10, 20, np.inf)
MAX_GROUPS = 12
FAKE_KINDS = {
    "fake type": "modify_type",
    "audio generator": "audio_model",
    "video generator": "video_model",
}
PLAIN_KINDS = {
    "race": "race",
    "gender": "gender",
    "language": "language",
    "speaker": "speaker",
    "data set": "dataset",
}


def clip_groups(frame: pd.DataFrame) -> dict[str, dict[str, np.ndarray]]:
    """{kind: {group: (n,) bool}} of a labelled list, without kinds of fewer than two known groups.

    Groups of fakes (type, generator) hold all real clips too. Of many generators or speakers, those
    with most clips are groups of their own and the others one group.
    """
    real = (frame["modify_type"] == "real").to_numpy()
    duration = frame["duration"].to_numpy(float)

    def by_column(column: str) -> dict[str, np.ndarray]:
        known = frame[column] if column in frame else pd.Series("", index=frame.index)
        values = known.fillna("").to_numpy(object)
        if column not in FAKE_KINDS.values():
            return _by_value(values)
        fakes = _by_value(np.where(real, "", values))
        return {name: real | chosen for name, chosen in fakes.items()}

    groups = {kind: by_column(column) for kind, column in FAKE_KINDS.items()}
    lengths = {
        range_name(low, high): (duration >= low) & (duration < high)
        for low, high in itertools.pairwise(LENGTH_EDGES_S)
    }
    groups["clip length"] = {name: mask for name, mask in lengths.items() if mask.any()}
    groups |= {kind: by_column(column) for kind, column in PLAIN_KINDS.items()}
    return {kind: found for kind, found in groups.items() if len(found) > 1}


def range_name(low: float, high: float) -> str:
    """How a range of seconds is written."""
    return f"{low:g}-{high:g} s" if np.isfinite(high) else f"{low:g} s and more"


def _by_value(values: np.ndarray) -> dict[str, np.ndarray]:
    """A mask for each value but "", by descending count beyond MAX_GROUPS, else by name."""
    counts = pd.Series(values[values != ""]).value_counts()
    if len(counts) <= MAX_GROUPS:
        order = [name for name in data_list.KINDS if name in counts.index] or sorted(counts.index)
        return {name: values == name for name in order}
    kept = counts.index[: MAX_GROUPS - 1]
    masks = {name: values == name for name in kept}
    masks[f"{len(counts) - len(kept)} others"] = (values != "") & ~np.isin(values, kept)
    return masks
