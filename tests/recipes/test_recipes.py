"""The recipes and configs: each builds and prints its commands, and refuses unknown names."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml
from commands import check_words, ran
from places import NO_SYSTEMS, ROOT, configs, copy_recipes

from klassify.systems.experiment import load_experiment

RUNS = sorted(ROOT.glob("recipes/*/run.sh"))
RUN = ROOT / "recipes/klassify/run.sh"

each_recipe = pytest.mark.parametrize("script", RUNS, ids=lambda path: path.parent.name)


def run(*arguments: str, script: Path = RUN) -> subprocess.CompletedProcess:
    return ran([str(script), *arguments], cwd=ROOT, timeout=120)


def run_stage(number: int, *arguments: str, script: Path = RUN) -> subprocess.CompletedProcess:
    return run("--stage", str(number), "--stop-stage", str(number), *arguments, script=script)


def commands_of(*arguments: str, script: Path = RUN) -> list[list[str]]:
    """The words of each klassify command that a dry run prints."""
    done = run("root=/media", "dry=1", *arguments, script=script)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("+ ")]
    assert all(line.startswith("+ klassify ") for line in lines)
    return [line.split()[2:] for line in lines]


@pytest.mark.parametrize("path", configs(), ids=lambda path: "/".join(path.parts[-4:]))
def test_every_config_builds_its_system(path):
    """Full-size models are built on the meta device: every layer, no memory."""
    with torch.device("meta"):
        experiment = load_experiment(path)
    assert sum(p.numel() for p in experiment.model.parameters()) > 1000
    assert experiment.data.modality in ("audio", "visual", "both")
    assert experiment.data.supervision == supervision_of(path)


def supervision_of(path: Path) -> str:
    """By its name: the localisers and the branches of `fused` learn from segments."""
    if path.stem.startswith("splice"):
        return "self"
    clip = ("tcn", "tcn_12", "tcn_123", "vqvae", "sync")
    ends = path.stem.endswith(("_clip", "_mil"))
    learns = path.stem in clip or path.stem.startswith("w2v_aasist") or ends
    return "clip" if learns else "segment"


NAMING = [path for name in NO_SYSTEMS for path in ROOT.glob(f"recipes/*/conf/*/{name}")]


@pytest.mark.parametrize("path", NAMING, ids=str)
def test_every_submitted_and_reported_system_can_be_made(path):
    script = (path.parents[2] / "run.sh").read_text()
    derived = re.search(r"^derived=\((.*?)\)", script, flags=re.MULTILINE)[1].split()
    configs = [config.stem for config in path.parent.glob("*.yaml")]
    named = yaml.safe_load(path.read_text()).values()
    for name in (
        name for names in named for name in ([names] if isinstance(names, str) else names)
    ):
        assert name.removesuffix("-platt") in (*derived, *configs)


@each_recipe
@pytest.mark.parametrize(
    ("data", "spans"),
    [
        ("demo", ["04"]),
        ("avdeepfake1mpp", ["04"]),
        ("fakeavceleb", ["01", "33", "44"]),
        ("partialspoof", ["04"]),
    ],
)
def test_every_stage_prints_commands_that_exist(data, spans, script):
    for first, last in spans:
        given = ["--stage", first, "--stop-stage", last, f"data={data}"]
        commands = commands_of(*given, script=script)
        assert commands
        for words in commands:
            check_words(words)
    if data == "fakeavceleb":
        done = run_stage(2, f"data={data}", "dry=1", script=script)
        assert done.returncode == 2 and "nothing is trained on fakeavceleb" in done.stderr


@each_recipe
def test_sound_alone_leaves_out_what_needs_a_picture(script):
    given = ["--stage", "1", "--stop-stage", "4", "data=partialspoof", "conf=demo"]
    commands = commands_of(*given, script=script)
    trained = {Path(words[1]).stem for words in commands if words[0] == "train"}
    assert (
        trained
        == {
            "klassify": {"w2v_aasist", "bam"},
            "multibranch": {"ps", "ps_clip"},
            "fused": {"w2v_aasist", "audio_mil", "splice_audio", "audio_frames"},
        }[script.parent.name]
    )
    words = {word for command in commands for word in command}
    seeing = {"tcn", "maxout", "merged", "visual", "fused", "vqvae", "lips_mil", "sync", "spans"}
    assert not {Path(word).name for word in words if word.count("/") == 3} & seeing
    assert not {"extract", "package"} & words and "--eer" in words
    refused = run("--check", "data=partialspoof", "system=tcn,visual", "dry=1", script=script)
    assert refused.returncode == 2


@each_recipe
def test_systems_of_other_data_keep_scores_under_its_name(script):
    given = ["--stage", "3", "--stop-stage", "4", "data=lavdf", "from=avdeepfake1mpp"]
    commands = commands_of(*given, script=script)
    assert commands.pop()[0] == "crosstest"
    assert {words[0] for words in commands} <= {"extract", "score", "localise", "evaluate"}
    for words in commands:
        if words[0] == "extract":
            assert words[words.index("--list") + 1] == "data_lists/lavdf/test.tsv"
        else:
            assert words[words.index("--split") + 1] == "lavdf-test"
            assert words[1].startswith("exp/avdeepfake1mpp/")
    labels = {words[words.index("--labels") + 1] for words in commands if "--labels" in words}
    assert labels == {"data_lists/lavdf/heldout/test_labels.tsv"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["splitt=val"], "did you mean split=?"),
        (["data=lavfd"], "did you mean data=lavdf?"),
        (["data=demo", "split=testa"], "did you mean split=testA?"),
        (["data=demo", "conf=papr"], "did you mean conf=paper?"),
        (["data=demo", "size=huge"], "unknown size=huge. Known: tiny small default large"),
        (["data=demo", "system=tnc", "--stage", "1"], "did you mean system=tcn?"),
        (["data=demo", "system=foo", "--stage", "3"], "unknown system=foo. Known: "),
        (["data=demo", "submit1=maxot", "--stage", "3"], "did you mean submit1=maxout?"),
        (["data=demo", "submit2=maxout_gru"], "unknown submit2=maxout_gru"),
        (["--compare", "data=demo", "system=fusd"], "did you mean system=fused?"),
        (["data=demo", "from=demo"], "from="),
        (["data=fakeavceleb", "from=fakeavceleb"], "from="),
        (["data=fakeavceleb", "split=testA"], "testA"),
        (["launcher=slrm"], "did you mean launcher=slurm?"),
        (["--stages", "1"], "--stages"),
        (["data=demo", "seed=one"], "seed"),
        (["data=demo", "devices=many"], "devices"),
        (["data=demo", "workers=-1"], "workers"),
    ],
)
def test_unknown_names_are_refused_before_any_work(arguments, named):
    done = run(*arguments)
    assert done.returncode == 2 and named in done.stderr and not done.stdout


@each_recipe
def test_named_systems_alone_are_trained_and_evaluated(script):
    """Whether a system belongs to the default ones or is a variant."""
    for config in (one for one in configs("paper") if script.parent in one.parents):
        commands = commands_of("--stage", "2", f"system={config.stem}", script=script)
        (made,) = [words for words in commands if words[0] in ("train", "import-checkpoint")]
        assert str(config.relative_to(ROOT)) in made
        assert any(Path(word).name == config.stem for word in made)
        if config.stem != "vqvae":  # a part of another system
            for command in ("score", "evaluate"):
                assert any(words[0] == command and "testA" in words for words in commands)


AUGMENTED = ("w2v_aasist_rtpg", "w2v_aasist_bp", "w2v_aasist_codecs", "w2v_aasist_all")


def names_of(words: list[str]) -> list[str]:
    return [Path(word).name for word in words]


@pytest.mark.parametrize("data", ["demo", "avdeepfake1mpp"])
def test_the_ensemble_is_the_mean_of_the_augmented_systems(data):
    named = f"system={','.join(AUGMENTED)},w2v_aasist_ensemble"
    commands = commands_of(f"data={data}", named, "--stage", "2", "--stop-stage", "4")
    fusions = [words for words in commands if words[0] == "fuse"]
    (fuse,) = [words for words in fusions if words[-1].endswith("/w2v_aasist_ensemble")]
    assert names_of(fuse[1:7]) == [*AUGMENTED, "--rule", "mean"]
    for split in ("val", "testA"):
        scored = [words for words in commands if words[0] == "score" and split in words]
        order = names_of([words[1] for words in scored])
        assert {*AUGMENTED, "w2v_aasist_ensemble"} <= set(order)
    # scored after its parts
    assert order.index("w2v_aasist_ensemble") > max(map(order.index, AUGMENTED))


@pytest.mark.parametrize(
    ("data", "audio"), [("demo", "w2v_aasist"), ("avdeepfake1mpp", "w2v_aasist_codecs")]
)
def test_paper_fusions_take_the_system_trained_with_codecs(data, audio):
    commands = commands_of(f"data={data}", "--stage", "2", "--stop-stage", "4")
    trained = [Path(words[1]).stem for words in commands if words[0] == "train"]
    assert trained == ["tcn", audio, "tcn_tags", "bam"]
    fusions = [words for words in commands if words[0] == "fuse"]
    assert {Path(words[-1]).name: names_of(words[1:3]) for words in fusions} == {
        "avg": [audio, "tcn"],
        "maxout": [f"{audio}-platt", "tcn-platt"],
    }
    evaluated = [words for words in commands if words[0] == "evaluate" and "--task" not in words]
    assert evaluated
    for words in evaluated:
        assert names_of(words[1:7]) == [
            "tcn",
            audio,
            "tcn-platt",
            f"{audio}-platt",
            "avg",
            "maxout",
        ]


def test_bam_of_the_paper_starts_from_the_released_one():
    def init(*arguments: str) -> list[str]:
        commands = commands_of("--stage", "2", *arguments)
        return [words[words.index("--init") + 1] for words in commands if "--init" in words]

    assert init() == init("system=bam") == ["pretrained/bam.safetensors"]
    assert init("system=bam_wavlm") == init("data=demo") == []


@each_recipe
def test_devices_and_readers_reach_what_uses_them(script):
    commands = commands_of(
        "devices=8", "workers=12", "--stage", "2", "--stop-stage", "3", script=script
    )
    trained = {Path(words[1]).stem: words for words in commands if words[0] == "train"}
    assert trained
    for name, words in trained.items():  # these are too small for several devices
        assert ("--devices" in words) == (not name.startswith(("tcn", "sync")))
        assert words[words.index("--workers") + 1] == "12"
    scored = [words for words in commands if words[0] == "score" and "--media" in words]
    assert scored and all("--workers" in words and "--devices" not in words for words in scored)


def test_packaged_systems_are_scored_first():
    commands = commands_of("--stage", "3", "--stop-stage", "3", "submit1=w2v_aasist", "split=testA")
    at = [words[0] for words in commands].index("package")
    assert names_of(commands[at]).count("w2v_aasist") == 1
    assert any(names_of(words[:2]) == ["score", "w2v_aasist"] for words in commands[:at])


def small_checkout(root: Path) -> Path:
    """A checkout with lists, but without features and weights."""
    copy_recipes(root)
    for split in ("train", "val"):
        (root / "data_lists/avdeepfake1mpp").mkdir(parents=True, exist_ok=True)
        (root / f"data_lists/avdeepfake1mpp/{split}.tsv").touch()
    return root / "recipes/klassify/run.sh"


@pytest.mark.parametrize(
    ("value", "folder"),
    [('"/ab"', "/ab"), ("'/ab'", "/ab"), ("/ab  ", "/ab"), ("~/ab", "/home/x/ab")],
)
def test_values_are_read_as_a_shell_reads_them(monkeypatch, value, folder):
    """local.mk may have quotes, comments and ~ in it, which make does not interpret."""
    monkeypatch.setenv("HOME", "/home/x")
    given = ["--stage", "0", "--stop-stage", "0", "data=mine", f"root={value}", "jobs=2 "]
    (words,) = commands_of(*given)
    assert words[words.index("--root") + 1] == folder
    assert words[words.index("--jobs") + 1] == "2"


def test_thresholds_are_those_of_the_data_that_was_trained_on(tmp_path):
    given = ["--stage", "4", "data=lavdf", "from=avdeepfake1mpp"]
    (words,) = [
        words
        for words in commands_of(*given, script=small_checkout(tmp_path))
        if words[0] == "evaluate" and "--task" not in words
    ]
    assert words[words.index("--val") + 1] == "data_lists/avdeepfake1mpp/val.tsv"


@pytest.mark.parametrize(
    ("system", "file"),
    [
        ("w2v_aasist_rtpg,bam", "pretrained/bam.safetensors"),
        ("w2v_aasist_baseline_1", "pretrained/LA_model.pth"),
        ("w2v_aasist_baseline_2", "pretrained/ASVspoof5_model.pth"),
    ],
)
def test_missing_weights_stop_before_anything_is_trained(tmp_path, system, file):
    """And a system that reads audio alone does not wait for mouth features."""
    done = run_stage(2, "root=/media", f"system={system}", script=small_checkout(tmp_path))
    assert done.returncode == 2 and f"{file} is missing" in done.stderr
    assert "docs/checkpoints.md" in done.stderr and "+ klassify" not in done.stdout


def test_a_fusion_without_its_parts_names_what_makes_them(tmp_path):
    done = run_stage(
        2, "root=/media", "system=w2v_aasist_ensemble", script=small_checkout(tmp_path)
    )
    assert done.returncode == 2
    assert "make stage2" in done.stderr and "system=w2v_aasist_rtpg" in done.stderr


@pytest.mark.parametrize(
    ("recipe", "system", "kind"),
    [
        ("klassify", "tcn", "mouth"),
        ("multibranch", "ps", None),
        ("multibranch", "vqvae", None),
        ("multibranch", "vqvae,visual_no_lmm", "mouth"),
        ("multibranch", "ps,visual_clip", "lmm"),
        ("multibranch", "visual", "lmm"),
        ("fused", "w2v_aasist", None),
        ("fused", "splice_lips", "lips"),
        ("fused", "w2v_aasist,tcn", "mouth"),
    ],
)
def test_only_systems_that_read_features_wait_for_them(tmp_path, recipe, system, kind):
    small_checkout(tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    klassify = tmp_path / ".venv/bin/klassify"
    klassify.write_text("#!/bin/sh\n")
    klassify.chmod(0o755)
    script = tmp_path / f"recipes/{recipe}/run.sh"
    done = run_stage(2, "root=/media", f"system={system}", script=script)
    assert (f"{kind}/train does not exist" in done.stderr) == bool(kind)
    assert ("+ klassify train" in done.stdout) == (not kind)


@pytest.mark.parametrize(
    ("recipe", "left_out"), [("multibranch", "visual_clip"), ("fused", "lips_mil")]
)
def test_the_demo_trains_what_it_leaves_out_when_asked(recipe, left_out):
    script = ROOT / f"recipes/{recipe}/run.sh"
    for more, there in (
        (["data=demo"], False),
        (["data=demo", f"system={left_out}"], True),
        ([], True),  # at full size
    ):
        words = commands_of(*more, "--stage", "2", "--stop-stage", "3", script=script)
        assert any(left_out in " ".join(command) for command in words) == there, more


@pytest.mark.parametrize("end", ["false", "kill -INT 0; sleep 30"])
def test_a_stage_that_fails_ends_what_runs_beside_it(tmp_path, end):
    """With the processes that it started."""
    copy_recipes(tmp_path)
    (tmp_path / "recipes/one/conf/paper").mkdir(parents=True)
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
    made = {path.stem for path in configs("paper") if RUN.parent in path.parents}
    assert made <= named <= made | {"avg", "maxout", "merged", "w2v_aasist_ensemble"}


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["--stage", "1"], "make stage0 recipe=klassify data=lavdf root=/a\\ b"),
        (
            ["--stage", "1", "--stop-stage", "1", "split=val"],
            "make stage0 recipe=klassify data=lavdf root=/a\\ b split=val",
        ),
        (["--stage", "2"], "make stage0 stage1 recipe=klassify data=lavdf root=/a\\ b"),
        (["--stage", "2", "system=bam"], "make stage0 recipe=klassify data=lavdf root=/a\\ b"),
        (["--stage", "3"], "make stage0 stage1 stage2 recipe=klassify data=lavdf root=/a\\ b"),
        (
            ["--stage", "4", "split=test", "seed=2"],
            "make stage0 stage1 stage2 stage3 recipe=klassify data=lavdf root=/a\\ b seed=2"
            " split=test,train,val",
        ),
    ],
)
def test_one_message_names_all_stages_that_must_run_first(tmp_path, arguments, fix):
    copy_recipes(tmp_path)
    script = tmp_path / "recipes/klassify/run.sh"
    done = run(*arguments, "data=lavdf", "root=/a b", script=script)
    assert done.returncode == 2 and done.stderr.splitlines()[1] == f"  fix:   {fix}"
    stages = re.findall(r"stage\d", fix)
    assert done.stderr.startswith(f"missing: {', '.join(stages)} (data_lists/lavdf/")
    assert "+ klassify" not in done.stdout


def test_advice_for_data_that_is_only_tested_on_names_both_sets(tmp_path):
    copy_recipes(tmp_path)
    script = tmp_path / "recipes/klassify/run.sh"
    done = run_stage(3, "data=fakeavceleb", "root=/fake", script=script)
    options = "recipe=klassify data=fakeavceleb from=avdeepfake1mpp root=/fake"
    train = "  fix:   make stage2 recipe=klassify data=avdeepfake1mpp root=DIR"
    assert done.stderr.splitlines()[1] == f"{train} && make stage0 stage1 {options}"
    done = run_stage(4, "data=fakeavceleb", "root=/fake", script=script)
    assert done.stderr.startswith("missing: stage0, stage1, stage2, stage3 (")
    assert done.stderr.splitlines()[1] == f"{train} && make stage0 stage1 stage3 {options}"


def test_a_split_without_labels_is_not_evaluated(tmp_path):
    script = small_checkout(tmp_path)
    (tmp_path / "data_lists/avdeepfake1mpp/testA.tsv").touch()
    made = tmp_path / "exp/avdeepfake1mpp/klassify/maxout"
    (made / "scores").mkdir(parents=True)
    (made / "system.yaml").touch()
    done = run_stage(4, "split=testA", script=script)
    assert done.returncode == 2 and "testA has no labels" in done.stderr
    assert "make compare split=testA" in done.stderr


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return ran(["make", *arguments], cwd=ROOT, env=os.environ | environment)


def test_make_help_lists_stages_and_variables():
    done = make("help", data="leak")
    assert done.returncode == 0
    for name in ("stage0", "stage4", "split=", "force=1", "dry=1", "launcher=slurm"):
        assert name in done.stdout


def test_make_refuses_unknown_names_before_it_installs():
    for goal, word in (("help", "splitt=val"), ("stage3", "recipe=fusd"), ("demo", "size=tny")):
        done = make("--old-file=.venv/installed", goal, word)
        assert done.returncode == 2 and "did you mean" in done.stderr and "pip" not in done.stdout


def test_make_demo_trains_all_recipes_unless_one_is_named():
    for given, wanted in (([], []), (["recipe=fused"], ["recipe=fused"])):
        done = make("--dry-run", "--old-file=.venv/installed", "demo", *given)
        (line,) = [one for one in done.stdout.splitlines() if " demo" in one and "klassify" in one]
        assert shlex.split(line)[2:] == wanted


def test_make_takes_folders_with_spaces_and_quotes():
    done = make("stage0", "data=demo", "root=/it's  a b=c/d", "dry=1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    command = next(line for line in lines if line.startswith("+ klassify corpus"))
    assert shlex.split(command)[3:5] == ["--out", "/it's  a b=c/d"]


def test_readme_names_files_and_targets_that_exist():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
    targets = re.findall(
        r"^([a-z0-9-]+(?: [a-z0-9-]+)*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE
    )
    known = {name for line in targets for name in line.split()}
    assert set(re.findall(r"^make ([a-z0-9-]+)", text, flags=re.MULTILINE)) <= known


def test_the_first_line_of_every_config_says_what_it_is():
    for path in configs():
        assert path.read_text().startswith("# "), path
        keys = set(yaml.safe_load(path.read_text()))
        assert keys == {"model", "data", "train"} or {"base"} <= keys <= {
            "base",
            "model",
            "data",
            "train",
        }
