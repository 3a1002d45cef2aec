"""notebooks/tour.ipynb: its stored outputs are those of today's code; it shows trained systems."""

from __future__ import annotations

import ast
import importlib.util
import re

import nbformat
import pytest
from tiny_demo import ROOT, tiny_demo, tiny_klassify, workspace  # noqa: F401  (fixtures)

spec = importlib.util.spec_from_file_location("make_notebook", ROOT / "notebooks/make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


def said(notebook: nbformat.NotebookNode) -> list[str]:
    """The texts and tables of all cells; a figure is the word "figure". What a cell prints is one
    text: it arrives in parts whose ends are chance.
    """
    found, printing = [], False
    for output in make.outputs(notebook):
        data, text = output.get("data", {}), output.get("text", "")
        if "IPKernelApp" in text:
            continue
        if text and printing:
            found[-1] += text
        else:
            found.append("figure" if "image/png" in data else data.get("text/plain") or text)
        printing = bool(text)
    return found


def test_the_stored_notebook_is_small_and_complete():
    notebook = nbformat.read(make.TOUR, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert said(notebook).count("figure") == 4
    assert make.TOUR.stat().st_size < 500_000
    texts = [text for text in said(notebook) if text != "figure"]
    assert not re.search(r"/(home|root|tmp|work|opt)/|Traceback", "\n".join(texts))


def test_what_the_notebook_imports_exists():
    cells = nbformat.read(make.TOUR, as_version=4).cells
    trees = [ast.parse(cell.source) for cell in cells if cell.cell_type == "code"]
    imports = [
        node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    ]
    ours = [node for node in imports if node.module.startswith("klassify")]
    assert ours
    for node in ours:
        for alias in node.names:
            exec(f"from {node.module} import {alias.name}")


@pytest.mark.slow
def test_stored_outputs_are_those_of_todays_code(tmp_path):
    stored = nbformat.read(make.TOUR, as_version=4)
    assert said(make.run(tmp_path)) == said(stored), "stale: run python notebooks/make.py"


@pytest.mark.slow
def test_the_tour_shows_both_trained_systems(tiny_demo, tmp_path):  # noqa: F811
    here = workspace(tiny_demo, tmp_path / "check out")
    (here / "notebooks").mkdir(exist_ok=True)
    texts = said(make.run(here / "notebooks"))
    text = "\n".join(texts)
    for recipe in ("klassify", "multibranch"):
        assert re.search(rf"{recipe}: probability of fake [01]\.", text)
    assert "was not trained yet" not in text and "has no answer" not in text
    assert texts.count("figure") == 5  # the clip, its mouth, a timeline of each system, all curves
