"""The segment labels of PartialSpoof (Zhang et al., 2023): frames of 10 to 640 ms -> segments.

`segment_labels/<set>_seglab_<resolution>.npy` maps the name of each utterance to an array of 0
(spoof) and 1 (bona fide), one per frame. `<set>/con_data/rttm_2cls_0sil_spoof`, which the published
range-based EER is computed with, has the exact times of spoofed speech. The times are read where
the file is there, else the finest labels; the labels of all resolutions are compared with them.
"""

from __future__ import annotations

import pickle
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from klassify.errors import KlassifyError
from klassify.grid.frames import encode_labels
from klassify.lists.records import read_text
from klassify.untrusted import refuse_irregular

TIMES = "con_data/rttm_2cls_0sil_spoof"
LABELS = re.compile(r"_seglab_(0\.\d+)\.npy$")
ARCHIVE = "unpack database_segment_labels_v1.2.tar.gz beside the protocols"

Segments = Mapping[str, list[list[float]]]  # [start_s, end_s) of the spoofed parts, by utterance


def read_segments(base: Path, subset: str) -> Segments:
    """The spoofed segments of a set (train, dev or eval), by utterance; prints where the published
    labels of a resolution differ from them.

    base: the folder `database`. KlassifyError where there are no labels.
    """
    paths = {
        float(LABELS.search(path.name)[1]): path
        for path in sorted((base / "segment_labels").glob(f"{subset}_seglab_*.npy"))
        if LABELS.search(path.name)
    }
    times = base / subset / TIMES
    if not paths and not times.is_file():
        raise KlassifyError(
            f"PartialSpoof has no segment labels of {subset} here.",
            where=base / "segment_labels",
            fix=ARCHIVE,
        )
    finest = min(paths) if paths else None
    if times.is_file():
        segments, made_of = read_times(times), times
    else:
        labels = read_labels(paths[finest])
        segments = {name: spoofed(frames, finest) for name, frames in labels.items()}
        made_of = paths[finest]
    for resolution_s, path in paths.items():
        if path != made_of:
            print(compared(segments, read_labels(path), resolution_s, path))
    return segments


def read_times(path: Path) -> Segments:
    """The segments of an RTTM file: fields 2, 4, 5 and 8 are utterance, start, duration and label.

    KlassifyError for another kind of line.
    """
    segments = defaultdict(list)
    for number, line in enumerate(read_text(path).splitlines(), 1):
        cells = line.split()
        try:
            name, start, duration, label = cells[1], float(cells[3]), float(cells[4]), cells[7]
        except (IndexError, ValueError):
            raise KlassifyError(
                f"This is not a line of an RTTM file: {line[:80]!r}.", where=f"{path}:{number}"
            ) from None
        if label == "spoof":
            segments[name].append([round(start, 5), round(start + duration, 5)])
    return segments


def read_labels(path: Path) -> dict[str, np.ndarray]:
    """Whether each frame is spoofed (bool), by utterance.

    The file holds a pickled dict. Only arrays, strings and numbers are unpickled from it;
    KlassifyError for anything else.
    """
    refuse_irregular(path)
    try:
        with open(path, "rb") as handle:
            version = np.lib.format.read_magic(handle)
            header = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}[version]
            getattr(np.lib.format, header)(handle)
            content = _Arrays(handle).load().item()
        return {str(name): np.asarray(frames).astype(int) == 0 for name, frames in content.items()}
    except Exception as error:  # a damaged pickle raises anything, MemoryError too
        raise KlassifyError(
            f"These segment labels cannot be read: {error}.", where=path, fix=ARCHIVE
        ) from None


class _Arrays(pickle.Unpickler):
    """Unpickles arrays of strings and numbers in plain containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """What arrays are made with; pickle.UnpicklingError for anything else."""
        known = {
            "_reconstruct": np.zeros(0).__reduce__()[0],
            "scalar": np.float64(0).__reduce__()[0],
            "ndarray": np.ndarray,
            "dtype": np.dtype,
        }
        if module.split(".")[0] != "numpy" or name not in known:
            raise pickle.UnpicklingError(f"they name {module}.{name}")
        return known[name]


def spoofed(frames: np.ndarray, resolution_s: float) -> list[list[float]]:
    """The segments [start_s, end_s) of runs of spoofed frames (bool)."""
    edges = np.flatnonzero(np.diff(frames.astype(np.int8), prepend=0, append=0))
    return np.round(edges.reshape(-1, 2) * resolution_s, 5).tolist()


def compared(
    segments: Segments, labels: Mapping[str, np.ndarray], resolution_s: float, path: Path
) -> str:
    """A line that says how many frames of the published labels differ from those of the segments,
    where any overlap makes a frame fake.
    """
    total = different = 0
    for name, frames in labels.items():
        ours = encode_labels(segments.get(name, []), len(frames), hop_s=resolution_s)
        total += len(frames)
        different += int((ours != frames).sum())
    return f"{path.name}: {different} of {total} frames differ from the segments"
