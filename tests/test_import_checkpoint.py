"""`klassify import-checkpoint`: a published file in, safetensors in our polarity out."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from klassify import checkpoints, import_checkpoint
from klassify.errors import KlassifyError
from klassify.models.ssl import SSLFrontEnd

GOLDENS = Path(__file__).parent / "goldens"
sys.path.insert(0, str(GOLDENS))
from fill import load, make_input, make_state  # noqa: E402

TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


def run(*words):
    parser = argparse.ArgumentParser()
    import_checkpoint.configure(parser)
    return import_checkpoint.run(parser.parse_args([str(word) for word in words]))


def test_every_source_can_be_chosen():
    assert set(import_checkpoint.SOURCES) == set(checkpoints.KEY_MAPS)


def test_a_fairseq_file_becomes_a_source_for_the_front_end(tmp_path, capsys):
    golden, expected = load(GOLDENS / "ssl_wav2vec2")
    state = {key: torch.from_numpy(np.asarray(value)) for key, value in make_state(golden["models"]["main"]).items()}
    torch.save({"model": state}, tmp_path / "tiny.pt")
    out = tmp_path / "tiny.safetensors"
    assert not run("fairseq", tmp_path / "tiny.pt", "--out", out, "--architecture", json.dumps(TINY))
    assert "69 tensors of a fairseq file" in capsys.readouterr().out
    _, metadata = checkpoints.read_tensors(out)
    assert metadata["source"] == "fairseq" and len(metadata["sha256"]) == 64

    frontend = SSLFrontEnd(False, TINY, source=str(out)).eval()
    frontend.load_pretrained()
    case = golden["cases"][0]
    with torch.no_grad():
        last = frontend(torch.from_numpy(make_input(case["inputs"][0])))
    np.testing.assert_allclose(last.numpy(), expected[f"{case['id']}/last"], atol=1e-4, rtol=1e-4)


def test_mistakes_are_told(tmp_path):
    with pytest.raises(KlassifyError, match="must be a .safetensors file"):
        run("fairseq", tmp_path / "tiny.pt", "--out", tmp_path / "tiny.pt")
    with pytest.raises(KlassifyError, match="not readable JSON"):
        run("fairseq", tmp_path / "tiny.pt", "--out", tmp_path / "out.safetensors", "--architecture", "{hidden")
    with pytest.raises(KlassifyError, match="no speech model architecture 'xlsr54'"):
        run("fairseq", tmp_path / "tiny.pt", "--out", tmp_path / "out.safetensors", "--architecture", "xlsr54")
