"""A small data set of videos with a planted signal: half of the clips have a bright square."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from small_data import SmallData
from videos import noise, write_lossless

from klassify import parts
from klassify.features import shards
from klassify.features.mouth.kind import MouthRow
from klassify.lists import data_list


def make(root: Path) -> SmallData:
    """16 clips of 12 frames to train on, 8 in val and in testA, each with a face throughout."""
    for split, n_clips in (("train", 16), ("val", 8), ("testA", 8)):
        rows, faces = [], []
        (root / "media" / split).mkdir(parents=True)
        for index in range(n_clips):
            images = noise(12, 32, 40, seed=index) // 2
            if index % 2:
                images[:, 4:20, 10:30] = 255
            file = f"{index}.mkv"
            write_lossless(root / "media" / split / file, images)
            kind = "visual_modified" if index % 2 else "real"
            rows.append({"file": file, "n_frames": 12, "duration": 0.48, "modify_type": kind})
            faces.append(MouthRow(file, 25.0, np.zeros((12, 8)), np.ones(12, bool)))
        data_list.write_list(root / "lists" / f"{split}.tsv", pd.DataFrame(rows))
        folder = root / "features" / "mouth" / split
        shards.write_part(folder, parts.Place(1, 1, 0, 1), faces, {"kind": "mouth"}, "")
    return SmallData(root / "lists", root / "media", root / "features")
