"""The pages of the project: their commands, code, messages and links.

A shell reads each shell block with stubs for programs (markdown_blocks), then
- `klassify ...` goes through the command's own argument parser;
- `make ...` runs with dry=1 (or make -n) in a copy of the checkout, and every klassify command that
  it prints goes through the parser too;
- the slow test really runs what is about the demo, clip.mp4 or my_videos, on the tiny corpus.
Commands inside sentences are mostly shortened: what they have goes through the same parsers.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import functools
import importlib.util
import io
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_videos
import torch
from commands import klassify, ran
from markdown_blocks import Block, blocks, own_part, programs, run_block, shell_text
from places import copy_recipes
from tiny_demo import ROOT, tiny_demo, tiny_klassify, workspace  # noqa: F401  (fixtures)

from klassify import cli
from klassify.corpus.encode import write_clip
from klassify.features import kinds
from klassify.features.mouth.channels import FEATURES
from klassify.features.shards import FeatureStore
from klassify.scores.score_file import read_scores
from klassify.training.settings import TrainSettings

PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "submissions/README.md",
        ROOT / "tests/README.md",
        *ROOT.glob("docs/*.md"),
    ]
)
RESULTS = sorted(ROOT.glob("recipes/*/RESULTS.md"))  # hours: parsed, never run
BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL_BLOCKS = [block for page in [*PAGES, *RESULTS] for block in blocks(page) if shell_text(block)]
STAGES = re.compile(r"stage[0-4]|demo|compare")
# for "as above" and SOURCE: such a command is checked for its options alone
PLACEHOLDER = re.compile(r"\.\.\.|[A-Z]{2,}")
by_name = functools.partial(pytest.mark.parametrize, ids=str)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what `make` reads, with the files that pages say to write."""
    root = tmp_path_factory.mktemp("copy") / "checkout"
    root.mkdir()
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root)
    copy_recipes(root)
    for block in BLOCKS:
        if block.file.startswith("recipes/"):
            (root / block.file).write_text(block.text)
    (root / "data_lists/tune").mkdir(parents=True)  # of the second corpus of RESULTS.md
    (root / ".venv").mkdir()
    (root / ".venv/installed").touch()
    return root


@pytest.fixture(scope="module")
def stubs(tmp_path_factory) -> Path:
    """The folder of the programs that pages may name, each a stub."""
    return programs(tmp_path_factory.mktemp("stubs") / "bin")


@by_name("block", SHELL_BLOCKS)
def test_every_command_is_one_that_exists(block, checkout, stubs, tmp_path):
    cwd, path = tmp_path / "empty", stubs
    (cwd / "my_videos").mkdir(parents=True)
    (cwd / ".venv").mkdir()
    (cwd / ".venv/bin").symlink_to(path)
    commands = run_block(block, path, tmp_path / "record", cwd)
    assert commands, f"{block} holds no command"
    for words in commands:
        check_command(own_part(words), checkout)


def check_command(words: list[str], checkout: Path) -> None:
    """A klassify command parses; a make command runs dry, and what it would run parses."""
    if words[:1] == ["klassify"]:
        parse(words[1:])
    elif words[:1] == ["make"]:
        for line in dry_run(tuple(words[1:]), checkout):
            parse(shlex.split(line)[1:])


def parse(words: list[str]) -> None:
    """Refuse what `klassify` would refuse."""
    if words[:1] in ([], ["--help"], ["--version"]):
        return
    command, *arguments = words
    assert command in cli.COMMANDS, f"there is no klassify {command}"
    if any(PLACEHOLDER.fullmatch(word) for word in arguments):
        options = [word.partition("=")[0] for word in arguments if word.startswith("--")]
        unknown = [option for option in options if option not in help_of(command)]
        assert not unknown, f"klassify {command} has no {unknown}"
        return
    parser = parser_of(command)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parser.parse_intermixed_args(arguments)
    except SystemExit as end:
        assert end.code == 0, f"klassify {shlex.join(words)}\n{said.getvalue()}"


@functools.cache
def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"klassify {command}")
    importlib.import_module(f"klassify.commands.{command.replace('-', '_')}").configure(parser)
    return parser


@functools.cache
def help_of(command: str) -> str:
    return parser_of(command).format_help()


