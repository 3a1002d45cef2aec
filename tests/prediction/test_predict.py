"""Detectors that come from elsewhere: what they may name, and what is refused before any work."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from answers import prediction
from commands import klassify
from faults.scenarios import TCN as CONFIG
from painted_face import painted
from published import golden_state
from small_systems import write_model, write_table
from videos import write_lossless

from klassify.cli import main
from klassify.errors import KlassifyError
from klassify.features import avhubert_extraction
from klassify.features.audio_cache import SILENT, AudioRow
from klassify.features.lips import LipsRow
from klassify.features.mouth import face
from klassify.features.mouth.kind import MouthRow
from klassify.metrics.decisions import Cost
from klassify.models.auvire import AuViRe
from klassify.models.tcn import TCN
from klassify.models.weights.safetensors_file import save_weights
from klassify.prediction import answer, predict
from klassify.prediction.answer import NO_TASK_2
from klassify.prediction.packaged import EXAMPLE
from klassify.prediction.predict import needed_kinds
from klassify.prediction.videos import find_videos
from klassify.systems.detector import DETECTOR, DetectorFile, read_detector
from klassify.systems.operating import OperatingPoints, Point
from klassify.systems.system import system_hash

MODEL, DATA = yaml.safe_load(CONFIG)["model"], yaml.safe_load(CONFIG)["data"]
PLAIN = {"model": MODEL, "data": DATA}
FRAMES = {
    "class_path": "klassify.data.audio.AudioFrames",
    "init_args": {"window": 64000, "stride": 32000},
}


def make_detector(
    folder: Path, config: dict = PLAIN, tasks: tuple[str, ...] = ("task1", "task2")
) -> DetectorFile:
    """A detector of one system, which has no weights."""
    (folder / "one").mkdir(parents=True)
    (folder / "one/config.yaml").write_text(yaml.safe_dump(config))
    write_model(folder / "one", "visual")
    entry = {"kind": "model", "modality": "visual", "supervision": "clip", "inputs": [], "hash": ""}
    entry["hash"] = system_hash(folder / "one")
    detector = DetectorFile(folder, dict.fromkeys(tasks, "one"), {"one": entry})
    (folder / DETECTOR).write_text(
        yaml.safe_dump({"answers": detector.answers, "systems": detector.systems})
    )
    return detector


def touching(marker: Path) -> dict:
    return {"class_path": "subprocess.check_output", "init_args": {"args": ["touch", str(marker)]}}


@pytest.mark.parametrize("named", ["data", "model", "augment", "front end", "train"])
def test_a_config_calls_only_models_and_data_classes(tmp_path, named, capsys):
    harm = touching(tmp_path / "marker")
    config = {
        "data": {"model": MODEL, "data": harm},
        "model": {"model": harm, "data": DATA},
        "augment": {
            "model": MODEL,
            "data": {**FRAMES, "init_args": FRAMES["init_args"] | {"augment": harm}},
        },
        "front end": {
            "model": {"class_path": "klassify.models.bam.BAM", "init_args": {"frontend": harm}},
            "data": DATA,
        },
        "train": {"model": MODEL, "data": DATA, "train": harm},
    }[named]
    make_detector(tmp_path / "d", config)
    (tmp_path / "clip.mp4").touch()
    words = ["--detector", tmp_path / "d", "--out", tmp_path]
    assert klassify("predict", tmp_path / "clip.mp4", *words) == 2
    assert "The config is not valid" in capsys.readouterr().err
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("below", ["", "one"])
def test_code_in_the_folder_of_a_detector_is_not_run(tmp_path, monkeypatch, below):
    module = f"unpacked{len(below)}"  # no name is imported twice
    detector = make_detector(
        tmp_path / module, {"model": {"class_path": f"{module}.{below or 'x'}.Model"}, "data": DATA}
    )
    (detector.folder / below / ("__init__.py" if below else "x.py")).write_text(
        f"open({str(tmp_path / 'm')!r}, 'w')"
    )
    monkeypatch.syspath_prepend(tmp_path)  # as `python -m klassify` has the working directory there
    before = list(sys.meta_path)
    with pytest.raises(KlassifyError):
        needed_kinds(detector)
    assert not (tmp_path / "m").exists() and sys.meta_path == before


def test_a_config_with_an_augmentation_or_without_data(tmp_path):
    augment = {
        "class_path": "klassify.augmentation.sets.AudioAugment",
        "init_args": {"set": "codecs"},
    }
    sound = {**FRAMES, "init_args": FRAMES["init_args"] | {"augment": augment}}
    assert needed_kinds(make_detector(tmp_path / "a", {"model": MODEL, "data": sound})) == {"audio"}
    assert needed_kinds(make_detector(tmp_path / "b")) == {"mouth"}
    with pytest.raises(KlassifyError, match="data"):
        needed_kinds(make_detector(tmp_path / "c", {"model": MODEL}))


def test_what_cannot_answer_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    make_detector(tmp_path / "half", tasks=("task2",))
    windows = {
        "class_path": "klassify.data.visual.VisualWindows",
        "init_args": {"size": 32, "window": 4, "stride": 4, "lmm": False, "reconstruction": True},
    }
    make_detector(tmp_path / "visual", {"model": MODEL, "data": windows})
    (tmp_path / "clip.mp4").touch()
    monkeypatch.setattr(predict, "_Work", None)
    for name, said in (
        (".", f"but folders in it do.\n  where: {tmp_path}\n  fix:   name one: {tmp_path}/half"),
        ("half", "No system answers task1"),
        ("visual", "features of the kind reconstruction"),
    ):
        assert klassify("predict", tmp_path / "clip.mp4", "--detector", tmp_path / name) == 2
        told = capsys.readouterr().err
        assert said in told and f"where: {tmp_path / name}" in told


def test_avhubert_features_of_raw_videos(tmp_path, monkeypatch, capsys):
    """With the given weights, from the crops of the clip; without, a refusal before any work."""
    tiny = {"name": "av-hubert-base", "dim": 64, "layers": 2, "heads": 4, "hidden": 128}
    monkeypatch.setattr(avhubert_extraction, "ARCHITECTURE", tiny)
    torch.save({"model": golden_state("avhubert"), "cfg": {}}, tmp_path / "base.pt")
    sizes = {"in_dim": 64, "d_model": 4, "length": 32, "kernel": 3}
    config = {
        "model": {"class_path": "klassify.models.auvire.AuViRe", "init_args": sizes},
        "data": {
            "class_path": "klassify.data.auvire.AuViReFrames",
            "init_args": {"length": 32, "stride": 16},
        },
    }
    folder = tmp_path / "detector"
    detector = make_detector(folder, config, tasks=("task1",))
    save_weights(AuViRe(**sizes), folder / "one/model.safetensors")
    detector.systems["one"]["hash"] = system_hash(folder / "one")
    answers = {"answers": detector.answers, "systems": detector.systems}
    (folder / DETECTOR).write_text(yaml.safe_dump(answers))
    clip = tmp_path / "clip.mp4"
    clip.symlink_to(EXAMPLE)
    picture = np.random.default_rng(0).integers(0, 256, (96, 96), dtype=np.uint8)
    crops = [cv2.imencode(".jpg", picture)[1].tobytes()] * 50
    row = LipsRow("000000.mp4", 25.0, crops, np.ones(50, bool))
    monkeypatch.setattr(predict, "rows_in_order", lambda made, media, files: iter([row]))
    words = ["predict", clip, "--detector", folder, "--out", tmp_path / "out", "--device", "cpu"]
    assert klassify(*words) == 2
    assert "--avhubert base_lrs3_iter4.pt" in capsys.readouterr().err
    words += ["--avhubert", tmp_path / "base.pt", "--no-timeline"]
    assert klassify(*words) == 0
    (answer_of,) = (tmp_path / "out").glob("*.json")
    written = json.loads(answer_of.read_text())
    assert 0 < written["probability"] < 1 and "one" not in written["reasons"]


def test_faces_are_found_in_torch_if_the_model_learned_so(tmp_path, monkeypatch):
    detector = make_detector(tmp_path / "d", tasks=("task1",))
    save_weights(TCN(**MODEL["init_args"]), detector.folder / "one/model.safetensors")
    learned_from = {"kind": "mouth", **face.source_settings(face.TORCH, refine=False)}
    (detector.folder / "one/settings.json").write_text(json.dumps({"mouth": learned_from}))
    clip = write_lossless(tmp_path / "a.mkv", np.stack([painted(x=112 + t)[0] for t in range(12)]))
    extracted, rows_in_order = [], predict.rows_in_order

    def noted(made, media, files):
        extracted.append(made.settings)
        return rows_in_order(made, media, files)

    monkeypatch.setattr(predict, "rows_in_order", noted)
    (found,) = predict.predict(detector, [clip], device="cpu")
    assert found.answered and "face in 12 of 12 frames" in found.evidence
    (settings,) = extracted
    assert {"kind": "mouth", **settings}.items() >= learned_from.items()


def test_detectors_of_one_name_answer_in_folders_of_their_own(tmp_path, monkeypatch):
    for name in ("demo/klassify", "other/klassify"):
        make_detector(tmp_path / "exp" / name)
    (tmp_path / "clip.mp4").touch()

    def answers(detector, videos, **_options):
        name = detector.folder.parent.name
        return [prediction(str(video), detector=name) for video in videos]

    monkeypatch.setattr("klassify.commands.predict.predict", answers)
    demo, other = (f"--detector={tmp_path}/exp/{name}/klassify" for name in ("demo", "other"))
    for given, out in (((demo, other, demo), "o"), ((demo, demo), "p")):
        words = [*given, "--out", tmp_path / out, "--no-timeline"]
        assert klassify("predict", tmp_path / "clip.mp4", *words) == 0
    for name in ("demo", "other"):
        written = json.loads((tmp_path / "o" / name / "klassify/clip.json").read_text())
        assert written["detector"] == name
    assert (tmp_path / "p/clip.json").exists()


@pytest.mark.parametrize(
    "place, notice",
    [
        ("exp/demo/klassify", True),
        ("exp/demo-tiny/klassify", True),
        ("demo/exp/lavdf/klassify", False),
        ("exp/lavdf/demo", False),
        ("exp/demo/klassify/seed-2", True),
        ("exp/lavdf/klassify/seed-2", False),
    ],
)
def test_the_generated_corpus_notice_depends_on_the_data_set(tmp_path, monkeypatch, place, notice):
    (tmp_path / place).mkdir(parents=True)
    assert answer.on_generated_corpus(tmp_path / place) == notice
    monkeypatch.chdir(tmp_path / place)
    assert answer.on_generated_corpus(Path()) == notice


def test_each_reason_for_no_answer_is_told_once():
    reasons = {
        "aasist": "The file is empty.",
        "tcn": "No face.",
        "max": "aasist: The file is empty.; tcn: No face.",
    }
    told = prediction(answered=False, reasons=reasons).as_text(0.15)
    assert told.splitlines()[0] == "a.mp4: no evidence (No face, The file is empty); prior 0.500"


def with_lmm(folder: Path, recorded: dict) -> DetectorFile:
    """A detector whose one system was trained on the features of an LMM."""
    detector = make_detector(folder)
    detector.systems["one"] |= {"lmm": recorded} if recorded else {}
    return detector


@pytest.mark.parametrize(
    "recorded, given, said",
    [
        ({}, None, "does not record which"),
        ({"lmm": "llava-of-ours", "lmm_files": "a"}, None, "needs the LMM llava-of-ours"),
        ({"lmm": "llava-of-ours", "lmm_files": "a"}, "tiny", "tiny is not the LMM"),
    ],
)
def test_an_lmm_that_is_missing_is_refused_with_a_fix(tmp_path, recorded, given, said):
    with pytest.raises(KlassifyError, match=said) as refused:
        predict.lmm_of(with_lmm(tmp_path / "d", recorded), "cpu", given)
    assert "--lmm" in str(refused.value) and "--without-lmm" in str(refused.value)


def test_the_lmm_that_the_detector_records_is_used(tmp_path):
    recorded = {"lmm": "tiny", "lmm_files": "random", "interval": 7}
    made = predict.lmm_of(with_lmm(tmp_path / "d", recorded), "cpu")
    assert (made.settings["lmm"], made.settings["interval"]) == ("tiny", 7)


def test_the_notice_is_told_once_and_paths_are_printed(tmp_path, monkeypatch, capsys):
    make_detector(tmp_path / "d")
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()

    fields = {"notice": "Mind this.", "evidence": "sound: 1.0 s; no picture"}
    fields |= {"decided": "one (sound)"}

    def answers(detector, videos, **_options):
        return [prediction(str(video), **fields) for video in videos]

    monkeypatch.setattr("klassify.commands.predict.predict", answers)
    videos = [tmp_path / name for name in ("a.mp4", "b.mp4")]
    options = ["--detector", tmp_path / "d", "--out", tmp_path / "o", "--no-timeline"]
    assert klassify("predict", *videos, *options) == 0
    told = capsys.readouterr().out
    assert told.count("Mind this.") == 1 and f"written: {tmp_path / 'o/a.json'}" in told
    assert told.count("sound: 1.0 s; no picture; decided by one (sound)") == 2
    assert json.loads((tmp_path / "o/b.json").read_text())["notice"] == "Mind this."


def test_the_lmm_of_stage_1_is_written_into_the_detector(tmp_path):
    make_detector(tmp_path / "d")
    (tmp_path / "d" / DETECTOR).unlink()
    shards = {"kind": "lmm", "lmm": "tiny", "lmm_files": "random", "interval": 200, "chunk": 5}
    (tmp_path / "d/one/settings.json").write_text(json.dumps({"lmm": shards}))
    (tmp_path / "submit.yaml").write_text("task1: one\ntask2: one\n")
    assert main(["detector", str(tmp_path / "d"), "--conf", str(tmp_path / "submit.yaml")]) == 0
    entry = read_detector(tmp_path / "d").systems["one"]
    assert entry["lmm"] == {"lmm": "tiny", "lmm_files": "random", "interval": 200}


def test_folders_give_all_media_and_name_what_is_passed_over(tmp_path, capsys):
    for name in ("a.MTS", "b.wav", "c.3gp", "notes.txt", "._a.mp4", ".hidden.mp4"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "d.mp4").write_bytes(b"x")
    assert [path.name for path in find_videos([str(tmp_path)])] == ["a.MTS", "b.wav", "c.3gp"]
    said = capsys.readouterr().err
    assert "notes.txt" in said and "hidden" not in said and "MACOSX" not in said


def test_a_name_with_a_dash_and_a_file_as_out(tmp_path, monkeypatch, capsys):
    make_detector(tmp_path / "d")
    monkeypatch.chdir(tmp_path)
    for name in ("-clip.mp4", "taken"):
        Path(name).write_text("x")
    asked: list[str] = []
    monkeypatch.setattr("klassify.commands.predict.predict", given_answers(asked))
    command = ["predict", "--detector", "d", "--out"]
    assert main([*command, "taken", "--", "-clip.mp4"]) == 2
    assert "where: taken" in capsys.readouterr().err and not asked
    assert main([*command, "o", "--no-timeline", "--", "-clip.mp4"]) == 0
    assert asked == ["-clip.mp4"] and Path("o/-clip.json").exists()


def test_notes_on_the_file_are_in_text_and_json():
    note = "2 tracks of sound: number 2 is used, the default."
    answer = prediction(notes=[note])
    assert note in answer.as_text(0.1) and answer.as_json()["notes"] == [note]


def given_answers(calls: list[str]):
    """A stand-in for predict that notes for which videos it is asked."""

    def answers(detector, videos, *, progress, **_options):
        for number, video in enumerate(videos):
            progress(number, video)
            calls.append(video.name)
            if video.name == "stop.mp4":
                raise KeyboardInterrupt
            yield prediction(str(video), answered=video.name != "b.mp4")

    return answers


def test_a_stopped_run_continues_with_the_same_settings(tmp_path, monkeypatch, capsys):
    make_detector(tmp_path / "d")
    videos = [tmp_path / name for name in ("a.mp4", "b.mp4", "stop.mp4", "z.mp4")]
    for video in videos:
        video.write_text("x")
    calls: list[str] = []
    monkeypatch.setattr("klassify.commands.predict.predict", given_answers(calls))
    command = ["predict", *map(str, videos), "--detector", str(tmp_path / "d"), "--no-timeline"]
    command += ["--out", str(tmp_path / "o")]

    def asked(*options: str) -> list[str]:
        calls.clear()
        main([*command, *options])
        return list(calls)

    assert asked() == ["a.mp4", "b.mp4", "stop.mp4"]
    videos[2].rename(tmp_path / "kept.mp4")
    command[3] = str(tmp_path / "kept.mp4")
    assert asked() == ["kept.mp4", "z.mp4"]
    assert "2 answers are kept; --force" in capsys.readouterr().out
    assert asked() == [] and main(command) == 1  # for b, which has no evidence
    videos[0].write_text("another film")
    (tmp_path / "o/z.json").write_text("{")
    assert asked() == ["a.mp4", "z.mp4"]
    every = ["a.mp4", "b.mp4", "kept.mp4", "z.mp4"]
    assert asked("--without-lmm") == asked("--force") == every
    monkeypatch.setenv("KLASSIFY_DAMAGE", "0.5")
    assert asked() == every and asked() == []


FOUR_FRAMES = [
    {"file": "a", "start": 0.04 * k, "end": 0.04 * k + 0.04, "score": 2.0} for k in range(4)
]


def write_answers(detector: DetectorFile, kind: str, rows, scale: str = "log_odds") -> None:
    """Scores of the detector's system for the clip."""
    write_table(detector.folder / "one", "clip", kind, pd.DataFrame(rows), scale)


