"""AUC and error rates by group of clips against subsets, and gaps against what chance gives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from klassify.evaluation import groups
from klassify.evaluation.clips import Scored
from klassify.lists import data_list, subsets
from klassify.metrics import clips
from klassify.metrics.decisions import Cost
from klassify.systems.base import System
from klassify.systems.operating import OperatingPoints, Point

RACES = ("African", "Asian (East)", "Caucasian (American)")
POINTS = OperatingPoints(
    "log_odds",
    *(9, 9, 9, 9, 0),
    Cost(),
    (
        Point("1 % false alarms", 0.01, why_not="few"),
        Point("20 % false alarms", 0.2, 1.0, real_below=-1.0),
        Point("equal error rate", None, 0.0, real_below=0.0),
    ),
)


def labelled(n_sources=48):
    rows = [
        {
            "file": f"{i}/{kind}.mp4",
            "modify_type": kind,
            "source": f"s{i}",
            "race": RACES[i % 3],
            "gender": ("men", "women")[i // 3 % 2],
            "audio_model": "" if number % 2 == 0 else ("vits", "hifi")[(i + number) % 2],
            "duration": 4.0,
        }
        for i in range(n_sources)
        for number, kind in enumerate(data_list.TYPES)
    ]
    return pd.DataFrame(rows)


def system(frame, seed=0, shift=0.0):
    """Scores of a system that ranks clips of the first race `shift` higher."""
    rng = np.random.default_rng(seed)
    of_source = rng.normal(size=len(frame) // 4).repeat(4)
    score = 2 * subsets.label(frame, "video") - 1 + rng.normal(size=len(frame)) + of_source
    score += shift * (frame["race"] == RACES[0])
    answered = np.arange(len(frame)) != 1
    one = System("one", "model", "both", "clip", "log_odds")
    return Scored(one, score, 1 / (1 + np.exp(-score)), answered)


@pytest.fixture(scope="module")
def frame():
    return labelled()


@pytest.fixture(scope="module")
def measured(frame):
    one = system(frame, shift=2.5)
    return one, groups.measure_groups({"one": one}, frame, {"one": POINTS}, n_bootstrap=50)


def test_groups_are_measured_like_lists_of_their_own(frame, measured):
    one, found = measured
    label, source = subsets.label(frame, "video"), subsets.sources_of(frame)
    table = found.groups.set_index(["kind", "group"])
    for kind, column in (
        ("race", "race"),
        ("gender", "gender"),
        ("audio generator", "audio_model"),
    ):
        for group in table.loc[kind].index:
            inside = (frame[column] == group).to_numpy()
            if kind == "audio generator":
                inside = inside | (label == 0)
            row = table.loc[kind, group]
            assert row["auc"] == pytest.approx(clips.roc_auc(label[inside], one.score[inside]))
            assert (row["n"], row["n_fake"]) == (inside.sum(), label[inside].sum())
            assert row["n_sources"] == len(set(source[inside]))
            known = inside & one.answered
            fakes, reals = one.score[known & (label == 1)], one.score[known & (label == 0)]
            assert row["misses"] == np.mean(fakes < -1.0) <= row["misses_high"]
            if kind == "audio generator":
                assert np.isnan(row["false_alarms"])
            else:
                assert row["false_alarms"] == np.mean(reals > 1.0) >= row["false_alarms_low"]
    assert set(found.groups["point"]) == {"20 % false alarms"}
    assert "speaker" not in set(found.groups["kind"])


def test_a_planted_gap_is_more_than_chance_and_others_are_not(frame, measured):
    _, found = measured
    gaps = found.gaps.set_index(["kind", "metric"])
    row = gaps.loc["race", "false_alarms"]
    of_race = found.groups[found.groups["kind"] == "race"].set_index("group")["false_alarms"]
    assert row["highest"] == RACES[0] == of_race.idxmax()
    assert row["gap"] == pytest.approx(of_race.max() - of_race.min())
    assert row["gap_low"] <= row["gap"] <= row["gap_high"] and row["gap_low"] > 0
    assert row["reading"] == "more than chance" and row["gap"] > row["by_chance"]
    assert gaps.loc[("gender", "auc"), "reading"] == "within chance"
    assert ("audio generator", "false_alarms") not in gaps.index
    text = groups.gaps_text(found.gaps)
    assert "false alarms, 20 % false alarms" in text and "more than chance" in text
    assert f"race: {RACES[0]}" in groups.groups_text(found.groups)


@pytest.mark.parametrize("kind", ["race", "audio generator"])
def test_chance_holds_nineteen_of_twenty_gaps(kind):
    """Sources differ much, so that a race's clips are alike; permuted clips would see gaps."""
    frame, above, n = labelled(30), 0, 0
    for seed in range(60):
        one = groups._System(system(frame, seed), POINTS.points[1], frame)
        masks = groups.conditions.clip_groups(frame)[kind]
        masks = np.stack(list(masks.values()))
        values = one.metrics(np.ones((1, len(frame))), masks)[..., 0]
        limits = np.nanquantile(one.by_chance(masks, kind != "race", 60, seed), 0.95, axis=1)
        gaps = np.nanmax(values, axis=1) - np.nanmin(values, axis=1)
        above, n = above + (gaps > limits)[[0, 2]].sum(), n + 2
    assert above / n < 0.12


def test_random_groups_of_sources_keep_their_sizes(frame):
    one = groups._System(system(frame), POINTS.points[1], frame)
    seen = []
    one.metrics = lambda weights, masks: seen.append(masks) or np.zeros((3, len(masks), 5))
    masks = np.stack([(frame["race"] == race).to_numpy() for race in RACES])
    one.by_chance(masks, False, 5, 0)
    assert (seen[0].sum(axis=2) == 64).all() and (seen[0].sum(axis=0) == 1).all()
    by_source = seen[0].reshape(3, 5, -1, 4)
    assert (by_source == by_source[..., :1]).all() and not (seen[0][:, 0] == masks).all()


def test_without_thresholds_only_the_auc_is_compared(frame):
    found = groups.measure_groups({"one": system(frame)}, frame, {}, n_bootstrap=10)
    assert set(found.gaps["metric"]) == {"auc"} and found.groups["misses"].isna().all()
    bare = frame.drop(columns=["race", "gender", "audio_model"])
    found = groups.measure_groups({"one": system(frame)}, bare, {}, n_bootstrap=10)
    assert set(found.groups["kind"]) == {"fake type"}
    few = frame[frame["modify_type"] == "real"].reset_index(drop=True)[["file", "modify_type"]]
    few = few.assign(source="", duration=np.nan)
    one = system(labelled())
    one = Scored(one.system, one.score[: len(few)], one.probability, one.answered[: len(few)])
    assert groups.measure_groups({"one": one}, few, {}, n_bootstrap=10).gaps.empty
