"""kill -9 at random moments: the command, repeated, ends as an undisturbed run does."""

from __future__ import annotations

import random
import shutil
import signal

import pytest
from safetensors.torch import load_file
from scenarios import half_finished, outputs

from klassify.files import TEMPORARY

KILLS = 8


@pytest.mark.slow
def test_killed_at_random_moments(undisturbed, forks, tmp_path):
    scenario, killed, seconds = undisturbed.scenario, 0, undisturbed.seconds
    rng = random.Random(scenario.name)
    for trial in range(4 * KILLS):  # on a busy machine a run may be done before its moment
        if killed == KILLS:
            break
        folder = tmp_path / f"killed{trial}"
        shutil.copytree(undisturbed.ready, folder)
        ended = forks.run(scenario.command, folder, kill_after=rng.uniform(0.01, 1) * seconds)
        if ended.status == -signal.SIGKILL:
            killed += 1
            assert half_finished(folder, undisturbed) == {}
            weights = folder / scenario.out / "model.safetensors"
            if weights.exists():
                load_file(weights)
            ended = forks.run(scenario.command, folder)
        else:
            seconds = min(seconds, ended.seconds)
        assert ended.status == 0, ended.said
        assert outputs(folder, scenario) == undisturbed.outputs, f"trial {trial}"
        shutil.rmtree(folder)
    assert killed == KILLS


def test_killed_again_and_again_it_gets_there(undisturbed, forks, tmp_path):
    """Several kills of one run, whose leftovers do not pile up."""
    scenario, folder = undisturbed.scenario, tmp_path / "killed"
    shutil.copytree(undisturbed.ready, folder)
    for part in (0.3, 0.5, 0.4):
        forks.run(scenario.command, folder, kill_after=part * undisturbed.seconds)
        assert half_finished(folder, undisturbed) == {}
        # at most one per kill and folder
        assert sum(TEMPORARY in path.name for path in folder.rglob("*")) <= 2
    ended = forks.run(scenario.command, folder)
    assert ended.status == 0, ended.said
    assert outputs(folder, scenario) == undisturbed.outputs