@pytest.mark.parametrize(
    ("seen", "heard", "modality", "told"),
    [
        (0.5, np.nan, "visual", "seen 50% of the clip"),
        (0.0, 0.0, "visual", "seen 0%, heard 0% of the clip"),
        (0.0, 0.25, "both", "seen 0%, heard 25% of the clip"),
    ],
)
def test_an_answer_needs_a_face_or_sound(tmp_path, seen, heard, modality, told):
    detector = make_detector(tmp_path / "d")
    detector.systems["one"]["modality"] = modality
    answers = bool(seen or heard)
    row = {"file": "a", "start": 0.0, "end": 0.16, "score": 2.0, "answered": int(answers)}
    row |= {"reason": "" if answers else "no face", "seen": seen, "heard": heard}
    write_answers(detector, "clips", pd.DataFrame([row]).dropna(axis=1))
    write_answers(detector, "frames", FOUR_FRAMES)
    proposal = {"file": "a", "start": 0.0, "end": 0.1, "score": 0.9}
    proposal |= {"modality": modality, "method": "threshold"}
    write_answers(detector, "segments", [proposal], "probability")
    valid = np.arange(4) < 4 * seen
    mouth = MouthRow("a", 25.0, np.zeros((4, 8), np.float32), valid)
    found = answer.Answers(detector, "clip", {"mouth": mouth})
    found = found.about(tmp_path / "a.mp4", detector, "looked", {})
    assert found.answered == answers and told in found.evidence
    assert (found.probability > 0.8) == answers
    # what nothing was seen of is not of both modalities
    assert found.segments["modality"].tolist() == [modality.replace("both", "audio")]
    assert found.as_json()["heard"] == (None if np.isnan(heard) else heard)
    assert found.reasons == ({} if answers else {"one": "no face"})
    if modality == "visual":  # a gap where there is no face
        np.testing.assert_array_equal(found.frames["one"]["probability"].isna(), ~valid)


