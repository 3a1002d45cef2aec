"""Embeddings: what a trained encoder makes of each frame, and each clip by an encoder that has not
learned from it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klassify import cli
from klassify.data.audio_shares import AudioShares
from klassify.data.base import Sources
from klassify.features.shards import FeatureStore
from klassify.lists import subsets
from klassify.systems.system import load_system
from klassify.systems.trained import load_model

CONFIG = """
model:
  class_path: klassify.models.audio_encoder.{model}
  init_args:
    frontend:
      class_path: klassify.models.frontends.filterbank.FilterbankFrontEnd
      init_args: {{bands: 8, width: 8, kernels: [3], dim: 8}}
    dim: 8
data:
  class_path: klassify.data.{data}
train: {{epochs: 1, batch_size: 8}}
"""


@pytest.fixture
def encoder(small_data, tmp_path):
    """encoder(name, *overrides): the folder of a system that is trained for an epoch."""

    def train(name, *overrides, model="AudioFrameModel", data="audio_shares.AudioShares"):
        config, out = tmp_path / f"{name}.yaml", tmp_path / "exp" / name
        config.write_text(CONFIG.format(model=model, data=data))
        command = ["train", str(config), *overrides, "--out", str(out), *small_data.arguments]
        assert cli.main(command) == 0
        return out

    return train


def embed(small_data, tmp_path, system, split, *options):
    """The store of a split's embeddings, made by the command."""
    out = tmp_path / f"embedding-{system.name}{len(options)}" / split
    command = ["extract", "--kind", "embedding", "--system", str(system), *map(str, options)]
    command += ["--list", str(small_data.lists / f"{split}.tsv"), "--out", str(out)]
    assert cli.main([*command, "--root", str(small_data.media)]) == 0
    return FeatureStore(out)


def by_hand(system, small_data, split, file):
    """The embedding of a clip shorter than a window, straight from the model."""
    model, _ = load_model(system)
    data = AudioShares()
    sources = Sources(small_data.lists, small_data.media, small_data.features)
    (window,) = data.cut(data.reader(sources, split).read(file))
    with torch.no_grad():
        return model(window.inputs["wave"][None]).embedding[0].numpy()


@pytest.mark.parametrize(
    "model, data",
    [("AudioFrameModel", "audio_shares.AudioShares"), ("AudioMIL", "audio.AudioClips")],
)
def test_rows_are_the_models_embeddings(small_data, tmp_path, encoder, model, data):
    system = encoder("one", "data.init_args.train_split=train", model=model, data=data)
    store = embed(small_data, tmp_path, system, "val")
    assert store.settings["hop_s"] == 0.02 and store.settings["offset_s"] == 0.0025
    file = next(name for name in store if not store[name].reason)
    row = store[file]
    assert row.embedding.dtype == np.float16 and row.valid.all()
    wanted = by_hand(system, small_data, "val", file)
    np.testing.assert_allclose(row.embedding, wanted, atol=2e-3, rtol=2e-3)


def test_a_clip_without_sound_says_so(small_data, tmp_path, encoder):
    store = embed(small_data, tmp_path, encoder("one"), "train")
    assert store.reasons == {store.files[1]: "no audio"}
    assert store[store.files[1]].embedding.shape == (0, 0)


def test_clips_are_embedded_by_an_encoder_that_did_not_see_them(small_data, tmp_path, encoder):
    one, two = (encoder(f"f{k}", f"data.init_args.train_split=train_fold{k}") for k in (1, 2))
    store = embed(small_data, tmp_path, one, "train", "--fold", two)
    seen_by_one = set(subsets.load_split(small_data.lists, "train_fold1")["file"])
    assert 0 < len(seen_by_one) < len(store)
    for file in set(store) - set(store.reasons):
        wanted = by_hand(two if file in seen_by_one else one, small_data, "train", file)
        np.testing.assert_allclose(store[file].embedding, wanted, atol=2e-3, rtol=2e-3)
    val = embed(small_data, tmp_path, one, "val", "--fold", two)
    file = val.files[0]
    wanted = by_hand(one, small_data, "val", file)
    np.testing.assert_allclose(val[file].embedding, wanted, atol=2e-3, rtol=2e-3)


def test_two_encoders_of_the_same_clips_are_refused(small_data, tmp_path, encoder, capsys):
    one, two = encoder("one"), encoder("two")
    command = ["extract", "--kind", "embedding", "--system", str(one), "--fold", str(two)]
    command += ["--list", str(small_data.lists / "train.tsv"), "--root", str(small_data.media)]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "in the training of both encoders" in capsys.readouterr().err


def test_a_missing_system_is_named(small_data, tmp_path, capsys):
    command = ["extract", "--kind", "embedding", "--list", str(small_data.lists / "val.tsv")]
    command += ["--root", str(small_data.media), "--out", str(tmp_path / "out")]
    assert cli.main(command) == 2
    assert "needs --system" in capsys.readouterr().err


