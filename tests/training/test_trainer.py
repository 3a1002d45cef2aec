"""The training loop learns, resumes bit for bit, protects its folder and survives bad clips."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from places import ROOT
from safetensors.torch import load_file
from scipy.special import expit
from together import command

from klassify import cli
from klassify.data.audio import AudioClips
from klassify.lists import data_list
from klassify.scores import score_file
from klassify.systems import base, system, trained
from klassify.systems.experiment import TrainSettings, load_experiment
from klassify.training import epoch_order, trainer
from klassify.training.settings import learned_from

TCN = """
model:
  class_path: klassify.models.tcn.TCN
  init_args:
    hidden: 16
    augment:
      class_path: klassify.augmentation.mouth.FeatureAugment
data:
  class_path: klassify.data.mouth.MouthFeatures
train: {epochs: 4, batch_size: 8, lr: 0.01, patience: 4}
"""

ON_CPU = ("--device", "cpu")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tcn.yaml"
    path.write_text(TCN)
    return path


def train(config, out, small_data, *more):
    return cli.main(command(config, out, small_data, *more))


def score(folder, split, small_data, *more):
    return cli.main(["score", str(folder), "--split", split, *small_data.arguments, *ON_CPU, *more])


def test_training_learns_and_fills_its_folder(config, tmp_path, small_data):
    assert train(config, tmp_path / "tcn", small_data, "train.epochs=12", "train.patience=12") == 0
    record = json.loads((tmp_path / "tcn/training.json").read_text())
    assert record["val_auc"] > 0.9
    metrics = pd.read_csv(tmp_path / "tcn/metrics.csv")
    assert list(metrics["epoch"]) == list(range(1, 13))
    assert system.load_system(tmp_path / "tcn").supervision == "clip"
    assert "versions" in json.loads((tmp_path / "tcn/env.json").read_text())
    assert (tmp_path / "tcn/failures.tsv").read_text().count("no face") == 1


def test_early_epochs_may_go_without_validation(config, tmp_path, small_data):
    every, late = tmp_path / "every", tmp_path / "late"
    assert train(config, every, small_data) == 0
    assert train(config, late, small_data, "train.validate_from=0.5", "train.patience=2") == 0
    whole, part = (pd.read_csv(folder / "metrics.csv") for folder in (every, late))
    assert part["val_auc"].isna().tolist() == [True, True, False, False]
    pd.testing.assert_frame_equal(part[2:], whole[2:])


BAM = """
model:
  class_path: klassify.models.bam.BAM
  init_args:
    frontend:
      class_path: klassify.models.frontends.filterbank.FilterbankFrontEnd
      init_args: {bands: 8, width: 8, kernels: [3], dim: 32}
    local_channels: 2
data:
  class_path: klassify.data.audio.AudioFrames
  init_args: {splice: 0.6, window: 32_000, train_split: train, val_split: val}
