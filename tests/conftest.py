"""Fixtures of all tests."""

from __future__ import annotations

import pytest
from commands import each_here
from small_data import SmallData, make_split

from klassify import workers

# a trained demo, generated corpora, a training by two processes, Chromium: 9 s and more
LONG = {"tiny_klassify", "tiny_corpus", "real_corpus", "two_ranks", "browser"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a fixture of LONG is marked `long`: `make test` does without it."""
    for item in items:
        if LONG.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.long)


@pytest.fixture
def without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What worker processes would do is done in this one; not by fixtures of a module."""
    monkeypatch.setattr(workers, "each", each_here)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    root = tmp_path_factory.mktemp("small data")
    make_split(root, "train", 8, seed=1)
    make_split(root, "val", 8, seed=2)
    make_split(root, "testA", 3, seed=3, labelled=False)
    return SmallData(root / "lists", root / "media", root / "features")
