"""Sync from its encoders to its scores; no segment column takes part in it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from commands import klassify
from safetensors.torch import load_file

from klassify.data.sync import SyncEmbeddings, pairs
from klassify.scores import score_file
from klassify.systems.system import load_system

FRONTEND = """
    frontend:
      class_path: klassify.models.frontends.filterbank.FilterbankFrontEnd
      init_args: {bands: 8, width: 8, kernels: [3], dim: 8}
    dim: 8"""
CONFIGS = {
    "audio_mil": ("audio_encoder.AudioMIL", FRONTEND, "audio.AudioClips"),
    "tcn": ("tcn.TCN", "\n    hidden: 16", "mouth.MouthFeatures"),
    "tags": ("tcn.TaggingTCN", "\n    hidden: 16\n    tag_hidden: 16", "mouth.MouthTags"),
    "sync": ("sync.Sync", "\n    audio_dim: 8\n    visual_dim: 16", "sync.SyncEmbeddings"),
}


def train(name, folder, data, *overrides, features=None):
    """Train a system for an epoch; returns the exit status."""
    model, arguments, reads = CONFIGS[name]
    config = folder / f"{name}.yaml"
    config.write_text(
        f"model:\n  class_path: klassify.models.{model}\n  init_args:{arguments}\n"
        f"data:\n  class_path: klassify.data.{reads}\ntrain: {{epochs: 1, batch_size: 8}}\n"
    )
    data = dataclasses.replace(data, features=features or data.features)
    given = data.arguments
    return klassify("train", config, *overrides, "--out", folder / "exp" / name, *given)


def embed(name, folder, data):
    for split in ("train", "val", "testA"):
        command = ["extract", "--kind", "embedding", "--system", folder / "exp" / name]
        command += ["--list", data.lists / f"{split}.tsv", "--root", data.media]
        command += ["--features", data.features]
        out = folder / "features" / f"embedding-{name}" / split
        assert klassify(*command, "--out", out) == 0


def trained_sync(folder, data):
    """The folder of a sync with its encoders, scored on testA."""
    folder.mkdir()
    for name in ("audio_mil", "tcn"):
        assert train(name, folder, data) == 0
        embed(name, folder, data)
    features = folder / "features"
    assert train("sync", folder, data, "data.init_args.visual=tcn", features=features) == 0
    given = dataclasses.replace(data, features=features).arguments
    assert klassify("score", folder / "exp/sync", "--split", "testA", *given) == 0
    return folder / "exp/sync"


@pytest.mark.long
def test_segment_columns_do_not_affect_sync(small_data, tmp_path):
    """Encoders, embeddings and sync on lists without segment columns give the same scores."""
    stripped, results = small_data.without_segments(tmp_path / "lists"), []
    for name, data in (("with", small_data), ("without", stripped)):
        system = trained_sync(tmp_path / name, data)
        scores = score_file.read_scores(system / "scores/testA.clips.tsv")
        results.append((load_file(system / "model.safetensors"), scores.table))
        assert scores.header.supervision == "clip"
        loaded = load_system(system)
        assert [one.name for one in loaded.input_systems] == ["audio_mil", "tcn"]
        assert {one.supervision for one in loaded.with_inputs()} == {"clip"}
    assert all(torch.equal(results[0][0][key], results[1][0][key]) for key in results[0][0])
    pd.testing.assert_frame_equal(results[0][1], results[1][1])
    silent = results[0][1]["score"].isna()
    assert silent.any() and not silent.all()
    assert set(results[0][1]["reason"][silent]) <= {"no face", "no audio"}


def test_an_encoder_that_learned_from_segments_is_refused(small_data, tmp_path, capsys):
    for name in ("audio_mil", "tags"):
        assert train(name, tmp_path, small_data) == 0
        embed(name, tmp_path, small_data)
    change, features = "data.init_args.visual=tags", tmp_path / "features"
    assert train("sync", tmp_path, small_data, change, features=features) == 2
    assert "learned from segment" in capsys.readouterr().err


def test_pairs_of_frames_are_averaged():
    values = np.arange(10.0).reshape(5, 2)
    mean, valid = pairs(values, np.array([True, True, True, False, True]), 4)
    np.testing.assert_allclose(mean, [[1, 2], [5, 6], [4, 4.5], [0, 0]])
    assert valid.tolist() == [True, False, False, False]


@pytest.mark.parametrize("label", ["own", "audio"])
def test_sound_and_picture_together_have_the_videos_label(label):
    with pytest.raises(ValueError, match="label"):
        SyncEmbeddings(label=label)
