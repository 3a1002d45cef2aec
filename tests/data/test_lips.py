"""Mouth crops as training examples and scoring windows."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from commands import klassify
from places import ROOT
from small_data import SmallData, make_split

from klassify.augmentation.lips import LipAugment
from klassify.data.base import NoAnswer, Sources
from klassify.data.lips import CROP, UNSEEN, LipCrops, LipFrames
from klassify.features.lips import LipsRow
from klassify.features.shards import FeatureStore, write_part
from klassify.parts import Place


def picture(t: int) -> np.ndarray:
    """A crop whose number can be read from it: gray rises from left to right, and with t."""
    ramp = np.linspace(0, 90, 96)
    return np.tile(ramp + 2 * (t % 60), (96, 1)).astype(np.uint8)


def row(n: int = 70, gone=(), file: str = "a.mp4", reason: str = "") -> LipsRow:
    valid = ~np.isin(np.arange(n), gone)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 100]
    jpegs = [cv2.imencode(".jpg", picture(t), quality)[1].tobytes() for t in range(n)]
    crops = [jpeg if there else b"" for jpeg, there in zip(jpegs, valid)]
    return LipsRow(file, 25.0, crops, valid, reason, "face" if reason else "")


def number(crop: torch.Tensor) -> int:
    return round((float(crop.float().mean()) - 45) / 2)


def test_examples_are_stretches_with_their_label():
    data = LipCrops(window=20, stride=10)
    starts = set()
    for seed in range(20):
        example = data.example(row(60), 1, np.random.default_rng(seed))
        assert example["crops"].shape == (20, CROP, CROP) and example["crops"].dtype == torch.uint8
        assert int(example["label"]) == 1 and example["valid"].all()
        middle = [number(crop) for crop in example["crops"]]
        assert np.ptp(np.diff(middle)) <= 2 and abs(middle[-1] - middle[0] - 19) <= 2
        starts.add(middle[0])
    assert len(starts) > 8


def test_half_of_the_examples_are_mirrored():
    data = LipCrops(window=5, stride=5)
    rises = [
        bool(crop[0, 0] < crop[0, -1])
        for seed in range(40)
        for crop in data.example(row(), 0, np.random.default_rng(seed))["crops"][:1]
    ]
    assert 8 < sum(rises) < 32


def test_short_clips_are_padded_with_frames_that_are_not_valid():
    example = LipCrops(window=20, stride=20).example(row(7, gone=[2]), 0, np.random.default_rng(0))
    assert example["valid"].tolist() == [t < 7 and t != 2 for t in range(20)]
    assert not example["crops"][~example["valid"]].any()


def test_scoring_takes_the_middle_of_each_window():
    data = LipCrops(window=32, stride=16)
    windows = data.cut(row(70))
    assert [(round(w.start_s * 25), round(w.end_s * 25)) for w in windows] == [
        (0, 32),
        (16, 48),
        (32, 64),
        (38, 70),
    ]
    for window in windows:
        crops = window.inputs["crops"].numpy()
        wanted = np.stack([picture(round(window.start_s * 25) + i)[4:92, 4:92] for i in range(32)])
        assert np.abs(crops.astype(int) - wanted).max() <= 2  # JPEG
    (short,) = data.cut(row(9))
    assert short.inputs["crops"].shape[0] == 9 and short.end_s == pytest.approx(0.36)


def test_clips_lose_windows_without_a_face_and_frames_keep_them():
    clip = row(60, gone=range(20, 60))
    assert len(LipCrops(window=20, stride=20).cut(clip)) == 1
    assert len(LipFrames(window=20, stride=20).cut(clip)) == 3


def test_frame_targets_are_the_shares_that_segments_cover():
    data, clip = LipFrames(window=20, stride=20), row(60, gone=[31])
    segments = np.array([[1.21, 1.30]])  # of frames 30, 31 and 32
    found = False
    for seed in range(30):
        example = data.example(clip, (segments, 1), np.random.default_rng(seed))
        target = example["target"].numpy()
        assert (np.isnan(target) == ~example["valid"].numpy()).all()
        start = 31 - int(np.flatnonzero(~example["valid"])[0]) if np.isnan(target).any() else None
        if start is None or not 0 <= 30 - start < 18:
            continue
        found = True
        np.testing.assert_allclose(target[[30 - start, 32 - start]], [0.75, 0.5], atol=1e-5)
        assert np.nansum(target) == pytest.approx(1.25, abs=1e-4)
        assert example["start"].argmax() == 30 - start and example["end"].argmax() == 32 - start
    assert found


def test_splice_learns_from_its_own_edits():
    data = LipFrames(window=60, splice=0.6)
    assert data.supervision == "self" and LipCrops(splice=0.5).supervision == "self"
    labels = []
    textures = np.random.default_rng(0).integers(0, 256, (60, 12, 12)).astype(np.uint8)
    large = [cv2.resize(texture, (96, 96)) for texture in textures]
    crops = [cv2.imencode(".jpg", picture)[1].tobytes() for picture in large]
    clip = LipsRow("a.mp4", 25.0, crops, np.ones(60, bool))
    for seed in range(12):
        example = data.example(clip, (None, 0), np.random.default_rng(seed))
        target = example["target"]
        whole = target.round()
        torch.testing.assert_close(target, whole)  # edits are of whole frames
        assert bool(example["label"]) == bool(whole.any())
        labels.append(int(example["label"]))
    assert 0 < sum(labels) < 12


class Constant(torch.nn.Module):
    def frame_scores(self, batch):
        return torch.ones(*batch["valid"].shape, 3)


def test_frames_without_a_face_count_as_real():
    data, clip = LipFrames(window=20, stride=10), row(45, gone=[7])
    cut = data.cut(clip)
    outputs = [
        data.outputs(Constant(), {k: v[None] for k, v in window.inputs.items()}) for window in cut
    ]
    starts = np.array([round(window.start_s * 25) for window in cut])
    rows = data.join(np.concatenate(outputs), starts, 45)
    assert rows.shape == (45, 3)
    np.testing.assert_allclose(rows[np.arange(45) != 7], 1)
    np.testing.assert_allclose(rows[7], UNSEEN)


def test_reader_and_shares(tmp_path):
    rows = [row(30, gone=range(15)), row(5, gone=range(5), file="b.mp4", reason="no face")]
    folder = tmp_path / "lips" / "val"
    write_part(folder, Place(1, 1, 0, 1), rows, {"kind": "lips", "version": 1}, "inputs")
    sources = Sources(tmp_path, tmp_path, tmp_path)
    for data in (LipCrops(), LipFrames(keep_in_memory=True)):
        reader = data.reader(sources, "val")
        assert reader.read("a.mp4").crops == rows[0].crops
        with pytest.raises(NoAnswer, match="no face"):
            reader.read("b.mp4")
        shares = data.shares(sources, "val", pd.DataFrame({"file": ["b.mp4", "a.mp4"]}))
        assert shares.tolist() == [0.0, 0.5]
        assert data.settings(sources, "val")["features"]["version"] == 1


def test_augmentation_is_for_training_alone():
    data = LipCrops(window=10, stride=10, augment=LipAugment(light=1.0, noise=1.0))
    assert data.for_validation().augment is None
    plain, other = (
        each.example(row(), 0, np.random.default_rng(1))["crops"].float()
        for each in (data.for_validation(), data)
    )
    assert plain.shape == other.shape and (plain - other).abs().mean() > 1


@pytest.mark.long
@pytest.mark.parametrize(
    "name, ending", [("lips_mil", "clips.tsv"), ("lips_frames", "frames.parquet")]
)
def test_the_demo_systems_train_and_score(name, ending, tmp_path):
    make_split(tmp_path, "train", 3, seed=1)
    make_split(tmp_path, "val", 2, seed=2)
    data = SmallData(tmp_path / "lists", tmp_path / "media", tmp_path / "features")
    config = ROOT / f"recipes/fused/conf/demo/{name}.yaml"
    small = {
        "model.init_args.encoder.init_args.architecture": {
            "name": "tiny",
            "channels": [4, 4, 8],
            "dim": 8,
        },
        "data.init_args.train_split": "train",
        "data.init_args.val_split": "val",
        "train.epochs": 8,
        "train.lr": 0.02,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in small.items()]
    out = tmp_path / "exp" / name
    command = ["train", config, *overrides, "--out", out, *data.arguments, "--accelerator", "cpu"]
    assert klassify(*command) == 0
    assert pd.read_csv(out / "metrics.csv")["val_auc"].max() > 0.8  # early epochs have none
    assert klassify("score", out, "--split", "val", *data.arguments) == 0
    table = pd.read_csv(out / "scores" / "val.clips.tsv", sep="\t", comment="#")
    assert table["reason"].fillna("").tolist() == ["", "", "no face", *[""] * 5]
    assert table["seen"].tolist() == [1, 1, 0, *[1] * 5]
    assert (out / "scores" / f"val.{ending}").exists()
    command = ["extract", "--kind", "embedding", "--system", out, "--list", data.lists / "val.tsv"]
    command += ["--root", data.media, "--features", data.features, "--out", tmp_path / "embedding"]
    assert klassify(*command) == 0
    store = FeatureStore(tmp_path / "embedding")
    embedding = store[store.files[0]].embedding
    assert embedding.shape[1] == 64 and embedding.std() > 0.01
    assert store.reasons == {store.files[2]: "no face"}
