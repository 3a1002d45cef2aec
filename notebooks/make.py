"""Run the tour and store its outputs: python notebooks/make.py

In an empty folder, so that the package's detector answers and the outputs are the same everywhere.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

TOUR = Path(__file__).with_name("tour.ipynb")


def run(folder: str | os.PathLike) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in a folder; raises at the first error."""
    client = NotebookClient(
        nbformat.read(TOUR, as_version=4),
        timeout=1200,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute()


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """What all cells printed and drew, in order."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [output for cell in cells for output in cell.outputs]


def shrink(notebook: nbformat.NotebookNode) -> None:
    """Figures of 128 colours, a third of the size."""
    for output in outputs(notebook):
        if png := output.get("data", {}).get("image/png"):
            image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
            small = io.BytesIO()
            image.quantize(128).save(small, "png", optimize=True)
            output.data["image/png"] = base64.b64encode(small.getvalue()).decode()


def main() -> None:
    """Run, shrink, store."""
    with tempfile.TemporaryDirectory() as empty:
        notebook = run(empty)
    shrink(notebook)
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, TOUR)


if __name__ == "__main__":
    main()
