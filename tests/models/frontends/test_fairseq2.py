"""Scores of fairseq2 match those of transformers. Run by `make test-fairseq2`."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import yaml
from speech_models import NARROW, pretrained

from klassify import cli
from klassify.models.weights.safetensors_file import save_weights
from klassify.scores.score_file import read_scores
from klassify.systems.base import System, write_system
from klassify.systems.experiment import load_experiment, save_config

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("fairseq2") is None,
    reason="fairseq2 is not installed; `make test-fairseq2` builds an environment for it",
)


def system_with(library, folder):
    config = folder.with_suffix(".yaml")
    frontend = {
        "normalize_input": False,
        "architecture": {**NARROW, "num_feat_extract_layers": 7},
        "library": library,
    }
    frontend = {"class_path": "klassify.models.frontends.ssl.SSLFrontEnd", "init_args": frontend}
    model = {"class_path": "klassify.models.w2v_aasist.W2VAASIST"}
    model["init_args"] = {"frontend": frontend}
    data = {"class_path": "klassify.data.audio.AudioClips"}
    config.write_text(yaml.safe_dump({"model": model, "data": data, "train": {}}))
    experiment = load_experiment(config, seed=5)
    save_config(folder, experiment.resolved)
    write_system(folder, System(folder.name, "model", "audio", "clip", "log_odds"))
    return experiment.model


def test_fairseq2_scores_match_transformers(small_data, tmp_path):
    scores = {}
    weights = system_with("transformers", tmp_path / "transformers").state_dict()
    for library in ("transformers", "fairseq2"):
        folder = tmp_path / library
        model = system_with(library, folder)
        model.load_state_dict(weights)
        save_weights(model, folder / "model.safetensors")
        assert cli.main(["score", str(folder), "--split", "testA", *small_data.arguments]) == 0
        scores[library] = read_scores(folder / "scores/testA.clips.tsv").table["score"].to_numpy()
    assert np.isfinite(scores["fairseq2"]).sum() > 5
    np.testing.assert_allclose(scores["fairseq2"], scores["transformers"], atol=1e-4)


def test_fairseq2_loads_pretrained_weights(tmp_path):
    assert pretrained("ssl_wav2vec2", tmp_path, library="fairseq2").load_pretrained() is not None
