"""The built wheel holds what an installation needs: recipes, a detector, a clip."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from commands import ran
from places import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder in which the wheel was installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "klassify", source / "klassify", ignore=skipped)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", folder, source]
    done = ran([*pip, *build], timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def klassify(installed: Path, cwd: Path, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = ran(
        [sys.executable, "-P", "-m", "klassify", *words], cwd=cwd, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="python -P")
def test_an_installed_wheel_answers_and_has_its_recipes(installed, tmp_path):
    said = klassify(installed, tmp_path, "predict", "--example", "--no-timeline")
    assert f"{installed}/klassify/detectors/demo/clip.mp4: probability of fake" in said
    assert "generated corpus alone" in said and (tmp_path / "predictions/clip.json").exists()
    klassify(installed, tmp_path, "recipe", "copy", "runs")
    assert (tmp_path / "runs/recipes/fused/conf/demo/tcn.yaml").is_file()
    done = ran(
        ["bash", "recipes/klassify/run.sh", "data=demo", "dry=1"], cwd=tmp_path / "runs", timeout=60
    )
    assert done.returncode == 0 and "+ klassify train" in done.stdout, done.stderr
    (metadata,) = installed.glob("*.dist-info/METADATA")
    text = metadata.read_text(encoding="utf-8")
    assert "Project-URL: KLASSify, the paper, https://arxiv.org/" in text
    assert (installed / "klassify/py.typed").exists()
