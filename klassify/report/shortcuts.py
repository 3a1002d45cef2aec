"""The section of the page with the results of `klassify audit`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from klassify.evaluation.shortcuts import Audit, folder_of, in_folder
from klassify.report.entries import Entry


def load(folder: Path | None, entries: Sequence[Entry]) -> list[Audit]:
    """The audits in a folder; without one, those in exp/<data>/audit of the systems."""
    if folder is not None:
        return in_folder(folder)
    folders = dict.fromkeys(folder_of(one.system.folder) for one in entries)
    return [found for one in folders for found in in_folder(one)]


def tables(audits: Sequence[Audit]) -> dict[str, pd.DataFrame]:
    """The traits of all audits, and systems on changed media, with the split of each."""
    return {
        name: pd.concat([table.assign(split=one.split) for one, table in zip(audits, some)])
        for name, some in (
            ("shortcuts", [one.traits for one in audits]),
            ("changed_media", [one.systems for one in audits]),
        )
    }
