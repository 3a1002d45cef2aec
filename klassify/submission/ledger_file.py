"""ledger.tsv as a file that people edit too: read with care, written line by line, one process
at a time.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from klassify.errors import KlassifyError, first_few
from klassify.files import whole_file

COLUMNS = (
    "id",
    "made",
    "data",
    "split",
    "folder",
    "task1",
    "task2",
    "val_auc",
    "val_score",
    "leaderboard_auc",
    "leaderboard_score",
    "commit",
    "dirty",
    "package_sha256",
    "list_sha256",
    "task1_system",
    "task1_scores_sha256",
    "task2_system",
    "task2_scores_sha256",
)
ID = re.compile(r"[0-9a-f]{10}")
_FIX = "fix that line, or move the file away: `klassify package` then begins a new one"


@dataclasses.dataclass
class Ledger:
    """A read ledger. lines: as they stand, with their ends; columns: of its header, [] where it has
    none yet.

    rows: {id: {column: cell}} and at: {id: index of its line}, in the order of the file.
    """

    path: Path
    lines: list[str]
    columns: list[str]
    rows: dict[str, dict[str, str]]
    at: dict[str, int]

    def find(self, start: str) -> str:
        """The id that begins with `start`; KlassifyError where none or several do."""
        found = [one for one in self.rows if start and one.startswith(start)]
        if len(found) != 1:
            what = (
                f"{len(found)} packages have an id that begins"
                if found
                else "No package has an id that begins"
            )
            raise KlassifyError(
                f"{what} with {start!r}.", where=self.path, fix="`klassify ledger` lists them"
            )
        return found[0]

    def row(self, start: str) -> dict[str, str]:
        """{column: cell} of the package whose id begins with `start`; KlassifyError as in
        `find`.
        """
        return self.rows[self.find(start)]

    @property
    def line_end(self) -> str:
        """What its lines end with, as the first one does."""
        return "\r\n" if self.lines and self.lines[0].endswith("\r\n") else "\n"


def read_ledger(path: str | os.PathLike, *, must_exist: bool = False) -> Ledger:
    """Read and check a ledger; a missing one is empty unless it `must_exist`.

    Raises KlassifyError with the line for a missing or repeated column, a row with more cells than
    columns, an id that is none or stands twice, or bytes that are no UTF-8 text.
    """
    path = Path(path)
    book = Ledger(path, [], [], {}, {})
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        if must_exist:
            fix = "`klassify package` begins one; --ledger names one that lies elsewhere"
            raise KlassifyError("There is no ledger here.", where=path, fix=fix) from None
        return book
    except (UnicodeDecodeError, OSError) as error:
        raise KlassifyError(f"This ledger cannot be read: {error}.", where=path) from None
    book.lines = list(io.StringIO(text, newline=""))  # keeps every kind of line end
    for index, line in enumerate(book.lines):
        line = line.rstrip("\r\n").removeprefix("\ufeff")
        if line.strip() and not line.startswith("#"):
            _read_line(book, index, line.split("\t"))
    return book


def _read_line(book: Ledger, index: int, cells: list[str]) -> None:
    where = f"{book.path}:{index + 1}"
    if not book.columns:
        missing = [name for name in COLUMNS if name not in cells]
        twice = sorted({name for name in cells if cells.count(name) > 1})
        if missing or twice:
            what = (
                f"columns missing: {first_few(missing)}"
                if missing
                else f"columns that stand twice: {first_few(twice)}"
            )
            raise KlassifyError(f"This is no header of a ledger; {what}.", where=where, fix=_FIX)
        book.columns = cells
        return
    if len(cells) > len(book.columns):
        raise KlassifyError(
            f"{len(cells)} cells, but {len(book.columns)} columns.", where=where, fix=_FIX
        )
    row = dict(
        zip(book.columns, cells + [""] * (len(book.columns) - len(cells)))
    )  # editors cut empty ends off
    if not ID.fullmatch(row["id"]) or row["id"] in book.rows:
        what = (
            "stands here a second time"
            if row["id"] in book.rows
            else "is no id (10 hexadecimal digits)"
        )
        raise KlassifyError(f"{row['id'][:80]!r} {what}.", where=where, fix=_FIX)
    book.rows[row["id"]], book.at[row["id"]] = row, index


def ended(book: Ledger) -> list[str]:
    """The lines, the last one with its line end."""
    if not book.lines or book.lines[-1].endswith(("\n", "\r")):
        return book.lines
    return [*book.lines[:-1], book.lines[-1] + book.line_end]


def write_row(book: Ledger, package_id: str, row: Mapping[str, str]) -> None:
    """Put a row in its line and write the file, every other line as it stood."""
    index = book.at[package_id]
    old = book.lines[index]
    cells = [re.sub(r"[\t\r\n]", " ", row.get(name, "")) for name in book.columns]
    lines = [
        *book.lines[:index],
        "\t".join(cells) + (old[len(old.rstrip("\r\n")) :] or book.line_end),
    ]
    path = Path(os.path.realpath(book.path))  # a link stays one
    with whole_file(path) as partial:
        partial.write_text(
            "".join([*lines, *book.lines[index + 1 :]]), encoding="utf-8", newline=""
        )
        if path.exists():
            shutil.copymode(path, partial)
