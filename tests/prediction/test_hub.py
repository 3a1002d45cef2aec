"""Detectors by hf://: what the hub gives is checked against the manifest. The hub is a stand-in."""

from __future__ import annotations

import json
import shutil

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from klassify import load_detector
from klassify.errors import KlassifyError
from klassify.prediction.hub import verify
from klassify.prediction.packaged import EXAMPLE, PACKAGED
from klassify.prediction.publish import add_exports, publish
from klassify.systems.detector import MANIFEST, on_generated_corpus

NAME = "hf://someone/detector"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """What the hub's cache gives for every repository: a published detector."""
    folder = publish(PACKAGED / "klassify", tmp_path / "snapshots/0123")
    asked = []

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.append((repository, revision))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return folder, asked


def test_a_published_detector_answers_by_its_hub_name(repository):
    _, asked = repository
    detector = load_detector(NAME)
    assert detector.systems == load_detector(PACKAGED / "klassify").systems
    assert on_generated_corpus(detector.folder)
    load_detector(f"{NAME}@v1.0")
    assert asked == [("someone/detector", None), ("someone/detector", "v1.0")]


def test_models_exported_into_a_published_folder_are_listed(repository):
    folder, _ = repository
    (folder / "tcn/model.onnx").write_bytes(b"exported")
    with pytest.raises(KlassifyError, match=r"tcn/model.onnx is not in the manifest"):
        verify(folder, NAME)
    add_exports(folder, ["tcn", "maxout"])
    verify(folder, NAME)


@pytest.mark.parametrize("name", ["hf://alone", "hf://a/b/c", "hf://a/b@", "hf://../b", "hf://"])
def test_a_name_that_is_not_a_repository_is_refused(repository, name):
    with pytest.raises(KlassifyError, match="hf://owner/name@revision"):
        load_detector(name)
    assert not repository[1]


def change_weights(folder):
    with open(folder / "tcn/model.safetensors", "r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"\x55")


def lose_card(folder):
    (folder / "README.md").unlink()


def add_a_system_file(folder):
    shutil.copy(folder / "bam/settings.json", folder / "maxout/settings.json")


def lose_manifest(folder):
    (folder / MANIFEST).unlink()


def name_a_file_outside(folder):
    content = json.loads((folder / MANIFEST).read_text())
    content["sha256"]["../elsewhere"] = "0"
    (folder / MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change, told",
    [
        (change_weights, "tcn/model.safetensors is missing or is not the file"),
        (lose_card, "README.md is missing"),
        (add_a_system_file, "maxout/settings.json is not in the manifest"),
        (lose_manifest, "no manifest.json"),
        (name_a_file_outside, "does not list files and hashes"),
    ],
)
def test_files_that_the_manifest_does_not_list_are_refused(repository, change, told):
    change(repository[0])
    with pytest.raises(KlassifyError, match=told):
        load_detector(NAME)


@pytest.mark.parametrize(
    "error, what, fix",
    [
        (RepositoryNotFoundError, "no such repository", "huggingface.co/someone/detector"),
        (RevisionNotFoundError, "no revision 'old'", NAME),
        (LocalEntryNotFoundError, "cannot be reached", "HF_HUB_OFFLINE"),
    ],
)
def test_what_the_hub_refuses_is_told(monkeypatch, error, what, fix):
    def fail(*_, **__):
        raise error.__new__(error, "offline")  # the constructors of some need an HTTP response

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(KlassifyError, match=what) as caught:
        load_detector(f"{NAME}@old")
    assert fix in caught.value.fix and caught.value.where == f"{NAME}@old"


@pytest.mark.slow
def test_predict_takes_a_hub_name(repository, tmp_path, monkeypatch, capsys):
    from klassify import cli

    monkeypatch.chdir(tmp_path)
    assert cli.main(["predict", str(EXAMPLE), "--detector", NAME, "--no-timeline"]) == 0
    told = capsys.readouterr().out
    assert "generated corpus alone" in told and "probability of fake 0.9" in told
