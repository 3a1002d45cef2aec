"""AV-HuBERT features: each stream alone, as long as the shorter one, kept as they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from published import golden_state

from klassify import cli
from klassify.errors import KlassifyError
from klassify.features import avhubert_extraction, lips
from klassify.features.audio_cache import NO_AUDIO, SILENT
from klassify.features.shards import FeatureStore, write_part
from klassify.media import isolated
from klassify.models.frontends.logfbank import audio_frames
from klassify.models.lip_encoder import LipEncoder
from klassify.models.weights.load import import_state
from klassify.parts import Place

TINY = {"name": "av-hubert-base", "dim": 64, "layers": 2, "heads": 4, "hidden": 128}

LIST = Path("testA.tsv")


def crops_of(n_frames, seed, seen=None):
    """A row of `lips`, whose frames `seen` show noise."""
    rng = np.random.default_rng(seed)
    valid = np.isin(np.arange(n_frames), range(n_frames) if seen is None else seen)
    crops = []
    for here in valid:
        picture = rng.integers(0, 256, (96, 96), dtype=np.uint8)
        crops.append(cv2.imencode(".jpg", picture)[1].tobytes() if here else b"")
    return lips.LipsRow(f"{seed}.mp4", 30.0, crops, valid)


@pytest.fixture(scope="module")
def encoder():
    model = LipEncoder(TINY)
    import_state(model, golden_state("avhubert"), "av-hubert")
    return model.eval()


def test_a_frame_without_a_face_shows_the_nearest_crop():
    row = crops_of(8, 0, seen=[2, 5])
    pictures = avhubert_extraction.shown(row)
    seen = lips.opened([row.crops[k] for k in (2, 2, 2, 2, 5, 5, 5, 5)])[:, 4:92, 4:92]
    np.testing.assert_array_equal(pictures, seen)


@pytest.mark.parametrize("most, n_samples", [(600, 16_000), (7, 16_000), (600, 5000)])
def test_streams_are_passes_of_their_own(encoder, monkeypatch, most, n_samples):
    wave = np.random.default_rng(1).normal(0, 0.1, n_samples).astype(np.float32)
    monkeypatch.setattr(isolated, "call", lambda function, path: wave)
    monkeypatch.setattr(avhubert_extraction, "MOST_FRAMES", most)
    rows = {"a": crops_of(20, 1)}
    (row,) = avhubert_extraction.Extractor(Path(), encoder, rows).rows(["a"])
    assert row.fps == 30.0 and not row.reason
    n_frames = min(20, len(audio_frames(wave)))
    with torch.inference_mode():
        pieces = np.array_split(np.arange(20), -(-20 // most))
        video = [
            encoder.features(torch.from_numpy(avhubert_extraction.shown(rows["a"])[k])[None])
            for k in pieces
        ]
        sound = torch.from_numpy(audio_frames(wave))
        pieces = np.array_split(np.arange(len(sound)), -(-len(sound) // most))
        audio = [encoder.features(audio=sound[k][None]) for k in pieces]
    for ours, passes in ((row.video, video), (row.audio, audio)):
        wanted = torch.cat(passes, dim=1)[0, :n_frames]
        assert ours.dtype == np.float16
        np.testing.assert_allclose(ours, wanted, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("n, reason", [(0, NO_AUDIO), (9000, SILENT)])
def test_clips_without_a_stream_say_why(encoder, monkeypatch, n, reason):
    rows = {"a": crops_of(5, 1), "b": lips.LipsRow.failed("b", "decode", "no video")}
    monkeypatch.setattr(isolated, "call", lambda function, path: np.zeros(n, np.float32))
    made = list(avhubert_extraction.Extractor(Path(), encoder, rows).rows(["a", "b"]))
    assert [(row.stage, row.reason) for row in made] == [("decode", reason), ("face", "no video")]


def test_clips_of_a_list_through_the_command(tmp_path, small_data, monkeypatch, capsys):
    monkeypatch.setattr(avhubert_extraction, "ARCHITECTURE", TINY)
    torch.save({"model": golden_state("avhubert"), "cfg": {}}, tmp_path / "base.pt")
    files = pd.read_csv(small_data.lists / "testA.tsv", sep="\t")["file"].tolist()
    crops = [dataclasses.replace(crops_of(12, i), file=file) for i, file in enumerate(files)]
    folder = small_data.features / "lips" / "testA"
    write_part(folder, Place(1, 1, 0, 1), crops, {"kind": "lips", "version": 1}, "x")
    out = small_data.features / "avhubert" / "testA"
    words = ["extract", "--kind", "avhubert", "--weights", tmp_path / "base.pt"]
    words += ["--features", small_data.features]
    words += ["--list", small_data.lists / "testA.tsv", "--root", small_data.media / "testA"]
    assert not cli.main([str(word) for word in [*words, "--out", out, "--device", "cpu"]])
    assert "non-commercial research only" in capsys.readouterr().err
    store = FeatureStore(out)
    assert store.files == files and store[files[0]].audio.shape == (12, 64)


def test_weights_and_crops_are_asked_for(tmp_path):
    with pytest.raises(KlassifyError, match="needs --weights FILE and --features FOLDER"):
        avhubert_extraction.extraction(LIST, weights=tmp_path)
    with pytest.raises(KlassifyError, match="no feature shards"):
        avhubert_extraction.extraction(LIST, weights=tmp_path / "gone.pt", features=tmp_path)
    with pytest.raises(KlassifyError, match="does not exist"):
        avhubert_extraction.settings_of(tmp_path / "gone.pt", {})
