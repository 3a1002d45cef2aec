"""The Dockerfile without Docker: its files exist, and its commands run on these alone."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import check_words, ran
from places import ROOT


def instructions() -> list[tuple[str, str]]:
    """(instruction, its words) of the Dockerfile in order, continued lines joined."""
    lines = [
        line
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def of(name: str) -> list[str]:
    return [words for instruction, words in instructions() if instruction == name]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out: the last pattern for it or a parent decides."""
    verdict = False
    for pattern in (ROOT / ".dockerignore").read_text().splitlines():
        if pattern and not pattern.startswith("#"):
            bare = pattern.removeprefix("!")
            parts = path.split("/")
            above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
            if bare.startswith("**/"):
                found = any(fnmatch.fnmatchcase(part, bare[3:]) for part in parts)
            else:
                found = any(
                    fnmatch.fnmatchcase(one, bare) and one.count("/") == bare.count("/")
                    for one in above
                )
            if found:
                verdict = not pattern.startswith("!")
    return verdict


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """A folder with what the COPY lines bring alone, after a set-up that installed nothing."""
    home = tmp_path_factory.mktemp("image") / "klassify"
    for words in of("COPY"):
        *sources, target = words.split()
        for source in sources:
            place = home / target / source if target.endswith("/") else home / target
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                leave = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, place, dirs_exist_ok=True, ignore=leave)
            else:
                shutil.copy2(ROOT / source, place)
    python = home / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> "{home.parent}/python.log"\n')
    python.chmod(0o755)
    return home


def run_setup(image: Path) -> list[str]:
    """Run the set-up of the RUN line; returns what it called Python with."""
    (command,) = (words for words in of("RUN") if "setup.sh" in words)
    (argument,) = of("ARG")
    name, _, value = argument.partition("=")
    environment = {
        key: text
        for key, text in os.environ.items()
        if key not in ("CONSTRAINTS", "PINS", "EXTRAS")
    }
    done = subprocess.run(
        ["sh", "-ec", command], cwd=image, env=environment | {name: value}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return (image.parent / "python.log").read_text().splitlines()


def enter(image: Path, *words: str) -> subprocess.CompletedProcess:
    (entry,) = of("ENTRYPOINT")
    return ran([*json.loads(entry), *words], cwd=image, timeout=120)


def commands(done: subprocess.CompletedProcess) -> list[list[str]]:
    """The commands that dry=1 showed, each known to the command line with its options."""
    assert done.returncode == 0, done.stdout + done.stderr
    shown = [shlex.split(line[2:]) for line in done.stdout.splitlines() if line.startswith("+ ")]
    for words in shown:
        assert words[0] == "klassify"
        check_words(words[1:])
    return shown


def test_what_is_copied_exists_and_is_not_ignored():
    sources = [source for words in of("COPY") for source in words.split()[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists() and not ignored(source), source
    for path in (
        "klassify/cli.py",
        "recipes/klassify/run.sh",
        "recipes/docker.sh",
        "klassify/corpus/build.py",
    ):
        assert (ROOT / path).is_file() and not ignored(path)
    for path in (
        *(".git/config", "exp/demo", "media", ".venv/bin/python", "tests/x.py", "local.mk"),
        *("submissions/x.zip", "klassify/__pycache__/cli.pyc"),
    ):
        assert ignored(path), path


def test_set_up_installs_the_tested_versions(image):
    calls = run_setup(image)
    (install,) = (call.split() for call in calls if " install " in call)
    constraints = install[install.index("-c") + 1]
    assert (image / constraints).is_file() and install[install.index("-e") + 1] == ".[report]"
    text = (image / "pyproject.toml").read_text()
    named = re.findall(r'^(?:readme|license-files) = \[?"([^"]+)', text, flags=re.MULTILINE)
    assert len(named) == 2
    for name in named:
        assert (image / name).is_file(), f"pyproject.toml needs {name}"
    assert (image / ".venv/installed").exists()


@pytest.mark.parametrize(
    "recipe", sorted(path.parent.name for path in ROOT.glob("recipes/*/run.sh"))
)
def test_training_and_testing_show_the_commands_of_their_stages(image, recipe):
    run_setup(image)
    trained = commands(enter(image, "train", f"recipe={recipe}", "dry=1"))
    names = [words[1] for words in trained]
    assert names[0] == "lists"
    assert {"extract", "train", "score", "detector"} <= set(names)
    assert "package" not in names
    assert all("/data" in words for words in trained if words[1] in ("lists", "extract"))
    made = commands(enter(image, "test", f"recipe={recipe}", "dry=1"))
    names = [words[1] for words in made]
    assert names[0] == "lists" and names[-2:] == ["package", "check"] and "train" not in names
    out = made[-2][made[-2].index("--out") + 1]
    assert out == f"submissions/avdeepfake1mpp/{recipe}/testB"
    other = commands(enter(image, "test", f"recipe={recipe}", "split=testA", "dry=1"))
    assert not any("testB" in word for words in other for word in words)


def test_the_other_words_of_the_entry(image):
    run_setup(image)
    (default,) = of("CMD")
    for words in (json.loads(default), []):
        done = enter(image, *words)
        assert done.returncode == 0 and "stage3" in done.stdout
    assert [words[1] for words in commands(enter(image, "stage0", "data=demo", "dry=1"))] == [
        "corpus",
        "lists",
    ]
    demo = commands(enter(image, "test", "data=demo", "dry=1"))
    assert not any(word.startswith("/data") for words in demo for word in words)
    assert enter(image, "trian").returncode != 0
    (image / ".venv/bin/klassify").write_text('#!/bin/sh\necho "got $*"\n')
    (image / ".venv/bin/klassify").chmod(0o755)
    assert enter(image, "klassify", "ledger", "--id", "a b").stdout == "got ledger --id a b\n"
    (image / ".venv/bin/klassify").unlink()


def test_the_commands_of_the_page_mount_what_runs_use(image):
    run_setup(image)
    text = (ROOT / "docs/hand-in.md").read_text()
    block = text[text.index("docker build -t") :].split("```")[0]
    folders = set(re.search(r"mkdir -p ([\w ]+)", block).group(1).split())
    assert re.search(r"for folder in ([\w ]+);", block).group(1).split() == sorted(
        folders, key=block.index
    )
    assert "$PWD/$folder:/klassify/$folder" in block and ":/data:ro" in block
    runs = [
        line.partition('"${mounts[@]}" klassify ')[2]
        for line in block.splitlines()
        if "docker run" in line
    ]
    assert [line.split()[0] for line in runs] == ["train", "test"]
    for line in runs:
        for words in commands(enter(image, *line.split(), "dry=1")):
            values = [
                w
                for flag, w in zip(words, words[1:])
                if flag in ("--out", "--lists", "--features", "--list")
            ]
            assert all(value.split("/")[0] in folders for value in values), words


@pytest.mark.slow
def test_the_copied_files_are_enough_to_build_the_package(image, tmp_path):
    command = [
        sys.executable,
        *("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w"),
        str(tmp_path),
        ".",
    ]
    done = ran(command, cwd=image, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("klassify-*.whl")
    listing = ran([sys.executable, "-m", "zipfile", "-l", wheel]).stdout
    for name in (
        *("klassify/cli.py", "klassify/corpus/", ".npy", "entry_points.txt", "klassify/report/"),
    ):
        assert name in listing