def test_a_mouth_tagger_embeds_the_frames_with_a_face(small_data, tmp_path):
    config, system = tmp_path / "tags.yaml", tmp_path / "exp/tcn_tags"
    config.write_text(
        "model:\n  class_path: klassify.models.tcn.TaggingTCN\n"
        "  init_args: {hidden: 16, tag_hidden: 16}\n"
        "data: {class_path: klassify.data.mouth.MouthTags}\ntrain: {epochs: 1, batch_size: 8}\n"
    )
    command = ["train", str(config), "--out", str(system), *small_data.arguments]
    assert cli.main(command) == 0
    store = embed(small_data, tmp_path, system, "train", "--features", small_data.features)
    assert store.settings["hop_s"] == 0.04 and store.settings["dim"] == 16
    assert store.settings["supervision"] == "segment"
    assert store.reasons == {store.files[2]: "no face"}
    file = store.files[0]
    mouth = FeatureStore(small_data.features / "mouth/train")[file]
    np.testing.assert_array_equal(store[file].valid, mouth.valid)
    assert store[file].embedding.shape == (len(mouth.valid), 16)
    assert store[file].embedding.astype(float).std() > 0.01


@pytest.mark.slow
def test_spans_from_embeddings_are_scored_tuned_and_localised(
    small_data, tmp_path, encoder, capsys
):
    features = tmp_path / "features"
    system = encoder("sound", "train.epochs=4", "train.lr=0.01")
    for split in ("train", "val"):
        command = ["extract", "--kind", "embedding", "--system", str(system)]
        command += ["--list", str(small_data.lists / f"{split}.tsv")]
        command += ["--root", str(small_data.media)]
        assert cli.main([*command, "--out", str(features / "embedding-sound" / split)]) == 0
    config, out = tmp_path / "spans.yaml", tmp_path / "exp/spans"
    config.write_text(
        "model:\n  class_path: klassify.models.av_spans.AVSpans\n"
        "  init_args: {audio_dim: 8, visual_dim: 8, dim: 16, levels: 4, stem: 1, hidden: 2}\n"
        "data:\n  class_path: klassify.data.av_embeddings.AVEmbeddings\n"
        "  init_args: {audio: sound, visual: null}\n"
        "train: {epochs: 8, batch_size: 8, lr: 0.005, monitor: loss}\n"
    )
    sources = ["--lists", str(small_data.lists), "--media", str(small_data.media)]
    sources += ["--features", str(features)]
    assert cli.main(["train", str(config), "--out", str(out), *sources]) == 0
    assert cli.main(["score", str(out), "--split", "val", *sources]) == 0
    assert cli.main(["tune", str(out), "--labels", str(small_data.lists)]) == 0
    assert cli.main(["localise", str(out), "--split", "val"]) == 0
    found = load_system(out).segment_scores("val").table
    best = found.sort_values("score").groupby("file").tail(1).set_index("file")
    planted = [file for file in best.index if "audio_mod" in file or "both" in file]
    times = best.loc[planted, ["start", "end"]].to_numpy()
    assert np.median(np.abs(times - [0.4, 1.2])) < 0.1
    clips = load_system(out).clip_scores("val").table.set_index("file")["score"]
    assert clips[planted].median() > clips.drop(planted).median()

    other = encoder("sound", "train.epochs=1", "--force")  # the encoder changes
    command = ["extract", "--kind", "embedding", "--system", str(other), "--force"]
    command += ["--list", str(small_data.lists / "val.tsv"), "--root", str(small_data.media)]
    assert cli.main([*command, "--out", str(features / "embedding-sound/val")]) == 0
    capsys.readouterr()
    assert cli.main(["score", str(out), "--split", "val", *sources, "--force"]) == 2
    assert "embeddings of another state of sound" in capsys.readouterr().err


def test_embeddings_of_segments_train_no_clip_supervised_system(
    small_data, tmp_path, encoder, capsys
):
    features, system = tmp_path / "features", encoder("sound")
    for name in ("train", "val"):
        embed_into = features / "embedding-sound" / name
        command = ["extract", "--kind", "embedding", "--system", str(system)]
        command += ["--list", str(small_data.lists / f"{name}.tsv")]
        assert cli.main([*command, "--root", str(small_data.media), "--out", str(embed_into)]) == 0
    config = tmp_path / "sync.yaml"
    config.write_text(
        "model:\n  class_path: klassify.models.sync.Sync\n"
        "  init_args: {audio_dim: 8, visual_dim: 8}\n"
        "data:\n  class_path: klassify.data.sync.SyncEmbeddings\n"
        "  init_args: {audio: sound, visual: sound}\ntrain: {epochs: 1}\n"
    )
    command = ["train", str(config), "--out", str(tmp_path / "exp/sync")]
    command += ["--lists", str(small_data.lists), "--media", str(small_data.media)]
    assert cli.main([*command, "--features", str(features)]) == 2
    assert "learned from segment labels" in capsys.readouterr().err
