"""The stack against slow code and its rival, max-out; clips without answers; its folder."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from commands import klassify
from scipy.special import logit
from small_systems import write_model, write_table

from klassify.errors import KlassifyError
from klassify.lists import data_list, subsets
from klassify.metrics import clips
from klassify.scores.score_file import ScoreFile, read_scores, score_path
from klassify.systems import stack
from klassify.systems.base import System, write_system
from klassify.systems.system import load_system

MODALITIES = ["audio", "visual", "audio"]


def random_weights(rng, k=3, missing=(1,)):
    n_features = stack.FREE + k + k * (k - 1) // 2 + len(missing)
    platt = np.column_stack([-rng.uniform(1, 5, k), rng.normal(size=k)])
    spread = rng.uniform(0.5, 2, k)
    coefficients = rng.normal(size=n_features)
    return stack.Weights(
        platt, rng.normal(size=k), spread, list(missing), [0, 1], coefficients, 0.3
    )


def slow_answer(weights, p, modalities):
    """The stack's probability of one clip, feature by feature."""
    there = [i for i in range(len(p)) if not math.isnan(p[i])]
    by_modality = {}
    for i in there:
        a, b = weights.platt[i]
        by_modality.setdefault(modalities[i], []).append(-(a * p[i] + b))
    largest = math.log(sum(math.exp(sum(some) / len(some)) for some in by_modality.values()))
    z = [0.0] * len(p)
    for i in there:
        z[i] = max(-4, min(4, (math.log(p[i] / (1 - p[i])) - weights.mean[i]) / weights.spread[i]))
    features = [largest, sum(z) / len(there), *z]
    features += [z[i] * z[j] for i, j in itertools.combinations(range(len(p)), 2)]
    features += [float(math.isnan(p[i])) for i in weights.missing]
    total = weights.intercept + sum(c * f for c, f in zip(weights.coefficients, features))
    return 1 / (1 + math.exp(-total))


def test_answers_equal_slow_code():
    rng = np.random.default_rng(0)
    weights, p = random_weights(rng), rng.uniform(0.01, 0.99, (3, 50))
    p[rng.random(p.shape) < 0.3] = np.nan
    p[0, np.isnan(p).all(axis=0)] = 0.5
    expected = [slow_answer(weights, column, MODALITIES) for column in p.T]
    np.testing.assert_allclose(weights.probability(p, MODALITIES), expected, rtol=1e-9)


def noisy(label, rng, strength):
    return 1 / (1 + np.exp(-(strength * (2 * label - 1) + rng.normal(size=len(label)))))


def labels_of(n, rng):
    kinds = rng.choice(["real", "audio_modified", "visual_modified", "both_modified"], n)
    return (
        kinds,
        np.isin(kinds, ["audio_modified", "both_modified"]).astype(int),
        np.isin(kinds, ["visual_modified", "both_modified"]).astype(int),
    )


def test_weak_inputs_of_a_modality_support_each_other():
    """Two weak inputs of the sound: the stack averages them, max-out takes one."""
    rng = np.random.default_rng(1)
    kinds, audio, visual = labels_of(1200, rng)
    label = (kinds != "real").astype(int)
    p = np.stack([noisy(audio, rng, 0.5), noisy(visual, rng, 2), noisy(audio, rng, 0.5)])
    source = np.repeat(np.arange(300).astype(str), 4)
    platt = np.array([[-4.0, 2.0]] * 3)
    fit, held = slice(0, 600), slice(600, None)
    weights, _ = stack.fit_weights(platt, [0, 1], p[:, fit], MODALITIES, label[fit], source[fit])
    stacked, rival = weights.probability(p[:, held], MODALITIES), weights.max_out(p[:, held])
    found = stack.compare(stacked, rival, label[held], source[held])
    assert found["gain"] == pytest.approx(found["auc"] - found["auc_max"])
    assert found["auc"] == pytest.approx(clips.roc_auc(label[held], stacked))
    assert 0 < found["gain_low"] < found["gain"] < found["gain_high"]


