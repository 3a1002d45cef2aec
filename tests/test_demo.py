"""The smallest demo, end to end, as a user runs it; then the same with broken files among its clips."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def stages(root: Path, *arguments: str) -> str:
    """Run stages of the recipe in a checkout of its own; returns what it printed."""
    done = subprocess.run(
        ["recipes/klassify/run.sh", "data=demo", "size=tiny", "jobs=2", *arguments],
        cwd=root, capture_output=True, text=True, timeout=400, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder that looks like a checkout, in which the demo has run."""
    root = tmp_path_factory.mktemp("check out")
    shutil.copytree(ROOT / "recipes", root / "recipes")
    if (ROOT / ".venv").exists():
        (root / ".venv").symlink_to(ROOT / ".venv")
    stages(root, "--stage", "0", "--stop-stage", "4")
    return root


def test_demo_ends_with_accepted_submissions_for_both_test_splits(checkout):
    for split in ("testA", "testB"):
        folder = checkout / "submissions/demo-tiny/klassify" / split
        names = (checkout / f"media/demo-tiny/{split}_files.txt").read_text().split()
        with zipfile.ZipFile(folder / "submission.zip") as archive:
            assert sorted(archive.namelist()) == ["prediction.json", "prediction.txt"]
            lines = archive.read("prediction.txt").decode().splitlines()
            proposals = json.loads(archive.read("prediction.json"))
        assert [line.split(";")[0] for line in lines] == names
        assert all(0 <= float(line.split(";")[1]) <= 1 for line in lines)
        assert sorted(proposals) == sorted(names) and all(1 <= len(rows) <= 50 for rows in proposals.values())
        manifest = json.loads((folder / "manifest.json").read_text())
        assert "NOT FOR UPLOAD" in json.dumps(manifest)


def test_demo_evaluates_every_reported_system(checkout):
    table = (checkout / "exp/demo-tiny/klassify/evaluation/testA.txt").read_text()
    for system in ("tcn", "w2v_aasist", "tcn-platt", "w2v_aasist-platt", "avg", "maxout"):
        assert f"\n{system} " in table
    assert "merged" in (checkout / "exp/demo-tiny/klassify/evaluation/testA.task2.txt").read_text()
    for figure in ("calibration", "scores"):
        assert list((checkout / "exp/demo-tiny/klassify/evaluation").glob(f"*{figure}*.png"))


def test_running_again_keeps_everything(checkout):
    kept = [path for path in checkout.rglob("*") if path.suffix in (".safetensors", ".parquet", ".zip", ".mp4")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    stages(checkout, "--stage", "0", "--stop-stage", "3")
    assert kept and {path: path.stat().st_mtime_ns for path in kept} == before


def test_broken_clips_get_an_answer_and_are_named(checkout, tmp_path):
    """Empty, truncated, text, soundless and black files in place of 30 % and more of testA."""
    root = tmp_path / "broken"
    shutil.copytree(checkout, root, symlinks=True)
    clips = sorted((root / "media/demo-tiny/testA").glob("*.mp4"))
    whole = clips[0].read_bytes()
    broken = dict(zip(clips, (b"", whole[: len(whole) // 3], b"this is no video\n" * 99)))
    for path, content in broken.items():
        path.write_bytes(content)
    for folder in ("features/demo-tiny/mouth/testA", "submissions/demo-tiny/klassify/testA"):
        shutil.rmtree(root / folder)
    for scores in root.glob("exp/demo-tiny/klassify/*/scores/testA.*"):
        scores.unlink()
    stages(root, "--stage", "1", "--stop-stage", "1", "split=testA")
    stages(root, "--stage", "3", "--stop-stage", "3", "split=testA")
    failures = next((root / "features/demo-tiny/mouth/testA").glob("failures-*.tsv")).read_text()
    assert all(path.name in failures for path in broken)
    lines = (root / "submissions/demo-tiny/klassify/testA/prediction.txt").read_text().splitlines()
    assert len(lines) == len(clips)
