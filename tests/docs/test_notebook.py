"""notebooks/tour.ipynb: without outputs; runs with trained systems and without."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from places import copy_recipes
from tiny_demo import ROOT, tiny_demo, tiny_klassify, workspace  # noqa: F401  (fixtures)

TOUR = ROOT / "notebooks/tour.ipynb"


def run(folder: Path, seconds: int) -> tuple[str, int]:
    """Run the notebook in a checkout; returns its text and how many figures it drew."""
    (folder / "notebooks").mkdir(exist_ok=True)
    notebook = nbformat.read(TOUR, as_version=4)
    NotebookClient(
        notebook,
        timeout=seconds,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder / "notebooks")}},
    ).execute()  # raises at the first error
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    text = "".join(output.get("text", "") for output in outputs)
    assert not [
        output
        for output in outputs
        if output.get("name") == "stderr" and "Warning" in output["text"]
    ]
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


def test_stored_without_outputs():
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 5 and all(
        not cell.outputs and cell.execution_count is None for cell in cells
    )
    assert str(Path.home()) not in TOUR.read_text(encoding="utf-8")


@pytest.mark.slow
def test_without_trained_systems_it_says_what_is_missing(tmp_path):
    copy_recipes(tmp_path)
    text, figures = run(tmp_path, seconds=120)
    for recipe in ("klassify", "multibranch"):
        assert f"{recipe} was not trained yet. make demo recipe={recipe}" in text
    assert "There is no clip" in text and "nothing to draw" in text and figures == 0


@pytest.mark.slow
def test_tour_shows_one_clip_through_both_systems(tiny_demo, tmp_path):  # noqa: F811
    here = workspace(tiny_demo, tmp_path / "check out")
    text, figures = run(here, seconds=400)
    for recipe in ("klassify", "multibranch"):
        assert (
            f"{recipe}: probability of fake 0." in text
            or f"{recipe}: probability of fake 1.000" in text
        )
        assert (here / f"predictions/tour-{recipe}.png").stat().st_size > 10_000
    assert "was not trained yet" not in text and "has no answer" not in text
    assert figures == 5  # the clip, its mouth, a timeline of each system, all curves
