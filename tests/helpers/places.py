"""Where things are in a checkout."""

import shutil
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
GOLDENS = TESTS / "goldens"


def copy_recipes(folder: Path) -> None:
    """A folder with the recipes and the package, as in a checkout."""
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    (folder / "klassify").symlink_to(ROOT / "klassify")
