"""Operating points: fitted on val_fit, kept in detector.yaml, and the verdicts they give."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import yaml
from small_systems import write_model, write_table

from klassify.cli import main
from klassify.errors import KlassifyError
from klassify.lists import data_list, subsets
from klassify.metrics import decisions
from klassify.systems import operating
from klassify.systems.detector import DETECTOR, read_detector
from klassify.systems.operating import CANNOT_TELL, FAKE, NO_VERDICT, REAL
from klassify.systems.system import load_system

SOURCES = 300  # 120 of them in val_fit


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """lists/val.tsv and a system `one` with scores of it; the first clip has no answer."""
    root = tmp_path_factory.mktemp("points")
    rows = [
        (f"s{source}/{kind}.mp4", kind, f"s{source}")
        for source in range(SOURCES)
        for kind in ("real", "both_modified")
    ]
    frame = pd.DataFrame(rows, columns=["file", "modify_type", "source"])
    data_list.write_list(root / "lists/val.tsv", frame)
    one = write_model(root / "exp/one", "both")
    rng = np.random.default_rng(0)
    score = rng.normal(2 * subsets.label(frame, "video") - 1, 1)
    table = frame[["file"]].assign(start=0.0, end=1.0, score=score, reason="")
    first = subsets.load_split(root / "lists", "val_fit")["file"][0]
    table.loc[table["file"] == first, ["score", "reason"]] = [np.nan, "nothing to score"]
    write_table(one, "val", "clips", table)
    (root / "submit.yaml").write_text("task1: one\n")
    return root


@pytest.fixture(scope="module")
def val_fit(home):
    return subsets.load_split(home / "lists", "val_fit")


@pytest.fixture(scope="module")
def points(home, val_fit):
    return operating.fit(load_system(home / "exp/one"), val_fit, rates=(0.01, 0.1, 0.005))


def by_class(home, val_fit):
    """Scores of the real and of the fake clips of val_fit."""
    table = load_system(home / "exp/one").clip_scores("val").table.set_index("file")
    score = table.loc[val_fit["file"], "score"].to_numpy()
    label = subsets.label(val_fit, "video")
    known = ~np.isnan(score)
    return score[known & (label == 0)], score[known & (label == 1)]


def test_thresholds_are_those_of_the_clips_of_val_fit(home, val_fit, points):
    real, fake = by_class(home, val_fit)
    assert (points.n_real, points.n_fake, points.n_no_answer) == (len(real), len(fake), 1)
    for rate in (0.01, 0.1):
        point = points.at(rate)
        upper = decisions.tail_threshold(real, rate)
        lower = -decisions.tail_threshold(-fake, rate)
        assert (point.real_below, point.fake_above) == (min(upper, lower), max(upper, lower))
        assert point.false_alarms == np.mean(real > point.fake_above) <= rate
        assert point.misses == np.mean(fake < point.real_below) <= rate
        low, high = point.fake_above_interval
        assert low <= point.fake_above <= high
        assert point.false_alarms_interval[1] > point.false_alarms
    alike = [one for one in points.points if one.rate is None]
    assert [one.name for one in alike] == ["equal error rate", "lowest cost"]
    assert all(one.fake_above == one.real_below for one in alike)
    assert alike[0].false_alarms == pytest.approx(alike[0].misses, abs=0.02)


def test_rates_that_need_more_sources_have_no_threshold(points):
    point = points.at(0.005)
    assert point.fake_above is None and "199 are needed" in point.why_not
    assert points.verdict(9.0, 0.005).answer == NO_VERDICT
    assert set(point.verdicts(np.array([-9.0, 9.0]))) == {NO_VERDICT}
    with pytest.raises(KlassifyError, match="known: 0.01, 0.1, 0.005"):
        points.at(0.02)


def test_verdicts_change_at_the_thresholds(points):
    point = points.at(0.01)
    scores = np.array([point.real_below, point.fake_above])
    assert point.real_below < point.fake_above  # the classes overlap
    assert list(point.verdicts(scores - 1e-6)) == [REAL, CANNOT_TELL]
    assert list(point.verdicts(scores + 1e-6)) == [CANNOT_TELL, FAKE]
    single = points.points[-1]
    assert list(single.verdicts(single.fake_above + np.array([-1e-6, 0, 1e-6]))) == [
        REAL,
        REAL,
        FAKE,
    ]
    verdict = points.verdict(point.fake_above + 1)
    assert (verdict.answer, verdict.at) == (FAKE, "1 % false alarms")
    assert f"{points.real_sources} sources" in verdict.note and "between 0 % and" in verdict.note


def test_separate_classes_leave_a_gap_that_is_neither():
    point = operating.Point("x", 0.1, fake_above=3.0, real_below=1.0)
    assert list(point.verdicts(np.array([0.5, 2.0, 3.5]))) == [REAL, CANNOT_TELL, FAKE]


def test_points_come_back_from_yaml_unchanged(points):
    text = yaml.safe_dump(points.described())
    assert operating.read_points(yaml.safe_load(text)) == points


@pytest.mark.parametrize(
    "change",
    [
        {"scale": "loudness"},
        {"n_real": 1.5},
        {"cost": {"prior": 0.5}},
        {"cost": {"prior": 0.5, "miss": float("nan"), "false_alarm": 1.0}},
        {"points": "none"},
        {"points": [{"name": "x", "rate": 0.1}]},
        {"points": [{"name": "x", "fake_above": "1", "real_below": 0.0}]},
        {"points": [{"name": "x", "why_not": "few", "fake_above": 1.0, "real_below": 0.0}]},
        {"points": [{"name": "x", "why_not": "few", "misses_interval": [0.0]}]},
        {"more": 1},
    ],
)
def test_damaged_points_are_refused(points, change):
    with pytest.raises(KlassifyError):
        operating.read_points(points.described() | change)


def make(home, folder, *arguments):
    """`klassify detector`; returns its status and the content of detector.yaml."""
    status = main(["detector", str(folder), "--conf", str(home / "submit.yaml"), *arguments])
    return status, yaml.safe_load((folder / DETECTOR).read_text())


def test_detector_gets_points_once_and_keeps_them(home, capsys):
    folder, labels = home / "exp", ["--labels", str(home / "lists")]
    _, without = make(home, folder)
    assert set(without) == {"answers", "systems"} and read_detector(folder).points is None
    status, content = make(home, folder, *labels)
    assert status == 0 and read_detector(folder).points.at(0.05).rate == 0.05
    assert make(home, folder, *labels) == (0, content) == make(home, folder)
    assert make(home, folder, *labels, "--false-alarms", "0.2") == (2, content)
    assert "--force" in capsys.readouterr().err
    status, content = make(home, folder, *labels, "--false-alarms", "0.2", "--force")
    assert [one["name"] for one in content["operating_points"]["points"]][0] == "20 % false alarms"
    content["operating_points"]["scale"] = "loudness"
    (folder / DETECTOR).write_text(yaml.safe_dump(content))
    with pytest.raises(KlassifyError, match="no known scale"):
        read_detector(folder)


def test_one_class_is_refused(home, val_fit):
    real = val_fit[val_fit["modify_type"] == "real"].reset_index(drop=True)
    with pytest.raises(KlassifyError, match="0 are fake"):
        operating.fit(load_system(home / "exp/one"), real)


def test_few_fakes_leave_no_verdict_either(home, val_fit):
    few = val_fit[(val_fit["modify_type"] == "real") | (val_fit.index < 40)]
    points = operating.fit(load_system(home / "exp/one"), few.reset_index(drop=True))
    assert "val_fit has fake clips" in dataclasses.asdict(points.at(0.01))["why_not"]
