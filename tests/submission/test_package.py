"""Packaging: an answer for every clip, equal bytes for equal scores, a full manifest."""

import json
import zipfile

import numpy as np
import pytest
import yaml
from commands import klassify
from small_systems import FILES, make_list, make_segments, make_system

from klassify import settings
from klassify.cli import main
from klassify.errors import KlassifyError
from klassify.files import write_text
from klassify.lists import data_list
from klassify.submission import check, package
from klassify.submission.manifest import TASKS
from klassify.submission.verdict import JSON, MANIFEST, TXT, ZIP, Listed
from klassify.systems import base, system
from klassify.systems.detector import GENERATED_NOTICE, read_detector
from klassify.systems.system import load_system, system_hash


@pytest.fixture
def home(tmp_path):
    make_list(tmp_path / "lists" / "testA.tsv")
    return tmp_path


AS = ("--split", "testA", "--list")


def pack(home, **options):
    tasks = {task: load_system(options.pop(task)) for task in TASKS if task in options}
    return package.package(home / "out", home / "lists" / "testA.tsv", "testA", tasks, **options)


def test_answers_follow_the_list_with_nine_digits(home):
    system = make_system(home / "s", [0.25, 0.123456789012, 1e-12, 1.0])  # of a, b, c/d, e
    manifest = pack(home, task1=system)
    assert (
        home / "out" / TXT
    ).read_bytes() == b"b.mp4;0.123456789\na.mp4;0.25\nc/d.mp4;1e-12\ne.mp4;1\n"
    assert manifest["task1"]["n_answers"] == 4 and manifest["task1"]["n_prior"] == 0
    assert "rule" not in manifest and "notice" not in manifest


def test_the_zip_is_flat_and_the_same_each_time(home):
    system = make_system(home / "s", [0.1, 0.2, 0.3, 0.4])
    pack(home, task1=system)
    path = home / "out" / ZIP
    first = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [TXT]
        assert archive.read(TXT) == (home / "out" / TXT).read_bytes()
    pack(home, task1=system, force=True)
    assert path.read_bytes() == first


def test_a_clip_without_a_score_gets_the_prior_and_is_counted(home):
    system = make_system(home / "s", [0.1, np.nan, np.nan, 0.4], parameters={"base_rate": 0.7})
    manifest = pack(home, task1=system)
    assert (home / "out" / TXT).read_text().startswith("b.mp4;0.7\na.mp4;0.1\nc/d.mp4;0.7\n")
    assert manifest["task1"]["n_prior"] == manifest["task1"]["n_without_evidence"] == 2
    assert pack(home, task1=system, prior=0.5, force=True)["task1"]["prior"] == 0.5
    assert (home / "out" / TXT).read_text().startswith("b.mp4;0.5\n")


def test_log_odds_are_refused_unless_a_sigmoid_is_asked_for(home):
    system = make_system(home / "s", [-50.0, 0.0, 2.0, 50.0], scale="log_odds")
    with pytest.raises(KlassifyError, match="klassify calibrate"):
        pack(home, task1=system)
    assert not (home / "out" / ZIP).exists()
    pack(home, task1=system, sigmoid=True)
    answers = dict(line.split(";") for line in (home / "out" / TXT).read_text().splitlines())
    assert float(answers["b.mp4"]) == 0.5 and 0 < float(answers["a.mp4"]) < 1e-20
    distance = make_system(home / "t", [1.0, 2.0, 3.0, 4.0], scale="distance")
    with pytest.raises(KlassifyError, match="distance"):
        pack(home, task1=distance, sigmoid=True, force=True)


def test_scores_of_other_clips_are_refused_with_both_sides(home):
    system = make_system(home / "s", [0.1, 0.2, 0.3, 0.4])
    frame = data_list.read_list(home / "lists" / "testA.tsv")
    frame["file"] = ["b.mp4", "a.mp4", "c/d.mp4", "f.mp4"]
    data_list.write_list(home / "lists" / "testA.tsv", frame[["file", *data_list.MEASURED]])
    with pytest.raises(
        KlassifyError, match=r"1 without a score \(f.mp4\).*1 scored but not listed \(e.mp4\)"
    ):
        pack(home, task1=system)