train: {epochs: 1, batch_size: 8}
"""


def test_own_edits_train_without_segment_columns(tmp_path, small_data, capsys):
    bam, bare = tmp_path / "bam.yaml", small_data.without_segments(tmp_path / "lists")
    bam.write_text(BAM)
    assert train(bam, tmp_path / "own", bare) == 0
    assert system.load_system(tmp_path / "own").supervision == "self"
    assert score(tmp_path / "own", "val", bare) == 0
    path = score_file.score_path(tmp_path / "own", "val", "frames")
    assert score_file.read_header(path).supervision == "self"
    weights = tmp_path / "own/model.safetensors"
    clips = types.SimpleNamespace(data=AudioClips(), model=None, train=TrainSettings())
    assert learned_from(clips, bare.sources, weights) == "self"
    assert learned_from(clips, bare.sources, bam) == "clip"
    clips.data.settings = lambda sources, split: {"audio": {"supervision": "self"}}
    assert learned_from(clips, bare.sources, bam) == "self"  # of the embeddings that it reads
    base.write_system(weights.parent, base.System("own", "model", "audio", "segment", "log_odds"))
    capsys.readouterr()
    assert train(bam, tmp_path / "no", bare, "--init", str(weights)) == 2
    assert "is segment, not self" in capsys.readouterr().err


def test_pseudo_labels_are_trained_on_and_recorded(config, tmp_path, small_data, capsys):
    assert train(config, tmp_path / "tcn", small_data, "train.epochs=1") == 0
    assert score(tmp_path / "tcn", "testA", small_data) == 0
    pseudo = tmp_path / "pseudo.tsv"
    table = score_file.read_scores(score_file.score_path(tmp_path / "tcn", "testA", "clips")).table
    known = table["score"].dropna().sort_values()
    middle = float(expit(known.iloc[len(known) // 2 - 1]))
    how = ["--split", "testA", "--lists", str(small_data.lists), "--out", str(pseudo)]
    how += ["--transductive", "--fake-from", str(middle + 1e-9), "--real-to", str(middle)]
    assert cli.main(["pseudo", str(tmp_path / "tcn"), *how]) == 0
    more = ["train.epochs=1", f"train.pseudo={pseudo}"]
    assert train(config, tmp_path / "more", small_data, *more) == 0
    assert "pseudo-labelled clips of testA" in capsys.readouterr().err
    assert system.load_system(tmp_path / "more").supervision == "pseudo"
    record = json.loads((tmp_path / "more/settings.json").read_text())["pseudo"]
    assert record["record"]["split"] == "testA"
    plain, taught = (load_file(tmp_path / name / "model.safetensors") for name in ("tcn", "more"))
    assert any(not torch.equal(plain[name], taught[name]) for name in plain)
    assert score(tmp_path / "more", "val", small_data) == 0
    path = score_file.score_path(tmp_path / "more", "val", "clips")
    assert score_file.read_header(path).supervision == "pseudo"


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"supervision": "segment"}, "learned from segment labels"),
        ({"modality": "both"}, "set data.init_args.label=video"),
        ({"modality": "audio"}, "whether the sound is fake"),
        ({"extra": 1}, "not the record"),
    ],
)
def test_pseudo_labels_of_another_question_are_refused(
    config, tmp_path, small_data, capsys, changed, said
):
    record = {"split": "testA", "system": "tcn", "system_hash": "", "modality": "visual"}
    record |= {"supervision": "clip", "fake_from": 0.9, "real_to": 0.1, "n_clips": 1} | changed
    (tmp_path / "pseudo.json").write_text(json.dumps(record))
    (tmp_path / "pseudo.tsv").write_text("file\tmodify_type\na.mp4\treal\n")
    pseudo = f"train.pseudo={tmp_path / 'pseudo.tsv'}"
    assert train(config, tmp_path / "no", small_data, pseudo) == 2
    assert said in capsys.readouterr().err


def test_resuming_between_batches_gives_the_same_weights(config, tmp_path, small_data, monkeypatch):
    settings = ["train.checkpoint_steps=1", "train.epochs=2", "train.accumulate=1"]
    assert train(config, tmp_path / "whole", small_data, *settings) == 0
    expected = load_file(tmp_path / "whole/model.safetensors")
    save = trainer.Trainer._save_state
    for stop_after in (1, 3, 5):
        out, saves = tmp_path / f"stopped{stop_after}", []

        def save_and_stop(self, saves=saves, stop_after=stop_after):
            save(self)
            saves.append(1)
            if len(saves) == stop_after:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(trainer.Trainer, "_save_state", save_and_stop)
            assert train(config, out, small_data, *settings) == 130
        assert train(config, out, small_data, *settings) == 0
        state = load_file(out / "model.safetensors")
        assert all(torch.equal(expected[key], state[key]) for key in expected)


def test_workers_change_nothing(config, tmp_path, small_data):
    weights = []
    for workers in ("0", "2"):
        out = tmp_path / workers
        assert train(config, out, small_data, "train.epochs=2", "--workers", workers) == 0
        weights.append(load_file(out / "model.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    metrics = [(tmp_path / workers / "metrics.csv").read_text() for workers in ("0", "2")]
    assert metrics[0] == metrics[1]


def test_a_loss_that_is_not_a_number_ends_the_training(
    config, tmp_path, small_data, monkeypatch, capsys
):
    from klassify.models.tcn import TCN as Model

    loss, calls = Model.loss, []

    def diverges(self, batch):
        calls.append(1)
        return loss(self, batch) * (float("nan") if len(calls) > 6 else 1)

    monkeypatch.setattr(Model, "loss", diverges)
    how = ("train.log_every=100", "train.checkpoint_steps=4")
    assert train(config, tmp_path / "tcn", small_data, *how) == 2
    assert "The loss is nan in epoch" in capsys.readouterr().err
    state = torch.load(tmp_path / "tcn/checkpoints/last.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_loss_that_does_not_compile_still_trains(
    config, tmp_path, small_data, monkeypatch, capsys
):
    def broken(loss):
        def fails(batch):
            loss(batch)
            raise RuntimeError("no compiler")

        return fails

    weights = []
    for name, compiler in (("broken", broken), ("whole", lambda loss: lambda batch: loss(batch))):
        monkeypatch.setattr(torch, "compile", compiler)
        assert (
            train(config, tmp_path / name, small_data, "train.epochs=1", "train.compile=true") == 0
        )
        said = capsys.readouterr().err
        assert ("train.compile: not compiled, RuntimeError: no compiler" in said) == (
            name == "broken"
        )
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_another_config_is_refused_unless_forced(config, tmp_path, small_data, capsys):
    out, other = tmp_path / "tcn", ("train.epochs=1", "model.init_args.hidden=8")
    assert train(config, out, small_data, "train.epochs=1") == 0
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert train(config, out, small_data, "train.epochs=1") == 0  # the same: kept
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert train(config, out, small_data, *other) == 2
    assert "hidden" in capsys.readouterr().err
    assert train(config, out, small_data, *other, "--force") == 0
    assert load_file(out / "model.safetensors")["project.weight"].shape[0] == 8


def test_a_folder_of_another_kind_of_system_is_refused(config, tmp_path, small_data, capsys):
    out = tmp_path / "fused"
    fused = base.System("fused", "fusion", "both", "clip", "probability", ["../a"])
    base.write_system(out, fused)
    before = (out / "system.yaml").read_bytes()
    assert train(config, out, small_data) == 2
    assert "not trained here" in capsys.readouterr().err
    assert (out / "system.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "kept", ["system.yaml", "checkpoints/last.pt", "metrics.csv", "model.safetensors"]
)
def test_a_half_cleared_folder_is_trained_again(config, tmp_path, small_data, monkeypatch, kept):
    """After a killed --force, the same command without it ends with a complete system."""
    out = tmp_path / "tcn"
    assert train(config, out, small_data, "train.epochs=1") == 0
    unlink = Path.unlink

    def killed(path, **how):
        if path == out / kept:
            raise KeyboardInterrupt
        unlink(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        train(config, out, small_data, "train.epochs=1", "--force")
    assert train(config, out, small_data, "train.epochs=1") == 0
    assert trained.load_model(out) and (out / "training.json").exists()


@pytest.mark.parametrize(
    "override", ["train.epoch=3", "model.init_args.width=3", "train.lr=high", "epochs"]
)
def test_unknown_keys_are_refused_by_name(config, tmp_path, small_data, capsys, override):
    assert train(config, tmp_path / "tcn", small_data, override) == 2
    assert override.split("=")[0].split(".")[-1] in capsys.readouterr().err
    assert not (tmp_path / "tcn").exists()


def test_new_train_settings_do_not_change_old_trainings(config, tmp_path, small_data, capsys):
    out = tmp_path / "tcn"
    assert train(config, out, small_data, "train.epochs=1") == 0
    record = json.loads((out / "settings.json").read_text())
    del record["config"]["train"]["max_seconds"]
    (out / "settings.json").write_text(json.dumps(record))
    assert train(config, out, small_data, "train.epochs=1") == 0
    assert "already trained" in capsys.readouterr().out
    assert train(config, out, small_data, "train.epochs=1", "train.max_seconds=2") == 2


def test_fast_dev_run_keeps_nothing(config, tmp_path, small_data, capsys):
    assert train(config, tmp_path / "tcn", small_data, "--fast-dev-run") == 0
    assert "fast-dev-run: epoch 1" in capsys.readouterr().err
    assert not (tmp_path / "tcn").exists()


def test_resolved_config_builds_the_same_system(config, tmp_path, small_data):
    out = tmp_path / "tcn"
    assert train(config, out, small_data, "train.epochs=1") == 0
    again = load_experiment(out / "config.yaml")
    assert again.resolved == load_experiment(config, ["train.epochs=1"]).resolved


@pytest.mark.parametrize("kind", ["real", "both_modified"])
def test_training_needs_clips_of_both_classes(config, tmp_path, small_data, capsys, kind):
    for split in ("train", "val"):
        frame = data_list.read_list(small_data.lists / f"{split}.tsv", segments=True)
        frame = frame[frame["modify_type"] == kind] if split == "train" else frame
        data_list.write_list(tmp_path / f"lists/{split}.tsv", frame)
    other = dataclasses.replace(small_data, lists=tmp_path / "lists")
    assert train(config, tmp_path / "tcn", other) == 2
    n = len(data_list.read_list(tmp_path / "lists/train.tsv"))
    n_fake = n if kind != "real" else 0
    said = f"Training needs real and fake clips; train_video has {n}, {n_fake} of them fake."
    assert said in capsys.readouterr().err


def test_an_epoch_is_a_permutation_dealt_to_the_ranks():
    whole, other = (epoch_order.epoch_order(11, seed=1, epoch=epoch) for epoch in (3, 4))
    assert sorted(whole) == list(range(11)) and whole.tolist() != other.tolist()

    def of_rank(size, rank=0, world=1, **more):
        return epoch_order.EpochBatches(11, size, 1, 3, rank=rank, world=world, **more)

    ranks = [of_rank(2, rank, world=4) for rank in range(4)]
    assert [len(batches) for batches in ranks] == [2] * 4
    for together, *parts in zip(of_rank(8), *ranks):  # the same global batches as with one process
        counted = [key for part in parts if part.counts for key in part.keys]
        assert sorted(counted) == sorted(together.keys)
    assert [batches[1].counts for batches in ranks] == [True, True, True, False]
    keys = [(3, number) for number in whole]
    assert [key for batch in of_rank(4) for key in batch.keys] == keys
    assert ranks[3][1].keys == keys[8:9]
    drawn = [key for batch in of_rank(8, repeats=2) for key in batch.keys]
    assert sorted(drawn) == [(epoch, number) for epoch in (6, 7) for number in range(11)]


def test_clips_of_one_source_are_neighbours():
    source = np.array([0, 1, 2] * 4)
    orders = [epoch_order.EpochBatches(12, 4, 1, epoch, source=source) for epoch in (0, 1)]
    keys = [[index for batch in batches for _, index in batch.keys] for batches in orders]
    assert sorted(keys[0]) == list(range(12)) and keys[0] != keys[1]
    assert all(len({source[index] for _, index in batch.keys}) == 1 for batch in orders[0])
    repeated = epoch_order.EpochBatches(12, 8, 1, 0, repeats=2, source=source)
    assert [len({source[index] for _, index in batch.keys}) for batch in repeated] == [1, 1, 1]


def test_the_last_update_of_an_epoch_may_be_smaller():
    sizes = [epoch_order.group_size(number, 5, 2) for number in range(5)]
    assert sizes == [2, 2, 2, 2, 1]
    assert [epoch_order.group_size(number, 2, 4) for number in range(2)] == [2, 2]


def test_scoring_names_the_clips_that_it_cannot_score(config, tmp_path, small_data):
    out = tmp_path / "tcn"
    assert train(config, out, small_data, "train.epochs=1") == 0
    assert score(out, "testA,val_fit", small_data) == 0
    clips = score_file.read_scores(out / "scores/testA.clips.tsv")
    assert len(clips.table) == 12 and clips.header.supervision == "clip"
    silent = clips.table[clips.table["score"].isna()]
    assert list(silent["reason"]) == ["no face"]
    assert "no face" in (out / "scores/testA.failures.tsv").read_text()
    before = (out / "scores/testA.windows.tsv").read_bytes()
    assert score(out, "testA,val_fit", small_data, "--aggregate", "max") == 0
    assert (out / "scores/testA.windows.tsv").read_bytes() == before  # not computed again
    header = score_file.read_scores(out / "scores/testA.clips.tsv").header
    assert header.settings["aggregate"] == "max"


def test_scores_do_not_depend_on_the_batch_size(config, tmp_path, small_data):
    out = tmp_path / "tcn"
    assert train(config, out, small_data, "train.epochs=1") == 0
    scores = []
    for size in ("1", "7"):
        assert score(out, "testA", small_data, "--force", "--batch-size", size) == 0
        scores.append(score_file.read_scores(out / "scores/testA.windows.tsv").table["score"])
    np.testing.assert_allclose(*scores, atol=1e-5)


def test_a_precision_that_was_asked_for_is_recorded(config, tmp_path, small_data, capsys):
    out = tmp_path / "tcn"
    assert train(config, out, small_data, "train.epochs=1") == 0
    tables = []
    for more in ((), ("--precision", "bf16", "--force")):
        assert score(out, "testA", small_data, *more) == 0
        found = score_file.read_scores(out / "scores/testA.windows.tsv")
        assert found.header.settings.get("precision") == (more[1] if more else None)
        tables.append(found.table["score"])
    assert 0 < (tables[0] - tables[1]).abs().max() < 0.1
    assert score(out, "testA", small_data) == 2
    assert "precision" in capsys.readouterr().err
    assert score(out, "testA", small_data, "--force", "--precision", "tf32") == 2
    assert "TF32 is a precision of CUDA GPUs" in capsys.readouterr().err


def test_segment_columns_do_not_affect_task_1(config, tmp_path, small_data):
    """Training and scoring on lists without segment columns give the same weights and scores."""
    stripped, results = small_data.without_segments(tmp_path / "lists"), []
    for name, data in (("with", small_data), ("without", stripped)):
        out = tmp_path / name
        assert train(config, out, data, "train.epochs=2") == 0
        assert score(out, "testA", data) == 0
        table = score_file.read_scores(out / "scores/testA.clips.tsv").table
        results.append((load_file(out / "model.safetensors"), table))
    assert all(torch.equal(results[0][0][key], results[1][0][key]) for key in results[0][0])
    pd.testing.assert_frame_equal(results[0][1], results[1][1])


def test_overrides_may_follow_options(tmp_path, capsys):
    config = ROOT / "recipes/klassify/conf/demo/tcn.yaml"
    options = ["--lists", str(tmp_path / "none"), "--media", "m", "--features", "f"]
    assert cli.main(["train", str(config), "--out", str(tmp_path), *options, "train.epochs=1"]) == 2
    message = capsys.readouterr().err
    assert "no list for split 'train_video'" in message and "make stage0" in message
