"""Worker processes: all results, and what dies or fails."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ran

from klassify import workers
from klassify.errors import KlassifyError


def setup(value: int = 10) -> int:
    return value


def refuse() -> None:
    raise KlassifyError("no such model", fix="install it")


def die_at_start() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def work(state: int, task):
    """Add; or do what the task says."""
    if task == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if isinstance(task, Path):  # die at the first attempt only
        if not task.exists():
            task.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "second attempt"
    if task == "hang":
        time.sleep(600)
    if task == "defect":
        raise ZeroDivisionError("in the worker")
    return state + task


def run(tasks, jobs=2, start=setup) -> dict:
    return dict(workers.each(work, tasks, start, jobs=jobs))


def test_all_tasks_have_their_results():
    assert run(range(20)) == {i: i + 10 for i in range(20)}
    assert run([1], jobs=8, start=functools.partial(setup, 5)) == {0: 6}
    assert run([]) == {}


def test_a_crash_costs_one_task():
    results = run([0, "crash", 2, 3, 4, 5])
    assert isinstance(results[1], workers.Died) and "SIGSEGV" in results[1].reason
    assert {i: results[i] for i in (0, 2, 3, 4, 5)} == {0: 10, 2: 12, 3: 13, 4: 14, 5: 15}


def test_a_task_whose_worker_was_killed_once_is_tried_again(tmp_path):
    assert run([0, tmp_path / "seen", 2]) == {0: 10, 1: "second attempt", 2: 12}


def test_a_hang_costs_one_task():
    start = time.monotonic()
    results = dict(workers.each(work, [0, "hang", 2, 3, "hang"], setup, jobs=2, limit_s=1.5))
    assert {number: results[number] for number in (0, 2, 3)} == {0: 10, 2: 12, 3: 13}
    assert [results[number].reason for number in (1, 4)] == ["it took longer than 1.5 s"] * 2
    assert time.monotonic() - start < 60


def test_failures_to_start_end_the_run():
    with pytest.raises(KlassifyError, match="no such model") as caught:
        run([1, 2], start=refuse)
    assert caught.value.fix == "install it"
    with pytest.raises(KlassifyError, match="before they are ready.*SIGKILL"):
        run([1, 2], jobs=1, start=die_at_start)


def test_defects_keep_their_traceback():
    with pytest.raises(RuntimeError, match="ZeroDivisionError: in the worker"):
        run([1, "defect"])


def test_stopping_early_leaves_no_process_behind():
    import multiprocessing

    results = workers.each(work, range(1000), setup, jobs=2)
    next(results)
    results.close()
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        pass
    assert not multiprocessing.active_children()


def test_a_plain_script_does_not_run_again_in_its_workers(tmp_path):
    """One without `if __name__ == "__main__"`, as users write them."""
    script = tmp_path / "script.py"
    script.write_text(
        "from operator import add\nfrom klassify import workers\nprint('once')\n"
        "print(sorted(workers.each(add, [1, 2], int, jobs=2)), __file__ is not None)\n"
    )
    done = ran([sys.executable, str(script)], timeout=60)
    assert done.stdout.splitlines() == ["once", "[(0, 1), (1, 2)] True"], done.stderr


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Python 3.10 cannot leave the working directory out"
)
def test_code_beside_the_videos_is_not_run(tmp_path):
    """In a process of its own: the standard library's tracker is started once only."""
    # the script's own folder comes first on sys.path
    videos, script = tmp_path / "videos", tmp_path / "script.py"
    videos.mkdir()
    for name in ("multiprocessing", "socket"):
        (videos / f"{name}.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    script.write_text(
        "from klassify import workers\nprint(dict(workers.each(max, [1], int, jobs=1)))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=videos, env=environment, capture_output=True, timeout=60
    )
    assert done.stdout == b"{0: 1}\n", done.stderr.decode()
    assert not (tmp_path / "marker").exists()