def test_the_manifest_names_systems_hashes_and_val_auc(home):
    raw = make_system(home / "raw", [0.1, 0.2, 0.3, 0.4], supervision="segment")
    (raw / "metrics-val.json").write_text('{"auc": 0.91}')
    top = make_system(home / "top", [0.1, 0.2, 0.3, 0.4], kind="fusion", inputs=["../raw"])
    pack(home, task1=top)
    manifest = json.loads((home / "out" / MANIFEST).read_text())
    entry = manifest["systems"]["task1"]
    assert entry["hash"] == system_hash(top) and entry["inputs"][0]["name"] == "raw"
    assert entry["inputs"][0]["val_auc"] == 0.91 and len(entry["clips_sha256"]) == 64
    assert manifest["list"]["path"] == str(home / "lists" / "testA.tsv")
    assert manifest["command"].startswith("klassify package --task1 ")
    assert "--split testA" in manifest["command"]
    # top calls itself clip-supervised, but its input is not: the rule of Task 1 has to be said
    assert manifest["task1"]["supervision"] == "segment" and "clip labels" in manifest["rule"]


def test_an_answer_from_own_edits_says_so(home, capsys):
    system = make_system(home / "s", [0.1, 0.2, 0.3, 0.4], supervision="self")
    manifest = pack(home, task1=system)
    assert manifest["task1"]["supervision"] == "self"
    assert "edits that its training made in clips labelled real" in manifest["rule"]
    assert klassify("check", home / "out") == 0
    assert manifest["rule"] in capsys.readouterr().out


@pytest.mark.parametrize(
    "of_demo, notice", [("lists", package.DEMO_NOTICE), ("exp", GENERATED_NOTICE)]
)
def test_notices_are_packaged_and_said_once(home, capsys, of_demo, notice):
    folders = {"lists": home / "lists", "exp": home / "exp"}
    folders[of_demo] = home / of_demo / "demo"
    listed = make_list(folders["lists"] / "testA.tsv")
    system = make_system(folders["exp"] / "klassify" / "s", [0.1, 0.2, 0.3, 0.4])
    assert klassify("package", "--task1", system, *AS, listed, "--out", home / "out") == 0
    assert capsys.readouterr().out.count(notice) == 1
    assert json.loads((home / "out" / MANIFEST).read_text())["notice"] == notice
    assert klassify("check", home / "out") == 0
    out = capsys.readouterr().out
    assert out.count(notice) == 1 and "ACCEPTED" in out and "4 answers in prediction.txt" in out


def test_the_detector_names_answers_and_options_override_it(home, capsys):
    exp = home / "exp"
    make_system(exp / "one", [0.1, 0.2, 0.3, 0.4])
    make_system(exp / "two", [0.5, 0.6, 0.7, 0.8])
    (home / "submit.yaml").write_text("task1: one\n")
    assert main(["detector", str(exp), "--conf", str(home / "submit.yaml")]) == 0
    rest = ["--split", "testA", "--list", home / "lists" / "testA.tsv", "--out", home / "out"]
    command = ["package", exp / "detector.yaml", *rest]
    assert klassify(*command) == 0 and "a.mp4;0.1\n" in (home / "out" / TXT).read_text()
    assert klassify(*command, "--force", "--task1", exp / "two") == 0
    assert "a.mp4;0.5\n" in (home / "out" / TXT).read_text()
    make_system(exp / "one", [0.1, 0.2, 0.3, 0.4], supervision="segment")
    assert klassify(*command, "--force") == 2 and "has changed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../one", "/one", "two/../../one", "", ".", "a\0"])
