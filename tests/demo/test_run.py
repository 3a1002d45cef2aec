"""Steps run in processes: order, logs, failures, copies of equal trainings."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from klassify.demo import run
from klassify.demo.plan import Step
from klassify.errors import KlassifyError


def step(number, after=(), words=("ledger",), **more):
    return Step(number, tuple(words), "klassify", 2, 0, set(after), 1, 1.0, **more)


def test_the_most_urgent_ready_step_is_next_and_wide_ones_wait():
    steps = {0: step(0), 1: step(1, urgency=5.0), 2: step(2, after={1}, urgency=9.0)}
    assert run._next(steps, {}, 2).number == 1
    wide = step(3, urgency=7.0)
    wide.cores = 2
    assert run._next({**steps, 3: wide}, {object(): step(4)}, 2) is None
    assert run._next({**steps, 3: wide}, {}, 1).number == 3


def test_steps_run_and_a_failing_one_stops_the_rest(tmp_path):
    missing = str(tmp_path / "none.tsv")
    steps = [
        step(0, words=("recipe", "copy", str(tmp_path / "copy"))),
        step(1, {0}, words=("check", str(tmp_path / "x.zip"), "--list", missing)),
        step(2, {1}),
    ]
    seen = []
    with pytest.raises(KlassifyError, match="klassify check ended with status") as raised:
        run.run(steps, 1, tmp_path / "logs", lambda one, _: seen.append(one.number), len)
    assert seen == [0] and "fix:" in str(raised.value)
    log = (tmp_path / "logs/001-check-klassify.log").read_text()
    assert log.startswith("+ klassify check ") and "none.tsv" in log


def test_a_training_is_copied_without_its_scores(tmp_path):
    done, folder = tmp_path / "a/tcn", tmp_path / "b/tcn"
    (done / "scores").mkdir(parents=True)
    run.copy_training(done, folder)
    assert not folder.exists()  # not finished
    for name in ("system.yaml", "model.safetensors", "proposals.yaml"):
        (done / name).write_text(name)
    run.copy_training(done, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "system.yaml"]
    (folder / "system.yaml").write_text("another")
    run.copy_training(done, folder)
    assert (folder / "system.yaml").read_text() == "another"
    assert isinstance(step(0, like=Path("a")).like, Path)


SLEEPER = """
import sys, time
from klassify.demo import run
from klassify.demo.plan import Step
steps = [Step(0, ("recipe", "copy", sys.argv[1]), "klassify", 2, 0, set(), 1, 1.0)]
run.run(steps, 1, None, lambda *_: time.sleep(600), len)
"""


def test_a_killed_demo_leaves_no_process_behind(tmp_path):
    """Killed while it looks at the first finished step, beside a process without work."""
    demo = subprocess.Popen([sys.executable, "-c", SLEEPER, str(tmp_path)], start_new_session=True)
    wait_for(lambda: (tmp_path / "recipes").exists())
    group = {
        pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if of(pid) == demo.pid
    }
    assert len(group) > 1
    demo.kill()
    demo.wait()
    wait_for(lambda: not any(of(pid) == demo.pid for pid in group))


def of(pid):
    """The session that a process belongs to; None where it has ended."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def wait_for(state, seconds=60.0):
    until = time.monotonic() + seconds
    while not state() and time.monotonic() < until:
        time.sleep(0.05)
    assert state()
