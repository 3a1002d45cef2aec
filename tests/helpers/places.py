"""Where things are in a checkout."""

import shutil
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
GOLDENS = TESTS / "goldens"
NO_SYSTEMS = ("submit.yaml", "submit_sound.yaml", "report.yaml")


def configs(form: str = "*") -> list[Path]:
    """The shipped configs of systems, all or those of a form: demo or paper."""
    paths = ROOT.glob(f"recipes/*/conf/{form}/*.yaml")
    return sorted(path for path in paths if path.name not in NO_SYSTEMS)


def copy_recipes(folder: Path) -> None:
    """A folder with the recipes and the package, as in a checkout."""
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    (folder / "klassify").symlink_to(ROOT / "klassify")
