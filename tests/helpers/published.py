"""Files laid out as the released checkpoints, with the goldens' names and weights."""

from __future__ import annotations

import argparse
import re
import sys
import types
from pathlib import Path

import numpy as np
import torch
from fill import fill, load, make_state
from places import GOLDENS

TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
TINY_WAVLM = {**TINY, "family": "wavlm", "conv_bias": False}  # of the ssl_wavlm golden
WITH_SPEECH_MODEL_ONLY = re.compile(r"LL\.|first_bn1\.|attention\.")  # parts of the back end
RAW_POSITIONS = {"aasist": 64, "aasist-l": 24}


def save(content, path, legacy=False, protocol=2):
    """A file by torch.save; legacy: of torch before 1.6."""
    torch.save(content, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return path


def assert_same_state(actual, wanted):
    assert actual.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=0)


def tensors(state):
    return {key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}


def golden_state(golden, model="main", prefix=""):
    """The published state dict of a golden, under a prefix."""
    description, _ = load(GOLDENS / golden)
    return {
        prefix + key: value
        for key, value in tensors(make_state(description["models"][model])).items()
    }


def golden_shapes(golden, model="main", prefix=""):
    """The same without values: tensors on the meta device."""
    description, _ = load(GOLDENS / golden)
    states = description["models"][model]["state"]
    return {
        prefix + key: torch.empty(shape, dtype=getattr(torch, kind), device="meta")
        for key, shape, kind in states
    }


def encoder_names(golden, layers=24):
    """The names in a full-size speech model: those of the tiny one, for more layers."""
    description, _ = load(GOLDENS / golden)
    keys = [key for key, *_ in description["models"]["main"]["state"]]
    later = [key for key in keys if key.startswith("encoder.layers.1.")]
    return keys + [
        key.replace(".1.", f".{layer}.", 1) for layer in range(2, layers) for key in later
    ]


def raw_aasist_shapes(size="aasist"):
    """Names and shapes of clovaai's file: the back end of SSL_Anti-spoofing without what reads a
    speech model.
    """
    shapes = golden_shapes("aasist")
    state = {k: v for k, v in shapes.items() if not WITH_SPEECH_MODEL_ONLY.match(k)}
    state["pos_S"] = torch.empty(1, 23, RAW_POSITIONS[size], device="meta")
    return state


def raw_aasist_state(seed=11):
    shapes = raw_aasist_shapes()
    return tensors({key: fill(key, value.shape, seed) for key, value in shapes.items()})


def project_object(monkeypatch, name="utils.tool.Attribution_Config", **entries):
    """An object of a class that only the publishing project has, until `monkeypatch.undo()`."""
    module_name, class_name = name.rsplit(".", 1)
    module = types.ModuleType(module_name)
    module.__dict__[class_name] = type(class_name, (), {"__module__": module_name})
    for part in (module_name.partition(".")[0], module_name):
        monkeypatch.setitem(sys.modules, part, module)
    made = getattr(module, class_name)()
    made.__dict__.update(entries)
    return made


def trained():
    """An optimizer and a scheduler that have made a step, for what they pickle."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.2)


def lightning(state, prefix="model.", **more):
    """A Lightning checkpoint with everything that it has besides the weights."""
    optimizer, scheduler = trained()
    return {
        "epoch": 7,
        "global_step": 100,
        "pytorch-lightning_version": "2.5.1",
        "loops": {"fit_loop": {"state_dict": {}}},
        "state_dict": {prefix + key: value for key, value in state.items()},
        "callbacks": {
            "ModelCheckpoint{}": {"best_model_score": torch.tensor(0.9), "dirpath": Path("expts")}
        },
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
        **more,
    }


def mm_det(state):
    """MM-Det's current_model.pth, by a training on several GPUs: older names, and the frozen
    LMM's part.
    """
    optimizer, scheduler = trained()
    token = ("backbone.fc_token", "backbone.temporal_token")
    older = {key.replace(*token): value for key, value in state.items()}
    older["mm_encoder.model.lm_head.weight"] = torch.ones(3)
    older["mm_encoder.visual_encoder.weight"] = torch.ones(2)
    return {
        "model_state_dict": {f"module.{key}": value for key, value in older.items()},
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler,
        "epoch": 4,
    }


def cfprf_shapes(in_dim=1024, seq_len=1070):
    """Names and shapes of CFPRF's two files without the speech model."""
    sizes = {"LL.weight": (128, in_dim)}
    for gate in ("b_amlp", "seg_amlp"):
        sizes[f"{gate}.layers.0.sgu.weight"] = (seq_len, seq_len)
        sizes[f"{gate}.layers.0.sgu.bias"] = (seq_len,)
    fdn = golden_shapes("cfprf", "fdn")
    for name, size in sizes.items():
        fdn[name] = torch.empty(size, device="meta")
    return fdn, golden_shapes("cfprf", "prn")


def cfprf_files(folder, seq_len=120):
    """1FDN_LAVDF.pth with a tiny speech model, and 2PRN_LAVDF.pth; returns their paths."""
    paths = folder / "1FDN_LAVDF.pth", folder / "2PRN_LAVDF.pth"
    fdn, prn = (
        tensors({key: fill(key, tuple(value.shape), 7) for key, value in shapes.items()})
        for shapes in cfprf_shapes(TINY["hidden_size"], seq_len)
    )
    torch.save(golden_state("ssl_wav2vec2", prefix="asr.model.") | fdn, paths[0])
    torch.save(prn, paths[1])
    return paths


def auvire_shapes():
    """Names and shapes of AuViRe's file for AV-Deepfake1M."""
    small, dim = golden_shapes("auvire", "small_av1m"), {24: 128, 32: 512, 16: 256}
    return {
        key: torch.empty([dim.get(size, size) for size in value.shape], device="meta")
        for key, value in small.items()
    }


def bam_file(path, monkeypatch, prefix="model."):
    """BAM's model.ckpt with a tiny WavLM; returns the published state dict."""
    state = golden_state("ssl_wavlm", prefix="ssl_layer.model.") | golden_state("bam", "embed64")
    parameters = {
        "args": argparse.Namespace(resolution=0.16, gpu=[0]),
        "config": project_object(monkeypatch, ssl_name="wavlm_local", embed_dim=64),
    }
    torch.save(lightning(state, prefix, hyper_parameters=parameters), path)
    monkeypatch.undo()  # the project is not installed where the file is read
    return state
