"""The data sets that the toolkit knows by name, and how splits are called.

datasets.tsv is the one place that names them, for Python and for the recipes. A data set without
`train` is only tested on, and its one split has the data set's name, which keeps its scores apart
from those of the data that the systems were trained on. Any other name is a data set of a user's
own.
"""

from __future__ import annotations

import csv
import difflib
import functools
import re
from pathlib import Path

from klassify.errors import KlassifyError

SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "dev", "valid", "validation"),
    "test": ("test", "testing"),
}


OWN = (
    "write SPLIT.csv with the columns file,label (real or fake), or put the clips into the folders"
    " SPLIT/real and SPLIT/fake; SPLIT is train, val or test"
)


@functools.cache
def known() -> dict[str, dict[str, str]]:
    """{data set: its row}, the challenge's first; the columns are those of datasets.tsv."""
    with open(Path(__file__).with_suffix(".tsv"), encoding="utf-8") as handle:
        return {row["name"]: row for row in csv.DictReader(handle, delimiter="\t")}


def check_name(name: str) -> str:
    """The name of a data set; KlassifyError for a misspelt one or an impossible folder name."""
    close = difflib.get_close_matches(name, known(), n=1, cutoff=0.8)
    if any(name.startswith(one) for one in known()):
        close = []  # a part or a version of that data set
    if close or not re.fullmatch(r"\w[\w.-]*", name):
        raise KlassifyError(
            f"{name!r} is not a known data set, nor a name for one of your own; known are:"
            f" {', '.join(known())}.",
            fix=f"did you mean {close[0]}?" if close else "use letters, digits, _ and -",
        )
    return name


def how_described(name: str) -> str:
    """What the root folder of a data set must hold, as advice."""
    if name in known():
        return f"give the folder that holds {known()[name]['described_by']}"
    return OWN


@functools.cache
def spellings(split: str) -> tuple[str, ...]:
    """What a split may be called in metadata and folders, its own name first."""
    names = SPELLINGS.get(split)
    if names is None:
        return (split,)
    return (*names, *(name.capitalize() for name in names), *(name.upper() for name in names))


FOLDERS = tuple(name for split in SPELLINGS for name in spellings(split))


def split_of(spelling: str) -> str:
    """The name under which a split is written: `dev` and `Validation` are `val`."""
    return next((split for split in SPELLINGS if spelling in spellings(split)), spelling)