@functools.cache
def dry_run(arguments: tuple[str, ...], checkout: Path) -> list[str]:
    """The klassify commands that a make command would run."""
    targets = [word for word in arguments if "=" not in word and not word.startswith("-")]
    dry = ["dry=1"] if all(STAGES.fullmatch(target) for target in targets) else ["-n"]
    done = ran(["make", "-o", ".venv/installed", *arguments, *dry], cwd=checkout, timeout=120)
    assert done.returncode == 0, (
        f"make {' '.join(arguments)}\n{done.stdout[-1000:]}{done.stderr[-2000:]}"
    )
    return [line[2:] for line in done.stdout.splitlines() if line.startswith("+ klassify ")]


def inline(page: Path) -> list[str]:
    """What a page has between single backticks, each once."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return sorted({span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", text)})


def check_inline(span: str, checkout: Path) -> None:
    """A span that begins like a command or a setting is one; others pass."""
    if re.match(r"(klassify|make) ", span):
        program, *words = shlex.split(span)
        if any(re.search(r"[A-Z<*…]|\.\.\.", word.partition("=")[0]) for word in words[:1]):
            return  # `klassify COMMAND`, `make ...`
        if program == "klassify":
            parse_shortened(words)
        else:
            dry_run(tuple(word for word in words if "..." not in word), checkout)
    elif found := re.match(r"python ([\w/]+\.py)", span):
        script = (ROOT / found[1]).read_text(encoding="utf-8")
        for option in re.findall(r"--[\w-]+", span):
            assert re.search(rf"{option}\b", script), f"{found[1]} has no {option}"
    elif found := re.match(r"pip install .*\[([\w,-]+)\]", span):
        extras = set(re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.M))
        assert set(found[1].split(",")) <= extras
    elif re.fullmatch(r"([a-z][\w.]*=[^\s\"]*\s?)+", span):
        for word in span.split():
            check_setting(*word.split("=", 1))


def check_setting(name: str, value: str) -> None:
    """A key of a config, or a make variable; keywords of Python and placeholders pass."""
    if name.startswith("train."):
        assert name.removeprefix("train.") in {x.name for x in dataclasses.fields(TrainSettings)}
    elif "." not in name and value not in ("True", "value"):
        assert name in make_variables(), f"make has no variable {name}"


@functools.cache
def make_variables() -> set[str]:
    told = ran(["recipes/klassify/run.sh", "--variables"], cwd=ROOT, timeout=60).stdout
    return {*told.split(), "recipe", "submission", "seconds", "verbose"}


def parse_shortened(words: list[str]) -> None:
    """Refuse options that a command does not have, and values that they do not take; nothing is
    required.
    """
    if words[:1] in (["--help"], ["--version"]):
        return
    assert words[0] in cli.COMMANDS, f"there is no klassify {words[0]}"
    options = [word for word in words if word.startswith("--")]
    unknown = [word for word in options if word.partition("=")[0] not in help_of(words[0])]
    assert not unknown, f"klassify {words[0]} has no {unknown}"
    values = [word for word in words[1:] if word != "..."]
    if values[-1:] == options[-1:]:
        return  # an option without its value
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            lenient(words[0]).parse_known_args(values)
    except SystemExit:  # unless of a placeholder, `--shards N`
        placeholders = [word for word in values if word.isupper()]
        known = any(repr(word) in said.getvalue() for word in placeholders)
        assert known, f"klassify {shlex.join(words)}\n{said.getvalue()}"


@functools.cache
def lenient(command: str) -> argparse.ArgumentParser:
    """The command's parser; nothing is required."""
    parser = argparse.ArgumentParser(prog=f"klassify {command}", allow_abbrev=False)
    importlib.import_module(f"klassify.commands.{command.replace('-', '_')}").configure(parser)
    for action in parser._actions:
        action.required = False
        if not action.option_strings:
            action.nargs = "*"
    return parser


@by_name("page", [*PAGES, *RESULTS])
def test_commands_inside_sentences_exist(page, checkout):
    for span in inline(page):
        check_inline(span, checkout)


def test_a_wrong_command_does_not_pass(checkout, stubs, tmp_path):
    """What the tests above must find: options, commands, variables, programs that do not exist."""
    wrong = (
        "klassify train",
        "klassify fly",
        "klassify check x --fast",
        "make stage9",
        "make stage0 colour=red",
        "make stage2 data=demo system=xception",
        "klassify score a --split \\\n  val --where x",
        "for one in a; do klassify extrakt $one; done",
        "frobnicate x",
        "cat <<'A'\nx\nA\nklassify lists --root x",
    )
    for number, text in enumerate(wrong):
        block = Block(tmp_path / "page.md", number, "sh", text + "\n", "")
        with pytest.raises(AssertionError):
            for words in run_block(block, stubs, tmp_path / "record", tmp_path):
                check_command(own_part(words), checkout)
    for span in ("klassify fly", "klassify evaluate --task 3", "train.colour=red", "colour=red"):
        with pytest.raises(AssertionError):
            check_inline(span, checkout)


