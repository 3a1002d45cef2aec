"""`klassify <command>`: each command lives in klassify/commands/<command>.py (dashes become
underscores).

A command's module offers `configure(parser)` and `run(args) -> int | None`; it is imported only
when it is called, so that `klassify --help` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys

from klassify.errors import KlassifyError
from klassify.files import explained

COMMANDS = {
    "corpus": "generate the small corpus of talking-head clips (stage 0 of the demo)",
    "lists": "official metadata or file lists -> data lists (stage 0)",
    "extract": "media -> mouth, LMM or other features, or an audio cache, in shards (stage 1)",
    "import-checkpoint": "published weights -> safetensors, read without running pickled code",
    "augment": "listen to the training augmentations of a clip",
    "benchmark": "measure how long stages 1 to 3 will take on this machine",
    "train": "train one system from its YAML (stage 2)",
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
    parser = argparse.ArgumentParser(
        prog="klassify",
        description="Detect and localise partially faked talking-head videos.",
        epilog=(
            f"commands:\n{listing}\n\n`klassify COMMAND --help` says more; `make help` lists the"
            " stages."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    command = parser.parse_args(argv[:1] or ["--help"]).command
    module = importlib.import_module(f"klassify.commands.{command.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        prog=f"klassify {command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --launcher slurm takes out and adds options by their whole names
    )
    module.configure(parser)
    parser.set_defaults(command_line=[command, *argv[1:]])  # for --launcher slurm
    try:
        # intermixed: KEY=VALUE may follow options
        return module.run(parser.parse_intermixed_args(argv[1:])) or 0
    except KlassifyError as error:
        print(f"klassify {command}: {error}", file=sys.stderr)
        return error.status
    except OSError as error:  # of files that are not ours to read or write
        if isinstance(error, BrokenPipeError):  # `klassify ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        print(f"klassify {command}: {explained(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"klassify {command}: interrupted; what was finished is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
