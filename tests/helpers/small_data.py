"""A small data set with a planted signal: lists, feature shards and audio, without any video."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd
import soundfile

from klassify import parts
from klassify.features import shards
from klassify.features.lips import LipsRow
from klassify.features.mouth.kind import MouthRow
from klassify.lists import data_list

if TYPE_CHECKING:
    from klassify.data.base import Sources


def jpeg(gray: int) -> bytes:
    """A mouth crop of one gray level."""
    return cv2.imencode(".jpg", np.full((96, 96), gray, np.uint8))[1].tobytes()


MOUTHS = (jpeg(100), jpeg(150))  # of a real and of a fake frame
FAKE = "[[0.4,1.2]]"  # where the planted signal lies, in both modalities
TYPES = ("real", "audio_modified", "visual_modified", "both_modified")


@dataclasses.dataclass(frozen=True)
class SmallData:
    """Where the parts of the small data set lie, as the command line wants them."""

    lists: Path
    media: Path
    features: Path

    @property
    def arguments(self) -> list[str]:
        folders = {"lists": self.lists, "media": self.media, "features": self.features}
        return [word for name, path in folders.items() for word in (f"--{name}", str(path))]

    @property
    def sources(self) -> Sources:
        from klassify.data.base import Sources  # torch, which many tests do without

        return Sources(self.lists, self.media, self.features)

    def without_segments(self, folder: Path) -> SmallData:
        """The same data with lists, in a folder, that have no segment columns."""
        for path in self.lists.glob("*.tsv"):
            data_list.write_list(folder / path.name, data_list.read_list(path))
            assert "fake_segments" not in (folder / path.name).read_text()
        return dataclasses.replace(self, lists=folder)


def make_split(root: Path, split: str, n_sources: int, seed: int, labelled: bool = True) -> None:
    """`n_sources` originals in four versions each; clip 1 has no audio, clip 2 no face."""
    rng = np.random.default_rng(seed)
    rows, shard, lips = [], [], []
    for index in range(4 * n_sources):
        source, kind = divmod(index, 4)
        file = f"{split}_{source}/é {TYPES[kind]}.wav"
        n_frames = int(rng.integers(40, 90))
        features = np.abs(rng.normal(1, 0.3, (n_frames, 8))).astype(np.float32)
        wave = rng.normal(0, 0.05, n_frames * 640).astype(np.float32)
        if kind in (2, 3):
            features[10:30, 0] += 4
        if kind in (1, 3):
            wave[6400:19200] += 0.2 * np.sin(np.arange(12800) * 2 * np.pi * 0.2).astype(np.float32)
        path = root / "media" / split / file
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave[: 0 if index == 1 else None], 16_000)
        valid = np.full(n_frames, index != 2)
        row = MouthRow(
            file, 25.0, features * valid[:, None], valid, "" if index != 2 else "no face"
        )
        shard.append(row)
        looks = [MOUTHS[kind in (2, 3) and 10 <= t < 30] for t in range(n_frames)]
        crops = [look if there else b"" for look, there in zip(looks, valid)]
        lips.append(LipsRow(file, 25.0, crops, valid, row.reason))
        rows.append(
            {
                "file": file,
                "n_frames": n_frames,
                "fps": 25.0,
                "n_samples": n_frames * 640,
                "duration": n_frames / 25,
                "modify_type": TYPES[kind] if labelled else "",
                "source": f"{split}_{source}" if labelled else "",
                "fake_segments": FAKE if kind else "[]",
                "audio_fake_segments": FAKE if kind in (1, 3) else "[]",
                "visual_fake_segments": FAKE if kind in (2, 3) else "[]",
            }
        )
    data_list.write_list(root / "lists" / f"{split}.tsv", pd.DataFrame(rows))
    for name, made in (("mouth", shard), ("lips", lips)):
        settings = {"kind": name, "version": 3, "made": "small"}
        folder = root / "features" / name / split
        shards.write_part(folder, parts.Place(1, 1, 0, 1), made, settings, split)
