"""Files by torch.save: nothing in them is run; unknown objects become inert records."""

import argparse
import collections
import datetime
import io
import os
import pickle
import pkgutil
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from published import assert_same_state, project_object, save, trained

from klassify.errors import KlassifyError
from klassify.models.weights import torch_file
from klassify.models.weights.torch_file import Record, read_torch_file

STATE = {"post_extract_proj.weight": torch.arange(6.0).view(2, 3), "layer_norm.bias": torch.ones(3)}


class Attack:
    """Unpickling it would make a file: the marker."""

    def __init__(self, marker, kind="shell"):
        self.marker, self.kind = marker, kind

    def __reduce__(self):
        if self.kind == "pickle":
            return pickle.loads, (pickle.dumps(Attack(self.marker)),)
        return os.system, (f"touch {self.marker}",)


CONTAINERS = {
    "config": lambda attack: {"model": STATE, "cfg": attack},
    "alone": lambda attack: attack,
    "optimizer state": lambda attack: {
        "state_dict": collections.OrderedDict(STATE),
        "optimizer_states": [
            {"state": {0: {"step": 1, "exp_avg": attack}}, "param_groups": [{"lr": 0.1}]}
        ],
    },
    "hyper-parameters": lambda attack: {
        "state_dict": STATE,
        "hyper_parameters": {"args": argparse.Namespace(hook=attack)},
    },
    "key of a state dict": lambda attack: {"model": {**STATE, attack: torch.ones(1)}},
}


FUNCTIONS = """os.system os.remove subprocess.Popen shutil.rmtree builtins.eval builtins.exec
    builtins.open builtins.__import__ pickle.loads runpy.run_path importlib.import_module
    socket.create_connection webbrowser.open ctypes.CDLL tempfile.mktemp asyncio.run
    urllib.request.urlopen torch.load torch.hub.load numpy.load timeit.timeit code.interact"""


@pytest.mark.parametrize("name", FUNCTIONS.split())
def test_harmful_functions_are_refused_by_name(tmp_path, name):
    function = pkgutil.resolve_name(name)
    attack = type("Named", (), {"__reduce__": lambda self: (function, ("x",))})()
    path = save({"model": STATE, "cfg": attack}, tmp_path / "hostile.pt")
    with pytest.raises(KlassifyError, match=rf"hostile.*\b{function.__name__}"):
        read_torch_file(path)


OLD_FORMS = {"legacy": True, "protocol": 4}  # together unlike any released torch's files


@pytest.mark.parametrize("form", [{}, {"legacy": True}, {"protocol": 4}, OLD_FORMS])
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", ["shell", "pickle"])
def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path, kind, container, form):
    marker = tmp_path / "was_run"
    path = save(CONTAINERS[container](Attack(marker, kind)), tmp_path / "hostile.pt", **form)
    with pytest.raises(KlassifyError) as caught:
        read_torch_file(path)
    assert caught.value.where == path and not marker.exists()
    if form != OLD_FORMS:
        assert "hostile" in str(caught.value) and "Nothing was called" in str(caught.value)
    torch.load(path, weights_only=False)  # the attack is real
    assert marker.exists()


def test_a_bare_pickle_is_refused_unread(tmp_path):
    path, marker = tmp_path / "bare.pt", tmp_path / "was_run"
    path.write_bytes(pickle.dumps({"model": Attack(marker)}))
    with pytest.raises(KlassifyError, match="not a torch checkpoint"):
        read_torch_file(path)
    assert not marker.exists()


def test_an_unknown_function_is_not_called_either(tmp_path, monkeypatch):
    calls = []
    module = types.ModuleType("innocent")
    module.touch = lambda *arguments: calls.append(arguments)
    module.touch.__module__, module.touch.__qualname__ = "innocent", "touch"
    monkeypatch.setitem(sys.modules, "innocent", module)

    class Call:
        def __reduce__(self):
            return module.touch, ("a file",)

    content = read_torch_file(save({"model": STATE, "cfg": Call()}, tmp_path / "call.pt"))
    record = content["cfg"]
    assert calls == [] and isinstance(record, Record)
    assert (record.qualified_name, record.arguments) == ("innocent.touch", ("a file",))