def test_a_detector_names_systems_below_it_alone(home, capsys, name):
    make_system(home / "one", [0.1, 0.2, 0.3, 0.4])
    entry = {"kind": "model", "modality": "audio", "supervision": "clip", "inputs": []}
    content = {"answers": {"task1": name}, "systems": {name: entry | {"hash": "0" * 16}}}
    write_text(home / "exp" / "detector.yaml", yaml.safe_dump(content))
    with pytest.raises(KlassifyError, match="not a folder beside it"):
        read_detector(home / "exp")
    write_text(home / "submit.yaml", yaml.safe_dump({"task1": "../one"}))
    assert klassify("detector", home / "exp", "--conf", home / "submit.yaml", "--force") == 2
    assert "is not below" in capsys.readouterr().err


def test_check_warns_when_the_list_has_changed_since(home, capsys):
    pack(home, task1=make_system(home / "s", [0.1, 0.2, 0.3, 0.4]))
    path = home / "lists" / "testA.tsv"
    path.write_text(path.read_text().replace("\t100\t", "\t101\t"))
    assert main(["check", str(home / "out")]) == 0
    assert "list has changed" in capsys.readouterr().out


def test_finished_work_is_kept_and_other_work_refused(home):
    system = make_system(home / "s", [0.1, 0.2, 0.3, 0.4])
    first = pack(home, task1=system)
    written = (home / "out" / ZIP).stat().st_mtime_ns
    assert pack(home, task1=system) == json.loads(json.dumps(first))
    assert (home / "out" / ZIP).stat().st_mtime_ns == written
    make_system(home / "s", [0.9, 0.2, 0.3, 0.4])
    with pytest.raises(KlassifyError, match="task1_scores"):
        pack(home, task1=system)
    pack(home, task1=system, force=True)
    assert "a.mp4;0.9\n" in (home / "out" / TXT).read_text()


def test_a_changed_submission_is_not_taken_for_done(home):
    system = make_system(home / "s", [0.1, 0.2, 0.3, 0.4])
    pack(home, task1=system)
    with zipfile.ZipFile(home / "out" / ZIP, "w") as archive:
        archive.writestr(TXT, "a.mp4;0.5\n")
    with pytest.raises(KlassifyError, match="no answer"):
        pack(home, task1=system)


def test_proposals_are_sorted_cut_rounded_and_never_empty(home):
    system = make_system(home / "s", [0.1, 0.2, 0.3, 0.4])
    many = [["e.mp4", i * 0.05, i * 0.05 + 0.1, 0.9 - 0.01 * i] for i in range(60)]
    few = [
        ["b.mp4", 1.00049, 1.5, 0.12344],
        ["b.mp4", 3.5, 9.0, 0.98767],
        ["b.mp4", 4.5, 5.0, 0.5],
        ["b.mp4", 1.0002, 1.5001, 0.1],
        ["c/d.mp4", 7.0, 9.99996, 0.5],
    ]
    make_segments(system, few + many[::-1])
    manifest = pack(home, task1=system, task2=system)
    answers = json.loads((home / "out" / JSON).read_text())
    assert list(answers) == FILES
    # cut, outside, and twice after rounding
    assert answers["b.mp4"] == [[0.9877, 3.5, 4.0], [0.1234, 1.0, 1.5]]
    assert answers["a.mp4"] == [[0.0, 0.0, 0.0]]
    assert answers["c/d.mp4"] == [[0.5, 7.0, 9.999]]  # of unknown length
    assert len(answers["e.mp4"]) == 50 and answers["e.mp4"][0] == [0.9, 0.0, 0.1]
    assert manifest["task2"]["n_placeholder"] == 1 and manifest["task2"]["n_rows"] == 53
    with zipfile.ZipFile(home / "out" / ZIP) as archive:
        assert archive.namelist() == [TXT, JSON]
    verdict = check.check(home / "out", Listed.read(home / "lists" / "testA.tsv"))
    assert verdict.accepted and not verdict.warnings.total