def test_gaps_of_the_sound_are_gaps_of_its_frames(tmp_path):
    detector = make_detector(tmp_path / "d", tasks=("task1",))
    detector.systems["one"]["modality"] = "audio"
    write_answers(detector, "frames", FOUR_FRAMES)
    row = AudioRow("a", np.zeros(2560, np.int16), gaps=[(0, 700), (1300, 2560)], notes=["A note."])
    found = answer.Answers(detector, "clip", {"audio": row})
    assert found.frames["one"]["probability"].isna().tolist() == [True, False, True, True]
    assert answer.evidence_of({"n_samples": 2560, "n_frames": 4}, {"audio": row}) == (
        "sound: 0.0 s; picture: 4 frames"
    )


def test_a_sound_of_zeros_is_told():
    row = AudioRow.failed("a", "audio", SILENT)
    told = answer.evidence_of({"n_samples": 2560, "n_frames": 4}, {"audio": row})
    assert told == "the sound is digital silence; picture: 4 frames"


POINTS = OperatingPoints(
    "log_odds",
    *(240, 240, 120, 120, 0),
    Cost(),
    (
        Point("1 % false alarms", 0.01, 2.0, (1.0, 3.0), -1.0, (-2.0, 0.0), 0.0, (0.0, 0.03)),
        Point("5 % false alarms", 0.05, why_not="val_fit has real clips of 12 sources"),
    ),
)


