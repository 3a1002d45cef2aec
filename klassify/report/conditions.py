"""Groups of clips that numbers are broken down by: what was faked, by which generator, how long,
whose face.
"""

from __future__ import annotations

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
PLAIN_KINDS = {"speaker": "speaker", "data set": "dataset"}


def clip_groups(frame: pd.DataFrame) -> dict[str, dict[str, np.ndarray]]:
    """{kind: {group: (n,) bool}} of a labelled list; kinds of fewer than two known groups are left
    out.

    Groups of fakes (type, generator) hold all real clips too. Of many generators or speakers those
    with most clips stand alone, the others together.
    """
    real = (frame["modify_type"] == "real").to_numpy()
    groups = {}
    for kind, column in FAKE_KINDS.items():
        values = (
            frame[column].fillna("").to_numpy(object)
            if column in frame
            else np.full(len(frame), "", object)
        )
        groups[kind] = {
            name: real | chosen for name, chosen in _by_value(np.where(real, "", values)).items()
        }
    duration = frame["duration"].to_numpy(float)
    groups["clip length"] = {
        _range(low, high): (duration >= low) & (duration < high)
        for low, high in zip(LENGTH_EDGES_S[:-1], LENGTH_EDGES_S[1:])
        if ((duration >= low) & (duration < high)).any()
    }
    for kind, column in PLAIN_KINDS.items():
        values = (
            frame[column].fillna("").to_numpy(object)
            if column in frame
            else np.full(len(frame), "", object)
        )
        groups[kind] = _by_value(values)
    return {kind: found for kind, found in groups.items() if len(found) > 1}


def _range(low: float, high: float) -> str:
    return f"{low:g}-{high:g} s" if np.isfinite(high) else f"{low:g} s and more"


def _by_value(values: np.ndarray) -> dict[str, np.ndarray]:
    """A mask for each value but "", by descending count beyond MAX_GROUPS, else by name."""
    counts = pd.Series(values[values != ""]).value_counts()
    if len(counts) <= MAX_GROUPS:
        order = [name for name in data_list.TYPES if name in counts.index] or sorted(counts.index)
        return {name: values == name for name in order}
    kept = counts.index[: MAX_GROUPS - 1]
    masks = {name: values == name for name in kept}
    masks[f"{len(counts) - len(kept)} others"] = (values != "") & ~np.isin(values, kept)
    return masks