def test_proposals_for_unlisted_clips_are_refused(home):
    system = make_system(home / "s", [0.1, 0.2, 0.3, 0.4])
    make_segments(system, [["z.mp4", 0.0, 1.0, 0.5]])
    with pytest.raises(KlassifyError, match="z.mp4"):
        pack(home, task2=system)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "Nothing to package"),
        (["--task2", "s"], "no segments scores"),
        (["--task1", "absent"], "There is no folder absent"),
    ],
)
def test_mistakes_are_named(home, capsys, monkeypatch, arguments, message):
    make_system(home / "s", [0.1, 0.2, 0.3, 0.4])
    monkeypatch.chdir(home)
    assert klassify("package", *AS, "lists/testA.tsv", "--out", "out", *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "folder, split",
    [("my\u00a0lists", "testA"), ("数\u3000据", "testA"), ("lists", "test.A"), ("lists", "tést A")],
)
def test_names_of_any_script_can_be_packaged(home, capsys, folder, split):
    listed = make_list(home / folder / "testA.tsv")
    system = make_system(home / "s", [0.1, 0.2, 0.3, 0.4])
    scores = system / "scores/testA.clips.tsv"
    if split != "testA":
        scores.rename(scores.with_name(f"{split}.clips.tsv"))
    for force in ([], [], ["--force"]):
        words = ["--task1", system, "--split", split, "--list", listed, "--out", home / "out"]
        assert klassify("package", *words, *force) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "folder, split",
    [("a\nb", "testA"), ("a\x9bb", "testA"), ("a\udcffb", "testA"), ("lists", ".testA")],
)
def test_names_unfit_for_a_manifest_are_refused_first(home, folder, split):
    listed = make_list(home / folder / "testA.tsv")
    system = make_system(home / "s", [0.1, 0.2, 0.3, 0.4])
    (system / "scores" / f"{split}.clips.tsv").write_bytes(
        (system / "scores/testA.clips.tsv").read_bytes()
    )
    with pytest.raises(KlassifyError, match="No manifest can say"):
        package.package(home / "out", listed, split, {"task1": load_system(system)})
    assert not (home / "out").exists()


@pytest.mark.parametrize("place", ["lists/testA.json", "s/metrics-val.json"])
def test_a_record_that_is_not_a_mapping_is_named(home, place):
    system = make_system(home / "s", [0.1, 0.2, 0.3, 0.4])
    pack(home, task1=system)
    (home / place).write_text("[]\n")
    with pytest.raises(KlassifyError, match="not a mapping") as caught:
        pack(home, task1=system, force=True)
    assert caught.value.where == home / place
    assert (home / "out" / ZIP).exists()  # what was there stays


def test_packaging_loads_each_system_and_hashes_weights_once(home, monkeypatch):
    exp = home / "exp"
    for name in ("audio", "video"):
        folder = make_system(exp / name, [0.1, 0.2, 0.3, 0.4])
        (folder / "model.safetensors").write_bytes(name.encode())
    inputs = ["../audio", "../video"]
    parameters = {"rule": "max", "prior": 0.5}
    given = {"kind": "fusion", "inputs": inputs, "parameters": parameters}
    make_system(exp / "top", [0.1, 0.2, 0.3, 0.4], **given)
    make_segments(exp / "top", [["a.mp4", 0.0, 1.0, 0.5]])
    (home / "submit.yaml").write_text("task1: top\ntask2: top\n")
    assert main(["detector", str(exp), "--conf", str(home / "submit.yaml")]) == 0
    settings._hash_of.cache_clear()
    loaded, hashed = [], []
    read, digest = base.read_fields, settings.file_hash
    monkeypatch.setattr(system, "read_fields", lambda path: loaded.append(path.name) or read(path))
    monkeypatch.setattr(settings, "file_hash", lambda path: hashed.append(path) or digest(path))
    rest = ["--split", "testA", "--list", home / "lists" / "testA.tsv", "--out", home / "out"]
    assert klassify("package", exp / "detector.yaml", *rest) == 0
    assert sorted(loaded) == ["audio", "top", "video"]
    weights = [path for path in hashed if path.endswith("model.safetensors")]
    assert sorted(weights) == [str(exp / name / "model.safetensors") for name in ("audio", "video")]
