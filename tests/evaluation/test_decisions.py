"""Costs of errors and thresholds of val, on systems whose scores have a known distribution."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit

from klassify.cli import main
from klassify.evaluation import decisions
from klassify.evaluation.clips import load_scored
from klassify.lists import data_list, subsets
from klassify.metrics import decisions as metrics
from klassify.metrics.decisions import Cost
from klassify.scores.score_file import Header, score_path, write_scores
from klassify.systems import operating
from klassify.systems.base import System, write_system
from klassify.systems.system import load_system

SOURCES = {"val": 260, "testA": 60}


def score(folder, split, frame, modality, seed, shift=0.0, scale="log_odds"):
    rng = np.random.default_rng(seed)
    values = 2 * rng.normal(2 * subsets.label(frame, modality) - 1, 1) + shift  # exact LLRs
    values = values / 20 if scale == "cosine" else values
    table = frame[["file"]].assign(start=0.0, end=1.0, score=values, reason="")
    table.loc[0, ["score", "reason"]] = [np.nan, "nothing to score"]
    header = Header(folder.name, split, "clips", scale, "clip")
    write_scores(score_path(folder, split, "clips"), table, header)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """ears and eyes, their fusion `both`, and `angle` with cosine scores; eyes drift on testA."""
    root = tmp_path_factory.mktemp("decisions")
    systems = (("ears", "audio", "log_odds"), ("eyes", "visual", "log_odds"))
    for name, modality, scale in (*systems, ("angle", "audio", "cosine")):
        write_system(root / name, System(name, "model", modality, "clip", scale))
    for number, (split, n) in enumerate(SOURCES.items()):
        rows = [(f"{i}/{kind}.mp4", kind, f"s{i}") for i in range(n) for kind in data_list.TYPES]
        frame = pd.DataFrame(rows, columns=["file", "modify_type", "source"])
        data_list.write_list(root / f"lists/{split}.tsv", frame)
        score(root / "ears", split, frame, "audio", 2 * number)
        score(root / "eyes", split, frame, "visual", 2 * number + 1, 3.0 * number)
        score(root / "angle", split, frame, "audio", 2 * number, scale="cosine")
    inputs = [str(root / name) for name in ("ears", "eyes")]
    assert main(["fuse", *inputs, "--rule", "mean", "--out", str(root / "both")]) == 0
    for split in SOURCES:
        load_system(root / "both").derive(split)
    return root


@pytest.fixture(scope="module")
def frame(home):
    return data_list.read_list(home / "lists/testA.tsv")


@pytest.fixture(scope="module")
def scored(home, frame):
    names = ("ears", "eyes", "angle", "both")
    systems = [load_system(home / name) for name in names]
    return {one.name: load_scored(one, "testA", frame["file"].tolist()) for one in systems}


def test_costs_are_those_of_the_log_likelihood_ratios(scored, frame):
    cost = Cost(0.3, 2, 1)
    table = decisions.measure_costs(scored, frame, "testA", cost=cost, n_bootstrap=30)
    table = table.set_index("system")
    label = subsets.label(frame, "video")
    for name in ("ears", "both"):
        llr = logit(scored[name].probability) - logit(scored[name].system.prior)
        assert table.loc[name, "cllr"] == pytest.approx(metrics.cllr(label, llr))
        at = np.mean(llr[label == 0] > cost.threshold), np.mean(llr[label == 1] <= cost.threshold)
        assert table.loc[name, "act_dcf"] == pytest.approx(cost.of(*at))
        for metric in decisions.COSTS:
            row = table.loc[name]
            assert row[f"{metric}_low"] <= row[metric] <= row[f"{metric}_high"]
        assert table.loc[name, "min_dcf"] <= table.loc[name, "act_dcf"]
        assert table.loc[name, "min_cllr"] <= table.loc[name, "cllr"]
    assert np.isnan(table.loc["angle", "cllr"]) and table.loc["angle", "min_dcf"] < 1


def test_tandem_eer_is_that_of_a_fusion_of_sound_and_picture(scored, frame):
    table = decisions.measure_costs(scored, frame, "testA", n_bootstrap=20).set_index("system")
    assert table["t_eer"].isna().to_dict() == {"ears": 1, "eyes": 1, "angle": 1, "both": 0}
    kind = frame["modify_type"].to_numpy(str)
    parts = [scored[name].score for name in ("ears", "eyes")]
    row = table.loc["both"]
    assert row["t_eer"] == metrics.Tandem(kind, *parts).eer()
    assert row["t_eer_low"] <= row["t_eer"] <= row["t_eer_high"]


def test_thresholds_of_val_are_counted_on_another_split(home, scored, frame):
    val_fit = subsets.load_split(home / "lists", "val_fit")
    systems = {name: one.system for name, one in scored.items()}
    points, notes = decisions.fit_points(systems, val_fit, rates=(0.01, 0.001), n_bootstrap=20)
    assert set(points) == set(systems) and notes == []
    table = decisions.apply_points(scored, frame, points).set_index(["system", "point"])
    label = subsets.label(frame, "video")
    row, point = table.loc["ears", "1 % false alarms"], points["ears"].at(0.01)
    known = scored["ears"].answered
    values, label = scored["ears"].score[known], label[known]
    real, fake = values[label == 0], values[label == 1]
    assert row["n_no_answer"] == 1
    assert row["false_alarms"] == np.mean(real > point.fake_above)
    assert row["misses"] == np.mean(fake < point.real_below)
    counts = [
        int(((part > point.fake_above) if high else (part < point.real_below)).sum())
        for part in (real, fake)
        for high in (True, False)
    ]
    assert [row[f"n_{kind}_{how}"] for kind in ("real", "fake") for how in ("fake", "real")] == (
        counts
    )
    assert row["n_real_unsure"] == len(real) - counts[0] - counts[1]
    assert row["real_as"] == f"{counts[0]} / {row['n_real_unsure']:.0f} / {counts[1]}"
    assert row["val_false_alarms"] == point.false_alarms
    assert "999 are needed" in table.loc["ears", "0.1 % false alarms"]["reading"]
    text = decisions.points_text(table.reset_index())
    assert "1 % false alarms" in text and row["real_as"] in text


def test_drift_breaks_a_threshold_and_is_said(home, scored, frame):
    val_fit = subsets.load_split(home / "lists", "val_fit")
    systems = {name: scored[name].system for name in ("ears", "eyes")}
    points, _ = decisions.fit_points(systems, val_fit, n_bootstrap=20)
    table = decisions.apply_points(scored, frame, points).set_index(["system", "point"])
    readings = table["reading"]
    assert readings["eyes", "5 % false alarms"].startswith("more false alarms than the ")
    assert readings["eyes", "equal error rate"].startswith("more false alarms than the ")
    assert "more false alarms than 1 %, which" in readings["ears", "1 % false alarms"]
    assert readings["ears", "5 % false alarms"].startswith("may hold: up to ")
    assert readings["ears", "lowest cost"] == "no sign of a change"


def test_systems_without_scores_of_val_are_noted(home, frame, scored, tmp_path):
    write_system(tmp_path / "new", System("new", "model", "audio", "clip", "log_odds"))
    val_fit = subsets.load_split(home / "lists", "val_fit")
    points, notes = decisions.fit_points({"new": load_system(tmp_path / "new")}, val_fit)
    assert points == {} and "new has no clip scores for val" in notes[0]
    assert decisions.fit_points({"new": None}, None) == ({}, [])
    assert decisions.apply_points(scored, frame, {}).empty


def test_command_writes_both_tables_and_the_metrics_file(home, tmp_path, capsys):
    command = ["evaluate", str(home / "ears"), str(home / "both"), "--split", "testA"]
    command += ["--labels", str(home / "lists/testA.tsv"), "--out", str(tmp_path)]
    assert main([*command, "--bootstrap", "20", "--cost", "0.5,1,1"]) == 0
    costs = pd.read_csv(tmp_path / "testA.costs.tsv", sep="\t")
    assert costs["system"].tolist() == ["ears", "both"] and set(costs["split"]) == {"testA"}
    points = pd.read_csv(tmp_path / "testA.thresholds.tsv", sep="\t")
    assert len(points) == 2 * 4
    said = capsys.readouterr().out
    for name in ("costs", "thresholds"):
        assert (tmp_path / f"testA.{name}.txt").read_text() in said
    assert "prior of fake 0.5, a miss costs 1, a false alarm 1" in said
    written = json.loads((home / "both/metrics-testA.json").read_text())
    assert written["costs"]["cllr"] == pytest.approx(costs["cllr"][1], abs=1e-5)
    assert [one["point"] for one in written["thresholds"]][0] == "1 % false alarms"
    labels = tmp_path / "elsewhere/testA.tsv"
    data_list.write_list(labels, data_list.read_list(home / "lists/testA.tsv"))
    command[command.index("--labels") + 1] = str(labels)
    assert main([*command, "--bootstrap", "0"]) == 0
    assert "No thresholds: There is no labelled list of val" in capsys.readouterr().err
    assert not list(tmp_path.glob("testA.thresholds.*"))  # those of the first evaluation
    stored = operating.fit(
        load_system(home / "ears"), subsets.load_split(home / "lists", "val_fit")
    )
    assert points.loc[0, "fake_above"] == pytest.approx(stored.at(0.01).fake_above, rel=1e-5)
