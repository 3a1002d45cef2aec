"""The detector of a recipe: a trained one, else the one in the package."""

from __future__ import annotations

from pathlib import Path

import klassify
from klassify.errors import KlassifyError
from klassify.lists import datasets
from klassify.systems.detector import DETECTOR, on_generated_corpus

DEMOS = ("demo-large", "demo", "demo-small", "demo-tiny")
PACKAGED = Path(klassify.__file__).parent / "detectors/demo"
EXAMPLE = PACKAGED / "clip.mp4"


def trained_or_packaged(exp: Path, recipe: str) -> Path:
    """The detector.yaml that find_detector finds, else that of the package."""
    try:
        return find_detector(exp, recipe)
    except KlassifyError:
        if not (path := PACKAGED / recipe / DETECTOR).exists():
            raise
        return path


def find_detector(exp: Path, recipe: str) -> Path:
    """The detector.yaml of a recipe, of a real data set before the generated corpus."""
    others = sorted(path.name for path in exp.iterdir() if path.is_dir()) if exp.is_dir() else []
    names = (*datasets.known(), *others)
    real = [name for name in names if not on_generated_corpus(exp / name / recipe)]
    for name in dict.fromkeys((*real, *DEMOS, *others)):
        if (path := exp / name / recipe / DETECTOR).exists():
            return path
    raise KlassifyError(
        f"No detector of the recipe {recipe} was trained yet.",
        where=exp,
        fix=(
            f"make demo recipe={recipe} (some minutes), or train on your data: make stage2"
            f" recipe={recipe}"
        ),
    )