def test_pages_have_their_commands():
    """The readers above find something on each page that is made of commands."""
    found = {block.page.name for block in SHELL_BLOCKS}
    assert {"README.md", "your-data.md", "adding-a-model.md", "checkpoints.md"} <= found


REAL_KLASSIFY = f"""#!/bin/bash
case " $* " in *demo*|*clip.mp4*|*my_videos*) ;; *) exit 0 ;; esac
printf 'klassify\\x1f%s\\x1f\\x1e' "$1" >> "$RECORD"
exec "{sys.executable}" -c 'import sys, klassify.models as models, klassify.cli as cli
models.__path__.append("added/klassify/models")  # where a page had a model written
sys.exit(cli.main(sys.argv[1:]))' "$@"
"""


def pages_on_the_demo() -> list[Path]:
    """The pages that say something about the demo's files, in commands or in Python."""
    ours = [
        block for block in BLOCKS if block.language == "python" or "klassify" in shell_text(block)
    ]
    about = {block.page for block in ours if re.search(r"demo/|clip\.mp4|my_videos", block.text)}
    return [page for page in PAGES if page in about]


@pytest.mark.slow
@by_name("page", pages_on_the_demo())
def test_commands_and_code_of_a_page_work_on_the_tiny_corpus(page, tiny_demo, tmp_path):  # noqa: F811
    """Block after block in one folder. Python between two shell blocks is one program."""
    here = workspace(tiny_demo, tmp_path / "check out")
    path, record = programs(tmp_path / "bin", klassify=REAL_KLASSIFY), tmp_path / "record"
    python, ran = "", 0
    # the last runs what Python is left
    for block in [*blocks(page), Block(page, 0, "sh", ":\n", "")]:
        if block.file:
            # a folder klassify beside the recipes would hide the package
            file = here / ("added" if block.file.startswith("klassify/") else ".") / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
        elif block.language == "python":
            python += block.text
        elif shell_text(block):
            if python:
                run_python(python, here, page)
                python, ran = "", ran + 1
            ran += len(
                [words for words in run_block(block, path, record, here) if words[0] == "klassify"]
            )
    assert ran


