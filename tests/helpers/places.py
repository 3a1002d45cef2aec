"""Where things are in a checkout."""

import shutil
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
GOLDENS = TESTS / "goldens"


def copy_recipes(folder: Path) -> None:
    """What the recipes are in a checkout: theirs, and the table of data sets that they read."""
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    (folder / "klassify/lists").mkdir(parents=True)
    shutil.copy(ROOT / "klassify/lists/datasets.tsv", folder / "klassify/lists")
