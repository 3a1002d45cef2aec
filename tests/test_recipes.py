"""The recipes and configs that we ship: each one parses, builds and shows its commands; unknown names are refused."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from klassify import cli
from klassify.detector import read_answers
from klassify.experiment import load_experiment

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted(path for path in ROOT.glob("recipes/*/conf/*/*.yaml") if path.name != "submit.yaml")
RUNS = sorted(ROOT.glob("recipes/*/run.sh"))
RUN = ROOT / "recipes/klassify/run.sh"


def run(*arguments: str, script: Path = RUN) -> subprocess.CompletedProcess:
    return subprocess.run([str(script), *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120)


@functools.cache
def help_of(command: str) -> str:
    """What `klassify COMMAND --help` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        cli.main([command, "--help"])
    return printed.getvalue()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: "/".join(path.parts[-4:]))
def test_every_config_builds_its_system(path):
    """Full-size models are built on the meta device: every layer, no memory."""
    with torch.device("meta"):
        experiment = load_experiment(path)
    assert sum(p.numel() for p in experiment.model.parameters()) > 1000
    assert experiment.data.modality in ("audio", "visual")
    assert experiment.data.supervision == ("clip" if is_clip_supervised(path) else "segment")


def is_clip_supervised(path: Path) -> bool:
    """As the names of the recipes have it: the localisers and the branches of `fused` learn from segments."""
    clip = ("tcn", "tcn_12", "tcn_123", "vqvae")
    return path.stem in clip or path.stem.startswith("w2v_aasist") or path.stem.endswith("_clip")


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*/conf/*/submit.yaml")), ids=str)
def test_submitted_systems_are_made_by_the_recipe(path):
    for name in read_answers(path).values():
        assert re.search(rf"\$exp/{name}\b", (path.parents[2] / "run.sh").read_text())


@pytest.mark.parametrize("script", RUNS, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("data", ["demo", "avdeepfake1mpp", "fakeavceleb"])
@pytest.mark.parametrize("stage", range(5))
def test_every_stage_shows_its_commands_and_does_nothing(stage, data, script):
    """Each printed command is one that the command line knows, with options that it knows."""
    stages = ("--stage", str(stage), "--stop-stage", str(stage))
    done = run(*stages, f"data={data}", "root=/media", "dry=1", script=script)
    if data == "fakeavceleb" and stage == 2:
        assert done.returncode == 2 and "only tested on" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    commands = [line[2:].split() for line in done.stdout.splitlines() if line.startswith("+ ")]
    assert commands
    for words in commands:
        assert words[0] == "klassify" and words[1] in cli.COMMANDS
        options = help_of(words[1])
        for option in (word for word in words if word.startswith("--")):
            assert option in options, f"{words[1]} has no {option}"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["splitt=val"], "splitt"),
        (["data=ours"], "ours"),
        (["data=demo", "split=testZ", "dry=1"], "testZ"),
        (["data=demo", "conf=none"], "none"),
        (["data=demo", "size=huge"], "huge"),
        (["data=demo", "system=xception", "--stage", "2", "dry=1"], "xception"),
        (["data=demo", "from=demo"], "from="),
        (["data=fakeavceleb", "from=fakeavceleb"], "from="),
        (["data=fakeavceleb", "split=testA", "dry=1"], "testA"),
        (["--stages", "1"], "--stages"),
        (["data=demo", "seed=one"], "seed"),
    ],
)
def test_unknown_names_are_refused_by_name(arguments, named):
    done = run(*arguments)
    assert done.returncode == 2 and named in done.stderr


@pytest.mark.parametrize("script", RUNS, ids=lambda path: path.parent.name)
def test_named_systems_alone_are_trained_scored_and_evaluated(script):
    """What system= names, in stages 2 to 4, whether it belongs to the default systems or is a variant."""
    for config in sorted((script.parent / "conf/paper").glob("*.yaml")):
        if config.stem == "submit":
            continue
        done = run(
            "data=avdeepfake1mpp", "root=/media", "--stage", "2", f"system={config.stem}", "dry=1", script=script
        )
        assert done.returncode == 0, done.stderr
        commands = [line for line in done.stdout.splitlines() if line.startswith("+ klassify ")]
        trained = [line for line in commands if line.startswith("+ klassify train")]
        assert len(trained) == 1 and config.as_posix().endswith(trained[0].split()[3])
        if config.stem != "vqvae":  # a part of another system
            assert any(line.startswith("+ klassify score") and "testA" in line for line in commands)
            assert any(line.startswith("+ klassify evaluate") and "testA" in line for line in commands)


def test_a_missing_prerequisite_stops_with_the_command_that_makes_it():
    for stage, made_by in ((1, "make stage0"), (2, "make stage0"), (3, "make stage2")):
        done = run("--stage", str(stage), "--stop-stage", str(stage), "data=lavdf", "root=/media", "split=val")
        assert done.returncode == 2 and made_by in done.stderr and "data=lavdf" in done.stderr


def test_make_help_lists_stages_and_variables():
    done = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT, env=os.environ | {"data": "leak"})
    assert done.returncode == 0
    for name in ("stage0", "stage4", "split=", "force=1", "dry=1"):
        assert name in done.stdout


def test_make_refuses_an_unknown_variable_by_name():
    done = subprocess.run(["make", "help", "splitt=val"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "splitt" in done.stderr


def test_readme_names_files_and_targets_that_exist():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
    targets = re.findall(r"^([a-z0-9-]+(?: [a-z0-9-]+)*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    known = {name for line in targets for name in line.split()}
    assert set(re.findall(r"^make ([a-z0-9-]+)", text, flags=re.MULTILINE)) <= known


def test_every_yaml_of_the_demo_and_of_the_paper_has_a_first_line_that_says_what_it_is():
    for path in CONFIGS:
        assert path.read_text().startswith("# "), path
        assert set(yaml.safe_load(path.read_text())) == {"model", "data", "train"}
