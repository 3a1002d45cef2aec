"""A Slurm of five nodes, the corpus, and a gate at which tasks wait for a test."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import slurm
from shards import SHARDS

from klassify import cli
from klassify.cluster.record import Record, read_record

# python reads this at its start. A task of the cluster waits while the gate is closed, fails when
# told so, and pauses after each file that it finishes as long as it shall be slow.
GATE = """import os, sys, time
here, argv = os.path.dirname(__file__), getattr(sys, "orig_argv", [])
replace, there = os.replace, lambda name: os.path.exists(os.path.join(here, name))

def pause(*arguments, **options):
    replace(*arguments, **options)
    began = time.monotonic()
    slow = os.path.join(here, "slow")
    while there("slow") and time.monotonic() < began + float(open(slow).read() or 0):
        time.sleep(0.05)

if "SLURM_JOB_ID" in os.environ and "klassify.cli" in argv and "merge" not in argv:
    os.replace = pause
    while there("closed"):
        time.sleep(0.05)
    if there("fail") and open(os.path.join(here, "fail")).read() in argv:
        os._exit(3)
"""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    why = slurm.unavailable()
    if why:
        pytest.skip(why)
    cluster = slurm.Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def corpus(cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Media and lists of the tiny corpus, and the mouth features of one run."""
    folder = tmp_path_factory.mktemp("corpus")
    assert (
        cli.main(["corpus", "--out", str(folder / "media"), "--size", "tiny", "--jobs", "2"]) == 0
    )
    made = [
        "--root",
        str(folder / "media"),
        "--out",
        str(folder / "lists"),
        *("--probe", "missing", "--jobs", "1"),
    ]
    assert cli.main(["lists", "--data", "demo", *made]) == 0
    return folder


class Site:
    """The cluster as a user sees it: `klassify` on a login node, an output folder."""

    def __init__(self, cluster: slurm.Cluster, corpus: Path, folder: Path):
        self.cluster, self.corpus, self.folder, self.out = cluster, corpus, folder, folder / "out"
        self.gate = folder / "gate"
        self.gate.mkdir()
        (self.gate / "sitecustomize.py").write_text(GATE)

    @property
    def environment(self) -> dict[str, str]:
        return self.cluster.environment | {"PYTHONPATH": str(self.gate), "OMP_NUM_THREADS": "1"}

    def record(self, step: str = "extract") -> Record:
        return read_record(self.out / "slurm" / step / "job.json")

    def klassify(self, *arguments: object, check: int | None = 0) -> subprocess.CompletedProcess:
        """Run a command on the login node; its status must be `check`, unless that is None."""
        command = [sys.executable, "-m", "klassify.cli", *map(str, arguments)]
        done = self.cluster.run(command, check=False, env=self.environment)
        assert check in (None, done.returncode), (
            f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def extract(
        self, *more: object, kind: str = "audio", check: int | None = 0
    ) -> subprocess.CompletedProcess:
        return self.klassify(
            "extract",
            "--kind",
            kind,
            "--list",
            self.corpus / "lists/train.tsv",
            "--root",
            self.corpus / "media",
            "--out",
            self.out,
            *more,
            check=check,
        )

    def launch(self, *more: object, shards: int = SHARDS, **options) -> subprocess.CompletedProcess:
        return self.extract(
            "--launcher", "slurm", "--shards", shards, "--time", "00:05:00", *more, **options
        )

    def status(self, folder: Path | None = None) -> str:
        return self.klassify("status", folder or self.out, check=None).stdout

    def hold(self) -> None:
        (self.gate / "closed").touch()

    def release(self) -> None:
        (self.gate / "closed").unlink(missing_ok=True)

    def slow(self, seconds: float) -> None:
        """Pause so long after each finished file."""
        (self.gate / "slow").write_text(str(seconds))

    def fast(self) -> None:
        (self.gate / "slow").write_text("0")

    def begun(self, n: int = 1, step: str = "extract") -> None:
        """Wait until n logs say that a task was begun."""
        logs = self.out / "slurm" / step / "logs"
        slurm.until(
            lambda: sum("== " in path.read_text() for path in logs.glob("[0-9]*.log")) >= n,
            f"{n} begun tasks",
        )

    def finished(self, seconds: float = 60) -> None:
        slurm.until(lambda: not self.cluster.queue(), "an empty queue", seconds)

    def logs(self) -> str:
        return self.logs_of(self.out, "extract")

    def logs_of(self, folder: Path, step: str) -> str:
        return "".join(
            path.read_text() for path in sorted((folder / "slurm" / step / "logs").glob("*.log"))
        )


@pytest.fixture
def site(cluster, corpus, tmp_path):
    cluster.fix()
    site = Site(cluster, corpus, tmp_path)
    yield site
    site.release()
    site.fast()
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(scope="session")
def undisturbed(cluster, corpus, tmp_path_factory) -> dict[str, bytes]:
    """{name: bytes} of the parts of shards that nothing disturbed."""
    out = tmp_path_factory.mktemp("undisturbed")
    made = [
        "--kind",
        "audio",
        "--list",
        str(corpus / "lists/train.tsv"),
        "--root",
        str(corpus / "media"),
        "--jobs",
        "1",
    ]
    for i in range(1, SHARDS + 1):
        assert cli.main(["extract", *made, "--out", str(out), "--shard", f"{i}/{SHARDS}"]) == 0
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*"))}
