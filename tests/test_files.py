"""Whole files: renamed or absent, and clear about why they cannot be written."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys

import pytest

from klassify.errors import KlassifyError
from klassify.files import read_json, whole_file, write_json


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"é": 1})
    with pytest.raises(ZeroDivisionError), whole_file(path) as partial:
        partial.write_text("half")
        _ = 1 / 0
    assert read_json(path) == {"é": 1} and [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(KlassifyError, match="cannot be written") as caught:
        write_json(tmp_path / "out" / "a.json", 1)
    assert "can be written" in caught.value.mend


@pytest.mark.parametrize("number, said", [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "Read-only file system")])
def test_errors_of_the_disk_are_explained(tmp_path, number, said):
    with pytest.raises(KlassifyError, match=said), whole_file(tmp_path / "a.tsv") as partial:
        partial.write_text("half")
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_is_forbidden_is_not_called_an_output(tmp_path):
    with pytest.raises(PermissionError), whole_file(tmp_path / "a.tsv"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "input"))


def test_a_file_beyond_the_size_limit(tmp_path):
    """A real write that the system refuses, through the command line."""
    script = (
        "import resource, signal, sys\nfrom klassify.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{i:06d}.mp4\n" for i in range(2000)))
    command = ["lists", "--root", str(tmp_path), "--data", "avdeepfake1mpp", "--out", str(tmp_path / "lists")]
    (tmp_path / "testA_files.txt").write_text(names.read_text())
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr and "the disk is full" in done.stderr
    assert not (tmp_path / "lists" / "testA.tsv").exists()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096  # only there
