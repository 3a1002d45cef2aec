"""The detector and the clip of the package, and detectors published to a folder."""

from __future__ import annotations

import json
import shutil

import pytest

from klassify import cli
from klassify.errors import KlassifyError
from klassify.prediction.packaged import EXAMPLE, PACKAGED, trained_or_packaged
from klassify.prediction.publish import MANIFEST, publish
from klassify.settings import file_hash
from klassify.systems.detector import on_generated_corpus, read_detector


def test_the_packaged_detector_is_whole_and_small():
    folder = PACKAGED / "klassify"
    assert set(read_detector(folder).answers) == {"task1", "task2"} and on_generated_corpus(folder)
    hashes = json.loads((folder / MANIFEST).read_text())["sha256"]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {*hashes, MANIFEST}
    assert all(file_hash(folder / name) == value for name, value in hashes.items())
    assert sum((folder / name).stat().st_size for name in files) < 4_000_000
    assert "mean nothing" in (folder / "README.md").read_text()


def test_a_trained_detector_comes_before_the_packaged_one(tmp_path):
    packaged = PACKAGED / "klassify/detector.yaml"
    assert trained_or_packaged(tmp_path, "klassify") == packaged
    with pytest.raises(KlassifyError, match="recipe fused was trained yet"):
        trained_or_packaged(tmp_path, "fused")
    shutil.copytree(PACKAGED / "klassify", tmp_path / "demo/klassify")
    assert trained_or_packaged(tmp_path, "klassify") == tmp_path / "demo/klassify/detector.yaml"


def test_the_example_is_answered_without_any_training(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["predict", "--example", "--no-timeline"]) == 0
    told = capsys.readouterr().out
    assert "generated corpus alone" in told and "probability of fake 0.9" in told
    answer = json.loads((tmp_path / "predictions/clip.json").read_text())
    truth = json.loads(EXAMPLE.with_suffix(".json").read_text())["fake_segments"]
    best = answer["segments"][0]
    assert any(best["start"] < end and start < best["end"] for start, end in truth)


def test_published_detectors_still_say_generated_clips(tmp_path):
    out = publish(PACKAGED / "klassify", tmp_path / "mine")
    assert on_generated_corpus(out) and not on_generated_corpus(tmp_path / "other")
    assert read_detector(out).answers == read_detector(PACKAGED / "klassify").answers
    with pytest.raises(KlassifyError, match="not empty"):
        publish(PACKAGED / "klassify", out)


def test_predict_without_a_video_says_what_to_give(capsys):
    assert cli.main(["predict"]) == 2
    assert "--example" in capsys.readouterr().err
