"""A disk that is full, or may not be written: exit 2 with a clear error, nothing half-written,
and then it goes on.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from nursery import Nursery
from scenarios import finished, outputs

from klassify.files import TEMPORARY

FEW, MANY = 3, 8
SIZE = 48 << 20  # bytes
BALLAST = "ballast"


class Disk(NamedTuple):
    """path: where the commands of the nursery see it. seen: the same folder for this process."""

    path: Path
    seen: Path
    nursery: Nursery

    def fill(self, room: int) -> None:
        """Leave `room` bytes free."""
        free = os.statvfs(self.seen).f_bavail * os.statvfs(self.seen).f_frsize
        with open(self.seen / BALLAST, "wb") as handle:
            os.posix_fallocate(handle.fileno(), 0, max(free - room, 1))

    def empty(self) -> None:
        (self.seen / BALLAST).unlink()

    def writable(self, yes: bool) -> None:
        self.nursery.system("mount", "-o", f"remount,{'rw' if yes else 'ro'}", str(self.path))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory):
    """A small disk in a mount namespace of its own, which ends with it; skipped where root's
    rights are missing.
    """
    folder = tmp_path_factory.mktemp("disk")
    mounted = f'mount -t tmpfs -o size={SIZE} klassify-test "$0"'
    inside = (
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        f'{mounted} && exec "$@"',
        str(folder),
    )
    try:
        tried = subprocess.run([*inside, "true"], capture_output=True, text=True, timeout=30)
    except OSError as error:
        pytest.skip(f"a small disk needs unshare and mount: {error}")
    if tried.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {tried.stderr.strip()}")
    nursery = Nursery(tmp_path_factory.mktemp("nursery") / "log", inside)
    yield Disk(folder, Path(f"/proc/{nursery.process.pid}/root{folder}"), nursery)
    nursery.close()


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
        ended = disk.nursery.run(scenario.command, disk.path / name)
        disk.empty()
        refused += ended.status != 0
        if ended.status:
            assert_refused(ended, "disk is full", "make room", name)
        assert_no_half_files(disk.seen / name, undisturbed)
        ended = disk.nursery.run(scenario.command, disk.path / name)
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
    ended = disk.nursery.run(scenario.command, disk.path / name)
    disk.writable(True)
    assert_refused(ended, "Read-only file system", "can be written", name)
    assert outputs(disk.seen / name, scenario) == before
    ended = disk.nursery.run(scenario.command, disk.path / name)
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


def assert_no_half_files(folder: Path, undisturbed) -> None:
    there = finished(folder, undisturbed.scenario)
    assert {
        name: content
        for name, content in there.items()
        if undisturbed.finished.get(name) != content
    } == {}
    assert [path for path in folder.rglob("*") if TEMPORARY in path.name] == []
