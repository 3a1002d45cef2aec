"""System folders: what system.yaml holds, when a hash changes, derived and stale scores."""

import numpy as np
import pandas as pd
import pytest
from small_systems import write_model, write_table

from klassify.cli import main
from klassify.errors import KlassifyError
from klassify.scores.score_file import read_header, score_path
from klassify.submission import manifest
from klassify.systems.base import System, derived_system, write_system
from klassify.systems.system import MAX_DEPTH, load_system, system_hash

PLATT = {"a": -2.0, "b": 0.5, "input": "log_odds", "base_rate": 0.4}


def write_clips(folder, score, settings, scale="log_odds"):
    files = [f"{i}.mp4" for i in range(len(score))]
    table = pd.DataFrame({"file": files, "start": 0.0, "end": 1.0, "score": score})
    write_table(folder, "val", "clips", table, scale, settings=settings)


def write_platt(folder, model, parameters=PLATT):
    inputs = [load_system(model)]
    write_system(folder, derived_system(folder, "calibrated", inputs, "probability", parameters))


@pytest.fixture
def chain(tmp_path):
    """model -> calibrated, with val scored by the model."""
    model, platt = tmp_path / "audio" / "bam", tmp_path / "bam_platt"
    write_model(model, supervision="segment")
    (model / "model.safetensors").write_bytes(b"weights")
    write_platt(platt, model)
    write_clips(model, [-1.0, 0.0, 2.0], {"system": system_hash(model)})
    return model, platt


def test_round_trip(chain):
    model, platt = chain
    system = load_system(platt)
    assert system.inputs == ["../audio/bam"] and system.input_systems[0].folder == model
    assert system.supervision == "segment"  # taken over from its input
    assert dict(system.parameters) == PLATT and system.own_label == "audio"
    assert system.prior == 0.4 and load_system(model).prior == 0.5


@pytest.mark.parametrize(
    "parts, whole",
    [
        (("clip", "clip"), "clip"),
        (("clip", "self"), "self"),
        (("self", "pseudo"), "pseudo"),
        (("pseudo", "segment"), "segment"),
        (("segment", "clip"), "segment"),
    ],
)
def test_the_strongest_supervision_is_that_of_the_whole(tmp_path, parts, whole):
    for name, supervision in zip("ab", parts):
        write_model(tmp_path / name, supervision=supervision)
    inputs = [load_system(tmp_path / name) for name in "ab"]
    assert derived_system(tmp_path / "c", "fusion", inputs, "log_odds", {}).supervision == whole


MODEL = "{name: x, kind: model, modality: audio, supervision: clip, scale: log_odds"
FUSION = "{name: x, kind: fusion, modality: both, supervision: clip, scale: probability"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{name: x, kind: model}", "missing"),
        (f"{MODEL}, colour: red}}", "colour"),
        (f"{MODEL.replace('audio', 'smell')}}}", "smell"),
        (f"{MODEL}, parameters: 3}}", "mapping"),
        (f"{FUSION}}}", "has inputs"),
        (f"{FUSION}, inputs: [5]}}", "name of a folder"),
        (f"{FUSION}, inputs: [null]}}", "name of a folder"),
        (f"{FUSION}, inputs: ['']}}", "name of a folder"),
        (f'{FUSION}, inputs: ["a\\0"]}}', "name of a folder"),
        ("- a list", "keys"),
        ("{", "YAML"),
        ("", "keys"),
    ],
)
def test_a_bad_description_is_refused_with_its_path(tmp_path, text, message):
    (tmp_path / "system.yaml").write_text(f"{text}\n" if text else "")
    with pytest.raises(KlassifyError, match=message) as refused:
        load_system(tmp_path)
    assert str(tmp_path / "system.yaml") in str(refused.value)


