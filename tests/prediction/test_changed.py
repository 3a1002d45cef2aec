"""A detector that rests on leading silence loses it when both ends are cut."""

from __future__ import annotations

import types

import numpy as np
import pandas as pd
import pytest
import soundfile

from klassify.evaluation import shortcuts
from klassify.media import content, decoder
from klassify.prediction import changed
from klassify.prediction import predict as prediction
from klassify.systems.detector import DetectorFile

ENTRY = {"kind": "model", "modality": "audio", "supervision": "clip", "hash": "0" * 16}


def detector(folder):
    systems = {
        "model": ENTRY | {"inputs": []},
        "platt": ENTRY | {"inputs": ["model"]},
        "other": ENTRY | {"inputs": []},
    }
    found = DetectorFile(folder, {"task1": "platt", "task2": "other"}, systems)
    found.__dict__["loaded"] = dict.fromkeys(systems)
    return found


def silence_detector(found, videos, **how):
    """Answers by the length of leading silence; asserts that it was given Task 1 alone."""
    assert set(found.systems) == {"model", "platt"} and found.answers == {"task1": "platt"}
    for video in videos:
        traits = content.sound_traits(decoder.read_audio(video))
        yield types.SimpleNamespace(probability=min(traits["silence_start_ms"], 100) / 100)


@pytest.fixture
def clips(tmp_path):
    """Six sources, each with a fake that starts with silence; trimming cuts one fake away."""
    rng, rows = np.random.default_rng(0), []
    for k in range(12):
        wave, segments = rng.normal(0, 0.1, 16_000), []
        if k % 2:
            wave[:800] = 0
            segments = [[0.0, 0.1]] if k == 1 else [[0.4, 0.6]]
        soundfile.write(tmp_path / f"{k}.wav", wave, 16_000)
        row = {"file": f"{k}.wav", "modify_type": "audio_modified" if k % 2 else "real"}
        row |= {"source": str(k // 2), "fake_segments": segments, "visual_fake_segments": []}
        rows.append(row | {"audio_fake_segments": segments})
    return pd.DataFrame(rows)


def test_cutting_both_ends_takes_a_shortcut_away(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "predict", silence_detector)
    monkeypatch.setattr(changed, "CHANGES", {"trim": changed.CHANGES["trim"]})
    monkeypatch.setattr(changed, "CLIPS_A_PART", 8)
    given = (detector(tmp_path), "klassify", clips, tmp_path, tmp_path / "answers")
    table = changed.measure(*given, jobs=1, n_bootstrap=50)
    (row,) = table.to_dict("records")
    assert row["change"] == "200 ms cut from both ends" and row["n"] == 11
    assert row["auc"] == 1 and row["auc_after"] == 0.5 and row["reading"] == shortcuts.FALLS
    audit = shortcuts.Audit(
        "val", 12, 6, 6, 0, pd.DataFrame(columns=shortcuts.COLUMNS), systems=table
    )
    assert audit.warnings == [
        "val: the AUC of klassify falls from 1.000 to 0.500: 200 ms cut from both ends."
    ]
    shortcuts.write(tmp_path / "audit", audit)
    assert "falls" in shortcuts.describe(shortcuts.read(tmp_path / "audit" / "val.json"))
    # what was answered is kept
    monkeypatch.setattr(prediction, "predict", None)
    pd.testing.assert_frame_equal(changed.measure(*given, jobs=1, n_bootstrap=50), table)


def test_a_clip_that_cannot_be_changed_has_a_reason(clips, tmp_path):
    row = clips.iloc[2].to_dict()
    (tmp_path / "2.wav").write_bytes(b"no sound")
    said = changed.change_clip(tmp_path, (row, "trim", tmp_path / "cut.mp4"))
    assert "Cannot decode" in said and not (tmp_path / "cut.mp4").exists()
    assert changed.change_clip(tmp_path, (row | {"file": "../x"}, "trim", tmp_path / "cut.mp4"))
