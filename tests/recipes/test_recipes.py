"""The recipes and configs that we ship: each one parses, builds and shows its commands; unknown
names are refused.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml
from places import ROOT

from klassify import cli
from klassify.systems.detector import read_answers
from klassify.systems.experiment import load_experiment

CONFIGS = sorted(
    path for path in ROOT.glob("recipes/*/conf/*/*.yaml") if path.name != "submit.yaml"
)
RUNS = sorted(ROOT.glob("recipes/*/run.sh"))
RUN = ROOT / "recipes/klassify/run.sh"


def run(*arguments: str, script: Path = RUN) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(script), *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120
    )


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
    """As the names of the recipes have it: the localisers and the branches of `fused` learn from
    segments.
    """
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
        (["data=demo", "devices=many"], "devices"),
        (["data=demo", "workers=-1"], "workers"),
    ],
)
def test_unknown_names_are_refused_by_name(arguments, named):
    done = run(*arguments)
    assert done.returncode == 2 and named in done.stderr


@pytest.mark.parametrize("script", RUNS, ids=lambda path: path.parent.name)
def test_named_systems_alone_are_trained_scored_and_evaluated(script):
    """What system= names, in stages 2 to 4, whether it belongs to the default systems or is a
    variant.
    """
    for config in sorted((script.parent / "conf/paper").glob("*.yaml")):
        if config.stem == "submit":
            continue
        done = run(
            "data=avdeepfake1mpp",
            "root=/media",
            "--stage",
            "2",
            f"system={config.stem}",
            "dry=1",
            script=script,
        )
        assert done.returncode == 0, done.stderr
        commands = [line for line in done.stdout.splitlines() if line.startswith("+ klassify ")]
        made = [
            line
            for line in commands
            if line.startswith(("+ klassify train", "+ klassify import-checkpoint"))
        ]
        assert (
            len(made) == 1
            and f"conf/paper/{config.name}" in made[0]
            and f"/{config.stem} " in f"{made[0]} "
        )
        if config.stem != "vqvae":  # a part of another system
            assert any(line.startswith("+ klassify score") and "testA" in line for line in commands)
            assert any(
                line.startswith("+ klassify evaluate") and "testA" in line for line in commands
            )


def commands_of(*arguments: str) -> list[list[str]]:
    """The words of each command that a dry run of the klassify recipe prints."""
    done = run("root=/media", "dry=1", *arguments)
    assert done.returncode == 0, done.stderr
    return [line.split()[2:] for line in done.stdout.splitlines() if line.startswith("+ klassify ")]


AUGMENTED = ("w2v_aasist_rtpg", "w2v_aasist_bp", "w2v_aasist_codecs", "w2v_aasist_all")


@pytest.mark.parametrize("data", ["demo", "avdeepfake1mpp"])
def test_the_ensemble_is_the_mean_of_the_four_augmented_systems(data):
    named = f"system={','.join(AUGMENTED)},w2v_aasist_ensemble"
    commands = commands_of(f"data={data}", named, "--stage", "2", "--stop-stage", "4")
    (fuse,) = [
        words
        for words in commands
        if words[0] == "fuse" and words[-1].endswith("/w2v_aasist_ensemble")
    ]
    assert [Path(word).name for word in fuse[1:5]] == list(AUGMENTED) and fuse[5:7] == [
        "--rule",
        "mean",
    ]
    for split in ("val", "testA"):
        folders = [
            Path(word).name
            for words in commands
            if words[0] == "score" and split in words
            for word in words
        ]
        assert {*AUGMENTED, "w2v_aasist_ensemble"} <= set(folders)
    # scored after what it is made of
    order = [Path(words[1]).name for words in commands if words[0] == "score" and "testA" in words]
    assert order.index("w2v_aasist_ensemble") > max(map(order.index, AUGMENTED))


@pytest.mark.parametrize(
    ("data", "audio"), [("demo", "w2v_aasist"), ("avdeepfake1mpp", "w2v_aasist_codecs")]
)
def test_fusions_of_the_paper_take_the_system_trained_with_codecs(data, audio):
    commands = commands_of(f"data={data}", "--stage", "2", "--stop-stage", "4")
    trained = [Path(words[1]).stem for words in commands if words[0] == "train"]
    assert trained == ["tcn", audio, "tcn_tags", "bam"]
    fused = {
        Path(words[-1]).name: [Path(word).name for word in words[1:3]]
        for words in commands
        if words[0] == "fuse"
    }
    assert fused == {"avg": [audio, "tcn"], "maxout": [f"{audio}-platt", "tcn-platt"]}
    for words in commands:
        assert (
            words[0] != "evaluate"
            or "--task" in words
            or [Path(word).name for word in words[1:7]]
            == ["tcn", audio, "tcn-platt", f"{audio}-platt", "avg", "maxout"]
        )


def test_bam_of_the_paper_starts_from_the_released_one():
    def init(*arguments: str) -> list[str]:
        commands = commands_of("--stage", "2", *arguments)
        return [words[words.index("--init") + 1] for words in commands if "--init" in words]

    assert init() == init("system=bam") == ["pretrained/bam.safetensors"]
    assert init("system=bam_wavlm") == init("data=demo") == []


@pytest.mark.parametrize("script", RUNS, ids=lambda path: path.parent.name)
def test_devices_and_readers_reach_what_uses_them(script):
    done = run(
        "root=/media",
        "dry=1",
        "devices=8",
        "workers=12",
        "--stage",
        "2",
        "--stop-stage",
        "3",
        script=script,
    )
    commands = [
        line.split()[2:] for line in done.stdout.splitlines() if line.startswith("+ klassify ")
    ]
    trained = {Path(words[1]).stem: words for words in commands if words[0] == "train"}
    assert trained
    for name, words in trained.items():  # the TCN is too small for several devices
        assert ("--devices" in words) == (not name.startswith("tcn"))
        assert words[words.index("--workers") + 1] == "12"
    scored = [words for words in commands if words[0] == "score" and "--media" in words]
    assert scored and all("--workers" in words and "--devices" not in words for words in scored)


def small_checkout(root: Path) -> Path:
    """A checkout with lists, but without features and weights."""
    shutil.copytree(ROOT / "recipes", root / "recipes")
    for split in ("train", "val"):
        (root / "data_lists/avdeepfake1mpp").mkdir(parents=True, exist_ok=True)
        (root / f"data_lists/avdeepfake1mpp/{split}.tsv").touch()
    return root / "recipes/klassify/run.sh"


@pytest.mark.parametrize(
    ("system", "file"),
    [
        ("w2v_aasist_rtpg,bam", "pretrained/bam.safetensors"),
        ("w2v_aasist_baseline_1", "pretrained/LA_model.pth"),
        ("w2v_aasist_baseline_2", "pretrained/ASVspoof5_model.pth"),
    ],
)
def test_missing_weights_stop_before_anything_is_trained(tmp_path, system, file):
    """And a system that hears alone waits for no mouth features."""
    done = run(
        "root=/media",
        "--stage",
        "2",
        "--stop-stage",
        "2",
        f"system={system}",
        script=small_checkout(tmp_path),
    )
    assert (
        done.returncode == 2
        and f"{file} is missing" in done.stderr
        and "docs/gpu-box.md" in done.stderr
    )
    assert "+ klassify" not in done.stdout


def test_what_is_joined_waits_for_its_parts(tmp_path):
    script = small_checkout(tmp_path)
    done = run(
        "root=/media",
        "--stage",
        "2",
        "--stop-stage",
        "2",
        "system=w2v_aasist_ensemble",
        script=script,
    )
    assert (
        done.returncode == 2
        and "make stage2" in done.stderr
        and "system=w2v_aasist_rtpg" in done.stderr
    )
    done = run("root=/media", "--stage", "2", "--stop-stage", "2", "system=tcn", script=script)
    assert done.returncode == 2 and "make stage1" in done.stderr


def test_systems_that_read_no_lmm_features_wait_for_none(tmp_path):
    small_checkout(tmp_path)
    script = tmp_path / "recipes/multibranch/run.sh"
    (tmp_path / ".venv/bin").mkdir(parents=True)
    klassify = tmp_path / ".venv/bin/klassify"
    klassify.write_text("#!/bin/sh\n")
    klassify.chmod(0o755)
    for system, needed in (
        ("ps", False),
        ("vqvae,visual_no_lmm", False),
        ("ps,visual_clip", True),
        ("visual", True),
    ):
        done = run(
            "root=/media", "--stage", "2", "--stop-stage", "2", f"system={system}", script=script
        )
        assert ("lmm/train is missing" in done.stderr) == needed, system
        assert ("+ klassify train" in done.stdout) != needed


@pytest.mark.parametrize("end", ["false", "kill -INT 0; sleep 30"])
def test_a_stage_that_fails_takes_with_it_what_runs_beside(tmp_path, end):
    """And what that has started."""
    (tmp_path / "recipes/one/conf/paper").mkdir(parents=True)
    shutil.copy(ROOT / "recipes/common.sh", tmp_path / "recipes")
    script, started = tmp_path / "recipes/one/run.sh", tmp_path / "started"
    script.write_text(f"""#!/usr/bin/env bash
        . "$(dirname "$0")/../common.sh" "$@"
        long() {{ sleep 60 & echo $! > {started}.new; mv {started}.new {started}; wait; }}
        beside long
        until [ -e {started} ]; do sleep 0.05; done
        {end}
    """)
    script.chmod(0o755)
    done = subprocess.run(
        [script],
        start_new_session=True,
        timeout=20,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert done.returncode
    pid, deadline = int(started.read_text()), time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_every_row_of_the_tables_has_its_command():
    text = (ROOT / "recipes/klassify/RESULTS.md").read_text()
    text = text[text.index("## Table 2") : text.index("## Speed")]
    named = {
        name for names in re.findall(r"system=([a-z0-9_,]+)", text) for name in names.split(",")
    }
    made = {path.stem for path in ROOT.glob("recipes/klassify/conf/paper/*.yaml")} - {"submit"}
    assert made <= named <= made | {"avg", "maxout", "merged", "w2v_aasist_ensemble"}
    for number in (
        "84.29",
        "60.53",
        "73.34",
        "82.14",
        "82.57",
        "82.91",
        "80.58",
        "81.89",
        "91.97",
        "92.78",
        "0.3536",
    ):
        assert number in text


def test_a_missing_prerequisite_stops_with_the_command_that_makes_it():
    for stage, made_by in ((1, "make stage0"), (2, "make stage0"), (3, "make stage2")):
        done = run(
            "--stage",
            str(stage),
            "--stop-stage",
            str(stage),
            "data=lavdf",
            "root=/media",
            "split=val",
        )
        assert done.returncode == 2 and made_by in done.stderr and "data=lavdf" in done.stderr


def test_make_help_lists_stages_and_variables():
    done = subprocess.run(
        ["make", "help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"data": "leak"},
    )
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
    targets = re.findall(
        r"^([a-z0-9-]+(?: [a-z0-9-]+)*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE
    )
    known = {name for line in targets for name in line.split()}
    assert set(re.findall(r"^make ([a-z0-9-]+)", text, flags=re.MULTILINE)) <= known


def test_every_yaml_of_the_demo_and_of_the_paper_has_a_first_line_that_says_what_it_is():
    for path in CONFIGS:
        assert path.read_text().startswith("# "), path
        keys = set(yaml.safe_load(path.read_text()))
        assert keys == {"model", "data", "train"} or {"base"} <= keys <= {
            "base",
            "model",
            "data",
            "train",
        }
