"""A folder that looks like a checkout in which the smallest demo has run, for the tests that need
trained systems.

One for all test processes of a run: the first to come makes it, the others wait. Nobody may change
it: tests work in a `workspace`, which holds a copy of what can be written to. KLASSIFY_TINY_DEMO
names one that was made before.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from commands import ran
from filelock import FileLock
from places import ROOT, copy_recipes

SAID = "said.txt"  # what the whole demo printed


@pytest.fixture(scope="session")
def tiny_klassify(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe klassify trained on the tiny corpus (a minute or two on 2 cores)."""
    return _with(["recipe=klassify"], tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_demo(tiny_klassify: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole demo on the tiny corpus, which continues that of klassify (some minutes more)."""
    return _with([], tmp_path_factory)


def _with(variables: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if made := os.environ.get("KLASSIFY_TINY_DEMO"):
        return Path(made)
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    root = shared / "tiny demo"
    name = " ".join(["tiny", *variables])
    with FileLock(shared / f"{name}.lock"):
        if not (shared / f"{name}.done").exists():
            _run(variables, root)
            (shared / f"{name}.done").touch()
    return root


def _run(variables: list[str], root: Path) -> None:
    if not root.exists():
        copy_recipes(root)
        if (ROOT / ".venv").exists():
            (root / ".venv").symlink_to(ROOT / ".venv")
    done = ran(
        [sys.executable, "-m", "klassify", "demo", "size=tiny", "jobs=2", *variables],
        cwd=root,
        timeout=1800,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    (root / SAID).write_text(done.stdout, encoding="utf-8")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def copy_of(demo: Path, folder: Path, *left_out: str) -> Path:
    """The demo in a folder of its own, without the recipes left out."""
    shutil.copytree(
        demo,
        folder,
        symlinks=True,
        ignore=lambda path, _: left_out if Path(path).name == "demo-tiny" else (),
    )
    return folder


def workspace(demo: Path, folder: Path) -> Path:
    """`folder` as a checkout in which `make demo` has run: the tiny demo under the name demo.

    What pages take for granted lies there too: a video clip.mp4, a folder my_videos, an older
    submission old.zip.
    """
    folder.mkdir(parents=True)
    copy_recipes(folder)
    for name in ("exp", "submissions"):
        shutil.copytree(
            demo / name / "demo-tiny",
            folder / name / "demo",
            ignore=shutil.ignore_patterns("checkpoints"),
        )
    for name in ("media", "features", "data_lists"):
        (folder / name).mkdir()
        for alias in ("demo", "demo-tiny"):  # manifests have the latter
            (folder / name / alias).symlink_to(demo / name / "demo-tiny")
    clips = sorted((demo / "media/demo-tiny/testA").glob("*.mp4"))
    (folder / "my_videos").mkdir()
    for clip in clips[:2]:
        shutil.copy(clip, folder / "my_videos")
    shutil.copy(clips[0], folder / "clip.mp4")
    shutil.copy(demo / "submissions/demo-tiny/klassify/testA/submission.zip", folder / "old.zip")
    return folder
