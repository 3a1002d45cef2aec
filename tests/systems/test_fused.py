"""Fusion rules by their properties; missing modalities; the fusion's folder."""

import numpy as np
import pandas as pd
import pytest
from small_systems import write_model

from klassify import cli
from klassify.errors import KlassifyError
from klassify.scores.score_file import Header, ScoreFile, score_path, write_scores
from klassify.systems import fused
from klassify.systems.base import derived_system, made_before, write_system
from klassify.systems.system import load_system, load_systems

FILES = [f"{i}.mp4" for i in range(40)]


def scores_of(name, score, scale="probability", files=FILES):
    table = pd.DataFrame({"file": files, "start": 0.0, "end": 4.0, "score": score})
    table["reason"] = np.where(table["score"].isna(), f"no {name}", "")
    return ScoreFile(Header(name, "val", "clips", scale, "clip"), table)


def fusion(rule="max", prior=0.4, **parameters):
    described = ("fused", "fusion", "both", "clip", "probability", ["../a", "../b"])
    return fused.Fused(*described, {"rule": rule, "prior": prior, **parameters})


def random_scores(seed, share_missing=0.2):
    rng = np.random.default_rng(seed)
    score = rng.random(len(FILES))
    score[rng.random(len(FILES)) < share_missing] = np.nan
    return score


@pytest.mark.parametrize("rule", fused.RULES)
def test_rules_are_commutative_idempotent_bounded_and_monotone(rule):
    combine = fused.RULES[rule].combine
    for seed in range(20):
        p, q = random_scores(seed), random_scores(seed + 100)
        both = combine(np.stack([p, q]))
        np.testing.assert_array_equal(both, combine(np.stack([q, p])))
        np.testing.assert_allclose(combine(np.stack([p, p, p])), p)
        np.testing.assert_array_equal(np.isnan(both), np.isnan(p) & np.isnan(q))
        low, high = np.fmin(p, q), np.fmax(p, q)
        answered = ~np.isnan(both)
        assert (both[answered] >= low[answered] - 1e-12).all()
        assert (both[answered] <= high[answered] + 1e-12).all()
        more = combine(np.stack([np.minimum(p + 0.1, 1), q]))
        assert (more[answered] >= both[answered]).all()


def test_missing_answers_come_from_the_others_or_the_prior():
    p, q = np.full(40, 0.2), np.full(40, 0.6)
    p[[0, 1]] = np.nan
    q[[1, 2]] = np.nan
    for rule, both in (("max", 0.6), ("mean", 0.4)):
        table = fusion(rule).clip_table([scores_of("audio", p), scores_of("video", q)])
        np.testing.assert_allclose(table["score"][:4], [0.6, 0.4, 0.2, both])
        assert table["answered"].tolist()[:4] == [1, 0, 1, 2]
        audio, video = "audio: no audio", "video: no video"
        assert table["reason"].tolist()[:4] == [audio, f"{audio}; {video}", video, ""]
        assert table["score"].notna().all()