@pytest.mark.parametrize(
    "score, rate, left_out, verdict, told",
    [
        (2.5, 0.01, {}, "fake", "fake at 1 % false alarms (thresholds from 240 real clips of 120"),
        (2.0, 0.01, {}, "cannot tell", "false-alarm rate is between 0 % and 3 %)"),
        (-1.5, 0.01, {}, "real", "real at 1 % false alarms"),
        (2.5, 0.05, {}, "", "no verdict at 5 % false alarms: val_fit has real clips of 12 sources"),
        (2.5, 0.01, {"lmm": "it was left out"}, "", "thresholds do not apply: it was left out"),
        (None, 0.01, {}, "", "no evidence"),
    ],
)
def test_verdicts_in_text_and_json(tmp_path, score, rate, left_out, verdict, told):
    detector = make_detector(tmp_path / "d", tasks=("task1",))
    detector = dataclasses.replace(detector, points=POINTS)
    reason = "" if score else "no face"
    row = {"file": "a", "start": 0.0, "end": 1.0, "score": score or np.nan, "reason": reason}
    write_answers(detector, "clips", [row])
    found = answer.Answers(detector, "clip", {})
    found = found.about(tmp_path / "a.mp4", detector, "looked", left_out, rate)
    written = found.as_json()["verdict"]
    assert found.verdict.answer == written["answer"] == verdict
    assert written["at"] == f"{rate:.0%}".replace("%", " % false alarms")
    text = found.as_text(0.1)
    assert told in text and ("no verdict" in text) == (verdict == "" and score is not None)


def test_old_detectors_have_no_verdict(tmp_path):
    detector = make_detector(tmp_path / "d")
    assert read_detector(tmp_path / "d").points is None
    with pytest.raises(KlassifyError, match="no threshold for a false-alarm rate of 0.2") as error:
        next(predict.predict(dataclasses.replace(detector, points=POINTS), [], false_alarms=0.2))
    assert "--false-alarms 0.01,0.05,0.2 --force" in error.value.fix
    told = prediction().as_text(0.1)
    assert "no verdict: this detector has no operating points" in told
    assert "no segment with a score of 0.1 or more" in told


def test_without_task_2_no_segment_is_missed():
    told = prediction(notes=[NO_TASK_2]).as_text(0.1)
    assert NO_TASK_2 in told and "no segment with a score" not in told
