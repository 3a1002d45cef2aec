"""Counts and seeds on the command line: argparse refuses impossible ones by option."""

from __future__ import annotations

import pytest

from klassify import cli
from klassify.augmentation.sets import SETS

SET = next(iter(SETS))
EXTRACT = ["extract", "--list", "x", "--root", "x", "--out", "x"]
SOURCES = ["--lists", "x", "--media", "x", "--features", "x"]


@pytest.mark.parametrize(
    "command, option, value",
    [
        (["score", "x", "--split", "val"], "--batch-size", "0"),
        (["score", "x", "--split", "val"], "--batch-size", "-1"),
        (["score", "x", "--split", "val"], "--workers", "-1"),
        (["train", "x", "--out", "x", *SOURCES], "--seed", "-1"),
        (["train", "x", "--out", "x", *SOURCES], "--seed", str(2**64)),
        (["train", "x", "--out", "x", *SOURCES], "--workers", "-1"),
        (["evaluate", "x", "--task", "2"], "--bootstrap", "-1"),
        (["evaluate", "x"], "--seed", "-1"),
        (["augment", "x", "--set", SET, "--out", "x"], "--seed", "-1"),
        (["augment", "x", "--set", SET, "--out", "x"], "--draws", "many"),
        (["check", "x"], "--limit", "-1"),
        (["compare", "x", "--split", "val", "--out", "x"], "--bootstrap", "-1"),
        (["lists", "--data", "demo", "--root", "x", "--out", "x"], "--jobs", "0"),
        (["corpus", "--out", "x"], "--seed", "-1"),
        (EXTRACT, "--jobs", "0"),
        (EXTRACT, "--chunk", "0"),
        (EXTRACT, "--interval", "0"),
        (EXTRACT, "--batch", "0"),
        (EXTRACT, "--size", "-4"),
        (EXTRACT, "--shards", "0"),
        (EXTRACT, "--max-parallel", "0"),
        (EXTRACT, "--gpus", "-1"),
        (["train", "x", "--out", "x", *SOURCES], "--nodes", "0"),
        (["resume", "x"], "--grace", "-1"),
        (["fuse", "x", "--out", "x", "--rule", "linear"], "--epochs", "0"),
    ],
)
def test_counts_and_seeds_out_of_range_are_refused_by_name(capsys, command, option, value):
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, option, value])
    assert caught.value.code == 2
    assert f"argument {option}: a whole number, " in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["fuse", "x", "--out", "x", "--rule", "max"],
        ["package", "--list", "x", "--split", "val", "--out", "x"],
    ],
)
@pytest.mark.parametrize("value", ["1.5", "-0.1", "nan", "half"])
def test_a_prior_that_is_no_probability_is_refused_by_name(capsys, command, value):
    with pytest.raises(SystemExit):
        cli.main([*command, "--prior", value])
    assert f"argument --prior: a probability, 0 to 1, not '{value}'" in capsys.readouterr().err