def test_max_out_is_of_the_best_input_of_each_modality():
    best = stack.best_of_each(["audio", "both", "visual", "audio"], [0.6, 0.1, 0.5, 0.4])
    assert best == [3, 2] and stack.best_of_each(["both", "both"], [0.6, 0.5]) == [1]
    weights = random_weights(np.random.default_rng(0))
    p = np.array([[0.9, np.nan], [0.2, np.nan], [0.99, 0.7]])
    a, b = weights.platt.T
    expected = [max(-(a[0] * 0.9 + b[0]), -(a[1] * 0.2 + b[1])), -(a[2] * 0.7 + b[2])]
    np.testing.assert_allclose(logit(weights.max_out(p)), expected)


def test_equal_answers_have_no_gain():
    rng = np.random.default_rng(2)
    label, score = rng.integers(0, 2, 80), rng.random(80)
    found = stack.compare(score, score, label, np.arange(80).astype(str))
    assert found["gain"] == found["gain_low"] == found["gain_high"] == 0


def test_an_input_without_information_changes_little():
    rng = np.random.default_rng(3)
    label = rng.integers(0, 2, 400)
    p = np.stack([noisy(label, rng, 1), rng.random(400)])
    source = np.arange(400).astype(str)
    platt = np.array([[-5.0, 2.5], [-0.01, 0.0]])
    weights, _ = stack.fit_weights(platt, [0, 1], p, ["audio", "visual"], label, source)
    order = weights.probability(p, ["audio", "visual"])
    assert np.corrcoef(logit(order), logit(p[0]))[0, 1] > 0.95


@pytest.fixture
def exp(tmp_path):
    """Two systems with scores of val; a third of the second's clips are without a face."""
    rng = np.random.default_rng(4)
    n = 400
    kinds, audio, visual = labels_of(n, rng)
    columns = {"n_frames": 100, "fps": 25.0, "n_samples": 64000, "duration": 4.0}
    columns |= {"source": [f"{i // 4}" for i in range(n)], "modify_type": kinds}
    frame = pd.DataFrame({"file": [f"{i}.mp4" for i in range(n)], **columns})
    data_list.write_list(tmp_path / "lists" / "val.tsv", frame)
    for name, modality, own in (("sound", "audio", audio), ("face", "visual", visual)):
        folder = tmp_path / name
        write_model(folder, modality)
        table = frame[["file"]].assign(start=0.0, end=4.0, score=logit(noisy(own, rng, 0.7)))
        if name == "face":
            table.loc[rng.random(n) < 0.3, "score"] = np.nan
        table["reason"] = np.where(table["score"].isna(), "no face", "")
        write_table(folder, "val", "clips", table)
    return tmp_path


def fuse(exp, *options, rule="stack"):
    return klassify(
        "fuse", exp / "sound", exp / "face", "--rule", rule, "--out", exp / rule, *options
    )


def test_the_choice_and_its_interval_are_recorded_and_told(exp, capsys):
    assert fuse(exp, "--labels", exp / "lists") == 0
    told = capsys.readouterr().out
    system = load_system(exp / "stack")
    report = system.parameters["report"]
    assert f"({report['gain_low']:+.4f} to {report['gain_high']:+.4f})" in told
    chosen = system.parameters["chosen"]
    assert chosen == ("stack" if report["gain_low"] > 0 else "max")
    assert ("max-out answers" in told) == (chosen == "max")
    assert system.supervision == "clip" and system.modality == "both"
    assert fuse(exp, "--labels", exp / "lists") == 0
    assert "up to date" in capsys.readouterr().out


