"""A full or read-only disk: exit 2 with a clear error, nothing half-written, then it goes on."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from commands import ran
from forks import Forks
from scenarios import half_finished, outputs

from klassify.files import TEMPORARY

FEW, MANY = 1, 6
SIZE = 48 << 20  # bytes
BALLAST = "ballast"


class Disk(NamedTuple):
    """path: where the commands of the forks see it. seen: the same folder for this process."""

    path: Path
    seen: Path
    forks: Forks

    def fill(self, room: int) -> None:
        """Leave `room` bytes free."""
        free = os.statvfs(self.seen).f_bavail * os.statvfs(self.seen).f_frsize
        with open(self.seen / BALLAST, "wb") as handle:
            os.posix_fallocate(handle.fileno(), 0, max(free - room, 1))

    def empty(self) -> None:
        (self.seen / BALLAST).unlink()

    def writable(self, yes: bool) -> None:
        self.forks.system("mount", "-o", f"remount,{'rw' if yes else 'ro'}", str(self.path))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory):
    """A small disk in a mount namespace of its own; skipped without root's rights."""
    folder = tmp_path_factory.mktemp("disk")
    script = f'mount -t tmpfs -o size={SIZE} klassify-test "$0" && exec "$@"'
    inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(folder)]
    try:
        tried = ran([*inside, "true"], timeout=30)
    except OSError as error:
        pytest.skip(f"a small disk needs unshare and mount: {error}")
    if tried.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {tried.stderr.strip()}")
    forks = Forks(tmp_path_factory.mktemp("forks") / "log", tuple(inside))
    yield Disk(folder, Path(f"/proc/{forks.process.pid}/root{folder}"), forks)
    forks.close()


@pytest.mark.parametrize("times", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_the_disk_is_full(times, disk, undisturbed):
    scenario = undisturbed.scenario
    rng = random.Random(f"{scenario.name} {times}")
    rooms = [0, *(int(rng.uniform(0, undisturbed.size)) for _ in range(times - 1))]
    refused = 0
    for number, room in enumerate(rooms):
        name = f"{scenario.name}{number}"
        shutil.copytree(undisturbed.ready, disk.seen / name)
        disk.fill(room)
        ended = disk.forks.run(scenario.command, disk.path / name)
        disk.empty()
        refused += ended.status != 0
        if ended.status:
            assert_refused(ended, "disk is full", "make room", name)
        assert half_finished(disk.seen / name, undisturbed) == {}
        assert not list((disk.seen / name).rglob(f"*{TEMPORARY}*"))
        ended = disk.forks.run(scenario.command, disk.path / name)
        assert ended.status == 0, ended.said
        assert outputs(disk.seen / name, scenario) == undisturbed.outputs
        shutil.rmtree(disk.seen / name)
    assert refused  # without any room at least


def test_the_folder_may_not_be_written(disk, undisturbed):
    scenario = undisturbed.scenario
    name = f"{scenario.name} read-only"
    shutil.copytree(undisturbed.ready, disk.seen / name)
    before = outputs(disk.seen / name, scenario)
    disk.writable(False)
    ended = disk.forks.run(scenario.command, disk.path / name)
    disk.writable(True)
    assert_refused(ended, "Read-only file system", "can be written", name)
    assert outputs(disk.seen / name, scenario) == before
    ended = disk.forks.run(scenario.command, disk.path / name)
    assert ended.status == 0, ended.said
    assert outputs(disk.seen / name, scenario) == undisturbed.outputs
    shutil.rmtree(disk.seen / name)


def assert_refused(ended, what: str, fix: str, name: str) -> None:
    """In a few words: what, where, how to fix it."""
    assert ended.status == 2, ended
    assert "Traceback" not in ended.said
    assert (
        what in ended.said and "where: " in ended.said and fix in ended.said.partition("fix:")[2]
    ), ended.said
