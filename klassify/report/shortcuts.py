"""The section of the page with the results of `klassify audit`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from klassify.evaluation.shortcuts import FOLDER, Audit, in_folder
from klassify.report.entries import Entry


def load(folder: Path | None, entries: Sequence[Entry]) -> list[Audit]:
    """The audits in a folder; without one, those in exp/<data>/audit of the systems."""
    if folder is not None:
        return in_folder(folder)
    data = dict.fromkeys(one.system.folder.parent.parent for one in entries)
    return [found for one in data for found in in_folder(one / FOLDER)]


def table(audits: Sequence[Audit]) -> pd.DataFrame:
    """The traits of all audits, with the split of each."""
    return pd.concat([found.traits.assign(split=found.split) for found in audits])
