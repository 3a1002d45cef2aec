"""kill -9 at moments drawn at random: the same command goes on and ends with what an undisturbed
run makes.
"""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file
from scenarios import finished, outputs

from klassify.files import TEMPORARY

FEW, MANY = 3, 20


@pytest.mark.parametrize("kills", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_killed_at_random_moments(kills, undisturbed, nursery, tmp_path):
    scenario, killed, seconds = undisturbed.scenario, 0, undisturbed.seconds
    rng = random.Random(f"{scenario.name} {kills}")
    for trial in range(4 * kills):  # on a busy machine a run may be done before its moment
        if killed == kills:
            break
        folder = tmp_path / f"killed{trial}"
        shutil.copytree(undisturbed.ready, folder)
        ended = nursery.run(scenario.command, folder, kill_after=rng.uniform(0.01, 1) * seconds)
        if ended.status == -signal.SIGKILL:
            killed += 1
            assert_nothing_half_is_called_whole(folder, undisturbed)
            ended = nursery.run(scenario.command, folder)
        else:
            seconds = min(seconds, ended.seconds)
        assert ended.status == 0, ended.said
        assert outputs(folder, scenario) == undisturbed.outputs, (
            f"trial {trial}"
        )  # and nothing else lies about
        shutil.rmtree(folder)
    assert killed == kills


def assert_nothing_half_is_called_whole(folder: Path, undisturbed) -> None:
    there = finished(folder, undisturbed.scenario)
    assert {
        name: content
        for name, content in there.items()
        if undisturbed.finished.get(name) != content
    } == {}
    weights = folder / undisturbed.scenario.out / "model.safetensors"
    if weights.exists():
        load_file(weights)


def test_killed_again_and_again_it_gets_there(undisturbed, nursery, tmp_path):
    """Several kills of one run, whose leftovers do not pile up."""
    scenario, folder = undisturbed.scenario, tmp_path / "killed"
    shutil.copytree(undisturbed.ready, folder)
    for part in (0.3, 0.5, 0.4):
        nursery.run(scenario.command, folder, kill_after=part * undisturbed.seconds)
        assert (
            sum(TEMPORARY in path.name for path in folder.rglob("*")) <= 2
        )  # at most one a kill and folder
    ended = nursery.run(scenario.command, folder)
    assert ended.status == 0, ended.said
    assert outputs(folder, scenario) == undisturbed.outputs
