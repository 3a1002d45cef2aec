"""Tiny speech encoders, and their checkpoints as published."""

from __future__ import annotations

import torch
from fill import load, make_state
from places import GOLDENS

from klassify.models.frontends.ssl import SSLFrontEnd

TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}


MODELS = {
    "ssl_wav2vec2": {**TINY, "family": "wav2vec2"},
    "ssl_wavlm": {**TINY, "family": "wavlm", "conv_bias": False},
}


NARROW = {**TINY, "hidden_size": 32, "conv_dim": [16] * 7}


def published_file(golden, path):
    """A checkpoint with the published layout, filled as in the goldens."""
    description, expected = load(GOLDENS / golden)
    state = make_state(description["models"]["main"])
    state = {key: torch.from_numpy(value) for key, value in state.items()}
    torch.save({"cfg": {"model": "tiny"}, "model": state}, path)
    return description, expected


def pretrained(golden, tmp_path, **settings):
    published_file(golden, tmp_path / "tiny.pt")
    settings = {"normalize_input": False, "source": str(tmp_path / "tiny.pt"), **settings}
    frontend = SSLFrontEnd(architecture=MODELS[golden], **settings)
    frontend.load_pretrained()
    return frontend
