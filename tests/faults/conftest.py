"""The scenarios, each done once without a disturbance."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from forks import Forks
from scenarios import SCENARIOS, Scenario, finished, outputs


class Undisturbed(NamedTuple):
    """ready: where the command may run. outputs, finished: what it leaves, in `size` bytes."""

    scenario: Scenario
    ready: Path
    outputs: dict[str, bytes]
    finished: dict[str, bytes]
    size: int
    seconds: float


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory):
    forks = Forks(tmp_path_factory.mktemp("forks") / "log")
    yield forks
    forks.close()


@pytest.fixture(scope="module", params=SCENARIOS, ids=lambda scenario: scenario.name)
def undisturbed(
    request, forks, small_data, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    scenario, folder = request.param, tmp_path_factory.mktemp(request.param.name)
    ready, whole = folder / "ready", folder / "whole"
    scenario.prepare(small_data.lists.parent, ready)
    shutil.copytree(ready, whole)
    ended = forks.run(scenario.command, whole)
    assert ended.status == 0, ended.said
    size = sum(path.stat().st_blocks * 512 for path in (whole / scenario.out).rglob("*"))
    return Undisturbed(
        scenario, ready, outputs(whole, scenario), finished(whole, scenario), size, ended.seconds
    )
