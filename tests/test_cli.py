"""What ends a command: mistakes, interruptions, disks, broken pipes; and how it starts."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

import klassify
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
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"), 2, "A file is where a folder"),
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


def test_a_misspelt_command_gets_the_similar_one(capsys):
    assert cli.main(["predcit", "x"]) == 2
    assert "no command 'predcit'.\n  fix:   klassify predict --help" in capsys.readouterr().err
    assert cli.main(["xyzzy"]) == 2
    assert "fix:   klassify --help" in capsys.readouterr().err


def test_a_misspelt_option_gets_the_similar_one(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["ledger", "--leaderbord=0.5"])
    assert caught.value.code == 2
    said = "unrecognized arguments: --leaderbord=0.5; did you mean --leaderboard?\n"
    assert capsys.readouterr().err == f"klassify ledger: {said}  fix:   klassify ledger --help\n"


def test_quiet_prints_errors_alone(monkeypatch, capsys):
    def run(args):
        print("told")
        print("warned", file=sys.stderr)
        if args.id:
            raise KlassifyError("Wrong.")

    monkeypatch.setattr(ledger, "run", run)
    assert cli.main(["--quiet", "ledger"]) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.main(["ledger", "--quiet"]) == 0 and capsys.readouterr() == ("", "")
    assert cli.main(["--quiet", "ledger", "--id", "3"]) == 2
    assert capsys.readouterr() == ("", "klassify ledger: Wrong.\n")


def test_the_version_names_torch_and_the_device(capsys):
    assert cli.main(["--version"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"klassify {klassify.__version__}") and "torch" in text
    assert "device " in text
