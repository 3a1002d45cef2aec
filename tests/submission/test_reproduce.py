"""Making a package again: equal bytes, each kind of change named, hostile manifests refused."""

import json
import os
import zipfile

import numpy as np
import pytest
from places import ROOT
from small_systems import make_list, make_segments, make_system

from klassify.cli import main
from klassify.errors import KlassifyError
from klassify.submission import ledger, package
from klassify.submission.manifest import entries, read_manifest
from klassify.systems.system import load_system

FOLDER = "submissions/mine/r/testA"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory with a package of both tasks; returns the path of its manifest."""
    monkeypatch.chdir(tmp_path)
    make_list(tmp_path / "data_lists/mine/testA.tsv")
    raw = make_system(tmp_path / "exp/mine/r/raw", [0.1, 0.2, np.nan, 0.4])
    top = make_system(
        tmp_path / "exp/mine/r/top", [0.1, 0.2, np.nan, 0.4], kind="fusion", inputs=["../raw"]
    )
    for folder in (raw, top):
        make_segments(folder, [["b.mp4", 1.0, 1.5, 0.5], ["e.mp4", 0.5, 2.0, 0.25]])
    tasks = "--task1 exp/mine/r/top --task2 exp/mine/r/top --prior 0.3 --split testA"
    command = f"package {tasks} --list data_lists/mine/testA.tsv --out {FOLDER}"
    assert main(command.split()) == 0
    return tmp_path / FOLDER / "manifest.json"


def change_top(home, scores):
    """Give the packaged system other scores."""
    folder = home.parents[4] / "exp/mine/r/top"
    return make_system(folder, scores, kind="fusion", inputs=["../raw"])


def run(capsys, *words):
    capsys.readouterr()
    status = main(["reproduce", *words])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def id_of(manifest):
    return ledger.id_of(json.loads(manifest.read_text()))


def edit(manifest, change):
    content = json.loads(manifest.read_text())
    change(content)
    manifest.write_text(json.dumps(content))


def test_an_unchanged_package_comes_out_byte_by_byte(home, capsys):
    before = sorted(p.relative_to(home.parents[4]) for p in home.parents[4].rglob("*"))
    for submission in (id_of(home), id_of(home)[:5], FOLDER):
        status, said = run(capsys, submission)
        assert status == 0 and said.startswith("REPRODUCED") and id_of(home) in said
    assert sorted(p.relative_to(home.parents[4]) for p in home.parents[4].rglob("*")) == before


def test_the_zip_does_not_depend_on_when_or_as_whom_it_is_made(home, capsys, monkeypatch):
    os.umask(os.umask(0o077))
    for path in home.parents[4].rglob("scores/*"):
        os.utime(path, (1e9, 1e9))
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert run(capsys, FOLDER)[0] == 0


def test_a_changed_score_is_named_with_its_answers(home, capsys):
    change_top(home, [0.1, 0.2, np.nan, 0.9])
    status, said = run(capsys, id_of(home))
    assert status == 1 and said.startswith("NOT REPRODUCED")
    was = json.loads(home.read_text())["made_with"]["task1_scores"]
    assert f"changed: the scores exp/mine/r/top/scores/testA.clips.tsv, hash {was} then" in said
    assert "prediction.txt differs" in said and "prediction.json differs" not in said
    assert "1 of 4 answers changed" in said and "'e.mp4': 0.4 -> 0.9" in said
    assert "no input has changed" not in said


def rewritten(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new))


LIST, SEGMENTS = "data_lists/mine/testA.tsv", "exp/mine/r/top/scores/testA.segments.tsv"
CHANGES = {
    "list of the same bytes": (
        lambda root: rewritten(root / LIST, b"\t100\t", b"\t101\t"),
        [f"changed: the list {LIST}", "bytes"],
    ),
    "list gone": (lambda root: (root / LIST).unlink(), [f"gone: the list {LIST}"]),
    "scores gone": (
        lambda root: (root / SEGMENTS).unlink(),
        ["cannot be made again", f"gone: the scores {SEGMENTS}"],
    ),
    "package": (
        lambda root: rewritten(root / FOLDER / "submission.zip", b"PK", b"PX"),
        ["is not the package that the manifest describes"],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_has_changed_since_is_named(home, capsys, name):
    change, told = CHANGES[name]
    change(home.parents[4])
    status, said = run(capsys, FOLDER)
    assert status == 1 and all(part in said for part in told), said


def test_a_changed_input_system_is_named_first(home, capsys):
    (home.parents[4] / "exp/mine/r/raw/model.safetensors").write_bytes(b"other weights")
    status, said = run(capsys, FOLDER)
    assert status == 1
    raw, top = (said.index(f"changed: the system exp/mine/r/{name},") for name in ("raw", "top"))
    assert raw < top


def test_without_a_changed_input_the_code_is_to_blame(home, capsys, monkeypatch):
    monkeypatch.setattr("klassify.submission.answers.PLACEHOLDER", [[0.1, 0.0, 0.0]])
    edit(home, lambda manifest: manifest["versions"].update(numpy="0.0.1"))
    status, said = run(capsys, FOLDER)
    assert status == 1 and "no input has changed" in said and '"numpy": "0.0.1"' in said
    assert "prediction.json differs" in said


def test_another_packing_of_the_same_answers_is_said_to_be_that(home, capsys, monkeypatch):
    def pack_otherwise(path, members):
        with zipfile.ZipFile(path, "w") as archive:
            for member in members:
                archive.write(member, member.name)

    monkeypatch.setattr("klassify.submission.package.write_zip", pack_otherwise)
    status, said = run(capsys, FOLDER)
    assert status == 1 and "the answers are the same" in said


def test_an_older_package_is_made_from_its_kept_manifest(home, capsys):
    first = id_of(home)
    tasks = {"task1": load_system(change_top(home, [0.5, 0.2, 0.3, 0.4]))}
    package.package(FOLDER, "data_lists/mine/testA.tsv", "testA", tasks, force=True)
    assert id_of(home) != first and run(capsys, id_of(home))[0] == 0
    status, said = run(capsys, first)
    assert status == 1 and "changed: the scores" in said
    assert "changed: the system" not in said and "compared with" not in said


@pytest.mark.parametrize("path", ["/etc", "../outside", "exp/../../outside", "exp/link", "exp/\0"])
@pytest.mark.parametrize("place", ["list", "task1", "task2", "below"])
def test_paths_that_leave_the_working_directory_are_refused(home, capsys, path, place, monkeypatch):
    (home.parents[4] / "exp/link").symlink_to("/etc")

    def change(manifest):
        systems = manifest["systems"]
        entry = {"list": manifest["list"], "below": systems["task1"]["inputs"][0], **systems}[place]
        entry["path"] = path

    edit(home, change)
    monkeypatch.setattr(
        "klassify.submission.package.build", lambda *a, **b: pytest.fail("it was used")
    )
    status, said = run(capsys, FOLDER)
    assert status == 2 and ("outside the working directory" in said or "not a manifest" in said)


def test_a_linked_disk_is_let_through_when_allowed(home, capsys, tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk")
    (home.parents[4] / "exp").rename(disk / "exp")
    (home.parents[4] / "exp").symlink_to(disk / "exp")
    assert run(capsys, FOLDER)[0] == 2
    assert run(capsys, FOLDER, "--allow", str(disk))[0] == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(split="../../x"),
        lambda m: m.update(list=[]),
        lambda m: m["list"].update(path=7),
        lambda m: m["list"].update(path="a\x1b[2J"),
        lambda m: m.update(systems={}),
        lambda m: m["systems"].update(task3=m["systems"]["task1"]),
        lambda m: m["systems"]["task1"].update(inputs="x"),
        lambda m: m["systems"]["task1"].update(inputs=[None]),
        lambda m: m["systems"]["task1"].update(path=["x"]),
        lambda m: m["systems"]["task1"].update(val_auc=10**400),
        lambda m: m.update(zip_sha256="x"),
        lambda m: m.update(files=["prediction.txt"]),
        lambda m: m.pop("made_with"),
        lambda m: m["made_with"].update(prior="0.5"),
        lambda m: m["made_with"].update(prior=float("nan")),
        lambda m: m["made_with"].update(prior=True),
        lambda m: m["made_with"].update(sigmoid="no"),
        lambda m: m["made_with"].update(split="testB"),
        lambda m: m["made_with"].pop("task2_scores"),
    ],
)
def test_damaged_manifests_are_refused(home, capsys, change):
    edit(home, change)
    status, said = run(capsys, FOLDER)
    assert status == 2 and "not a manifest of a submission" in said and "\x1b" not in said


@pytest.mark.parametrize(
    "content", ["", "[]", "null", '"x"', "[" * 100_000, '{"a":' * 50_000, "\xff"]
)
def test_a_file_that_is_not_a_json_object_is_refused(home, capsys, content):
    home.write_bytes(content.encode("latin-1"))
    status, said = run(capsys, FOLDER)
    assert status == 2 and str(FOLDER) in said


def test_manifests_without_end_are_refused(home):
    many = [{"name": "a", "path": "a", "hash": "0" * 16, "inputs": []}] * 1100
    edit(home, lambda manifest: manifest["systems"]["task1"].update(inputs=many))
    with pytest.raises(KlassifyError, match="more than 1000"):
        read_manifest(home)
    home.write_text(" " * (1 << 24) + "{}")
    with pytest.raises(KlassifyError, match="16 MB"):
        read_manifest(home)


def test_unknown_submissions_are_named(home, capsys):
    for words, named in (
        (["ffff"], "No package"),
        ([" "], "klassify ledger"),
        (["exp"], "no manifest.json"),
        (["ffff", "--ledger", "none.tsv"], "no ledger"),
    ):
        status, said = run(capsys, *words)
        assert status == 2 and named in said
    (home.parents[2].parent / "manifests" / f"{id_of(home)}.json").unlink()
    status, said = run(capsys, id_of(home))
    assert status == 2 and "is missing" in said


def test_the_inputs_below_a_system_come_first():
    below = {"name": "a", "inputs": [{"name": "b", "inputs": []}]}
    tree = {"name": "top", "inputs": [below, {"name": "c", "inputs": []}]}
    order = [entry["name"] for entry in entries(tree)]
    assert order.index("b") < order.index("a") < order.index("top") == 3


def test_the_commands_of_the_readme_do_what_it_says(home, capsys):
    """As they stand, with the id and the folder of this package; make's target is one command."""
    readme = ROOT / "submissions/README.md"
    (home.parents[4] / "old.zip").write_bytes((home.parent / "submission.zip").read_bytes())
    lines = [line.partition(" #")[0] for line in readme.read_text().splitlines()]
    starts = ("klassify ", "make reproduce submission=")
    commands = [line for line in lines if line.startswith(starts)]
    assert len(commands) >= 5
    for line in commands:
        line = line.replace("make reproduce submission=", "klassify reproduce ")
        line = line.replace("3f2a81c09e", id_of(home))
        line = line.replace("submissions/demo/klassify/testA", FOLDER)
        assert main(line.split()[1:]) == 0, line + capsys.readouterr().err
    assert "leaderboard_auc 0.87" in capsys.readouterr().out
