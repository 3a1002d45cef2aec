"""The tables of recipes/*/RESULTS.md are written by benchmarks/results.py."""

from __future__ import annotations

import importlib.util
import re

import pytest
from tiny_demo import ROOT, tiny_klassify  # noqa: F401  (fixture)

spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks/results.py")
results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results)


def test_every_marked_table_has_a_function_and_a_head():
    named = set()
    for page in ROOT.glob("recipes/*/RESULTS.md"):
        text = page.read_text(encoding="utf-8")
        found = list(results.BLOCK.finditer(text))
        assert len(found) == text.count("<!-- results: ") == text.count("<!-- /results -->")
        for block in found:
            table = block[0].removeprefix(block[1]).removesuffix(block[3])
            start = "Training seeds: " if block[2] == "made" else r"\| .* \|\n\|(---\|)+\n\| "
            assert re.match(start, table), block[2]
            named.add(block[2])
    assert named == set(results.TABLES)


def test_readme_has_the_means_of_the_recipes():
    text = (ROOT / "recipes/fused/RESULTS.md").read_text(encoding="utf-8")
    means = re.findall(
        r"^\| (?:KLASSify|multi-branch|\*\*this recipe).*?\| ([\d.]+) \| ([\d.]+) \|", text, re.M
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"RESULTS\.md\)\) \| ([\d.]+) \| ([\d.]+) \|$", readme, re.M)
    assert len(shown) == 3 and shown == means[:3]


@pytest.mark.slow
def test_tables_are_made_of_the_smallest_demo(tiny_klassify, tmp_path, monkeypatch):  # noqa: F811
    """Those that need no command beyond the demo; missing ones keep their rows and are named."""
    monkeypatch.chdir(tiny_klassify)
    missing = results.write_pages(results.Path("exp/demo-tiny"), tmp_path)
    text = (tmp_path / "klassify/RESULTS.md").read_text(encoding="utf-8")
    made = {block[2]: block[0] for block in results.BLOCK.finditer(text)}
    for name, system in {"task1": "maxout", "task2": "random", "task1-gains": "tcn"}.items():
        assert re.search(rf"^\| (testA \| )?{system} \| ", made[name], re.MULTILINE), name
    assert "Training seeds: 1. Trained with the code of commit " in made["made"]
    assert any(text.startswith("klassify: no table costs: ") for text in missing)
    assert not any("no table task" in text for text in missing if text.startswith("klassify"))
    kept = (ROOT / "recipes/klassify/RESULTS.md").read_text(encoding="utf-8")
    before = {block[2]: block[0] for block in results.BLOCK.finditer(kept)}
    assert made["costs"] == before["costs"]
