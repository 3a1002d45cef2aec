"""Commands in forks of one process that has imported everything, to be killed at any moment of
their work.

A fork takes milliseconds where a new interpreter imports for seconds: a moment drawn at random lies
in the work and not before it, and twenty kills take seconds. The process may live in a mount
namespace of its own, with a small disk.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

LIMIT_S = 120.0
OURS = "commands.extract commands.train commands.score commands.package features.lmm.model"
OURS += " training.trainer scores.shards scores.inference models.tcn"
OTHERS = ("jsonargparse", "lightning_fabric", "torch._dynamo", "sklearn.metrics")


class Ended(NamedTuple):
    """status: below 0 the signal that ended it. said: what it wrote to the terminal."""

    status: int
    seconds: float
    said: str


class Forks:
    """Runs klassify commands in forks. inside: what starts it, such as `unshare -m`."""

    def __init__(self, log: Path, inside: tuple[str, ...] = ()):
        self.log = log
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path[1:])
        self.process = subprocess.Popen(
            [*inside, sys.executable, str(Path(__file__))],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._answer()  # it has imported everything, or ended

    def run(self, arguments: list[str], cwd: Path, kill_after: float = LIMIT_S) -> Ended:
        """Run `klassify` in a folder, killed (SIGKILL) after so many seconds."""
        request = {"arguments": arguments, "cwd": str(cwd), "kill_after": kill_after}
        status, seconds = self._ask(request)
        said = self.log.read_text(errors="replace")
        return Ended(os.waitstatus_to_exitcode(status), seconds, said)

    def system(self, *command: str) -> None:
        """Run another command, where klassify's run."""
        assert self._ask({"system": command}) == 0, command

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()

    def _ask(self, request: dict):
        self.process.stdin.write(json.dumps(request | {"log": str(self.log)}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        assert line, f"the process that forks has ended with {self.process.wait(10)}"
        return json.loads(line)


def _serve() -> None:
    import importlib

    from klassify.scores import chunks
    from klassify.systems import experiment

    for name in (*OTHERS, *(f"klassify.{name}" for name in OURS.split())):
        importlib.import_module(name)
    chunks.CHUNK_CLIPS = 4  # so that the small list has several chunks
    experiment.git_commit = lambda: "0" * 40  # whatever happens to the checkout while this runs
    print("0", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "system" in request:
            print(subprocess.run(request["system"], stdout=sys.stderr).returncode, flush=True)
            continue
        began = time.monotonic()
        child = os.fork()
        if not child:
            _become(request)
        status = _wait(child, began + request["kill_after"])
        print(json.dumps([status, time.monotonic() - began]), flush=True)


def _become(request: dict) -> None:
    from klassify import cli

    os.chdir(request["cwd"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor, opened in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(opened, descriptor)
    sys.argv = ["klassify", *request["arguments"]]
    sys.exit(cli.main(request["arguments"]))


def _wait(child: int, until: float) -> int:
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    _serve()
