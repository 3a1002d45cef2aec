"""Systems on perturbed splits: numbers by family and level against the clean clips."""

import numpy as np
import pandas as pd
import pytest

from klassify.errors import KlassifyError
from klassify.evaluation import robustness
from klassify.lists import data_list
from klassify.metrics import clips
from klassify.perturbation.splits import Plan
from klassify.scores.score_file import Header, score_path, write_scores
from klassify.systems.base import System, write_system
from klassify.systems.system import load_system

N = 40


@pytest.fixture
def plan(tmp_path):
    """A clean list and two derived ones; in the stronger one, a clip became real."""
    rng = np.random.default_rng(0)
    fake = rng.random(N) < 0.5
    fake[0] = True
    frame = pd.DataFrame({"file": [f"{k}.mp4" for k in range(N)], "n_frames": 100, "fps": 25.0})
    frame = frame.assign(n_samples=64_000, duration=4.0, source=[f"s{k // 2}" for k in range(N)])
    frame["modify_type"] = np.where(fake, "audio_modified", "real")
    for name in data_list.SEGMENTS:
        held = fake & (not name.startswith("visual"))
        frame[name] = pd.Series([[[1.0, 2.0]] if one else [] for one in held], dtype=object)
    plan = Plan(tmp_path, "val", frame, ("trim",), levels=(1, 3))
    data_list.write_list(plan.lists / "val-trim-1.tsv", frame)
    changed = frame.copy()
    changed.at[0, "modify_type"] = "real"
    for name in data_list.SEGMENTS:
        changed.at[0, name] = []
    data_list.write_list(plan.lists / "val-trim-3.tsv", changed)
    return plan


def scored(plan, folder, spread):
    """A system of audio whose scores of the splits are the labels with more and more noise."""
    write_system(folder, System(folder.name, "model", "audio", "clip", "probability"))
    rng = np.random.default_rng(1)
    label = (plan.frame["modify_type"] != "real").to_numpy(float)
    scores = {}
    for split, noise in zip(("val", "val-trim-1", "val-trim-3"), spread):
        scores[split] = np.clip(0.5 + 0.1 * (label - 0.5 + rng.normal(0, noise, N)), 0, 1)
        table = pd.DataFrame({"file": plan.files, "start": 0.0, "end": 4.0})
        table = table.assign(score=scores[split], reason="")
        header = Header(folder.name, split, "clips", "probability", "clip")
        write_scores(score_path(folder, split, "clips"), table, header)
    return load_system(folder), scores


def proposed(plan, folder):
    """Proposals: right ones of the clean clips, shifted ones of the others."""
    for split, shift in (("val", 0.0), ("val-trim-1", 0.3), ("val-trim-3", 1.5)):
        rows = [(file, 1.0 + shift, 2.0 + shift, 0.9) for file in plan.files]
        table = pd.DataFrame(rows, columns=["file", "start", "end", "score"])
        table = table.assign(modality="audio", method="threshold")
        header = Header(folder.name, split, "segments", "probability", "clip")
        write_scores(score_path(folder, split, "segments"), table, header)


def test_auc_is_that_of_each_splits_own_labels(plan, tmp_path):
    system, scores = scored(plan, tmp_path / "ear", (0.3, 0.6, 3.0))
    table = robustness.measure([system], plan, n_bootstrap=50).set_index(["family", "level"])
    listed = data_list.read_list(plan.lists / "val-trim-3.tsv")
    label = (listed["modify_type"] != "real").to_numpy(int)
    row = table.loc[("trim", 3)]
    assert row["value"] == clips.roc_auc(label, scores["val-trim-3"])
    clean = table.loc[("clean", 0)]
    assert row["change"] == pytest.approx(row["value"] - clean["value"])
    assert row["change_low"] <= row["change"] <= row["change_high"]
    assert (clean["change_low"], clean["change_high"]) == (0, 0)
    assert row["parameter"] == 200 and row["n_fake"] == label.sum()


def test_score_falls_where_proposals_miss(plan, tmp_path):
    system, _ = scored(plan, tmp_path / "ear", (0.3, 0.6, 3.0))
    proposed(plan, tmp_path / "ear")
    table = robustness.measure([system], plan, n_bootstrap=20)
    score = table[table["metric"] == "Score"].set_index("level")["value"]
    assert score[0] > score[1] > score[3]
    text = robustness.describe(table)
    assert "AUC of ear, clean" in text and "Score of ear, clean" in text


def test_a_system_without_scores_is_refused(plan, tmp_path):
    folder = tmp_path / "empty"
    write_system(folder, System("empty", "model", "audio", "clip", "probability"))
    with pytest.raises(KlassifyError, match="no scores of val by empty"):
        robustness.measure([load_system(folder)], plan)