def test_max_out_is_that_of_calibrate_and_fuse(exp):
    assert fuse(exp, "--labels", exp / "lists") == 0
    made = load_system(exp / "stack")
    write_system(
        exp / "stack",
        System(**made.described() | {"parameters": {**made.parameters, "chosen": "max"}}),
    )
    loaded = load_system(exp / "stack")
    found = loaded.derive("val", force=True).table
    names = ("sound", "face")
    parts = [read_scores(score_path(exp / name, "val", "clips")) for name in names]
    platt = made.parameters["platt"]
    for place in np.flatnonzero(found["answered"] == 2)[:20]:
        one = [ScoreFile(part.header, part.table[place : place + 1]) for part in parts]
        p = [1 / (1 + math.exp(-each.table["score"].item())) for each in one]
        log_odds = [-(a * each + b) for each, (a, b) in zip(p, platt)]
        assert loaded.deciding(dict(zip(names, one))) == [names[int(np.argmax(log_odds))]]
        assert loaded.deciding({"face": one[1]}) == ["face"]
    for name in ("sound", "face"):
        out = ["--out", exp / f"{name}-platt", "--labels", exp / "lists"]
        assert klassify("calibrate", exp / name, *out) == 0
        load_system(exp / f"{name}-platt").derive("val")
    calibrated = [exp / f"{name}-platt" for name in ("sound", "face")]
    how = ["--rule", "max", "--out", exp / "max", "--prior", made.prior]
    assert klassify("fuse", *calibrated, *how) == 0
    expected = load_system(exp / "max").derive("val").table
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-8)
    assert found["answered"].tolist() == expected["answered"].tolist()


def test_clips_without_any_answer_get_the_prior(exp):
    path = score_path(exp / "sound", "val", "clips")
    table = pd.read_csv(path, sep="\t", comment="#", dtype={"reason": str}, na_filter=True)
    table["reason"] = table["reason"].fillna("")
    table.loc[:9, ["score", "reason"]] = [np.nan, "no sound"]
    write_table(exp / "sound", "val", "clips", table)
    assert fuse(exp, "--labels", exp / "lists", "--prior", "0.25") == 0
    found = load_system(exp / "stack").derive("val").table
    silent = found["answered"] == 0
    assert 0 < silent.sum() < 10 and (found["score"][silent] == 0.25).all()
    assert (found["reason"][silent] == "sound: no sound; face: no face").all()


def test_the_fit_uses_clips_of_the_subset_alone(exp):
    assert fuse(exp, "--labels", exp / "lists") == 0
    before = load_system(exp / "stack").parameters["coefficients"]
    listed = data_list.read_list(exp / "lists" / "val.tsv")
    others = ~listed["file"].isin(subsets.load_split(exp / "lists", "val_fit")["file"])
    listed.loc[others, "modify_type"] = listed.loc[others, "modify_type"].to_numpy()[::-1]
    data_list.write_list(exp / "lists" / "val.tsv", listed)
    assert fuse(exp, "--labels", exp / "lists", "--force") == 0
    assert load_system(exp / "stack").parameters["coefficients"] == before


@pytest.mark.parametrize(
    "change",
    [
        {"platt": [[1, 2]]},
        {"coefficients": [1, "a"]},
        {"missing": [7]},
        {"best": []},
        {"mean": None},
    ],
)
def test_parameters_that_do_not_fit_are_refused(exp, change):
    assert fuse(exp, "--labels", exp / "lists") == 0
    made = load_system(exp / "stack")
    changed = System(**made.described() | {"parameters": {**made.parameters, **change}})
    write_system(exp / "stack", changed)
    with pytest.raises(KlassifyError, match="The parameters of stack"):
        load_system(exp / "stack").derive("val", force=True)


def test_options_of_other_rules_are_refused(exp, capsys):
    assert fuse(exp, "--labels", exp / "lists", "--hold", "1") == 2
    assert fuse(exp) == 2
    assert fuse(exp, "--labels", exp / "lists", rule="max") == 2
    told = capsys.readouterr().err
    assert "has no --hold" in told and "Give --labels" in told and "has no --labels" in told
