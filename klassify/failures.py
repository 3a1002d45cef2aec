"""The clips without an answer: a TSV with the columns file, stage and reason, one row per clip."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from klassify.errors import KlassifyError
from klassify.files import whole_file
from klassify.untrusted import refuse_cut


class Failure(NamedTuple):
    """A clip without an answer; stage: path, decode, face, train, score, ..."""

    file: str
    stage: str
    reason: str


def write_failures(path: str | os.PathLike, failures: Iterable[Failure]) -> Path:
    """Write the file; returns its path."""
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
        writer.writerow(Failure._fields)
        writer.writerows(failures)
    return Path(path)


def read_failures(path: str | os.PathLike) -> list[Failure]:
    """The rows of a file, none if it does not exist; KlassifyError for a damaged one."""
    if not os.path.exists(path):
        return []
    refuse_cut(path)
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            header, *rows = csv.reader(handle, delimiter="\t")
            if tuple(header) != Failure._fields:
                raise ValueError(f"its columns are {', '.join(header)}")
            return [Failure(*row) for row in rows]
    except (ValueError, TypeError, csv.Error) as error:
        raise KlassifyError(f"This list of failures is damaged: {error}.", where=path) from None