def test_hash_follows_weights_config_and_inputs(chain):
    model, platt = chain
    seen = {system_hash(platt)}
    assert system_hash(platt) in seen
    for change in (
        lambda: (model / "model.safetensors").write_bytes(b"other"),
        lambda: (model / "config.yaml").write_text("model: x\n"),
        lambda: write_system(model, System("bam", "model", "audio", "clip", "log_odds")),
        lambda: write_platt(platt, model, {}),
    ):
        change()
        assert system_hash(platt) not in seen
        seen.add(system_hash(platt))


def fuse(folder, *inputs):
    paths = [f"../{name}" for name in inputs]
    write_system(folder, System(folder.name, "fusion", "both", "clip", "probability", paths))


def test_a_system_that_is_its_own_input_is_refused(tmp_path, capsys):
    fuse(tmp_path / "a", "b")
    fuse(tmp_path / "b", "a")
    with pytest.raises(KlassifyError, match="its own input"):
        system_hash(tmp_path / "a")
    (tmp_path / "submit.yaml").write_text("task1: a\n")
    assert main(["detector", str(tmp_path), "--conf", str(tmp_path / "submit.yaml")]) == 2
    assert "its own input" in capsys.readouterr().err


def test_what_many_systems_use_is_read_once(tmp_path):
    write_model(tmp_path / "0")
    for k in range(1, 40):
        fuse(tmp_path / str(k), str(k - 1), str(k - 1))
    top = load_system(tmp_path / "39")
    assert [one.folder for one in top.with_inputs()] == [tmp_path / str(k) for k in range(40)]
    assert len(top.hash) == 16 and manifest.supervision(top) == "clip"
    with pytest.raises(KlassifyError, match="at most 1000"):
        manifest.describe(top, "val")


def test_a_tower_of_systems_is_refused(tmp_path):
    write_model(tmp_path / "0")
    for k in range(1, MAX_DEPTH + 1):
        fuse(tmp_path / str(k), str(k - 1))
    assert system_hash(tmp_path / str(MAX_DEPTH - 1))
    with pytest.raises(KlassifyError, match="More than 50 systems"):
        system_hash(tmp_path / str(MAX_DEPTH))


def test_derived_scores_are_kept_redone_or_refused(chain):
    model, platt = chain
    path = score_path(platt, "val", "clips")
    scores = load_system(platt).derive("val")
    wanted = 1 / (1 + np.exp(-2 * np.array([-1.0, 0, 2]) + 0.5))
    np.testing.assert_allclose(scores.table["score"], wanted, rtol=1e-8)
    assert scores.header.supervision == "segment"
    written = path.stat().st_mtime_ns
    load_system(platt).derive("val")
    assert path.stat().st_mtime_ns == written
    write_clips(model, [0.0, 0.0, 0.0], {"system": system_hash(model), "aggregate": "mean"})
    with pytest.raises(KlassifyError, match="other inputs or settings"):
        load_system(platt).derive("val")
    assert load_system(platt).derive("val", force=True).table["score"].nunique() == 1
    assert read_header(path).settings["system"] == system_hash(platt)


def test_missing_and_stale_scores_name_the_command(chain):
    model, platt = chain
    with pytest.raises(KlassifyError, match=f"klassify score {platt} --split val"):
        load_system(platt).clip_scores("val")
    (model / "model.safetensors").write_bytes(b"retrained")
    with pytest.raises(KlassifyError, match="has changed since it scored val"):
        load_system(model).clip_scores("val")
    with pytest.raises(KlassifyError, match="no system.yaml"):
        load_system(model.parent)
    with pytest.raises(KlassifyError, match="no folder") as refused:
        load_system(f"{model}l")
    assert refused.value.fix == f"did you mean {model.name}?"


def test_moving_the_whole_tree_changes_nothing(chain, tmp_path):
    _, platt = chain
    before = system_hash(platt)
    moved = tmp_path.parent / f"{tmp_path.name}_moved"
    tmp_path.rename(moved)
    assert system_hash(moved / "bam_platt") == before
