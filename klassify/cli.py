"""`klassify <command>`: each command lives in klassify/commands/<command>.py (dashes become
underscores).

A command's module offers `configure(parser)` and `run(args) -> int | None`; it is imported only
when it is called, so that `klassify --help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import importlib
import io
import os
import sys
from collections.abc import Iterator
from typing import NoReturn, TextIO

from klassify.errors import KlassifyError
from klassify.files import explained


class Parser(argparse.ArgumentParser):
    """Says what is wrong in a line, with the option that may have been meant."""

    def error(self, message: str) -> NoReturn:
        """End with status 2; `--help` has the usage."""
        options = [name for action in self._actions for name in action.option_strings]
        if message.startswith("unrecognized arguments: -"):
            given = message.split()[2].partition("=")[0]
            if close := difflib.get_close_matches(given, options, n=1):
                message += f"; did you mean {close[0]}?"
        self.exit(2, f"{self.prog}: {message}\n  fix:   {self.prog} --help\n")


COMMANDS = {
    "demo": "generate clips, train the recipes on them, compare: needs no data",
    "recipe": "copy the recipes and their configs out of the package",
    "corpus": "generate the small corpus of talking-head clips (stage 0 of the demo)",
    "lists": "official metadata or file lists -> data lists (stage 0)",
    "extract": "media -> mouth, LMM or other features, or an audio cache, in shards (stage 1)",
    "import-checkpoint": "published weights -> safetensors, read without running pickled code",
    "augment": "listen to the training augmentations of a clip",
    "benchmark": "measure how long stages 1 to 3 will take on this machine",
    "train": "train one system from its YAML (stage 2)",
    "pseudo": "choose clips that a system is confident about, to train on their pseudo-labels",
    "score": "run a system on a split -> score files (stages 2 and 3)",
    "calibrate": "fit Platt scaling of a system on val_fit (stage 2)",
    "fuse": "join systems: maximum, mean, a linear layer over frames (stage 2)",
    "localise": "frame scores -> proposals; merge the proposals of systems (stages 2 and 3)",
    "tune": "choose method and settings of the proposals on val_fit (stage 2)",
    "detector": "write detector.yaml: the systems that answer both tasks (stage 2)",
    "package": "scores -> leaderboard zip with a manifest (stage 3)",
    "ledger": "list packages and their leaderboard results",
    "reproduce": "package a submission again from its manifest and compare bytes",
    "status": "state of work on a cluster: done, running, queued, held, failed, missing",
    "resume": "submit missing work on a cluster again",
    "merge": "merge shards; refuses gaps, duplicates and other settings by name",
    "check": "say whether the server will accept a submission, else why not",
    "predict": "videos in, answers out: probability, segments, timeline",
    "perturb": "perturbed splits of a list, and how systems fare on them",
    "publish": "a detector with its weights and a model card in a folder of its own",
    "export": "models of a detector as ONNX files beside their weights",
    "version": "versions, commit and device",
    "evaluate": "systems against labels: tables, curves (stage 4)",
    "crosstest": "train on one data set, test on others: one table (stage 4)",
    "audit": "look for shortcuts: does the content alone tell real from fake",
    "compare": "systems of all recipes side by side: tables and an HTML page",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 1 failures, 2 a user's mistake, 75 try again."""
    argv = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="klassify",
        description="Detect and localise partially faked talking-head videos.",
        epilog=(
            f"commands:\n{listing}\n\n`klassify COMMAND --help` says more; `make help` lists the"
            " stages."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="versions, commit and device")
    parser.add_argument(
        "--quiet", action="store_true", help="print only errors; works with every command"
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND")
    end = argv.index("--") if "--" in argv else len(argv)
    quiet = "--quiet" in argv[:end]
    argv = [one for one in argv[:end] if one != "--quiet"] + argv[end:]
    asked = parser.parse_args(argv[:1] or ["--help"])
    command = "version" if asked.version else str(asked.command)
    if command not in COMMANDS:
        print(unknown_command(command), file=sys.stderr)
        return 2
    with _silence() if quiet else contextlib.nullcontext(sys.stderr) as told:
        return _run(command, argv, told)


def _run(command: str, argv: list[str], told: TextIO) -> int:
    """Run one command; errors are printed to `told`."""
    module = importlib.import_module(f"klassify.commands.{command.replace('-', '_')}")
    parser = Parser(
        prog=f"klassify {command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --launcher slurm takes out and adds options by their whole names
    )
    module.configure(parser)
    parser.set_defaults(command_line=[command, *argv[1:]])  # for --launcher slurm
    try:
        # intermixed: KEY=VALUE may follow options; that way forgets what `--` means
        parse = parser.parse_args if "--" in argv else parser.parse_intermixed_args
        return module.run(parse(argv[1:])) or 0
    except KlassifyError as error:
        print(f"klassify {command}: {error}", file=told)
        return error.status
    except OSError as error:  # of files that are not ours to read or write
        if isinstance(error, BrokenPipeError):  # `klassify ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        print(f"klassify {command}: {explained(error)}", file=told)
        return 2
    except KeyboardInterrupt:
        print(f"klassify {command}: interrupted; what was finished is kept", file=told)
        return 130


@contextlib.contextmanager
def _silence() -> Iterator[TextIO]:
    """Drop what is printed; yields the error stream."""
    with open(os.devnull, "w", encoding="utf-8") as nothing, contextlib.redirect_stdout(nothing):
        told = sys.stderr
        with contextlib.redirect_stderr(nothing):
            yield told


def unknown_command(name: str) -> str:
    """The message for a command that does not exist, with the most similar one."""
    close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    fix = f"klassify {close[0]} --help" if close else "klassify --help"
    return f"klassify: there is no command {name!r}.\n  fix:   {fix}"


if __name__ == "__main__":
    sys.exit(main())
