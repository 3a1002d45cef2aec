"""The README's picture is of today's code."""

from __future__ import annotations

import importlib.util
import json

from places import ROOT


def test_the_picture_was_made_of_what_it_shows():
    path = ROOT / "docs/images/make.py"
    spec = importlib.util.spec_from_file_location("make_picture", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    recorded = json.loads((path.parent / "answer.json").read_text(encoding="utf-8"))
    changed = [name for name, value in module.inputs().items() if recorded.get(name) != value]
    assert not changed, f"stale because of {changed}: run python docs/images/make.py"
