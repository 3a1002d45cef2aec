"""The ledger: one row for each package, and the leaderboard's results."""

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
COLUMNS = (
    *("id", "made", "data", "split", "folder", "task1", "task2", "val_auc", "val_score"),
    *LEADERBOARD.values(),
    *("commit", "dirty", "package_sha256", "list_sha256"),
    *("task1_system", "task1_scores_sha256", "task2_system", "task2_scores_sha256"),
)
ID = re.compile(r"[0-9a-f]{10}")
_FIX = "fix that line, or move the file away: `klassify package` then begins a new one"


@dataclasses.dataclass
class Ledger:
    """A ledger as it was read. lines: with their ends; columns: of its header, [] without one.

    rows: {id: {column: cell}} and at: {id: index of its line}, in the order of the file.
    """

    path: Path
    lines: list[str] = dataclasses.field(default_factory=list)
    columns: list[str] = dataclasses.field(default_factory=list)
    rows: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    at: dict[str, int] = dataclasses.field(default_factory=dict)

    def row(self, start: str) -> dict[str, str]:
        """{column: cell} of the one package whose id begins with `start`; else KlassifyError."""
        found = [one for one in self.rows if start and one.startswith(start)]
        if len(found) != 1:
            which = "No package has" if not found else f"{len(found)} packages have"
            what = f"{which} an id that begins with {start!r}."
            raise KlassifyError(what, where=self.path, fix="`klassify ledger` lists them")
        return self.rows[found[0]]

    @property
    def line_end(self) -> str:
        """How the first line ends, and so all new ones."""
        return "\r\n" if self.lines and self.lines[0].endswith("\r\n") else "\n"

    def append(self, line: str) -> None:
        """Add a line at the end."""
        if self.lines and not self.lines[-1].endswith(("\n", "\r")):
            self.lines[-1] += self.line_end
        self.lines.append(line + self.line_end)

    def set(self, package_id: str, row: Mapping[str, str]) -> None:
        """Put a package's row into its line, or into a new one."""
        cells = [re.sub(r"[\t\r\n]", " ", row.get(name, "")) for name in self.columns]
        line = "\t".join(cells)
        if package_id not in self.at:
            self.append(line)
            return
        old = self.lines[self.at[package_id]]
        self.lines[self.at[package_id]] = line + (old[len(old.rstrip("\r\n")) :] or self.line_end)

    def write(self) -> None:
        """Write the file; a link stays one, and its permissions stay as they are."""
        path = Path(os.path.realpath(self.path))
        with whole_file(path) as partial:
            partial.write_text("".join(self.lines), encoding="utf-8", newline="")
            if path.exists():
                shutil.copymode(path, partial)


def find_ledger(out: str | os.PathLike) -> Path:
    """The ledger of a package: in the nearest folder `submissions` above `out`, else in `out`."""
    out = Path(os.path.normpath(out))
    above = [out, *out.parents, *Path(os.path.abspath(out)).parents]  # as short a path as possible
    return next((folder for folder in above if folder.name == HOME), out) / LEDGER


def id_of(manifest: Mapping[str, Any]) -> str:
    """The short name of a package: the first 10 digits of the hash of its zip."""
    return manifest["zip_sha256"][:10]


def manifest_path(ledger: str | os.PathLike, package_id: str) -> Path:
    """Where the manifest of a package is kept."""
    return Path(ledger).parent / MANIFESTS / f"{package_id}.json"


def record(ledger: str | os.PathLike, manifest: Mapping[str, Any], out: str | os.PathLike) -> str:
    """Add a package in `out` to the ledger and keep its manifest; returns the id.

    If the ledger has a package of the same bytes, only the empty cells of its row are filled.
    Processes that do this at the same time wait for each other.
    """
    ledger, package_id = Path(ledger), id_of(manifest)
    with locked(ledger):
        book = read_ledger(ledger)
        write_json(manifest_path(ledger, package_id), manifest)
        if not book.columns:
            book.columns = list(COLUMNS)
            book.append("\t".join(COLUMNS))
        row = _row(manifest, os.path.relpath(os.path.abspath(out), os.path.abspath(ledger.parent)))
        before = book.rows.get(package_id, {})
        filled = {name: before.get(name) or row.get(name, "") for name in book.columns}
        if filled != before:
            book.set(package_id, filled)
            book.write()
    return package_id


