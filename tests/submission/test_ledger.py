"""The ledger: a row for every package, whoever packages or edits at the same time."""

import json
import subprocess
import sys

import pytest
from places import TESTS
from small_systems import make_list, make_segments, make_system

from klassify.cli import main
from klassify.errors import KlassifyError
from klassify.submission import ledger, package
from klassify.submission.ledger import COLUMNS, find_ledger, read_ledger, record, set_leaderboard
from klassify.systems.system import load_system

HEADER = "\t".join(COLUMNS) + "\n"


def manifest_of(number, **values):
    """A manifest whose zip has the hash `number`, written out with 64 digits."""
    system = {"name": "s", "path": "exp/demo/r/s", "hash": "0" * 16, "inputs": [], "val_auc": 0.75}
    return {
        "split": "testA",
        "list": {"path": "data_lists/demo/testA.tsv"},
        "zip_sha256": f"{number:010x}".ljust(64, "0"),
        "systems": {"task1": system},
        "made": "2026-01-02T03:04:05Z",
        "commit": "c" * 40,
        "dirty": True,
        "made_with": {"list": "1" * 64, "task1_system": "0" * 16, "task1_scores": "2" * 64},
        **values,
    }


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "submissions" / "ledger.tsv"
    record(path, manifest_of(1), tmp_path / "submissions" / "demo" / "r" / "testA")
    return path