def run_python(text: str, cwd: Path, page: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = ran([sys.executable, "-c", text], cwd=cwd, timeout=300, env=environment)
    assert done.returncode == 0, f"{page.name}\n{text}\n{done.stdout[-1000:]}{done.stderr[-3000:]}"


@by_name("block", [block for block in BLOCKS if block.language == "python"])
def test_python_compiles_and_names_what_exists(block):
    """The fast part: syntax, and every name that is imported from this package."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("klassify"):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name) or importlib.util.find_spec(
                    f"{node.module}.{name.name}"
                ), name.name


MODEL_PAGE = ROOT / "docs/adding-a-model.md"


@pytest.fixture(scope="module")
def added_model(tmp_path_factory):
    """The page's files, where the package finds them; returns the folder of the YAMLs."""
    root = tmp_path_factory.mktemp("added")
    for block in blocks(MODEL_PAGE):
        if block.file:
            (root / block.file).parent.mkdir(parents=True, exist_ok=True)
            (root / block.file).write_text(block.text)
    models = importlib.import_module("klassify.models")
    models.__path__.append(str(root / "klassify/models"))
    yield root / "recipes/klassify/conf/demo"
    models.__path__.pop()


@pytest.mark.parametrize("model, answered", [("mouth_gru", 11), ("spectrum", 11), ("frame_cnn", 8)])
def test_the_added_models_train_and_score(added_model, small_data, tmp_path, model, answered):
    sources = tiny_videos.make(tmp_path) if model == "frame_cnn" else small_data
    out = tmp_path / model
    words = ["train", added_model / f"{model}.yaml", "--out", out, *sources.arguments]
    words += ["train.epochs=12", "train.lr=0.01", "train.patience=12"]
    if model == "frame_cnn":
        words += ["data.init_args.size=32", "data.init_args.val_split=val"]
    assert klassify(*words) == 0
    losses = np.genfromtxt(out / "metrics.csv", delimiter=",", names=True)
    assert losses["train_loss"][-1] < 0.9 * losses["train_loss"][0]
    assert losses["val_auc"].max() > 0.8
    assert klassify("score", out, "--split", "val,testA", *sources.arguments) == 0
    clips = read_scores(out / "scores/testA.clips.tsv")
    assert clips.header.supervision == "clip" and clips.table["score"].notna().sum() == answered
    silent = clips.table["reason"][clips.table["score"].isna()]
    assert set(silent) <= {"no face", "no audio"}
    platt = ["calibrate", out, "--out", tmp_path / "platt", "--labels", sources.lists]
    assert model == "frame_cnn" or klassify(*platt) == 0


def test_the_added_features_are_extracted_and_read(tmp_path, monkeypatch):
    block = next(block for block in blocks(ROOT / "docs/adding-features.md") if block.file)
    (tmp_path / "loudness.py").write_text(block.text)
    features = importlib.import_module("klassify.features")
    monkeypatch.setattr(features, "__path__", [*features.__path__, str(tmp_path)])
    module = importlib.import_module("klassify.features.loudness")
    monkeypatch.setitem(kinds.KINDS, "loudness", module.KIND)
    wave = np.sin(np.arange(16_000, dtype=np.float32))
    write_clip(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8)] * 25, wave, 30, 48_000)
    (tmp_path / "b.mp4").write_text("this is not a video")
    (tmp_path / "list.tsv").write_text("file\na.mp4\nb.mp4\n")
    command = f"extract --kind loudness --step 320 --list {tmp_path}/list.tsv --root {tmp_path}"
    assert cli.main([*command.split(), "--out", str(tmp_path / "out")]) == 0
    store = FeatureStore(tmp_path / "out")
    assert store.settings["step"] == 320 and set(store.reasons) == {"b.mp4"}
    loudness = store["a.mp4"].decibels[5:-5]  # the encoder fades in and out
    assert len(loudness) > 35 and np.allclose(loudness, -3, atol=2)


def test_padding_does_not_change_the_added_model(added_model):
    module = importlib.import_module("klassify.models.mouth_gru")
    model = module.MouthGRU()
    features, valid = torch.randn(3, 20, 16) * 50, torch.rand(3, 20) > 0.2
    longer = {
        "features": torch.cat([features, torch.randn(3, 9, 16)], 1),
        "valid": torch.nn.functional.pad(valid, (0, 9)),
    }
    torch.testing.assert_close(
        model.score({"features": features, "valid": valid}), model.score(longer)
    )


QUOTED = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
GAP = "…"  # stands in a quoted message for what is different each time


@functools.cache
def messages() -> set[str]:
    """Every text in the package, with GAP for what is filled in, and the recipes' messages."""
    found = set()
    for path in sorted((ROOT / "klassify").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else GAP for part in node.values
                )
                found.add(re.sub(f"{GAP}+", GAP, "".join(parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    for path in ROOT.glob("recipes/*.sh"):
        for text in re.findall(
            r'fail "((?:[^"$]|\$\([^)]*\)|\$\w+|\$\{[^}]*\})*)"', path.read_text()
        ):
            found.add(re.sub(r"\$\([^)]*\)|\$\{[^}]*\}|\$\w+", GAP, text))
    return found


@by_name("message", QUOTED.findall((ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")))
def test_troubleshooting_quotes_messages_of_the_code(message):
    assert message in messages()


def test_troubleshooting_has_its_messages():
    assert len(QUOTED.findall((ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"))) > 50
    assert f"There is no list for split {GAP}; there are: {GAP}." in messages()
    assert f"{GAP} is missing." in messages()
    assert "This message was never written." not in messages()


def test_every_feature_of_an_explanation_is_described():
    text = (ROOT / "docs/explanations.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert set(FEATURES) <= set(re.findall(r"`(\w+)`", " ".join(rows)))


@by_name("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_readme_is_short_and_shows_a_picture():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 130
    picture = ROOT / re.search(r"!\[[^\]]+\]\(([^)]+)\)", text)[1]
    assert 10_000 < picture.stat().st_size < 400_000 and picture.read_bytes().startswith(b"\x89PNG")
    for page in ROOT.glob("docs/*.md"):
        assert f"docs/{page.name}" in text, f"README does not name {page.name}"
