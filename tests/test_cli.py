"""What ends a command: mistakes, interruptions, disks, broken pipes; and how it starts."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from klassify import cli
from klassify.commands import ledger
from klassify.errors import KlassifyError
from klassify.files import explained


def ended(monkeypatch, error: BaseException) -> int:
    def run(_):
        raise error

    monkeypatch.setattr(ledger, "run", run)
    return cli.main(["ledger"])


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KlassifyError("What.", where="here", fix="so"), 2, "What."),
        (KeyboardInterrupt(), 130, "interrupted; what was finished is kept"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device."),
        (PermissionError(errno.EACCES, "Permission denied", "x.tsv"), 2, "change its permissions"),
        (OSError(errno.EROFS, "Read-only file system", "x.tsv"), 2, "a folder that can be written"),
    ],
)
def test_statuses(monkeypatch, capsys, error, status, said):
    assert ended(monkeypatch, error) == status
    told = capsys.readouterr().err
    assert told.startswith("klassify ledger: ") and said in told


def test_an_error_of_our_own_is_not_hidden(monkeypatch):
    with pytest.raises(OSError, match="not a file"):
        ended(monkeypatch, OSError(errno.EINVAL, "not a file"))


def test_a_reader_that_leaves_ends_it_without_a_word():
    """`klassify ... | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    program = (
        "import sys; from klassify import cli; from klassify.commands import ledger;"
        " ledger.run = lambda _: print('x' * 99, flush=True); "
    )
    done = subprocess.run(
        [sys.executable, "-c", program + "sys.exit(cli.main(['ledger']))"],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS]
)
def test_what_the_system_says_comes_with_a_fix(number):
    error = explained(OSError(number, os.strerror(number), "file.tsv"))
    assert os.strerror(number) in error.what and "file.tsv" in str(error) and "fix:" in str(error)


def test_only_commands_that_run_models_import_torch():
    models = {"train", "predict", "import-checkpoint"}
    names = [name.replace("-", "_") for name in cli.COMMANDS if name not in models]
    program = f"import sys, klassify.commands.{', klassify.commands.'.join(names)}"
    program += "; sys.exit(bool({'torch', 'audiomentations'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
