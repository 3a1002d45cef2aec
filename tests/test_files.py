"""Whole files: renamed or absent, and clear about why they cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import sys

import pytest
from commands import ran

from klassify import parts
from klassify.errors import KlassifyError
from klassify.files import (
    check_output,
    read_json,
    read_json_mapping,
    read_yaml,
    similar,
    whole_file,
    write_json,
)
from klassify.scores import score_file
from klassify.untrusted import refuse_cut


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"é": 1})
    with pytest.raises(ZeroDivisionError), whole_file(path) as partial:
        partial.write_text("half")
        _ = 1 / 0
    assert read_json(path) == {"é": 1} and [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_what_killed_processes_left_is_removed(tmp_path):
    killed = (
        "import os, sys\nfrom klassify.files import whole_file\nwith whole_file(sys.argv[1]) as"
        " partial:\n    partial.write_text('half')\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "a.json")], check=False)
    (left,) = tmp_path.iterdir()
    process, tag = left.stem.split("-")[1:]
    others = [
        left.with_name(left.name.replace(process, str(os.getpid()))),  # of a process that lives
        # of another host, whose processes are unknown here
        left.with_name(left.name.replace(tag, "0" * 16)),
        tmp_path / "a.partial-of-mine.json",
    ]
    for path in others:
        path.write_text("half")
    write_json(tmp_path / "b.json", 1)
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "b.json", *others])
    os.utime(others[1], (0, 0))  # nobody writes to it any more
    write_json(tmp_path / "b.json", 1)
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "b.json", others[0], others[2]])


@pytest.mark.parametrize("text, cut", [("a\nb\n", False), ("", False), ("a\nb", True), ("a", True)])
def test_a_text_file_ends_its_last_line(tmp_path, text, cut):
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(KlassifyError, match="truncated") if cut else contextlib.nullcontext():
        refuse_cut(tmp_path / "a.tsv")


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe\x00", b"- " * 5000, b"a: 2024-13-45\n", b"&a [*b]"]
)
def test_yaml_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(KlassifyError, match="YAML") as caught:
        read_yaml(tmp_path / "a.yaml")
    assert caught.value.where == tmp_path / "a.yaml"


@pytest.mark.parametrize(
    "lines",
    [
        [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10 if k else 'x' * 10)}]" for k in range(9)],
        [f"a: &a {'x' * 5000}", f"b: [{', '.join(['*a'] * 300)}]"],
        ["a: &a {b: [*a]}"],
    ],
)
def test_aliases_of_yaml_that_have_no_end_are_refused(tmp_path, lines):
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(KlassifyError, match="repeat too much|holds itself") as caught:
        read_yaml(tmp_path / "a.yaml")
    assert "line " in str(caught.value)


def test_aliases_of_yaml_that_repeat_little_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {b: 1}\nc: [*a, *a]\nd:\n  <<: *a\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": 1}, "c": [{"b": 1}] * 2, "d": {"b": 1}}


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(KlassifyError, match="cannot be written") as caught:
        write_json(tmp_path / "out" / "a.json", 1)
    assert "can be written" in caught.value.fix


@pytest.mark.parametrize(
    "number, said", [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "Read-only file system")]
)
def test_errors_of_the_disk_are_explained(tmp_path, number, said):
    with pytest.raises(KlassifyError, match=said), whole_file(tmp_path / "a.tsv") as partial:
        partial.write_text("half")
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_a_forbidden_input_is_not_called_an_output(tmp_path):
    with pytest.raises(PermissionError), whole_file(tmp_path / "a.tsv"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "input"))


def test_a_file_beyond_the_size_limit(tmp_path):
    """A real write that the system refuses, through the command line."""
    script = (
        "import resource, signal, sys\nfrom klassify.cli import"
        " main\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096,"
        " 4096))\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nsys.exit(main(sys.argv[1:]))\n"
    )
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{i:06d}.mp4\n" for i in range(2000)))
    command = [
        "lists",
        "--root",
        str(tmp_path),
        "--data",
        "avdeepfake1mpp",
        "--out",
        str(tmp_path / "lists"),
    ]
    (tmp_path / "testA_files.txt").write_text(names.read_text())
    # writes nothing else
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = ran([sys.executable, "-c", script, *command], env=plain)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr and "the disk is full" in done.stderr
    assert not (tmp_path / "lists" / "testA.tsv").exists()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096  # only there


@pytest.mark.parametrize(
    "read", [read_json, read_json_mapping, read_yaml, score_file.read_header, parts.read_header]
)
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path, read):
    path = tmp_path / "part-1-of-1-0.parquet"
    os.mkfifo(path)
    with pytest.raises(KlassifyError, match="not a regular file") as error:
        read(path)
    assert error.value.where == path


@pytest.mark.parametrize("content", ["[]", "[1]", "1", "null", '"made_with"'])
def test_json_that_is_not_a_mapping_is_named(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(KlassifyError, match="not a mapping") as error:
        read_json_mapping(path)
    assert error.value.where == path
    path.write_text('{"a": 1}')
    assert read_json_mapping(path) == {"a": 1}


def test_a_misspelt_path_gets_the_similar_one(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/val.tsv").touch()
    said = f"did you mean {tmp_path / 'lists/val.tsv'}?"
    assert similar(tmp_path / "list" / "val.tsv") == similar(tmp_path / "lists/vall.tsv") == said
    for path in ("lists/val.tsv", "lists/train.tsv", "list/train.tsv", "x/y/z"):
        assert similar(tmp_path / path) is None


def test_an_output_that_is_a_file_is_refused_beforehand(tmp_path):
    (tmp_path / "out").write_text("a file")
    for folder in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(KlassifyError, match="needs a folder") as caught:
            check_output(folder)
        assert caught.value.where == tmp_path / "out"
    check_output(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


def test_an_output_that_cannot_be_written_is_refused_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(KlassifyError, match="This folder cannot be written"):
        check_output(tmp_path / "new")