@pytest.mark.parametrize("legacy", [False, True])
def test_unknown_classes_become_records(tmp_path, monkeypatch, legacy):
    config = project_object(monkeypatch, "project.config.Config", lr=0.1)
    config.owner = config
    content = {
        "args": argparse.Namespace(lr=0.5),
        "cfg": config,
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
    assert repr(read["cfg"]) == "<record of project.config.Config>"
    assert read["meters"] == {"loss": [1.0]} and read["last"] == [1, 2]
    assert_same_state(read["model"], STATE)


def test_a_hostile_pickle_behind_a_harmless_one_is_refused(tmp_path):
    """Two pickles in one archive: what is looked at first need not be what torch reads."""
    marker = tmp_path / "was_run"
    hostile, harmless = io.BytesIO(), io.BytesIO()
    torch.save({"model": Attack(marker)}, hostile)
    torch.save({"model": STATE}, harmless)
    path = tmp_path / "two.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("a/data.pkl", harmless), ("archive/data.pkl", hostile)):
            with zipfile.ZipFile(content) as inner:
                archive.writestr(name, inner.read("archive/data.pkl"))
        archive.writestr("archive/version", "3\n")
    with pytest.raises(KlassifyError):
        read_torch_file(path)
    assert not marker.exists()


def test_what_lightning_saves_beside_the_weights_is_read(tmp_path, monkeypatch):
    optimizer, _ = trained()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    module = types.ModuleType("settings_of_lightning")
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    content = {
        "epoch": 3,
        "global_step": np.int64(120),
        "state_dict": STATE,
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
        "callbacks": {"ModelCheckpoint{}": {"best": torch.tensor(0.9), "dirpath": Path("x")}},
        "hyper_parameters": module.AttributeDict(lr=0.1, betas=(0.9, 0.999)),
        "score": np.float32(0.5),
        "array": np.ones(3),
        "data": {"made": datetime.datetime(2025, 6, 1), "split": {0.8, 0.2}},
    }
    read = read_torch_file(save(content, tmp_path / "visual.ckpt"))
    assert_same_state(read["state_dict"], STATE)
    assert read["hyper_parameters"] == {"lr": 0.1, "betas": (0.9, 0.999)}
    assert read["optimizer_states"][0]["param_groups"][0]["lr"] == optimizer.param_groups[0]["lr"]
    assert isinstance(read["global_step"], Record) and isinstance(read["array"], Record)


@pytest.mark.parametrize("legacy", [False, True])
def test_whole_optimizers_and_schedulers_become_records(tmp_path, legacy):
    """As MM-Det saves them: objects, not their state dicts."""
    optimizer, scheduler = trained()
    content = {"model_state_dict": STATE, "optimizer": optimizer, "scheduler": scheduler}
    read = read_torch_file(save(content, tmp_path / "current_model.pth", legacy))
    assert_same_state(read["model_state_dict"], STATE)
    assert read["scheduler"].qualified_name == "torch.optim.lr_scheduler.ReduceLROnPlateau"


@pytest.mark.parametrize(
    "data, told",
    [
        (b"<!DOCTYPE html><html>confirm", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"\x1f\x8b\x08\x00tar", "gzip"),
        (b"", "not a torch checkpoint"),
        (b"PK\x03\x04 and then nothing", "cannot be read"),
    ],
)
def test_other_kinds_of_files_are_named(tmp_path, data, told):
    path = tmp_path / "file.pt"
    path.write_bytes(data)
    with pytest.raises(KlassifyError, match=told):
        read_torch_file(path)


def test_a_tar_archive_is_told_from_a_checkpoint(tmp_path):
    """PartialSpoof is published as one, and torch before 0.1.10 wrote checkpoints as one."""
    marker, path = tmp_path / "was_run", tmp_path / "multi-reso.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(Attack(marker), protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with pytest.raises(KlassifyError, match="tar archive: unpack it"):
        read_torch_file(path)
    assert not marker.exists()


def test_missing_torn_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(KlassifyError, match="does not exist"):
        read_torch_file(tmp_path / "absent.pt")
    whole = save({"model": STATE}, tmp_path / "whole.pt").read_bytes()
    (tmp_path / "torn.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(KlassifyError, match="cannot be read"):
        read_torch_file(tmp_path / "torn.pt")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", b"")
        archive.writestr("script/data.pkl", b"")
    with pytest.raises(KlassifyError, match="TorchScript"):
        read_torch_file(tmp_path / "script.pt")


def test_a_compressed_archive_is_refused_unread(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data.pkl", b"(" * 10_000_000)
    with pytest.raises(KlassifyError, match="archive is compressed"):
        read_torch_file(path)


def tuples_of_tuples(fold):
    """A pickle {t: 1}, t a tuple that holds one tuple twice, that one another, and so on."""
    twice = b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(fold))
    return b"\x80\x02})" + twice + b"K\x01s."


def as_checkpoint(data, path):
    whole = io.BytesIO()
    torch.save(STATE, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, data if name.endswith("data.pkl") else source.read(name))
    return path


def test_a_file_that_takes_unlimited_time_is_refused(tmp_path, monkeypatch):
    assert read_torch_file(as_checkpoint(tuples_of_tuples(3), tmp_path / "three.pt"))
    monkeypatch.setattr(torch_file, "MAX_SECONDS", 1)
    path = as_checkpoint(tuples_of_tuples(60), tmp_path / "sixty.pt")
    with pytest.raises(KlassifyError, match="took more than 1 s") as caught:
        read_torch_file(path)
    assert caught.value.where == path


def test_a_file_that_takes_unlimited_memory_is_refused(tmp_path, monkeypatch):
    """A call that torch's unpickler allows, of which each doubles the bytes."""
    doubled = b"c_codecs\nencode\nq\x01" + b"h\x01h\x02X\x03\x00\x00\x00hex\x86Rq\x02" * 40
    start = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00ascii\x86Rq\x02"
    path = as_checkpoint(start + doubled + b".", tmp_path / "doubled.pt")
    monkeypatch.setattr(torch_file, "SPARE_MEMORY", 1 << 28)
    with pytest.raises(KlassifyError, match="MemoryError") as caught:
        read_torch_file(path)
    assert caught.value.where == path


def test_a_file_of_many_tensors_is_read(tmp_path):
    state = {f"layer.{i}.weight": torch.zeros(2) for i in range(5000)}
    content = {"model": state, "optimizer": {"state": dict(enumerate(state.values()))}}
    assert len(read_torch_file(save(content, tmp_path / "many.pt"))["model"]) == 5000
