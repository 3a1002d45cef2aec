"""Weights in and out: nothing in a published file is run, and every tensor is accounted for."""

import argparse
import collections
import os
import pickle
import sys
import types
import zipfile

import pytest
import torch
from torch import nn

from klassify import checkpoints
from klassify.checkpoints import KEY_MAPS, import_weights, load_weights, read_checkpoint, save_weights
from klassify.errors import KlassifyError
from klassify.torchfile import Record, read_torch_file

STATE = {"post_extract_proj.weight": torch.arange(6.0).view(2, 3), "layer_norm.bias": torch.ones(3)}


def save(content, path, legacy=False):
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def assert_same_state(actual, wanted):
    assert actual.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=0)


class Attack:
    """Unpickling it would run a shell command that makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Evaluated(Attack):
    def __reduce__(self):
        return eval, (f"open({str(self.marker)!r}, 'w')",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("attack", [Attack, Evaluated])
def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path, attack, legacy):
    marker = tmp_path / "was_run"
    path = save({"model": STATE, "cfg": attack(marker)}, tmp_path / "hostile.pt", legacy)
    with pytest.raises(KlassifyError, match="hostile.*Nothing was called") as caught:
        read_checkpoint(path)
    assert caught.value.where == path
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the attack is real
    assert marker.exists()


def test_a_bare_pickle_is_refused_unread(tmp_path):
    path, marker = tmp_path / "bare.pt", tmp_path / "was_run"
    path.write_bytes(pickle.dumps({"model": Attack(marker)}))
    with pytest.raises(KlassifyError, match="no torch checkpoint"):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_function_that_is_not_known_as_hostile_is_not_called_either(tmp_path, monkeypatch):
    calls = []
    module = types.ModuleType("innocent")
    module.touch = lambda *arguments: calls.append(arguments)
    module.touch.__module__, module.touch.__qualname__ = "innocent", "touch"
    monkeypatch.setitem(sys.modules, "innocent", module)

    class Call:
        def __reduce__(self):
            return module.touch, ("a file",)

    content = read_torch_file(save({"model": STATE, "cfg": Call()}, tmp_path / "call.pt"))
    assert calls == []
    assert isinstance(content["cfg"], Record)
    assert (content["cfg"].qualified_name, content["cfg"].arguments) == ("innocent.touch", ("a file",))


def project_config(monkeypatch):
    """An object of a class that only the publishing project has, as in Lightning and fairseq files."""
    module = types.ModuleType("project.config")

    class Config:
        def __init__(self):
            self.lr, self.owner = 0.1, self

    Config.__module__, Config.__qualname__ = "project.config", "Config"
    module.Config = Config
    monkeypatch.setitem(sys.modules, "project", types.ModuleType("project"))
    monkeypatch.setitem(sys.modules, "project.config", module)
    return Config()


@pytest.mark.parametrize("legacy", [False, True])
def test_unknown_classes_become_records_and_known_containers_stay(tmp_path, monkeypatch, legacy):
    content = {
        "args": argparse.Namespace(lr=0.5),
        "cfg": project_config(monkeypatch),
        "meters": collections.defaultdict(list, {"loss": [1.0]}),
        "last": collections.deque([1, 2], maxlen=4),
        "model": collections.OrderedDict(STATE),
        "best": None,
    }
    path = save(content, tmp_path / "fairseq.pt", legacy)
    monkeypatch.undo()  # the project is not installed where the file is read
    read = read_torch_file(path)
    assert read["args"] == argparse.Namespace(lr=0.5)
    assert read["cfg"].qualified_name == "project.config.Config"
    assert read["cfg"].state["lr"] == 0.1
    assert read["meters"] == {"loss": [1.0]} and read["last"] == [1, 2]
    assert_same_state(read_checkpoint(path), STATE)


@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {"model": state, "args": None},
    lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {"task_cfg": {}, "model_cfg": {}, "model_weight": state},
    lambda state: {f"module.{key}": value for key, value in state.items()},
    lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}},
    lambda state: {"state_dict": {f"model.module.{key}": value for key, value in state.items()}},
    lambda state: {"model": {key: nn.Parameter(value) for key, value in state.items()}},
])  # fmt: skip
def test_every_container_is_unwrapped(tmp_path, wrap):
    assert_same_state(read_checkpoint(save(wrap(STATE), tmp_path / "wrapped.pt")), STATE)


def test_a_prefix_that_only_some_keys_have_stays(tmp_path):
    state = {"model.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert_same_state(read_checkpoint(save(state, tmp_path / "some.pt")), state)


@pytest.mark.parametrize("data, told", [
    (b"<!DOCTYPE html><html>confirm", "web page"),
    (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    (b"\x1f\x8b\x08\x00tar", "gzip"),
    (b"", "no torch checkpoint"),
    (b"PK\x03\x04 and then nothing", "cannot be read"),
])  # fmt: skip
def test_what_is_no_checkpoint_is_told_apart(tmp_path, data, told):
    path = tmp_path / "file.pt"
    path.write_bytes(data)
    with pytest.raises(KlassifyError, match=told):
        read_checkpoint(path)


def test_missing_torn_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(KlassifyError, match="does not exist"):
        read_checkpoint(tmp_path / "absent.pt")
    whole = save({"model": STATE}, tmp_path / "whole.pt").read_bytes()
    (tmp_path / "torn.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(KlassifyError, match="cannot be read"):
        read_checkpoint(tmp_path / "torn.pt")
    with pytest.raises(KlassifyError, match="no state dict"):
        read_checkpoint(save({"epoch": 3}, tmp_path / "none.pt"))
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", b"")
        archive.writestr("script/data.pkl", b"")
    with pytest.raises(KlassifyError, match="TorchScript"):
        read_checkpoint(tmp_path / "script.pt")


def test_known_sources_are_detected_and_others_named():
    keys = {
        "ssl-anti-spoofing": {"ssl_model.model.layer_norm.weight": 0, "LL.weight": 0},
        "fairseq": {"post_extract_proj.weight": 0},
        "transformers": {"wavlm.feature_projection.layer_norm.weight": 0},
    }
    assert {source: checkpoints.detect_source(state) for source, state in keys.items()} == {s: s for s in KEY_MAPS}
    with pytest.raises(KlassifyError, match=r"such keys: conv\.weight"):
        checkpoints.detect_source({"conv.weight": 0})


def test_rules_rename_every_kind_of_fairseq_key_once():
    renamed = {
        "feature_extractor.conv_layers.3.0.weight": "feature_extractor.conv_layers.3.conv.weight",
        "feature_extractor.conv_layers.3.2.1.bias": "feature_extractor.conv_layers.3.layer_norm.bias",
        "layer_norm.weight": "feature_projection.layer_norm.weight",
        "encoder.pos_conv.0.weight_g": "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
        "encoder.pos_conv.0.bias": "encoder.pos_conv_embed.conv.bias",
        "encoder.layers.12.self_attn.q_proj.bias": "encoder.layers.12.attention.q_proj.bias",
        "encoder.layers.12.self_attn_layer_norm.bias": "encoder.layers.12.layer_norm.bias",
        "encoder.layers.12.fc2.weight": "encoder.layers.12.feed_forward.output_dense.weight",
        "encoder.layers.12.final_layer_norm.bias": "encoder.layers.12.final_layer_norm.bias",
        "encoder.layer_norm.bias": "encoder.layer_norm.bias",
        "encoder.layers.0.self_attn.grep_a": "encoder.layers.0.attention.gru_rel_pos_const",
    }
    assert {key: KEY_MAPS["fairseq"].rename(key) for key in renamed} == renamed
    below = KEY_MAPS["ssl-anti-spoofing"]
    assert all(below.rename(f"ssl_model.model.{key}") == f"frontend.model.{ours}" for key, ours in renamed.items())
    assert below.rename("encoder.0.0.conv1.weight") == "backend.encoder.0.0.conv1.weight"


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.bn = nn.Linear(3, 2), nn.Linear(3, 2), nn.BatchNorm1d(2)
        self.two.weight = self.one.weight  # tied


def test_safetensors_round_trip_with_tied_weights_and_metadata(tmp_path):
    model, other, path = Small(), Small(), tmp_path / "deep" / "model.safetensors"
    save_weights(model, path, {"made": "here"})
    assert load_weights(other, path) == {"made": "here"}
    assert_same_state(other.state_dict(), model.state_dict())
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_weights_that_do_not_fit_are_refused_with_both_sides(tmp_path):
    path = tmp_path / "model.safetensors"
    save_weights(nn.ModuleDict({"one": nn.Linear(4, 2), "three": nn.Linear(1, 1)}), path)
    with pytest.raises(KlassifyError) as caught:
        load_weights(Small(), path)
    text = str(caught.value)
    assert "of 9 tensors, 7 missing" in text and "two.weight" in text
    assert "2 unexpected" in text and "three.weight" in text
    assert "one.weight [2, 4] there, [2, 3] in the model" in text
    assert str(path) in text


def test_a_torn_weights_file_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_weights(Small(), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(KlassifyError, match="not a whole safetensors file"):
        load_weights(Small(), path)
    with pytest.raises(KlassifyError, match="does not exist"):
        load_weights(Small(), tmp_path / "absent.safetensors")


def test_an_import_says_what_it_left_out_and_what_was_lacking(tmp_path, monkeypatch):
    key_map = checkpoints.KeyMap(
        signature="net", rules=((r"net\.", ""),), unused="junk", optional=r"bn\..*", swapped=("one.bias",)
    )
    monkeypatch.setitem(KEY_MAPS, "small", key_map)
    published = {f"net.{key}": value for key, value in Small().state_dict().items() if not key.startswith("bn.")}
    path = save(published | {"junk.weight": torch.ones(1)}, tmp_path / "small.pt")
    model = Small()
    report = import_weights(model, path)
    assert (report.source, report.loaded, report.left_out) == ("small", 4, ["junk.weight"])
    assert report.lacking == [key for key in model.state_dict() if key.startswith("bn.")]
    assert "junk.weight" in str(report) and "bn.weight" in str(report)
    torch.testing.assert_close(model.one.bias, published["net.one.bias"].flip(0))
    torch.testing.assert_close(model.two.bias, published["net.two.bias"])


def test_a_source_of_weights_is_a_file_a_folder_or_a_hub_id(tmp_path):
    file = tmp_path / "xlsr.pt"
    file.touch()
    assert checkpoints.locate_weights(str(file)) == file
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(KlassifyError, match="neither model.safetensors nor pytorch_model.bin"):
        checkpoints.locate_weights(str(folder))
    (folder / "pytorch_model.bin").touch()
    assert checkpoints.locate_weights(str(folder)) == folder / "pytorch_model.bin"
    for wrong in (tmp_path / "absent.pt", "models/absent.pt", "no-such-name"):
        with pytest.raises(KlassifyError, match="does not exist"):
            checkpoints.locate_weights(str(wrong))
    with pytest.raises(KlassifyError, match="download is off") as caught:
        checkpoints.locate_weights("nobody/no-such-speech-model")
    assert "download: true" in caught.value.mend