def test_packaging_books_what_was_made_from_what(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_list(tmp_path / "data_lists/mine/testA.tsv")
    system = make_system(tmp_path / "exp/mine/r/one", [0.1, 0.2, 0.3, 0.4])
    make_segments(system, [["b.mp4", 1.0, 1.5, 0.5]])
    (system / "metrics-val.json").write_text('{"auc": 0.91234567}')
    (system / "metrics-val.task2.json").write_text('{"Score": 0.5}')
    tasks = "--task1 exp/mine/r/one --task2 exp/mine/r/one --split testA"
    command = ["package", *f"{tasks} --list data_lists/mine/testA.tsv --out".split()]
    assert main([*command, "submissions/mine/r/testA"]) == 0
    manifest = json.loads((tmp_path / "submissions/mine/r/testA/manifest.json").read_text())
    ((package_id, row),) = read_ledger("submissions/ledger.tsv").rows.items()
    assert package_id == manifest["zip_sha256"][:10] and package_id in capsys.readouterr().out
    expected = {
        "made": manifest["made"],
        "data": "mine",
        "split": "testA",
        "folder": "mine/r/testA",
        "task1": "exp/mine/r/one",
        "task2": "exp/mine/r/one",
        "val_auc": "0.9123",
        "val_score": "0.5000",
        "leaderboard_auc": "",
        "leaderboard_score": "",
        "package_sha256": manifest["zip_sha256"],
        "list_sha256": manifest["made_with"]["list"],
        "task2_scores_sha256": manifest["made_with"]["task2_scores"],
    }
    assert expected.items() <= row.items()
    assert len(row["commit"]) in (0, 40)
    assert row["dirty"] in (("yes", "no") if row["commit"] else ("",))
    kept = json.loads((tmp_path / "submissions/manifests" / f"{package_id}.json").read_text())
    assert kept == manifest

    before = (tmp_path / "submissions/ledger.tsv").read_bytes()
    assert main([*command, "submissions/mine/r/testA"]) == 0  # nothing to do
    assert main([*command, "submissions/mine/r/testA", "--force"]) == 0
    assert main([*command, "submissions/elsewhere"]) == 0  # equal bytes
    assert (tmp_path / "submissions/ledger.tsv").read_bytes() == before
    assert main([*command, "submissions/mine/r/testA", "--force", "--prior", "0.4"]) == 0
    make_system(tmp_path / "exp/mine/r/one", [0.9, 0.2, 0.3, 0.4])
    assert main([*command, "submissions/mine/r/testA", "--force"]) == 0
    assert len(read_ledger("submissions/ledger.tsv").rows) == 2


def test_the_ledger_is_in_submissions_or_in_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(find_ledger("submissions/demo/klassify/testA")) == "submissions/ledger.tsv"
    assert str(find_ledger("submissions")) == "submissions/ledger.tsv"
    assert str(find_ledger("out/a")) == "out/a/ledger.tsv"
    assert str(find_ledger("submissions/../out")) == "out/ledger.tsv"
    assert (
        find_ledger(tmp_path / "submissions/x/submissions/y")
        == tmp_path / "submissions/x/submissions/ledger.tsv"
    )
    (tmp_path / "submissions/x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "submissions/x")
    assert find_ledger("y") == tmp_path / "submissions/ledger.tsv"
    make_list(tmp_path / "data_lists/testA.tsv")
    tasks = {"task1": load_system(make_system(tmp_path / "exp/one", [0.1, 0.2, 0.3, 0.4]))}
    given = tmp_path / "mine.tsv"
    listed = tmp_path / "data_lists/testA.tsv"
    package.package(tmp_path / "o", listed, "testA", tasks, ledger_path=given)
    assert [row["folder"] for row in read_ledger(given).rows.values()] == ["o"]
    assert not (tmp_path / "o/ledger.tsv").exists()


def test_what_was_edited_by_hand_stays(book):
    line = book.read_text().splitlines()[1]
    cells = dict(zip(COLUMNS, line.split("\t")))
    columns = ["mine", *reversed(COLUMNS)]
    edited = [
        "\ufeff# our own heading, é\r\n",
        "\r\n",
        "\t".join(columns) + "\r\n",
        "# a\tb\tc\td\te\r\n",
        "\t".join({**cells, "mine": "note"}.get(name, "") for name in columns) + "\r\n",
        "# without a line end",
    ]
    book.write_bytes("".join(edited).encode())
    record(book, manifest_of(1), book.parent / "demo/r/testA")
    assert book.read_bytes() == "".join(edited).encode()
    record(book, manifest_of(2), book.parent / "other")
    lines = book.read_bytes().decode().split("\r\n")
    assert lines[:5] == [text.rstrip("\r\n") for text in edited[:5]] and lines[5] == edited[5]
    assert dict(zip(columns, lines[6].split("\t")))["folder"] == "other" and lines[7:] == [""]
    set_leaderboard(book, "0000000001", 0.87)
    after = book.read_bytes().decode().split("\r\n")
    filled = cells | {"leaderboard_auc": "0.87", "mine": "note"}
    assert after[4].split("\t") == [filled[name] for name in columns]
    assert after[:4] + after[5:] == lines[:4] + lines[5:]


def test_a_row_gains_unknown_cells_and_keeps_written_ones(book):
    text = book.read_text().replace("\t0.7500\t", "\t\t").replace("demo/r/testA", "moved/here")
    book.write_text(text)
    record(book, manifest_of(1), book.parent / "demo/r/testA")
    row = read_ledger(book).row("0000000001")
    assert row["val_auc"] == "0.7500" and row["folder"] == "moved/here"


def test_rows_whose_empty_ends_an_editor_cut_off_are_read(book):
    set_leaderboard(book, "00", 0.5)
    book.write_text("\n".join(line.rstrip() for line in book.read_text().splitlines()))
    assert read_ledger(book).row("00")["task2_scores_sha256"] == ""
    record(book, manifest_of(2), "x")
    assert len(read_ledger(book).rows) == 2 and not book.read_text().endswith("\n\n")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"no header\n", "ledger.tsv:1"),
        (HEADER.replace("\tsplit", "").encode(), "missing: split"),
        (HEADER.replace("made\t", "id\tmade\t").encode(), "appear twice: id"),
        ((HEADER + "\t".join(["0000000001"] * 25) + "\n").encode(), "25 cells, but 19 columns"),
        ((HEADER + "# fine\n\n<<<<<<< HEAD\n").encode(), "ledger.tsv:4"),
        ((HEADER + "0000000001\n" * 2).encode(), "a second time"),
        (HEADER.encode("utf-16"), "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_broken_ledger_is_named_and_left_alone(book, content, named, capsys):
    book.write_bytes(content)
    with pytest.raises(KlassifyError) as caught:
        record(book, manifest_of(2), "x")
    assert named in str(caught.value)
    assert main(["ledger", "--ledger", str(book)]) == 2 and named in capsys.readouterr().err
    assert book.read_bytes() == content


def test_the_command_prints_finds_and_fills_in(book, capsys):
    def said(*words, status=0):
        assert main(["ledger", "--ledger", str(book), *words]) == status
        printed = capsys.readouterr()
        return printed.out if status == 0 else printed.err

    made_with = {"list": "1" * 64, "task2_system": "0" * 16, "task2_scores": "2" * 64}
    systems = {"task2": manifest_of(1)["systems"]["task1"]}
    second = manifest_of(2, systems=systems, made_with=made_with)
    record(book, second, book.parent / "\x1b[2J\tx")
    table = said()
    assert table.count("\n") == 4 and "demo/r/testA" in table and "\x1b" not in table
    assert "c" * 40 in said("--id", "0000000001")
    first, both = ("--id", "0000000001"), ("--id", "00")
    assert said(*first, "--leaderboard", "0.87") == "0000000001: leaderboard_auc 0.87\n"
    assert "(was 0.87)" in said(*first, "--leaderboard", "0.88")
    assert "leaderboard_score 0.2\n" in said("--id", "0000000002", "--leaderboard", "0.2")
    task2 = ("--leaderboard", "0.2", "--task", "2")
    assert "no answer for Task 2" in said(*first, *task2, status=2)
    assert "2 packages" in said(*both, status=2)
    assert "No package" in said("--id", "f", status=2)
    for value in ("92.8", "nan", "-0.1"):
        assert "between 0 and 1" in said(*first, f"--leaderboard={value}", status=2)
    assert "--id" in said("--leaderboard", "0.5", status=2)
    assert "0.88" in said() and "0.2" in said()


def test_without_a_ledger_the_command_says_where_one_comes_from(tmp_path, capsys):
    assert main(["ledger", "--ledger", str(tmp_path / "none.tsv")]) == 2
    assert "klassify package" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_packages_made_at_the_same_time_all_get_a_row(tmp_path):
    script = f"""
import sys; sys.path[:0] = [{str(TESTS / "submission")!r}, {str(TESTS / "helpers")!r}]
from test_ledger import manifest_of
from klassify.submission.ledger import record
for i in range(12):
    record("submissions/ledger.tsv", manifest_of(int(sys.argv[1]) * 100 + i), "submissions/x")
"""
    workers = [
        subprocess.Popen([sys.executable, "-c", script, str(n)], cwd=tmp_path) for n in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    book = read_ledger(tmp_path / "submissions/ledger.tsv")
    assert len(book.rows) == 24 and len(book.lines) == 25
    assert len(list((tmp_path / "submissions" / ledger.MANIFESTS).iterdir())) == 24
    assert not list((tmp_path / "submissions").glob("*partial*"))
