"""Embeddings: what a trained encoder makes of each frame, and each clip by an encoder that has not
learned from it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from commands import klassify

from klassify.data.audio_shares import AudioShares
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
        assert klassify("train", config, *overrides, "--out", out, *small_data.arguments) == 0
        return out

    return train


def extraction(small_data, split, out, *options):
    """The words that embed a split."""
    places = ["--list", small_data.lists / f"{split}.tsv", "--root", small_data.media]
    return ["extract", "--kind", "embedding", *places, "--out", out, *options]


def embed(small_data, tmp_path, system, split, *options):
    """The store of a split's embeddings, made by the command."""
    out = tmp_path / f"embedding-{system.name}{len(options)}" / split
    assert klassify(*extraction(small_data, split, out, "--system", system, *options)) == 0
    return FeatureStore(out)


def by_hand(system, small_data, split, file):
    """The embedding of a clip shorter than a window, straight from the model."""
    model, _ = load_model(system)
    data = AudioShares()
    sources = small_data.sources
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
    options = ["--system", encoder("one"), "--fold", encoder("two")]
    assert klassify(*extraction(small_data, "train", tmp_path / "out", *options)) == 2
    assert "in the training of both encoders" in capsys.readouterr().err


def test_a_missing_system_is_named(small_data, tmp_path, capsys):
    assert klassify(*extraction(small_data, "val", tmp_path / "out")) == 2
    assert "needs --system" in capsys.readouterr().err


def test_a_mouth_tagger_embeds_the_frames_with_a_face(small_data, tmp_path):
    config, system = tmp_path / "tags.yaml", tmp_path / "exp/tcn_tags"
    config.write_text(
        "model:\n  class_path: klassify.models.tcn.TaggingTCN\n"
        "  init_args: {hidden: 16, tag_hidden: 16}\n"
        "data: {class_path: klassify.data.mouth.MouthTags}\ntrain: {epochs: 1, batch_size: 8}\n"
    )
    assert klassify("train", config, "--out", system, *small_data.arguments) == 0
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
        into = features / "embedding-sound" / split
        assert klassify(*extraction(small_data, split, into, "--system", system)) == 0
    config, out = tmp_path / "spans.yaml", tmp_path / "exp/spans"
    config.write_text(
        "model:\n  class_path: klassify.models.av_spans.AVSpans\n"
        "  init_args: {audio_dim: 8, visual_dim: 8, dim: 16, levels: 4, stem: 1, hidden: 2}\n"
        "data:\n  class_path: klassify.data.av_embeddings.AVEmbeddings\n"
        "  init_args: {audio: sound, visual: null}\n"
        "train: {epochs: 8, batch_size: 8, lr: 0.005, monitor: loss}\n"
    )
    sources = ["--lists", small_data.lists, "--media", small_data.media, "--features", features]
    assert klassify("train", config, "--out", out, *sources) == 0
    assert klassify("score", out, "--split", "val", *sources) == 0
    assert klassify("tune", out, "--labels", small_data.lists) == 0
    assert klassify("localise", out, "--split", "val") == 0
    found = load_system(out).segment_scores("val").table
    best = found.sort_values("score").groupby("file").tail(1).set_index("file")
    planted = [file for file in best.index if "audio_mod" in file or "both" in file]
    times = best.loc[planted, ["start", "end"]].to_numpy()
    assert np.median(np.abs(times - [0.4, 1.2])) < 0.1
    clips = load_system(out).clip_scores("val").table.set_index("file")["score"]
    assert clips[planted].median() > clips.drop(planted).median()

    other = encoder("sound", "train.epochs=1", "--force")  # the encoder changes
    options = ["--system", other, "--force"]
    into = features / "embedding-sound/val"
    assert klassify(*extraction(small_data, "val", into, *options)) == 0
    capsys.readouterr()
    assert klassify("score", out, "--split", "val", *sources, "--force") == 2
    assert "embeddings of another state of sound" in capsys.readouterr().err
