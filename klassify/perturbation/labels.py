"""The row of a data list for a perturbed clip: its lengths, and its segments where they are now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from klassify.lists.data_list import SEGMENTS
from klassify.perturbation.clip import Change

Segments = list[list[float]]
# modify_type of a clip whose fake part is in its sound, in its picture
KIND = {(False, False): "real", (True, False): "audio_modified", (False, True): "visual_modified"}
DIGITS = 6  # of seconds


def changed_row(row: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """A row of `read_list(..., segments=True)` for the written file.

    Segments are moved and cut to the clip. A modality whose fake segments were all cut away is
    real, and so may be the clip. Unknown segments stay unknown.
    """
    written = change.written
    measured = {name: getattr(written, name) for name in ("n_frames", "fps", "n_samples")}
    changed = dict(row) | measured | {"duration": written.duration}
    moves = change.start_s != 0 or change.speed != 1
    if not moves or row.get("fake_segments") is None:
        return changed
    for name in SEGMENTS:
        if row.get(name) is not None:
            changed[name] = _moved(row[name], change)
    parts = [changed.get(name) for name in SEGMENTS[1:]]
    if None in parts:
        whole = bool(changed["fake_segments"]) or not row["fake_segments"]
        changed["modify_type"] = row["modify_type"] if whole else "real"
    elif any(row[name] for name in SEGMENTS[1:]):
        changed["modify_type"] = KIND.get(tuple(map(bool, parts)), "both_modified")
    return changed


def _moved(segments: Segments, change: Change) -> Segments:
    end = change.written.duration
    moved = []
    for edges in segments:
        start, stop = (
            round(min(max((edge - change.start_s) / change.speed, 0.0), end), DIGITS)
            for edge in edges
        )
        if start < stop:
            moved.append([start, stop])
    return moved
