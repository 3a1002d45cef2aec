"""The localisers' data: labels in step with inputs, one row a frame, planted fakes found."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from klassify import cli
from klassify.data.audio import FRAME_SAMPLES, AudioFrames
from klassify.data.base import NoAnswer, Sources
from klassify.data.mouth import MouthFeatures, MouthTags
from klassify.grid.frames import FRAME_S, IGNORE, boundary_labels, encode_labels
from klassify.lists import data_list
from klassify.scores import score_file
from klassify.scores.inference import score_frames
from klassify.systems.experiment import load_experiment

TAGS = """
model:
  class_path: klassify.models.tcn.TaggingTCN
  init_args: {hidden: 16, tag_hidden: 16}
data:
  class_path: klassify.data.mouth.MouthTags
train: {epochs: 12, batch_size: 8, lr: 0.01, patience: 12}
"""


@pytest.fixture
def sources(small_data):
    return Sources(small_data.lists, small_data.media, small_data.features)


def test_a_crop_of_audio_carries_the_labels_of_its_own_frames():
    data = AudioFrames(window=10 * FRAME_SAMPLES, stride=5 * FRAME_SAMPLES)
    n_frames = 60
    # each frame holds its own number
    wave = np.repeat(np.arange(n_frames, dtype=np.float32), FRAME_SAMPLES)
    fake = np.array([[0.4, 0.8], [1.2, 1.24]])
    labels = encode_labels(fake, n_frames)
    for seed in range(20):
        example = data.example(wave, (fake, 1), np.random.default_rng(seed))
        frames = example["wave"].reshape(10, FRAME_SAMPLES)[:, 0].long()
        assert torch.equal(example["frame_label"], torch.from_numpy(labels)[frames])
        expected = boundary_labels(labels[frames.numpy()])
        np.testing.assert_array_equal(example["boundary_label"].numpy(), expected)


def test_short_audio_is_padded_with_zeros_and_ignored_frames():
    data = AudioFrames(window=10 * FRAME_SAMPLES, stride=5 * FRAME_SAMPLES)
    example = data.example(
        np.ones(4 * FRAME_SAMPLES + 1, np.float32), (np.zeros((0, 2)), 0), np.random.default_rng(0)
    )
    assert example["frame_label"].tolist() == [0] * 5 + [IGNORE] * 5
    assert example["wave"].sum() == 4 * FRAME_SAMPLES + 1


@pytest.mark.parametrize("n_samples", [1, 640, 6400, 6401, 12_345, 64_000])
def test_audio_windows_cover_every_frame_of_the_clip(n_samples):
    data = AudioFrames(window=10 * FRAME_SAMPLES, stride=5 * FRAME_SAMPLES)
    cut = data.cut(np.ones(n_samples, np.float32))
    covered = np.zeros(data.frames_of(np.empty(n_samples)), bool)
    for window in cut:
        first = round(window.start_s / FRAME_S)
        covered[first : first + len(window.inputs["wave"]) // FRAME_SAMPLES] = True
    assert covered.all()
    assert max(window.end_s for window in cut) == pytest.approx(n_samples / 16_000)


def test_tags_are_cropped_padded_and_ignored_with_their_frames(sources):
    data = MouthTags(window=32, stride=16)
    reader = data.reader(sources, "train")
    file = sources.table("train")["file"][6]
    clip = reader.read(file)
    example = data.example(clip, (np.array([[0.4, 1.2]]), 1), np.random.default_rng(3))
    batch = data.collate(
        [example, {key: value[:5] if value.ndim else value for key, value in example.items()}]
    )
    assert batch["tags"].shape == batch["valid"].shape
    assert (batch["tags"][1, 5:] == IGNORE).all()
    assert (batch["tags"][~batch["valid"]] == IGNORE).all()


def test_frame_rows_are_on_the_grid_and_whole(sources):
    class Oracle(torch.nn.Module):  # "fake" where the first feature is high
        def tag_log_probs(self, batch):
            fake = torch.sigmoid(8 * (batch["features"][..., 0] - 1.2))
            tags = torch.stack([1 - fake, fake / 3, fake / 3, fake / 3], dim=-1)
            return tags.clamp_min(1e-6).log()

    data = MouthTags(window=32, stride=16)
    table, reasons = score_frames(Oracle(), data, sources, "val", progress=False)
    listed = sources.table("val")
    assert set(table["file"]) | set(reasons) == set(listed["file"])
    assert list(reasons.values()) == ["no face"]
    for file, rows in table.groupby("file"):
        n_frames = int(listed.set_index("file").loc[file, "n_frames"])
        np.testing.assert_allclose(rows["start"], np.arange(n_frames) * 0.04, atol=1e-9)
        tags = np.exp(rows[["log_o", "log_b", "log_i", "log_l"]])
        np.testing.assert_allclose(tags.sum(axis=1), 1, atol=1e-6)
        fake = "visual" in file or "both" in file
        assert (rows["score"].iloc[12:28].median() > 0) == fake


def test_only_localisers_read_segments(sources):
    assert "fake_segments" not in sources.table("train").columns
    assert MouthFeatures().supervision == "clip"
    assert MouthTags().supervision == AudioFrames().supervision == "segment"


def test_a_clip_without_a_face_has_no_rows(sources):
    reader = MouthTags().reader(sources, "train")
    with pytest.raises(NoAnswer, match="no face"):
        reader.read(sources.table("train")["file"][2])


def test_the_tagger_finds_the_planted_fakes(tmp_path, small_data):
    config, out = tmp_path / "tags.yaml", tmp_path / "tcn_tags"
    config.write_text(TAGS)
    assert load_experiment(config).data.supervision == "segment"

    def klassify(command, *words):
        assert cli.main([command, *map(str, words)]) == 0

    klassify("train", config, "--out", out, *small_data.arguments, "--accelerator", "cpu")
    assert json.loads((out / "training.json").read_text())["val_auc"] > 0.9
    klassify("score", out, "--split", "val", *small_data.arguments, "--device", "cpu")
    frames = score_file.score_path(out, "val", "frames")
    assert score_file.read_header(frames).supervision == "segment"
    klassify("tune", out, "--labels", small_data.lists, "--segments", "own")
    klassify("localise", out, "--split", "val")
    labels = small_data.lists / "val.tsv"
    evaluation = ["--task", 2, "--split", "val", "--labels", labels, "--bootstrap", 20]
    klassify("evaluate", out, *evaluation, "--out", tmp_path / "evaluation")
    report = (tmp_path / "evaluation/val.task2.txt").read_text()
    assert "random" in report and "tcn_tags" in report
    found = score_file.read_scores(score_file.score_path(out, "val", "segments")).table
    best = found.sort_values("score").groupby("file").tail(1).set_index("file")
    for file in data_list.read_list(labels)["file"]:
        if file in best.index and ("visual" in file or "both" in file):
            found = best.loc[file, ["start", "end"]].tolist()
            assert found == pytest.approx([0.4, 1.2], abs=0.1)
