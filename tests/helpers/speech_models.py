"""Tiny speech encoders, and their checkpoints as published."""

from __future__ import annotations

import torch
from published import TINY, TINY_WAVLM, golden_state

from klassify.models.frontends.ssl import SSLFrontEnd

MODELS = {"ssl_wav2vec2": {**TINY, "family": "wav2vec2"}, "ssl_wavlm": TINY_WAVLM}
NARROW = {**TINY, "hidden_size": 32, "conv_dim": [16] * 7}


def published_file(golden, path):
    """A checkpoint with the published layout, filled as in the goldens."""
    torch.save({"cfg": {"model": "tiny"}, "model": golden_state(golden)}, path)


def pretrained(golden, tmp_path, **settings):
    published_file(golden, tmp_path / "tiny.pt")
    settings = {"normalize_input": False, "source": str(tmp_path / "tiny.pt"), **settings}
    frontend = SSLFrontEnd(architecture=MODELS[golden], **settings)
    frontend.load_pretrained()
    return frontend
