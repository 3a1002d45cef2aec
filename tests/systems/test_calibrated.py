"""Platt scaling against scikit-learn, and the calibrated system's folder."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from small_systems import write_model, write_table

from klassify import cli
from klassify.errors import KlassifyError
from klassify.lists import data_list, subsets
from klassify.metrics import clips
from klassify.scores.score_file import Header, ScoreFile, score_path
from klassify.systems import calibrated
from klassify.systems.base import derived_system, write_system
from klassify.systems.system import load_system


def clip_scores(score, scale="log_odds"):
    table = pd.DataFrame({"file": names(len(score)), "start": 0.0, "end": 4.0, "score": score})
    table["reason"] = np.where(np.isnan(score), "no face", "")
    return ScoreFile(Header("tcn", "val", "clips", scale, "clip"), table)


def names(n):
    return [f"{i}.mp4" for i in range(n)]


def overlapping(n=200, seed=0):
    rng = np.random.default_rng(seed)
    label = np.append(rng.integers(0, 2, n - 2), [0, 1])
    return rng.normal(size=n) + 1.2 * label, label


def sklearn_platt(s, label, weight=None):
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000)
    model.fit(s[:, None], label, sample_weight=weight)
    return -model.coef_[0, 0], -model.intercept_[0]


@pytest.mark.parametrize("seed", range(5))
def test_hard_targets_equal_sklearn(seed):
    s, label = overlapping(seed=seed)
    for x in (s, expit(s), 1000 * s + 5):
        a, b = calibrated.platt(x, label, smooth_targets=False)
        unit = (x - x.mean()) / x.std()
        a_unit, b_unit = sklearn_platt(unit, label)
        np.testing.assert_allclose(a * x + b, a_unit * unit + b_unit, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_smoothed_targets_equal_weighted_sklearn(seed):
    """A clip with target t is a fake clip of weight t and a real one of weight 1 - t."""
    s, label = overlapping(60, seed)
    n_fake, n_real = label.sum(), (1 - label).sum()
    target = np.where(label == 1, (n_fake + 1) / (n_fake + 2), 1 / (n_real + 2))
    twice, classes = np.tile(s, 2), np.repeat([1, 0], len(s))
    expected = sklearn_platt(twice, classes, np.concatenate([target, 1 - target]))
    np.testing.assert_allclose(calibrated.platt(s, label), expected, rtol=1e-4)


def test_separable_scores_stay_finite_or_are_refused():
    s, label = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1])
    a, b = calibrated.platt(s, label)
    assert a < 0 and np.isfinite([a, b]).all()
    for x in (s, -s, np.array([0.1, 0.5, 0.5, 0.9])):  # the last: separable but for a tie
        with pytest.raises(KlassifyError, match="separate"):
            calibrated.platt(x, label, smooth_targets=False)
    for scale in (1e-9, 1e6):
        a_scaled, b_scaled = calibrated.platt(s * scale, label)
        np.testing.assert_allclose([a_scaled * scale, b_scaled], [a, b], rtol=1e-6)


def test_equal_scores_give_the_base_rate():
    a, b = calibrated.platt(np.full(6, 0.3), np.array([0, 0, 0, 0, 1, 1]), smooth_targets=False)
    assert a == 0 and expit(-b) == pytest.approx(1 / 3)


@pytest.mark.parametrize("scale", ["log_odds", "probability"])
@pytest.mark.parametrize("input", calibrated.INPUTS)
def test_fit_and_apply(scale, input):
    log_odds, label = overlapping()
    log_odds[3] = np.nan
    scores = clip_scores(expit(log_odds) if scale == "probability" else log_odds, scale)
    fitted = calibrated.fit(scores, scores.table["file"], label, input=input)
    assert fitted.a < 0 and not fitted.warnings
    assert (fitted.n, fitted.n_no_answer, fitted.n_fake) == (199, 1, np.delete(label, 3).sum())
    assert fitted.auc == pytest.approx(clips.roc_auc(np.delete(label, 3), np.delete(log_odds, 3)))
    parameters = {"a": fitted.a, "b": fitted.b, "input": input}
    described = ("p", "calibrated", "visual", "clip", "probability", ["../tcn"], parameters)
    system = calibrated.Calibrated(*described)
    table = system.clip_table([scores])
    there = np.delete(table["score"].to_numpy(), 3)
    assert np.isnan(table["score"][3]) and table["reason"][3] == "no face"
    assert (np.argsort(there) == np.argsort(np.delete(log_odds, 3))).all()  # the order is kept
    assert clips.log_loss(np.delete(label, 3), there) == pytest.approx(fitted.log_loss_after)
    s = expit(log_odds) if input == "probability" else log_odds
    np.testing.assert_allclose(table["score"], 1 / (1 + np.exp(fitted.a * s + fitted.b)))
    if input == "log_odds":  # the identity is among the candidates
        assert fitted.log_loss_after <= fitted.log_loss_before + 1e-3


def test_warnings():
    log_odds, label = overlapping()
    inverted = calibrated.fit(clip_scores(-log_odds), names(200), label)
    assert inverted.a > 0 and "inverted" in inverted.warnings[0]
    # probabilities that differ as floats and are equal in nine digits
    scores = clip_scores(np.append(np.full(100, -5.0), 25 + log_odds))
    label = np.append(np.zeros(100, int), label)
    assert "--input log_odds" in calibrated.fit(scores, names(300), label).warnings[0]
    assert calibrated.fit(scores, names(300), label, input="log_odds").warnings == []


def test_what_cannot_be_fitted_is_refused():
    log_odds, label = overlapping(20)
    scores = clip_scores(log_odds)
    with pytest.raises(KlassifyError, match="2 clips to fit on have no score: x.mp4, y.mp4"):
        calibrated.fit(scores, ["0.mp4", "x.mp4", "y.mp4"], [0, 1, 1])
    with pytest.raises(KlassifyError, match="of 20 clips with an answer 20 are fake"):
        calibrated.fit(scores, names(20), np.ones(20, int))
    with pytest.raises(KlassifyError, match="distance"):
        calibrated.fit(clip_scores(log_odds / 10, "distance"), names(20), label)


@pytest.fixture
def tcn(tmp_path):
    """A scored visual system and its val list of 12 sources."""
    rng = np.random.default_rng(1)
    rows = [(f"{i}/{kind}.mp4", kind, f"s{i}") for i in range(12) for kind in data_list.TYPES]
    frame = pd.DataFrame(rows, columns=["file", "modify_type", "source"])
    data_list.write_list(tmp_path / "lists" / "val.tsv", frame)
    folder = tmp_path / "exp" / "tcn"
    write_model(folder, "visual")
    table = frame[["file"]].assign(start=0.0, end=4.0)
    table["score"] = rng.normal(size=len(frame)) + 2 * subsets.label(frame, "visual")
    table = table.sample(frac=1, random_state=2)  # rows are joined by name
    write_table(folder, "val", "clips", table)
    return folder


def run(tcn, *more):
    out, labels = tcn.parent / "tcn_platt", tcn.parent.parent / "lists"
    return out, cli.main(["calibrate", str(tcn), "--out", str(out), "--labels", str(labels), *more])


def test_command_fits_on_val_fit_against_the_own_label(tcn, capsys):
    out, status = run(tcn)
    assert status == 0
    system = load_system(out)
    found = (system.kind, system.modality, system.scale, system.inputs)
    assert found == ("calibrated", "visual", "probability", ["../tcn"])
    frame = subsets.load_split(tcn.parent.parent / "lists", "val_fit")
    label = subsets.label(frame, "visual")
    expected = calibrated.fit(load_system(tcn).clip_scores("val"), frame["file"], label)
    parameters = system.parameters
    assert (parameters["a"], parameters["b"]) == (expected.a, expected.b)
    assert parameters["n"] == len(frame) and parameters["fit_hash"]
    assert (parameters["label"], parameters["input"]) == ("own", "probability")
    assert parameters["log_loss_after"] < parameters["log_loss_before"]
    scores = system.derive("val")
    assert scores.header.scale == "probability" and len(scores.table) == 48
    assert "log-loss" in capsys.readouterr().out


def test_command_skips_what_is_done_and_refuses_other_settings(tcn, capsys):
    out, _ = run(tcn)
    before = (out / "system.yaml").read_bytes()
    assert run(tcn)[1] == 0 and "up to date" in capsys.readouterr().out
    assert run(tcn, "--label", "video")[1] == 2
    assert "label: 'own' there, 'video' now" in capsys.readouterr().err
    assert (out / "system.yaml").read_bytes() == before
    assert run(tcn, "--label", "video", "--force")[1] == 0
    assert load_system(out).parameters["n_fake"] == 15  # three of four types, 5 sources


def test_command_refuses_its_own_folder_and_missing_scores(tcn, capsys):
    assert cli.main(["calibrate", str(tcn), "--out", str(tcn), "--labels", "lists"]) == 2
    score_path(tcn, "val", "clips").unlink()
    assert run(tcn)[1] == 2
    assert f"klassify score {tcn} --split val" in capsys.readouterr().err


@pytest.mark.parametrize(
    "parameters", [{"b": 1.0, "input": "probability"}, {"a": 1.0, "b": 1.0, "input": "odds"}]
)
def test_a_system_yaml_that_lacks_a_parameter_is_refused(tcn, capsys, parameters):
    folder = tcn.parent / "cut"
    inputs = [load_system(tcn)]
    write_system(folder, derived_system(folder, "calibrated", inputs, "probability", parameters))
    assert cli.main(["score", str(folder), "--split", "val"]) == 2
    said = capsys.readouterr().err
    assert "The parameter" in said and "make this system again" in said
