"""Scores of two made-up recipes on made-up clips, without any model: what `klassify compare` needs.

exp/one: sound, picture, both (their mean) answers Task 1; spans answers Task 2
exp/two: frames answers both tasks
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
from commands import klassify
from videos import gray, picture, sound, write_media

from klassify.lists import data_list
from klassify.scores.score_file import Header, score_path, write_scores
from klassify.systems import base, system

TYPES = data_list.TYPES
HOSTILE = "<img src=x onerror=alert(1)>"
FAKE = [0.4, 0.8]
SECONDS = 1.2
FRAMES = 30


@dataclasses.dataclass(frozen=True)
class TwoRecipes:
    root: Path

    def path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    def compare(self, *arguments: str) -> int:
        """`klassify compare` of both recipes, a few resamples."""
        recipes = [self.path("exp", name) for name in ("one", "two")]
        how = ["--out", self.path("out"), "--bootstrap", 20]
        return klassify("compare", *recipes, *how, *arguments)


def make(
    root: Path, n_sources: int = 8, *, n_videos: int = 0, test_shift: float = 0.0
) -> TwoRecipes:
    """n_sources originals of four clips; n_videos have a file; one clip has no answer."""
    rng = np.random.default_rng(0)
    for split in ("val", "testA"):
        frame = _labels(split, n_sources, rng)
        labels = root / "lists" / ("val.tsv" if split == "val" else "heldout/testA_labels.tsv")
        data_list.write_list(labels, frame)
        shift = test_shift if split == "testA" else 0.0
        _models(root, split, frame, rng, shift)
        for name in frame["file"][: n_videos if split == "testA" else 0]:
            video(root / "media" / split / name, rng)
    one, two = root / "exp" / "one", root / "exp" / "two"
    both = one / "both"
    assert klassify("fuse", one / "sound", one / "picture", "--rule", "mean", "--out", both) == 0
    assert klassify("score", both, "--split", "val,testA") == 0
    assert klassify("localise", one / "spans", two / "frames", "--split", "val,testA") == 0
    for recipe, task1, task2 in ((one, "both", "spans"), (two, "frames", "frames")):
        (recipe / "submit.yaml").write_text(f"task1: {task1}\ntask2: {task2}\n")
        assert klassify("detector", recipe, "--conf", recipe / "submit.yaml") == 0
    return TwoRecipes(root)


def _labels(split: str, n_sources: int, rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for i in range(4 * n_sources):
        source, kind = divmod(i, 4)
        fake = [FAKE] if kind else []
        name = f"{split}-{source}/{HOSTILE if i == 1 else ''} {TYPES[kind]}.mp4"
        row = {"file": name, "modify_type": TYPES[kind], "source": f"{split}-{source}"}
        row |= {"fake_segments": fake, "audio_fake_segments": fake if kind in (1, 3) else []}
        row |= {"visual_fake_segments": fake if kind > 1 else [], "video_model": ""}
        row["audio_model"] = ("klatt", HOSTILE)[source % 2] if kind in (1, 3) else ""
        rows.append(row | {"speaker": f"speaker {source % 3}"})
    lengths = {"fps": 25.0, "n_samples": int(SECONDS * 16000), "duration": SECONDS}
    return pd.DataFrame(rows).assign(n_frames=FRAMES, **lengths)


def _models(
    root: Path, split: str, frame: pd.DataFrame, rng: np.random.Generator, shift: float
) -> None:
    files, n = frame["file"].to_numpy(object), len(frame)
    heard = frame["modify_type"].isin(["audio_modified", "both_modified"]).to_numpy(float)
    seen = frame["modify_type"].isin(["visual_modified", "both_modified"]).to_numpy(float)
    fake = np.maximum(heard, seen)
    for recipe, name, modality, supervision, signal in (
        ("one", "sound", "audio", "clip", heard),
        ("one", "picture", "visual", "clip", seen),
        ("one", "spans", "visual", "segment", seen),
        ("two", "frames", "both", "clip", fake),
    ):
        folder = root / "exp" / recipe / name
        base.write_system(folder, base.System(name, "model", modality, supervision, "log_odds"))
        settings = {"system": system.system_hash(folder)}
        if name != "spans":
            score = rng.normal(2 * signal - 1 + shift, 1)
            table = pd.DataFrame(
                {"file": files, "start": 0.0, "end": SECONDS, "score": score, "reason": ""}
            )
            if name == "sound":
                table.loc[3, ["score", "reason"]] = [np.nan, f"no audio {HOSTILE}"]
            header = Header(name, split, "clips", "log_odds", supervision, settings)
            write_scores(score_path(folder, split, "clips"), table, header)
        if name in ("spans", "frames"):
            start = np.tile(np.arange(FRAMES) * 0.04, n)
            inside = (start >= FAKE[0] - 1e-6) & (start < FAKE[1] - 1e-6)
            score = rng.normal(3 * np.repeat(signal, FRAMES) * inside - 1.5, 1)
            columns = {"file": np.repeat(files, FRAMES), "start": start, "end": start + 0.04}
            table = pd.DataFrame(columns | {"score": score})
            table = table[table["file"] != files[5]] if name == "spans" else table
            header = Header(name, split, "frames", "log_odds", supervision, settings)
            write_scores(score_path(folder, split, "frames"), table, header)


def video(path: Path, rng: np.random.Generator) -> None:
    """A file of FRAMES grey levels and a second of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = rng.normal(0, 0.1, (1, int(SECONDS * 16000)))
    images = gray(range(40, 40 + 5 * FRAMES, 5))
    write_media(path, picture(images, codec="libx264"), sound(wave))
