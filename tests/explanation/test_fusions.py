"""Contributions of the inputs of a fusion are exact: they add up to its answer."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from small_systems import FILES, make_system

from klassify.explanation.fusions import modality_probabilities, of_linear, of_stack, over_systems
from klassify.scores.frame_file import FrameFile
from klassify.scores.score_file import Header, ScoreFile, read_scores, score_path, write_scores
from klassify.systems import linear, stack
from klassify.systems.base import System, derived_system, write_system
from klassify.systems.fused import fuse
from klassify.systems.system import load_system

MODALITIES = ["audio", "visual", "audio"]


def one_clip(system, row):
    scores = read_scores(score_path(system.folder, "testA", "clips"))
    return ScoreFile(scores.header, scores.table.iloc[[row]])


@pytest.mark.parametrize("rule", ["max", "mean"])
def test_probabilities_add_up(tmp_path, rule):
    first = make_system(tmp_path / "first", [0.9, 0.2, np.nan, np.nan])
    second = make_system(tmp_path / "second", [0.3, 0.7, 0.4, np.nan])
    fuse(tmp_path / "fused", [load_system(first), load_system(second)], rule)
    fused = load_system(tmp_path / "fused")
    answers = fused.derive("testA").table["score"].to_numpy()
    for row in range(3):
        inputs = [one_clip(one, row) for one in fused.input_systems]
        found = over_systems(fused, inputs)
        assert found.names == ("first", "second")
        assert found.values.sum() + found.rest == pytest.approx(answers[row])
        assert np.count_nonzero(found.values) == (1 if rule == "max" or row == 2 else 2)
    assert over_systems(fused, [one_clip(one, 3) for one in fused.input_systems]) is None
    said = modality_probabilities(fused, [one_clip(one, 0) for one in fused.input_systems])
    assert said == {"audio": pytest.approx(0.9 if rule == "max" else 0.6)}


def test_a_calibration_weights_its_input(tmp_path):
    make_system(tmp_path / "one", [0.9, 0.2, 0.5, 0.1])
    parameters = {"a": -3.0, "b": 1.0, "input": "probability"}
    inputs = [load_system(tmp_path / "one")]
    write_system(
        tmp_path / "platt",
        derived_system(tmp_path / "platt", "calibrated", inputs, "probability", parameters),
    )
    platt = load_system(tmp_path / "platt")
    found = over_systems(platt, [one_clip(inputs[0], 0)])
    assert (found.values.tolist(), found.rest) == ([2.7], -1.0)
    answer = platt.derive("testA").table["score"].iloc[0]
    assert expit(found.values.sum() + found.rest) == pytest.approx(answer)


def weights(rng, coefficients, missing=()):
    k = len(MODALITIES)
    platt = np.column_stack([-rng.uniform(1, 5, k), rng.normal(size=k)])
    spread = rng.uniform(0.5, 2, k)
    return stack.Weights(
        platt, rng.normal(size=k), spread, list(missing), [0, 1], np.array(coefficients), 0.3
    )


@pytest.mark.parametrize("lost", [(), (0,), (0, 1)])
def test_a_stack_adds_up(lost):
    rng = np.random.default_rng(1)
    one = weights(rng, rng.normal(size=9), missing=(0,))
    p = rng.uniform(0.05, 0.95, 3)
    p[list(lost)] = np.nan
    values, rest = of_stack(one, p, MODALITIES)
    answer = one.probability(p[:, None], MODALITIES)[0]
    assert values.sum() + rest == pytest.approx(logit(answer))
    assert not values[list(lost)].any()


def test_weights_of_a_stack_go_to_their_own_inputs():
    rng = np.random.default_rng(2)
    p = np.array([0.8, 0.3, 0.6])
    one = weights(rng, [0, 0, 0, 2.0, 0, 0, 0, 0])
    z = stack.standardised(p[:, None], one.mean, one.spread)[:, 0]
    values, rest = of_stack(one, p, MODALITIES)
    np.testing.assert_allclose(values, [0, 2 * z[1], 0])
    assert rest == pytest.approx(one.intercept)
    one = one._replace(coefficients=np.array([0, 0, 0, 0, 0, 0, 4.0, 0]))  # inputs 0 and 2
    values, _ = of_stack(one, p, MODALITIES)
    np.testing.assert_allclose(values, [2 * z[0] * z[2], 0, 2 * z[0] * z[2]])
    one = one._replace(coefficients=np.array([3.0, 0, 0, 0, 0, 0, 0, 0]))
    values, rest = of_stack(one, p, MODALITIES)
    means = np.array(
        [one.calibrated(p[:, None])[[0, 2], 0].mean(), one.calibrated(p[:, None])[1, 0]]
    )
    share = np.exp(means) / np.exp(means).sum()
    assert values[1] == pytest.approx(3 * share[1] * means[1])
    assert rest == pytest.approx(one.intercept - 3 * (share * np.log(share)).sum())


@pytest.mark.parametrize("aggregate", ["max", "top"])
def test_a_linear_fusion_adds_up_in_each_frame(tmp_path, aggregate):
    rng = np.random.default_rng(3)
    for name, n_frames, columns in (("ear", 40, ["score"]), ("eye", 30, ["real", "fake"])):
        write_system(tmp_path / name, System(name, "model", "audio", "segment", "log_odds"))
        times = np.arange(n_frames) * 0.04
        frames = pd.DataFrame({"file": FILES[0], "start": times, "end": times + 0.04})
        frames["score"] = 0.0
        for column in columns:
            frames[column] = rng.normal(size=n_frames)
        header = Header(name, "testA", "frames", "log_odds", "segment", {})
        write_scores(score_path(tmp_path / name, "testA", "frames"), frames, header)
        clips = pd.DataFrame({"file": FILES, "start": 0.0, "end": 4.0, "score": 0.1, "reason": ""})
        header = Header(name, "testA", "clips", "log_odds", "segment", {})
        write_scores(score_path(tmp_path / name, "testA", "clips"), clips, header)
    rule = linear.Rule(
        [["score"], ["real", "fake"]],
        rng.normal(size=(2, 3)),
        rng.normal(size=2),
        rng.normal(size=3),
        0.1,
        aggregate,
    )
    inputs = [load_system(tmp_path / name) for name in ("ear", "eye")]
    parameters = linear.parameters_of(rule)
    write_system(
        tmp_path / "sum", derived_system(tmp_path / "sum", "fusion", inputs, "log_odds", parameters)
    )
    system = load_system(tmp_path / "sum")
    clips = system.derive("testA").table.set_index("file")["score"]
    sources = [FrameFile(one.frames_path("testA")) for one in inputs]
    over_clip, over_time = of_linear(system, sources, FILES[0])
    frames = FrameFile(system.frames_path("testA")).read([FILES[0]], ["score"]).values[:, 0]
    np.testing.assert_allclose(over_time.values.sum(axis=1) + over_time.rest, frames, atol=1e-5)
    assert over_clip.values.sum() + over_clip.rest == pytest.approx(clips[FILES[0]], abs=1e-5)
    assert not over_time.values[35:, 1].any()  # the eye is silent: its means take its place
    assert of_linear(system, sources, FILES[1]) == []
