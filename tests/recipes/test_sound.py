"""Every stage on data without a picture."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
import speech_corpora
from commands import ran
from places import ROOT, copy_recipes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """PartialSpoof with six speakers a set."""
    root = tmp_path_factory.mktemp("speech")
    speech_corpora.partialspoof(root, n_speakers=6)
    return root


def test_sound_alone_goes_through_all_stages(data, tmp_path):
    copy_recipes(tmp_path)
    if (ROOT / ".venv").exists():
        (tmp_path / ".venv").symlink_to(ROOT / ".venv")

    done = ran(
        ["recipes/klassify/run.sh", "data=partialspoof", f"root={data}", "conf=demo", "jobs=1"],
        cwd=tmp_path,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no picture in partialspoof: left out are" in done.stdout
    exp = tmp_path / "exp/partialspoof/klassify"
    table = pd.read_csv(exp / "evaluation/test.tsv", sep="\t")
    assert "w2v_aasist-platt" in set(table["system"]) and (table["n_no_answer"] == 0).all()
    eers = pd.read_csv(exp / "evaluation/test.eer.tsv", sep="\t")
    assert set(eers["system"]) == {"bam"}
    assert {"utterance", "160 ms", "range"} <= set(eers["measure"])
    assert (exp / "detector.yaml").exists() and not (tmp_path / "submissions").exists()
