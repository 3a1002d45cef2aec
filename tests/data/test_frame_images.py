"""Frames without labels: which are drawn, and the VQ-VAE through the command line."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from videos import write_lossless

from klassify import cli
from klassify.data.base import Examples, Sources
from klassify.data.frame_images import FrameImages
from klassify.lists import data_list
from klassify.systems.system import load_system
from klassify.systems.trained import load_model

CONFIG = """
model:
  class_path: klassify.models.vqvae.VQVAE
  init_args: {dim: 8, codes: 16}
data:
  class_path: klassify.data.frame_images.FrameImages
  init_args: {size: 16, crop: 8, frames_per_clip: 4, keep: 5, val_split: val}
train: {epochs: 3, batch_size: 2, lr: 0.01, monitor: loss, schedule: constant}
"""


def clip(index: int, n: int) -> np.ndarray:
    """Frame k of clip i has the colour (40 i, 10 k, x) with a gradient in x."""
    frames = np.zeros((n, 16, 16, 3), np.uint8)
    frames[..., 0], frames[..., 1] = 40 * index, 10 * np.arange(n)[:, None, None]
    frames[..., 2] = 10 * np.arange(16)
    return frames


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Training clips of 12, 3, 1 frames, one cut off, one missing; two to validate on."""
    root = tmp_path_factory.mktemp("frames")
    for split, lengths in (("train", [12, 3, 1, 9, None]), ("val", [12, 7])):
        rows = []
        (root / "media" / split).mkdir(parents=True)
        for index, n in enumerate(lengths):
            path = root / "media" / split / f"{index}.mkv"
            if n:
                write_lossless(path, clip(index, n))
            if n == 9:
                path.write_bytes(path.read_bytes()[:300])
            rows.append({"file": path.name, "n_frames": n or 9, "duration": (n or 9) / 25})
        data_list.write_list(root / "lists" / f"{split}.tsv", pd.DataFrame(rows))
    return Sources(root / "lists", root / "media", root / "features")


def command(sources, config, out, *more):
    places = ["--lists", str(sources.lists), "--media", str(sources.media)]
    places += ["--features", str(sources.features)]
    return ["train", str(config), *more, "--out", str(out), *places, "--accelerator", "cpu"]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "vqvae.yaml"
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize("keep", [0, 4])
def test_examples_are_different_frames_of_one_clip(sources, keep):
    examples = Examples(
        FrameImages(size=16, frames_per_clip=4, keep=keep), sources, "train", seed=1
    )
    images = examples[0, 0]["frames"]
    assert images.shape == (4, 16, 16, 3) and images.dtype == torch.uint8
    shown = (images[:, 0, 0, 1] // 10).tolist()
    assert shown == sorted(set(shown)) and torch.equal(images, torch.from_numpy(clip(0, 12)[shown]))
    assert torch.equal(examples[0, 0]["frames"], images)
    assert keep or not torch.equal(examples[1, 0]["frames"], images)  # another epoch
    assert shown == [0, 4, 7, 11] or not keep


def test_parts_are_inside_the_frame(sources):
    examples = Examples(FrameImages(size=16, crop=8, frames_per_clip=2), sources, "train", seed=1)
    lefts = set()
    for epoch in range(30):
        images = examples[epoch, 0]["frames"]
        assert images.shape == (2, 8, 8, 3)
        lefts |= set((images[:, 0, 0, 2] // 10).tolist())
    assert lefts == set(range(9))


def test_short_and_broken_clips(sources):
    examples = Examples(FrameImages(size=16, frames_per_clip=4, keep=2), sources, "train", seed=1)
    items = [examples[0, index] for index in range(5)]
    assert [len(item["frames"]) for item in items[:3]] == [2, 2, 1]
    batch, failed = examples.collate(items)
    assert batch["frames"].shape == (5, 16, 16, 3)
    assert [file for file, _ in failed] == ["3.mkv", "4.mkv"]


def test_trains_without_labels_and_has_no_scores(sources, config, tmp_path, capsys):
    out = tmp_path / "vqvae"
    assert cli.main(command(sources, config, out)) == 0
    assert "val_psnr" in capsys.readouterr().err
    record = json.loads((out / "training.json").read_text())
    metrics = pd.read_csv(out / "metrics.csv")
    assert list(metrics.columns) == ["epoch", "train_loss", "lr", "val_loss", "val_psnr"]
    assert record["val_psnr"] == pytest.approx(metrics["val_psnr"].max())
    assert record["failed_clips"] == 2
    expected = 10 * np.log10(4 / metrics["val_loss"])  # pixels span 2 in [-1, 1]
    np.testing.assert_allclose(metrics["val_psnr"], expected, rtol=1e-6)
    system = load_system(out)
    assert (system.kind, system.modality) == ("model", "visual")
    assert (system.supervision, system.scale) == ("clip", "none")
    score = ["score", str(out), "--split", "val", *command(sources, config, out)[4:-2]]
    assert cli.main(score) == 2
    assert "vqvae has no scores" in capsys.readouterr().err
    model, _ = load_model(out)
    assert not model.training


def test_workers_change_nothing(sources, config, tmp_path):
    for workers in ("0", "2"):
        assert cli.main([*command(sources, config, tmp_path / workers), "--workers", workers]) == 0
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("0", "2"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_auc_of_a_model_without_scores_is_refused(sources, config, tmp_path, capsys):
    assert cli.main(command(sources, config, tmp_path / "vqvae", "train.monitor=auc")) == 2
    assert "train.monitor=loss" in capsys.readouterr().err


def test_validation_without_a_readable_clip_is_refused(sources, config, tmp_path, capsys):
    (tmp_path / "media").mkdir()
    (tmp_path / "media/train").symlink_to(sources.media / "train")
    (tmp_path / "media/val").mkdir()
    (tmp_path / "media/val/0.mkv").write_text("no media")
    elsewhere = Sources(sources.lists, tmp_path / "media", sources.features)
    assert cli.main(command(elsewhere, config, tmp_path / "vqvae")) == 2
    assert "No clip of val can be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [{"size": 30}, {"size": 16, "crop": 20}, {"crop": 6}, {"frames_per_clip": 0}]
)
def test_sizes_that_do_not_fit_are_refused(arguments):
    with pytest.raises(ValueError):
        FrameImages(**arguments)
