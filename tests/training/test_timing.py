"""klassify benchmark: rates of extraction, reading, training steps and scoring, and hours."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from commands import klassify
from together import write_config

from klassify.features import shards
from klassify.features.base import Extraction
from klassify.features.kinds import KINDS
from klassify.training import timing
from klassify.training.timing import Machine, Trial

AUDIO = """
model:
  class_path: klassify.models.w2v_aasist.W2VAASIST
  init_args:
    frontend: {class_path: klassify.models.frontends.filterbank.FilterbankFrontEnd}
    bands: 12
    channels: [4, 8]
data:
  class_path: klassify.data.audio.AudioClips
  init_args: {train_split: train, window: 16000}
train: {epochs: 7, batch_size: 4}
"""
SPANS = """
model: {class_path: klassify.models.av_spans.AVSpans, init_args: {dim: 16}}
data: {class_path: klassify.data.av_embeddings.AVEmbeddings}
"""


def test_every_part_of_a_system_is_measured(small_data, tmp_path, monkeypatch, capsys):
    mouth = small_data.features / "mouth"
    store = {split: shards.FeatureStore(mouth / split) for split in ("train", "val")}

    def rows(root, files):
        split = "train" if "train" in str(root) else "val"
        yield from ((number, store[split][file]) for number, file in enumerate(files[0]))

    made = Extraction("mouth", {"version": 3}, lambda *_: [], rows)
    monkeypatch.setitem(
        KINDS, "mouth", dataclasses.replace(KINDS["mouth"], extraction=lambda jobs: made)
    )
    monkeypatch.setattr(timing, "EXTRACTED", ("mouth",))
    monkeypatch.setattr(timing, "SAMPLE", 2)
    configs = [write_config(tmp_path)]
    for name, text in (("sound", AUDIO), ("spans", SPANS)):
        configs.append(tmp_path / f"{name}.yaml")
        configs[-1].write_text(text)
    places = small_data.arguments[:4] + ["--features", str(tmp_path / "none")]
    how = ["--minutes", 0.03, "--device", "cpu", "--split", "val,testA", "--devices", 2]
    how += ["--jobs", 1]
    assert klassify("benchmark", *configs, *places, *how, "--out", tmp_path / "out.md") == 0
    text = (tmp_path / "out.md").read_text()
    assert text.strip() in capsys.readouterr().out
    table = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    rates = {row[1]: row[2] for row in table[1:]}
    assert set(rates) == {
        *("mouth", "plain", "plain, validation", "plain, testA"),
        *("sound", "sound, validation", "sound, val", "sound, testA", "spans"),
    }
    assert all("clips/s" in rates[name] for name in ("mouth", "plain", "sound", "sound, testA"))
    assert rates["spans"] == "not measured" and "feature shards" in text


def test_hours_are_clips_by_rate_and_devices():
    assert Trial(2, "tcn", 100.0, 720_000, devices=2).hours == pytest.approx(1)
    assert np.isnan(Trial(2, "tcn", 0.0, 9).hours)
    assert "not measured" in Trial(2, "tcn", 0.0, 9).row()
    assert "workers" in str(Machine.from_options("cpu", 1, None, 3))