def set_leaderboard(
    ledger: str | os.PathLike, start: str, value: float, task: int | None = None
) -> str:
    """Fill in the server's score of a package by the start of its id; a sentence about it."""
    if not 0 <= value <= 1:  # NaN too
        raise KlassifyError(f"A leaderboard score is between 0 and 1, not {value:g}.")
    with locked(Path(ledger)):
        book = read_ledger(ledger, must_exist=True)
        row = book.row(start)
        package_id, task = row["id"], task or (1 if row["task1"] else 2)
        if not row[f"task{task}"]:
            raise KlassifyError(f"{package_id} has no answer for Task {task}.", where=ledger)
        name = LEADERBOARD[task]
        before, row[name] = row[name], f"{value:.9g}"
        book.set(package_id, row)
        book.write()
    return f"{package_id}: {name} {row[name]}" + (f" (was {printable(before)})" if before else "")


def printable(cell: str) -> str:
    """A cell that is safe to print to a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in cell)


def _row(manifest: Mapping[str, Any], folder: str) -> dict[str, str]:
    made_with, systems = manifest["made_with"], manifest["systems"]
    commit, dirty = str(manifest.get("commit") or ""), manifest.get("dirty")
    if dirty is None and commit:  # manifests without `dirty` mark a changed checkout with a "+"
        dirty = commit.endswith("+")
    values = {
        "id": id_of(manifest),
        "made": manifest.get("made", ""),
        "data": Path(manifest["list"]["path"]).absolute().parent.name,
        "split": manifest["split"],
        "folder": folder,
        "commit": commit.removesuffix("+"),
        "dirty": {True: "yes", False: "no"}.get(dirty, ""),
        "package_sha256": manifest["zip_sha256"],
        "list_sha256": made_with["list"],
    }
    for task, metric in (("task1", "val_auc"), ("task2", "val_score")):
        if task in systems:
            local = systems[task].get(metric)
            values[task] = systems[task]["path"]
            values[metric] = "" if local is None or math.isnan(local) else f"{local:.4f}"
            values[f"{task}_system"] = made_with[f"{task}_system"]
            values[f"{task}_scores_sha256"] = made_with[f"{task}_scores"]
    return values


def read_ledger(path: str | os.PathLike, *, must_exist: bool = False) -> Ledger:
    """Read and check a ledger; a missing one is empty unless it `must_exist`.

    KlassifyError names the line for a missing or repeated column, a row with more cells than
    columns, an id that is not one or appears twice, or bytes that are not UTF-8 text.
    """
    book = Ledger(Path(path))
    try:
        text = book.path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        if must_exist:
            fix = "`klassify package` begins one; --ledger names one in another place"
            raise KlassifyError("There is no ledger here.", where=path, fix=fix) from None
        return book
    except (UnicodeDecodeError, OSError) as error:
        raise KlassifyError(f"This ledger cannot be read: {error}.", where=path) from None
    book.lines = list(io.StringIO(text, newline=""))  # keeps every kind of line end
    for index, line in enumerate(book.lines):
        if problem := _read_line(book, index, line.rstrip("\r\n").removeprefix("\ufeff")):
            raise KlassifyError(problem, where=f"{path}:{index + 1}", fix=_FIX)
    return book


def _read_line(book: Ledger, index: int, line: str) -> str:
    """Read the header, a row, a comment or a blank line; returns what is wrong with it, or ''."""
    if not line.strip() or line.startswith("#"):
        return ""
    cells = line.split("\t")
    if not book.columns:
        book.columns = cells
        missing = [name for name in COLUMNS if name not in cells]
        twice = sorted({name for name in cells if cells.count(name) > 1})
        if not (missing or twice):
            return ""
        what = (
            f"missing: {first_few(missing)}"
            if missing
            else f"that appear twice: {first_few(twice)}"
        )
        return f"This is not a header of a ledger; columns {what}."
    if len(cells) > len(book.columns):
        return f"{len(cells)} cells, but {len(book.columns)} columns."
    row = dict.fromkeys(book.columns, "") | dict(zip(book.columns, cells))  # editors cut empty ends
    package_id = row["id"]
    if package_id in book.rows:
        return f"{package_id!r} appears a second time."
    if not ID.fullmatch(package_id):
        return f"{package_id[:80]!r} is not an id (10 hexadecimal digits)."
    book.rows[package_id], book.at[package_id] = row, index
    return ""
