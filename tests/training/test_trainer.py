"""The training loop: it learns, resumes bit for bit, keeps its folder's config, and survives bad
clips.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from places import ROOT
from safetensors.torch import load_file

from klassify import cli
from klassify.scores import score_file
from klassify.systems import system
from klassify.systems.experiment import load_experiment
from klassify.training import epoch_order, trainer

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


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tcn.yaml"
    path.write_text(TCN)
    return path


def command(config, out, small_data, *more):
    return [
        "train",
        str(config),
        *more,
        "--out",
        str(out),
        *small_data.arguments,
        "--accelerator",
        "cpu",
    ]


def test_learns_the_planted_signal_and_fills_its_folder(config, tmp_path, small_data):
    assert (
        cli.main(
            command(config, tmp_path / "tcn", small_data, "train.epochs=12", "train.patience=12")
        )
        == 0
    )
    record = json.loads((tmp_path / "tcn/training.json").read_text())
    assert record["val_auc"] > 0.9
    metrics = pd.read_csv(tmp_path / "tcn/metrics.csv")
    assert list(metrics["epoch"]) == list(range(1, 13))
    assert system.load_system(tmp_path / "tcn").supervision == "clip"
    assert "versions" in json.loads((tmp_path / "tcn/env.json").read_text())
    assert (tmp_path / "tcn/failures.tsv").read_text().count("no face") == 1


def test_killed_training_resumes_to_the_same_weights(config, tmp_path, small_data):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = ["train.checkpoint_steps=1", "train.epochs=6"]
    assert cli.main(command(config, whole, small_data, *settings)) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "klassify.cli", *command(config, killed, small_data, *settings)],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    deadline = time.monotonic() + 60
    while (
        not (killed / "checkpoints/last.pt").exists()
        and time.monotonic() < deadline
        and process.poll() is None
    ):
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "training.json").exists()
    assert cli.main(command(config, killed, small_data, *settings)) == 0
    one, other = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert (whole / "metrics.csv").read_text() == (killed / "metrics.csv").read_text()


def test_every_interruption_between_batches_ends_in_the_same_weights(
    config, tmp_path, small_data, monkeypatch
):
    settings = ["train.checkpoint_steps=1", "train.epochs=2", "train.accumulate=1"]
    assert cli.main(command(config, tmp_path / "whole", small_data, *settings)) == 0
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
            assert cli.main(command(config, out, small_data, *settings)) == 130
        assert cli.main(command(config, out, small_data, *settings)) == 0
        state = load_file(out / "model.safetensors")
        assert all(torch.equal(expected[key], state[key]) for key in expected)


def test_another_config_is_refused_by_name_and_force_replaces_it(
    config, tmp_path, small_data, capsys
):
    out = tmp_path / "tcn"
    assert cli.main(command(config, out, small_data, "train.epochs=1")) == 0
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert cli.main(command(config, out, small_data, "train.epochs=1")) == 0  # the same: kept
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert (
        cli.main(command(config, out, small_data, "train.epochs=1", "model.init_args.hidden=8"))
        == 2
    )
    assert "hidden" in capsys.readouterr().err
    assert (
        cli.main(
            [
                *command(config, out, small_data, "train.epochs=1", "model.init_args.hidden=8"),
                "--force",
            ]
        )
        == 0
    )
    assert load_file(out / "model.safetensors")["project.weight"].shape[0] == 8


def test_what_was_made_otherwise_is_not_trained_over(config, tmp_path, small_data, capsys):
    out = tmp_path / "fused"
    system.write_system(
        out, system.System("fused", "fusion", "both", "clip", "probability", ["../a"])
    )
    before = (out / "system.yaml").read_bytes()
    assert cli.main(command(config, out, small_data)) == 2
    assert (
        "not trained here" in capsys.readouterr().err
        and (out / "system.yaml").read_bytes() == before
    )


@pytest.mark.parametrize(
    "kept", ["system.yaml", "checkpoints/last.pt", "metrics.csv", "model.safetensors"]
)
def test_cleared_halfway_a_folder_is_trained_again(config, tmp_path, small_data, monkeypatch, kept):
    """--force that is killed between two removals: the same command without it ends with a whole
    system.
    """
    out = tmp_path / "tcn"
    assert cli.main(command(config, out, small_data, "train.epochs=1")) == 0
    unlink = Path.unlink

    def killed(path, **how):
        if path == out / kept:
            raise KeyboardInterrupt
        unlink(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        cli.main(command(config, out, small_data, "train.epochs=1", "--force"))
    assert cli.main(command(config, out, small_data, "train.epochs=1")) == 0
    assert system.load_model(out) and (out / "training.json").exists()


@pytest.mark.parametrize(
    "override", ["train.epoch=3", "model.init_args.width=3", "train.lr=high", "epochs"]
)
def test_unknown_and_mistyped_keys_are_refused_by_name(
    config, tmp_path, small_data, capsys, override
):
    assert cli.main(command(config, tmp_path / "tcn", small_data, override)) == 2
    assert override.split("=")[0].split(".")[-1] in capsys.readouterr().err
    assert not (tmp_path / "tcn").exists()


def test_a_train_setting_that_is_new_does_not_make_old_trainings_others(
    config, tmp_path, small_data, capsys
):
    out = tmp_path / "tcn"
    assert cli.main(command(config, out, small_data, "train.epochs=1")) == 0
    record = json.loads((out / "settings.json").read_text())
    del record["config"]["train"]["max_seconds"]
    (out / "settings.json").write_text(json.dumps(record))
    assert cli.main(command(config, out, small_data, "train.epochs=1")) == 0
    assert "already trained" in capsys.readouterr().out
    assert cli.main(command(config, out, small_data, "train.epochs=1", "train.max_seconds=2")) == 2


def test_fast_dev_run_keeps_nothing(config, tmp_path, small_data):
    assert cli.main([*command(config, tmp_path / "tcn", small_data), "--fast-dev-run"]) == 0
    assert not (tmp_path / "tcn").exists()


def test_resolved_config_builds_the_same_system(config, tmp_path, small_data):
    out = tmp_path / "tcn"
    assert cli.main(command(config, out, small_data, "train.epochs=1")) == 0
    again = load_experiment(out / "config.yaml")
    assert again.resolved == load_experiment(config, ["train.epochs=1"]).resolved


def test_epoch_order_is_a_permutation_dealt_to_the_ranks():
    whole = epoch_order.epoch_order(11, seed=1, epoch=3)
    assert sorted(whole) == list(range(11)) and whole != epoch_order.epoch_order(
        11, seed=1, epoch=4
    )
    keys = [(3, number) for number in whole]
    ranks = [epoch_order.batches_of_rank(keys, 2, rank, world=4) for rank in range(4)]
    assert [len(batches) for batches in ranks] == [2] * 4
    one = epoch_order.batches_of_rank(keys, 8)
    for together, *parts in zip(
        one, *ranks
    ):  # every clip once, in the same global batch as with one process
        assert sorted(key for part in parts if part.counts for key in part.keys) == sorted(
            together.keys
        )
    assert [batches[1].counts for batches in ranks] == [True, True, True, False] and ranks[3][
        1
    ].keys == keys[8:9]


def test_the_last_batches_of_an_epoch_share_a_smaller_update():
    assert epoch_order.group_sizes(5, 2) == [2, 2, 2, 2, 1] and epoch_order.group_sizes(2, 4) == [
        2,
        2,
    ]


def test_scoring_answers_every_clip_once_and_names_those_it_cannot(config, tmp_path, small_data):
    out = tmp_path / "tcn"
    assert cli.main(command(config, out, small_data, "train.epochs=1")) == 0
    score = [
        "score",
        str(out),
        "--split",
        "testA,val_fit",
        *small_data.arguments,
        "--device",
        "cpu",
    ]
    assert cli.main(score) == 0
    clips = score_file.read_scores(out / "scores/testA.clips.tsv")
    assert len(clips.table) == 12 and clips.header.supervision == "clip"
    silent = clips.table[clips.table["score"].isna()]
    assert list(silent["reason"]) == ["no face"]
    assert "no face" in (out / "scores/testA.failures.tsv").read_text()
    before = (out / "scores/testA.windows.tsv").read_bytes()
    assert cli.main([*score, "--aggregate", "max"]) == 0  # a cheap re-run: the windows stay
    assert (out / "scores/testA.windows.tsv").read_bytes() == before
    assert (
        score_file.read_scores(out / "scores/testA.clips.tsv").header.settings["aggregate"] == "max"
    )


def test_scores_do_not_depend_on_the_batch_size(config, tmp_path, small_data):
    out = tmp_path / "tcn"
    assert cli.main(command(config, out, small_data, "train.epochs=1")) == 0
    tables = []
    for size in ("1", "7"):
        score = [
            "score",
            str(out),
            "--split",
            "testA",
            *small_data.arguments,
            "--device",
            "cpu",
            "--force",
        ]
        assert cli.main([*score, "--batch-size", size]) == 0
        tables.append(
            score_file.read_scores(out / "scores/testA.windows.tsv").table["score"].to_numpy()
        )
    np.testing.assert_allclose(tables[0], tables[1], atol=1e-5)


def test_segment_columns_make_no_difference_to_task_1(config, tmp_path, small_data):
    """Training and scoring on lists without segment columns give the same weights and scores."""
    stripped = tmp_path / "lists"
    stripped.mkdir()
    for path in small_data.lists.glob("*.tsv"):
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        assert "fake_segments" in table
        table.drop(columns=[c for c in table if c.endswith("segments")]).to_csv(
            stripped / path.name, sep="\t", index=False
        )
    results = []
    for name, lists in (("with", small_data.lists), ("without", stripped)):
        arguments = ["--lists", str(lists), *small_data.arguments[2:]]
        out = str(tmp_path / name)
        assert (
            cli.main(
                [
                    "train",
                    str(config),
                    "train.epochs=2",
                    "--out",
                    out,
                    *arguments,
                    "--accelerator",
                    "cpu",
                ]
            )
            == 0
        )
        assert cli.main(["score", out, "--split", "testA", *arguments, "--device", "cpu"]) == 0
        table = score_file.read_scores(tmp_path / name / "scores/testA.clips.tsv").table
        results.append((load_file(tmp_path / name / "model.safetensors"), table))
    assert all(torch.equal(results[0][0][key], results[1][0][key]) for key in results[0][0])
    pd.testing.assert_frame_equal(results[0][1], results[1][1])


def test_overrides_may_stand_after_options_and_a_missing_list_is_named(tmp_path, capsys):
    config = ROOT / "recipes/klassify/conf/demo/tcn.yaml"
    command = [
        "train",
        str(config),
        "--out",
        str(tmp_path),
        "--lists",
        str(tmp_path / "none"),
        "--media",
        "m",
        "--features",
        "f",
        "train.epochs=1",
    ]
    assert cli.main(command) == 2
    message = capsys.readouterr().err
    assert "no list for split 'train_video'" in message and "make stage0" in message