def test_clips_are_joined_by_name():
    p, q = random_scores(1, 0), random_scores(2, 0)
    straight = fusion().clip_table([scores_of("a", p), scores_of("b", q)])
    other = scores_of("b", q)
    shuffled = ScoreFile(other.header, other.table.sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(straight, fusion().clip_table([scores_of("a", p), shuffled]))
    with pytest.raises(KlassifyError, match="1 without a score"):
        fusion().clip_table([scores_of("a", p), scores_of("b", q[:-1], files=FILES[:-1])])


def test_a_fusions_prior_is_not_an_answer_for_the_next():
    silent = [scores_of(name, np.full(40, np.nan)) for name in "ab"]
    first = fusion(prior=0.9).clip_table(silent)
    nested = ScoreFile(Header("inner", "val", "clips", "probability", "clip"), first)
    table = fusion(prior=0.3).clip_table([nested, scores_of("c", np.full(40, 0.1))])
    assert (table["score"] == 0.1).all() and (table["answered"] == 1).all()


def test_mean_takes_log_odds_and_max_does_not():
    log_odds = scores_of("raw", np.full(40, 2.0), "log_odds")
    table = fusion("mean").clip_table([log_odds, scores_of("b", np.full(40, 0.5))])
    np.testing.assert_allclose(table["score"], (1 / (1 + np.exp(-2)) + 0.5) / 2)
    refused = "max takes probability scores; those of raw are log_odds"
    with pytest.raises(KlassifyError, match=refused):
        fusion("max").clip_table([log_odds, scores_of("b", np.full(40, 0.5))])


@pytest.fixture
def exp(tmp_path):
    """Two calibrated systems, scored on val, with base rates 0.3 and 0.6."""
    for name, modality, base_rate in (("audio", "audio", 0.3), ("video", "visual", 0.6)):
        raw = tmp_path / f"{name}_raw"
        write_model(raw, modality)
        parameters = {"a": -3.0, "b": 1.0, "input": "probability", "base_rate": base_rate}
        folder = tmp_path / name
        platt = derived_system(folder, "calibrated", [load_system(raw)], "probability", parameters)
        write_system(folder, platt)
        scores = scores_of(name, random_scores(len(name) + len(modality)))
        write_scores(score_path(folder, "val", "clips"), scores.table, scores.header)
    return tmp_path


def test_command(exp, capsys):
    command = ["fuse", f"{exp}/audio", f"{exp}/video", "--out", f"{exp}/maxout", "--rule", "max"]
    assert cli.main(command) == 0
    system = load_system(exp / "maxout")
    assert (system.kind, system.modality, system.supervision) == ("fusion", "both", "clip")
    assert system.inputs == ["../audio", "../video"]
    assert system.parameters["prior"] == 0.6  # the larger of the base rates
    assert cli.main(command) == 0 and "up to date" in capsys.readouterr().out
    assert cli.main([*command, "--prior", "0.5"]) == 2
    assert "prior: 0.6 there, 0.5 now" in capsys.readouterr().err
    scores = load_system(exp / "maxout").derive("val")
    assert scores.table["score"].notna().all() and scores.header.scale == "probability"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audio"], "two or more different systems"),
        (["audio", "audio"], "two or more different systems"),
        (["audio", "maxout"], "two or more different systems"),
        (["audio", "video_raw"], "calibrate video_raw first"),
        (["audio", "nowhere"], "There is no folder nowhere"),
    ],
)
def test_command_refuses(exp, capsys, arguments, message):
    inputs = [f"{exp}/{item}" for item in arguments]
    assert cli.main(["fuse", *inputs, "--out", f"{exp}/maxout", "--rule", "max"]) == 2
    assert message in capsys.readouterr().err
    assert not (exp / "maxout").exists()


def test_the_folder_of_a_trained_model_is_not_overwritten(exp, capsys):
    """Not by calibrate either."""
    before = (exp / "audio_raw/system.yaml").read_bytes()
    command = ["fuse", f"{exp}/audio", f"{exp}/video", "--out", f"{exp}/audio_raw", "--rule", "max"]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert "holds audio_raw, a system of another kind (model)" in said and "--force" in said
    assert (exp / "audio_raw/system.yaml").read_bytes() == before
    with pytest.raises(KlassifyError, match="another kind"):
        made_before(exp / "audio_raw", {"inputs": []})
    assert cli.main([*command, "--force"]) == 0
    assert "kind: fusion" in (exp / "audio_raw/system.yaml").read_text()


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({}, "parameter rule"),
        ({"rule": "median", "prior": 0.5}, "median"),
        ({"rule": ["max"], "prior": 0.5}, "rule"),
        ({"rule": "max"}, "parameter prior"),
        ({"rule": "max", "prior": "high"}, "high"),
        ({"rule": "max", "prior": float("nan")}, "prior"),
    ],
)
def test_missing_or_wrong_parameters_are_refused_by_name(exp, capsys, parameters, named):
    folder, inputs = exp / "fused", load_systems([exp / "audio", exp / "video"])
    write_system(folder, derived_system(folder, "fusion", inputs, "probability", parameters))
    assert cli.main(["score", str(folder), "--split", "val"]) == 2
    assert named in capsys.readouterr().err
