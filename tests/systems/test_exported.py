"""Exported systems answer as torch does; what is stale, damaged or has no export is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from klassify import cli, load_detector
from klassify.data.cfprf import CFPRFFrames
from klassify.errors import KlassifyError
from klassify.models.weights import EXPORTED, WEIGHTS
from klassify.models.weights.safetensors_file import save_weights
from klassify.prediction.packaged import EXAMPLE, PACKAGED
from klassify.prediction.predict import by_onnx
from klassify.systems.base import System, write_system
from klassify.systems.experiment import CONFIG, load_experiment
from klassify.systems.exported import SYSTEM_HASH, TOLERANCE, export, load_exported
from klassify.systems.system import load_system
from klassify.systems.trained import Trained

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def detector(tmp_path):
    """A copy of the packaged detector."""
    return shutil.copytree(PACKAGED / "klassify", tmp_path / "demo/klassify")


def write_mean(folder, system_hash: str, location: str = "") -> None:
    """A graph whose score is the mean of the features, plus a constant 1, maybe of another file."""
    one = onnx.helper.make_tensor("one", onnx.TensorProto.FLOAT, [1], [1.0])
    if location:
        one = onnx.TensorProto(name="one", data_type=onnx.TensorProto.FLOAT, dims=[1])
        one.data_location = onnx.TensorProto.EXTERNAL
        one.external_data.add(key="location", value=location)
    axes = onnx.helper.make_tensor("axes", onnx.TensorProto.INT64, [2], [1, 2])
    nodes = [
        onnx.helper.make_node("ReduceMean", ["features", "axes"], ["mean"], keepdims=0),
        onnx.helper.make_node("Add", ["mean", "one"], ["score"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "mean",
        [onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["b", "t", 16])],
        [onnx.helper.make_tensor_value_info("score", onnx.TensorProto.FLOAT, ["b"])],
        [one, axes],
    )
    opset = onnx.helper.make_opsetid("", 18)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    onnx.helper.set_model_props(model, {SYSTEM_HASH: system_hash})
    (folder / EXPORTED).write_bytes(model.SerializeToString())


def test_a_file_of_the_system_answers_window_by_window(detector):
    system = load_system(detector / "tcn")
    write_mean(system.folder, system.hash)
    model, data = load_exported(system, "cpu")
    features = torch.randn(9, 20, 16)
    expected = features.mean(dim=(1, 2)) + 1
    assert torch.allclose(model.score({"features": features}), expected, atol=1e-6)
    assert data is system.data()
    assert by_onnx(load_detector(detector)) == (["tcn"], ["w2v_aasist", "bam", "tcn_tags"])


def test_a_file_of_other_weights_is_refused(detector):
    system = load_system(detector / "tcn")
    write_mean(system.folder, "0123456789abcdef")
    with pytest.raises(KlassifyError, match="present weights") as caught:
        load_exported(system, "cpu")
    assert caught.value.fix == f"klassify export {system.folder} --force"


def test_a_damaged_file_is_refused(detector):
    system = load_system(detector / "tcn")
    (system.folder / EXPORTED).write_bytes(b"not a graph")
    with pytest.raises(KlassifyError, match="cannot be read"):
        load_exported(system, "cpu")


def test_a_graph_reads_no_file_outside_its_folder(detector):
    (detector / "secret").write_bytes(np.float32(7).tobytes())
    system = load_system(detector / "tcn")
    write_mean(system.folder, system.hash, location="../secret")
    with pytest.raises(KlassifyError, match="cannot be read"):
        load_exported(system, "cpu")


def test_a_gpu_that_onnxruntime_lacks_is_told(detector):
    with pytest.raises(KlassifyError, match="CPUs alone"):
        load_exported(load_system(detector / "tcn"), "cuda:1")


def test_what_has_no_export_is_refused_by_name(detector, monkeypatch, capsys):
    assert cli.main(["export", str(detector / "maxout")]) == 2
    assert "maxout is computed from the scores of others" in capsys.readouterr().err
    monkeypatch.setattr(Trained, "data", lambda _: CFPRFFrames())
    assert cli.main(["export", str(detector)]) == 2
    told = capsys.readouterr()
    assert told.out.count("not exported: ") == 4
    assert "w2v_aasist cannot be exported: its inputs (CFPRFFrames)" in told.err


def test_a_missing_package_is_told_once(detector, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else name)
    assert cli.main(["export", str(detector)]) == 2
    told = capsys.readouterr()
    assert not told.out and told.err.count("needs the package onnx, which is not installed") == 1


def test_predict_refuses_onnx_where_nothing_is_exported(detector, tmp_path, capsys):
    words = ["predict", str(EXAMPLE), "--detector", str(detector), "--runtime", "onnx"]
    assert cli.main([*words, "--out", str(tmp_path)]) == 2
    assert f"klassify export {detector}" in capsys.readouterr().err
    write_mean(detector / "tcn", load_system(detector / "tcn").hash)
    assert cli.main([*words, "--explain", "--out", str(tmp_path)]) == 2
    assert "no explanations" in capsys.readouterr().err


@pytest.mark.slow
def test_the_exported_detector_answers_as_torch_does(detector, tmp_path, capsys):
    assert cli.main(["export", str(detector)]) == 0
    assert capsys.readouterr().out.count("differs from torch by at most") == 4
    answers, frames = [], []
    for runtime in ("torch", "onnx"):
        words = [str(EXAMPLE), "--detector", str(detector), "--out", str(tmp_path / runtime)]
        assert cli.main(["predict", *words, "--no-timeline", "--runtime", runtime]) == 0
        answers.append(json.loads((tmp_path / runtime / "clip.json").read_text()))
        frames.append(load_detector(detector).predict(EXAMPLE, runtime=runtime).frames)
    told = capsys.readouterr().err
    assert "by onnxruntime: w2v_aasist, tcn, bam, tcn_tags\n" in told
    torchs, onnxs = answers
    assert abs(torchs["probability"] - onnxs["probability"]) < TOLERANCE
    for name, table in frames[0].items():
        pd.testing.assert_frame_equal(table, frames[1][name], rtol=0, atol=TOLERANCE)
    segments = [pd.DataFrame(one["segments"]) for one in answers]
    pd.testing.assert_frame_equal(*segments, rtol=0, atol=TOLERANCE)
    assert cli.main(["export", str(detector)]) == 0
    assert capsys.readouterr().out.count("already exported") == 4


FILTERS = {
    "class_path": "klassify.models.frontends.filterbank.FilterbankFrontEnd",
    "init_args": {"bands": 16, "width": 16, "dim": 128},
}
SPEECH = {
    "class_path": "klassify.models.frontends.ssl.SSLFrontEnd",
    "init_args": {
        "normalize_input": True,
        "architecture": {
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "conv_dim": [32] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
    },
}
MODELS = {
    "partialspoof.PartialSpoof": ({"blocks": 1}, "partialspoof.PartialSpoofFrames"),
    "audio_encoder.AudioFrameModel": ({"dim": 16}, "audio_shares.AudioShares"),
    "audio_encoder.AudioMIL": ({"dim": 16}, "audio.AudioClips"),
    "bam.BAM": ({"local_channels": 2}, "audio.AudioFrames"),
    "w2v_aasist.W2VAASIST": ({"channels": [4, 8], "graph_dims": [8, 4]}, "audio.AudioClips"),
}


@pytest.mark.slow
@pytest.mark.parametrize("frontend", [FILTERS, SPEECH], ids=["filters", "speech"])
@pytest.mark.parametrize("name", MODELS)
def test_audio_models_export_with_any_length(tmp_path, name, frontend):
    arguments, data = MODELS[name]
    config = {
        "model": {
            "class_path": f"klassify.models.{name}",
            "init_args": {"frontend": frontend, **arguments},
        },
        "data": {"class_path": f"klassify.data.{data}"},
    }
    (tmp_path / CONFIG).write_text(yaml.safe_dump(config))
    save_weights(load_experiment(tmp_path / CONFIG, seed=1).model, tmp_path / WEIGHTS)
    scale = "cosine" if "PartialSpoof" in name else "log_odds"
    write_system(tmp_path, System("one", "model", "audio", "clip", scale))
    assert "differs from torch by at most" in export(load_system(tmp_path))
