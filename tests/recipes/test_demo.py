"""The smallest demo, end to end, as a user runs it; then with broken clips."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from answers import prediction
from commands import ran
from tiny_demo import SAID, copy_of, tiny_demo, tiny_klassify  # noqa: F401  (fixtures)
from videos import picture, sound, write_media

from klassify import load_detector
from klassify.cli import main
from klassify.files import readable
from klassify.media import decoder, info
from klassify.prediction.answer import Prediction
from klassify.prediction.predict import predict as predict_raw
from klassify.systems.detector import DetectorFile

LAST_PATHS = ("look at", "submission")


def stages(root: Path, *arguments: str, recipe: str = "klassify") -> str:
    """Run stages of a recipe in a checkout of its own; returns what it printed."""
    done = ran(
        [f"recipes/{recipe}/run.sh", "data=demo", "size=tiny", "jobs=2", *arguments],
        cwd=root,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tiny_klassify, tmp_path_factory) -> Path:  # noqa: F811
    """A folder that looks like a checkout, in which the demo of the recipe klassify has run."""
    return copy_of(
        tiny_klassify, tmp_path_factory.mktemp("of its own") / "check out", "multibranch", "fused"
    )


def test_demo_ends_with_accepted_submissions(checkout):
    for split in ("testA", "testB"):
        folder = checkout / "submissions/demo-tiny/klassify" / split
        names = (checkout / f"media/demo-tiny/{split}_files.txt").read_text().split()
        with zipfile.ZipFile(folder / "submission.zip") as archive:
            assert sorted(archive.namelist()) == ["prediction.json", "prediction.txt"]
            lines = archive.read("prediction.txt").decode().splitlines()
            proposals = json.loads(archive.read("prediction.json"))
        assert [line.split(";")[0] for line in lines] == names
        assert all(0 <= float(line.split(";")[1]) <= 1 for line in lines)
        assert sorted(proposals) == sorted(names)
        assert all(1 <= len(rows) <= 50 for rows in proposals.values())
        manifest = json.loads((folder / "manifest.json").read_text())
        assert "NOT FOR UPLOAD" in json.dumps(manifest)


def test_demo_evaluates_every_reported_system(checkout):
    table = (checkout / "exp/demo-tiny/klassify/evaluation/testA.txt").read_text()
    for system in ("tcn", "w2v_aasist", "tcn-platt", "w2v_aasist-platt", "avg", "maxout"):
        assert f"\n{system} " in table
    assert "merged" in (checkout / "exp/demo-tiny/klassify/evaluation/testA.task2.txt").read_text()
    for figure in ("calibration", "scores"):
        assert list((checkout / "exp/demo-tiny/klassify/evaluation").glob(f"*{figure}*.png"))


@pytest.mark.slow
def test_the_whole_demo_says_where_it_is_and_what_to_do_next(tiny_demo):  # noqa: F811
    said = (tiny_demo / SAID).read_text(encoding="utf-8")
    stages_said = re.findall(r"^ +\d+:\d\d  stage (\d+) of (\d+): .* left\)$", said, re.MULTILINE)
    assert stages_said and {of for _, of in stages_said} == {stages_said[-1][0]}
    for text in ("KLASSify on testA", "Done in ", "both (KLASSify) ", "third recipe: both "):
        assert f"{text}" in said
    ending = said[said.index("Done in ") :]
    report, submission = (re.search(rf"  {name} +(\S+)", ending)[1] for name in LAST_PATHS)
    assert (tiny_demo / report).exists() and (tiny_demo / submission).exists()
    logs = tiny_demo / "exp/demo-tiny/logs"
    taken = json.loads((logs / "cpu_seconds.json").read_text())
    assert {row["log"] for row in taken} <= {path.name for path in logs.iterdir()}


@pytest.mark.slow
def test_running_again_keeps_everything(checkout):
    kept = [
        path
        for path in checkout.rglob("*")
        if path.suffix in (".safetensors", ".parquet", ".zip", ".mp4")
    ]
    before = {path: path.stat().st_mtime_ns for path in kept}
    stages(checkout, "--stage", "0", "--stop-stage", "3")
    assert kept and {path: path.stat().st_mtime_ns for path in kept} == before


@pytest.mark.slow
def test_broken_clips_get_an_answer_and_are_named(checkout, tmp_path):
    """Empty, truncated, text, soundless and black files in place of 30 % and more of testA."""
    root = tmp_path / "broken"
    shutil.copytree(checkout, root, symlinks=True)
    clips = sorted((root / "media/demo-tiny/testA").glob("*.mp4"))
    whole = clips[0].read_bytes()
    broken = dict(zip(clips, (b"", whole[: len(whole) // 3], b"this is not a video\n" * 99)))
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


@pytest.fixture(scope="module")
def odd_files(checkout, tmp_path_factory) -> dict[str, Path]:
    """A clip of the corpus, and what people will also hand in."""
    folder = tmp_path_factory.mktemp("handed in")
    clip = sorted((checkout / "media/demo-tiny/testA").glob("*.mp4"))[1]
    files = {
        name: folder / name
        for name in ("clip.mp4", "silent.mp4", "faceless.mp4", "stereo30.mp4", "text.mp4")
    }
    shutil.copy(clip, files["clip.mp4"])
    files["caf\udce9$^{.mp4"] = folder / "caf\udce9$^{.mp4"
    shutil.copy(clip, files["caf\udce9$^{.mp4"])
    files["text.mp4"].write_text("this is not a video\n" * 99)
    frames, wave = list(decoder.iter_frames(clip)), decoder.read_audio(clip)
    write_video(files["silent.mp4"], frames, None)
    write_video(files["faceless.mp4"], [np.zeros_like(frame) for frame in frames], np.stack([wave]))
    write_video(files["stereo30.mp4"], frames, np.stack([wave, wave]), fps=30)
    return files


def write_video(
    path: Path, frames: list[np.ndarray], wave: np.ndarray | None, fps: int = 25
) -> None:
    tracks = [picture(frames, rate=fps, codec="libx264")]
    if wave is not None:
        tracks.append(sound(wave, layout="mono" if len(wave) == 1 else "stereo"))
    write_media(path, *tracks)


def predict(checkout: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "klassify.cli", "predict", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = ran([*command, "--exp", checkout / "exp"], timeout=300, cwd=checkout, env=environment)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_predict_answers_for_everything_that_people_hand_in(checkout, odd_files, tmp_path):
    status, text = predict(
        checkout, str(odd_files["clip.mp4"].parent), "--out", str(tmp_path), "--video"
    )
    answers = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert status == 1 and set(answers) == {readable(path.stem) for path in odd_files.values()}
    assert all(0 <= answer["probability"] <= 1 for answer in answers.values())
    assert [name for name, answer in answers.items() if not answer["answered"]] == ["text"]
    assert "no evidence" in text and "generated corpus" in text
    assert any("no audio" in reason for reason in answers["silent"]["reasons"].values())
    assert any("no face" in reason for reason in answers["faceless"]["reasons"].values())
    assert {row["modality"] for row in answers["silent"]["segments"]} <= {"visual"}
    assert (tmp_path / "caf\\xe9$^{.png").exists() and "caf\\xe9$^{.mp4: probability" in text
    for name in ("clip", "silent", "faceless", "stereo30"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        marked = info.probe(tmp_path / f"{name}.marked.mp4")
        assert marked.n_frames == decoder.count_frames(odd_files[f"{name}.mp4"])
        assert marked.has_audio == (name != "silent")


def test_each_video_has_an_answer_of_its_own_name(tmp_path, monkeypatch, capsys):
    names = [
        *("x/a.mp4", "y/a.mp4", "A.mp4", "a-1.mp4", "..mp4", "...mp4"),
        f"{'é' * 125}1.mp4",
        f"{'é' * 125}2.mp4",
    ]
    names += ["caf\udce9.mp4", "new\nline.mp4"]
    for path in (tmp_path / "in" / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def answers(_detector, videos, **_options):
        return (prediction(readable(video)) for video in videos)

    monkeypatch.setattr("klassify.commands.predict.predict", answers)
    monkeypatch.setattr(
        "klassify.commands.predict.load_detector", lambda path: DetectorFile(Path(path), {}, {})
    )
    monkeypatch.setattr("klassify.commands.predict.needed_kinds", lambda detector: set())
    videos = [str(tmp_path / "in" / name) for name in names]
    out = tmp_path / "out"
    assert main(["predict", *videos, "--detector", "d", "--out", str(out), "--no-timeline"]) == 0
    told = {json.loads(path.read_text())["file"] for path in out.iterdir()}
    assert told == {readable(video) for video in videos}
    stems = [
        *("a-2", "a-3", "A-4", "a-1", "video-1", "video-2"),
        f"{'é' * 90}-1",
        f"{'é' * 90}-2",
        "caf\\xe9",
        "new\nline",
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{stem}.json" for stem in stems)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []
    assert "caf\\xe9.mp4: probability" in capsys.readouterr().out


def check_against_submission(checkout: Path, recipe: str) -> list[Prediction]:
    """Hold the answers about testA against those of the zip; returns them."""
    clips = sorted((checkout / "media/demo-tiny/testA").glob("*.mp4"))
    detector = load_detector(checkout / "exp/demo-tiny" / recipe)
    answers = list(predict_raw(detector, clips, device="cpu"))
    with zipfile.ZipFile(
        checkout / "submissions/demo-tiny" / recipe / "testA/submission.zip"
    ) as archive:
        lines = archive.read("prediction.txt").decode().splitlines()
        proposals = json.loads(archive.read("prediction.json"))
    submitted = dict(line.split(";") for line in lines)
    for clip, answer in zip(clips, answers):  # in all digits that a submission has
        assert f"{answer.probability:.9g}" == submitted[clip.name]
        score, start, end = answer.segments[["score", "start", "end"]].to_numpy().T
        end = np.floor(end * 1000 + 1e-6) / 1000
        found = np.column_stack([score.round(4), start.round(3), end])
        np.testing.assert_array_equal(found, proposals[clip.name])
    return answers


def test_predict_gives_the_answers_of_the_submission(checkout):
    answers = check_against_submission(checkout, "klassify")
    assert all("; picture: face in " in answer.evidence for answer in answers)
    assert all(answer.decided.endswith(("(sound)", "(picture)")) for answer in answers)


@pytest.mark.slow
def test_predict_multibranch_gives_the_submitted_answers(tiny_demo):  # noqa: F811
    answers = check_against_submission(tiny_demo, "multibranch")
    assert all(not answer.reasons for answer in answers)
    detector = load_detector(tiny_demo / "exp/demo-tiny/multibranch")
    clip = next((tiny_demo / "media/demo-tiny/testA").glob("*.mp4"))
    without = detector.predict(clip, device="cpu", without_lmm=True)
    assert "LMM was left out" in without.notice and "left out" in without.reasons["lmm"]


@pytest.mark.slow
def test_predict_fused_gives_the_submitted_answers(tiny_demo):  # noqa: F811
    """Embeddings are made on the way, by the encoders of the detector."""
    check_against_submission(tiny_demo, "fused")
    manifest = tiny_demo / "submissions/demo-tiny/fused/testA/manifest.json"
    manifest = json.loads(manifest.read_text())
    assert manifest["task1"]["supervision"] == "self" and "edits" in manifest["rule"]


def test_predict_without_a_video_or_a_trained_detector_says_so(checkout, tmp_path):
    status, text = predict(checkout, str(tmp_path / "nothing*.mp4"))
    assert status == 2 and "no video" in text
    clip = str(next((checkout / "media/demo-tiny/testA").glob("*.mp4")))
    status, text = predict(checkout, clip, "--detector", str(tmp_path))
    assert status == 2 and "There is no detector here" in text


@pytest.mark.slow
def test_multibranch_demo_ends_with_accepted_submissions(tiny_demo, tmp_path):  # noqa: F811
    checkout = copy_of(tiny_demo, tmp_path / "check out")
    for split in ("testA", "testB"):
        folder = checkout / "submissions/demo-tiny/multibranch" / split
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["task1"]["supervision"] == "clip" and "rule" not in manifest
        assert manifest["task2"]["supervision"] == "segment"
        assert (folder / "submission.zip").exists()
    table = (checkout / "exp/demo-tiny/multibranch/evaluation/testA.task2.txt").read_text()
    assert all(f"\n{system} " in table for system in ("ps", "visual", "fused"))
    text = stages(checkout, "--compare", "split=val")
    assert (checkout / text.split()[-1]).name == "report.html"
