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
        (["train", "x", "--out", "x", *SOURCES], "--seed", "-1"),
        (["train", "x", "--out", "x", *SOURCES], "--seed", str(2**64)),
        (["evaluate", "x", "--task", "2"], "--bootstrap", "-1"),
        (["augment", "x", "--set", SET, "--out", "x"], "--draws", "many"),
        (EXTRACT, "--interval", "0"),
        (EXTRACT, "--shards", "0"),
        (["resume", "x"], "--grace", "-1"),
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
def test_a_prior_must_be_a_probability(capsys, command, value):
    with pytest.raises(SystemExit):
        cli.main([*command, "--prior", value])
    assert f"argument --prior: a probability, 0 to 1, not '{value}'" in capsys.readouterr().err
