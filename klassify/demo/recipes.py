"""The recipes: beside the package in a checkout, inside it where it was installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import klassify
from klassify.errors import KlassifyError
from klassify.lists import datasets

RECIPES = ("klassify", "multibranch", "fused")


def recipes_folder() -> Path:
    """The folder of the recipes that this package came with."""
    package = Path(klassify.__file__).parent
    found = next((p for p in (package / "recipes", package.parent / "recipes") if p.is_dir()), None)
    if found is None:
        raise KlassifyError("This installation has no recipes.", fix="work in a checkout")
    return found


def copy_recipes(folder: Path) -> None:
    """Copy the recipes with their configs to `folder`/recipes; what is there is kept."""
    source, target = recipes_folder(), folder / "recipes"
    if target.exists():
        return
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, target, ignore=skipped)
    table = Path(datasets.__file__).with_suffix(".tsv")
    shutil.copy(table, target / table.name)
