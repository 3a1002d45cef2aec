"""The localisers' data: labels in step with inputs, one row per frame, planted fakes found."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from commands import klassify

from klassify.data.audio import FRAME_SAMPLES, AudioFrames
from klassify.data.audio_shares import AudioShares
from klassify.data.base import NoAnswer
from klassify.data.mouth import MouthFeatures, MouthTags
from klassify.grid.frames import FRAME_S, IGNORE, boundary_labels, encode_tags
from klassify.lists import data_list
from klassify.models.bam import BAM
from klassify.models.frontends.filterbank import FilterbankFrontEnd
from klassify.scores import score_file
from klassify.scores.inference import clip_frames, score_frames
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
    return small_data.sources


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


@pytest.mark.parametrize(("hop_s", "offset_s"), [(0.04, 0.0), (0.02, 0.0025), (0.01, 0.0)])
def test_shares_and_labels_are_of_the_crops_own_frames(hop_s, offset_s):
    size = round(hop_s * 16_000)
    shape = {"window": 100 * size, "stride": 50 * size, "hop_s": hop_s, "offset_s": offset_s}
    # each sample holds its own time in samples
    wave = np.arange(250 * size + 7, dtype=np.float32)
    fake = np.array([[0.4, 0.8081], [1.2, 1.203]])
    for seed in range(20):
        examples = [
            AudioFrames(targets=targets, **shape).example(
                wave, (fake, 1), np.random.default_rng(seed)
            )
            for targets in ("any", "share")
        ]
        assert torch.equal(examples[0]["wave"], examples[1]["wave"])
        assert torch.equal(examples[0]["boundary_label"], examples[1]["boundary_label"])
        edges = boundary_labels(examples[0]["frame_label"].numpy())
        np.testing.assert_array_equal(examples[0]["boundary_label"], edges)
        first_s = float(examples[0]["wave"][0]) / 16_000 + offset_s
        share = [
            sum(max(min(b, start + hop_s) - max(a, start), 0) for a, b in fake) / hop_s
            for start in first_s + hop_s * np.arange(100)
        ]
        np.testing.assert_allclose(examples[1]["frame_label"], share, atol=1e-5)
        assert examples[0]["frame_label"].tolist() == [value > 1e-6 for value in share]


def test_padding_has_no_share():
    data = AudioFrames(window=6400, stride=3200, hop_s=0.02, targets="share")
    example = data.example(np.ones(321, np.float32), (np.zeros((0, 2)), 0), rng())
    assert example["frame_label"][:2].tolist() == [0, 0]
    assert example["frame_label"][2:].isnan().all() and len(example["frame_label"]) == 20


def rng():
    return np.random.default_rng(0)


class Mixing(torch.nn.Module):
    """Scores of frames of `hop` samples that depend on all of their window."""

    def __init__(self, hop):
        super().__init__()
        self.hop = hop

    def frame_scores(self, batch=None, wave=None):
        wave = batch["wave"] if wave is None else wave
        level = wave.unfold(1, self.hop, self.hop).square().mean(dim=2)
        score = level.cumsum(dim=1) - level.mean(dim=1, keepdim=True)
        if batch is None:
            return {"score": score, "boundary": level}
        return torch.stack([score, level, -level], dim=-1)


@pytest.mark.parametrize("n_samples", [1, 320, 321, 5000, 6400, 6401, 12_345, 64_000])
@pytest.mark.parametrize("kind", ["frames", "shares"])
def test_interleaved_scores_are_those_of_two_plain_passes(n_samples, kind):
    def data(**more):
        if kind == "shares":
            return AudioShares(window=20, stride=10, **more)
        return AudioFrames(window=6400, stride=3200, hop_s=0.02, offset_s=0.0025, **more)

    clip, model = rng().normal(0, 1, n_samples).astype(np.float32), Mixing(320)
    moved = np.append(clip[160:], np.zeros(160, np.float32))
    found = clip_frames(model, data(interleave=True), data(interleave=True).cut(clip), batch_size=3)
    plain = [clip_frames(model, data(), data().cut(part), batch_size=3) for part in (clip, moved)]
    for later, rows in enumerate(plain):
        mine = found[later::2, 2:]
        np.testing.assert_allclose(mine, rows[: len(mine), 2:], atol=1e-5)
    assert abs(len(found) - 2 * len(plain[0])) <= 1
    n_frames = max(int(np.ceil(n_samples / 160 - 0.75)), 1)
    np.testing.assert_allclose(found[:, 0], 0.0075 + 0.01 * np.arange(n_frames))
    assert found[-1, 1] == pytest.approx(max(n_samples / 16_000, found[-1, 0]))
    assert data(interleave=True).for_validation().score_grid == data().score_grid


def test_frames_of_another_length_than_the_models_are_refused():
    model = BAM(FilterbankFrontEnd(dim=16), resolution_s=0.04, local_channels=2)
    AudioFrames().check_model(model)
    with pytest.raises(ValueError, match="hop_s=0.02, the model resolution_s=0.04"):
        AudioFrames(hop_s=0.02).check_model(model)


def test_features_between_pictures_are_interpolated():
    data = MouthTags(hop_s=0.02, window=8, stride=4)
    features = torch.arange(6.0)[:, None].repeat(1, 2)
    valid = torch.tensor([True, True, True, False, True, True])
    cut = data.cut({"features": features, "valid": valid})
    assert [round(window.start_s / 0.02) for window in cut] == [0, 4]
    rows = torch.cat([cut[0].inputs["features"], cut[1].inputs["features"][4:]])[:, 0]
    seen = torch.cat([cut[0].inputs["valid"], cut[1].inputs["valid"][4:]])
    assert seen.tolist() == [True] * 6 + [False] * 2 + [True] * 4
    assert rows[seen].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2, 4, 4.25, 4.75, 5]
    example = data.example({"features": features, "valid": valid}, ([[0.05, 0.09]], 1), rng())
    first = int((rows == example["features"][0, 0]).nonzero()[0])
    tags = encode_tags([[0.05, 0.09]], 12, hop_s=0.02)
    wanted = np.where(seen, tags, IGNORE)[first : first + 8]
    np.testing.assert_array_equal(example["tags"], wanted)


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

    words = [*small_data.arguments, "--accelerator", "cpu"]
    assert klassify("train", config, "--out", out, *words) == 0
    assert json.loads((out / "training.json").read_text())["val_auc"] > 0.9
    assert klassify("score", out, "--split", "val", *small_data.arguments, "--device", "cpu") == 0
    frames = score_file.score_path(out, "val", "frames")
    assert score_file.read_header(frames).supervision == "segment"
    assert klassify("tune", out, "--labels", small_data.lists, "--segments", "own") == 0
    assert klassify("localise", out, "--split", "val") == 0
    labels = small_data.lists / "val.tsv"
    evaluation = ["--task", 2, "--split", "val", "--labels", labels, "--bootstrap", 20]
    assert klassify("evaluate", out, *evaluation, "--out", tmp_path / "evaluation") == 0
    report = (tmp_path / "evaluation/val.task2.txt").read_text()
    assert "random" in report and "tcn_tags" in report
    found = score_file.read_scores(score_file.score_path(out, "val", "segments")).table
    best = found.sort_values("score").groupby("file").tail(1).set_index("file")
    for file in data_list.read_list(labels)["file"]:
        if file in best.index and ("visual" in file or "both" in file):
            found = best.loc[file, ["start", "end"]].tolist()
            assert found == pytest.approx([0.4, 1.2], abs=0.1)
