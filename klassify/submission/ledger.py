"""The ledger: one row per package that was made, and what the leaderboard said of it."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError, first_few
from klassify.files import locked, whole_file, write_json

LEDGER, MANIFESTS, HOME = "ledger.tsv", "manifests", "submissions"
LEADERBOARD = {1: "leaderboard_auc", 2: "leaderboard_score"}


def _plain(cell: str) -> str:
    """A cell as a terminal may show it."""
    return "".join(letter if letter.isprintable() else "?" for letter in cell)


def find_ledger(out: str | os.PathLike) -> Path:
    """Where a package in `out` is booked: at the top of the nearest folder `submissions` above
    it, else in `out`.
    """
    out = Path(os.path.normpath(out))
    above = [out, *out.parents, *Path(os.path.abspath(out)).parents]  # as short a path as there is
    return next((folder for folder in above if folder.name == HOME), out) / LEDGER


def id_of(manifest: Mapping[str, Any]) -> str:
    """The short name of a package: the first 10 digits of the hash of its zip."""
    return manifest["zip_sha256"][:10]


def manifest_path(ledger: str | os.PathLike, package_id: str) -> Path:
    """Where the manifest of a booked package is kept."""
    return Path(ledger).parent / MANIFESTS / f"{package_id}.json"


def record(ledger: str | os.PathLike, manifest: Mapping[str, Any], out: str | os.PathLike) -> str:
    """Book a package that lies in `out`, and keep its manifest. Returns the id.

    One of the same bytes is not booked twice: its row only gets what was empty and is known by now.
    Processes that book at the same time wait for each other.
    """
    ledger, package_id = Path(ledger), id_of(manifest)
    with locked(ledger):
        book = read_ledger(ledger)
        write_json(manifest_path(ledger, package_id), manifest)
        if not book.columns:
            book.columns = list(COLUMNS)
            book.lines = [*ended(book), "\t".join(COLUMNS) + book.line_end]
        row = _row(manifest, os.path.relpath(os.path.abspath(out), os.path.abspath(ledger.parent)))
        if package_id in book.rows:
            before = book.rows[package_id]
            filled = {name: before[name] or row.get(name, "") for name in book.columns}
            if filled != before:
                write_row(book, package_id, filled)
        else:
            book.lines = [*ended(book), ""]
            book.at[package_id] = len(book.lines) - 1
            write_row(book, package_id, row)
    return package_id


def set_leaderboard(
    ledger: str | os.PathLike, start: str, value: float, task: int | None = None
) -> str:
    """Fill in the server's score of a package, one cell of one line; returns what was done, as a
    sentence.
    """
    if not 0 <= value <= 1:  # NaN too
        raise KlassifyError(f"A score of the leaderboard lies between 0 and 1; this is {value:g}.")
    with locked(Path(ledger)):
        book = read_ledger(ledger, must_exist=True)
        package_id = book.find(start)
        row = book.rows[package_id]
        task = task or (1 if row["task1"] else 2)
        if not row[f"task{task}"]:
            raise KlassifyError(f"{package_id} has no answer for Task {task}.", where=ledger)
        name = LEADERBOARD[task]
        before, row[name] = row[name], f"{value:.9g}"
        write_row(book, package_id, row)
    return f"{package_id}: {name} {row[name]}" + (f" (was {_plain(before)})" if before else "")


def _row(manifest: Mapping[str, Any], folder: str) -> dict[str, str]:
    made_with, systems = manifest["made_with"], manifest["systems"]
    commit, dirty = str(manifest.get("commit") or ""), manifest.get("dirty")
    values = {
        "id": id_of(manifest),
        "made": manifest.get("made", ""),
        "data": Path(manifest["list"]["path"]).absolute().parent.name,
        "split": manifest["split"],
        "folder": folder,
        "commit": commit.removesuffix("+"),  # manifests without `dirty` mark a changed checkout so
        "dirty": (
            {True: "yes", False: "no"}.get(
                commit.endswith("+") if dirty is None and commit else dirty, ""
            )
        ),
        "package_sha256": manifest["zip_sha256"],
        "list_sha256": made_with["list"],
    }
    for task, metric in (("task1", "val_auc"), ("task2", "val_score")):
        if task in systems:
            local = systems[task].get(metric)
            values |= {
                task: systems[task]["path"],
                metric: "" if local is None or math.isnan(local) else f"{local:.4f}",
                f"{task}_system": made_with[f"{task}_system"],
                f"{task}_scores_sha256": made_with[f"{task}_scores"],
            }
    return values


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
    columns, an id that is none or appears twice, or bytes that are not UTF-8 text.
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
                else f"columns that appear twice: {first_few(twice)}"
            )
            raise KlassifyError(f"This is not a header of a ledger; {what}.", where=where, fix=_FIX)
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
