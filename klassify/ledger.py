"""The ledger of submissions: one row for every package that was made, and what the leaderboard said
of it.

    klassify ledger                                        all rows
    klassify ledger --id 3f2a81c09e                        one, with every column
    klassify ledger --id 3f2a81c09e --leaderboard 0.87
        fill in the server's AUC (--task 2: its Score)

`klassify package` appends to ledger.tsv at the top of the `submissions` folder and keeps the
manifest of each package in manifests/<id>.json beside it. The file may be edited by hand: columns
of your own, lines that begin with '#' and the order of the columns stay as they are.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError
from klassify.files import locked, write_json
from klassify.submission.ledger_file import COLUMNS, Ledger, ended, read_ledger, write_row

LEDGER, MANIFESTS, HOME = "ledger.tsv", "manifests", "submissions"
SHOWN = COLUMNS[:11]
LEADERBOARD = {1: "leaderboard_auc", 2: "leaderboard_score"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `klassify ledger`."""
    parser.add_argument("--ledger", type=Path, default=Path(HOME, LEDGER), metavar="FILE")
    parser.add_argument("--id", help="one package, by its id or the beginning of it")
    parser.add_argument(
        "--leaderboard", type=float, metavar="X", help="the server's score for it, between 0 and 1"
    )
    parser.add_argument(
        "--task",
        type=int,
        choices=(1, 2),
        help="whose score it is; default: 1 where it is answered",
    )


def run(args: argparse.Namespace) -> int:
    """Run `klassify ledger`."""
    if args.leaderboard is None:
        book = read_ledger(args.ledger, must_exist=True)
        if args.id:
            row = book.row(args.id)
            print("\n".join(f"{name:<20} {_plain(row[name])}".rstrip() for name in book.columns))
        else:
            print(_table(book))
    elif not args.id:
        raise KlassifyError(
            "Which package does this score belong to?",
            fix="give --id; `klassify ledger` lists them",
        )
    else:
        print(set_leaderboard(args.ledger, args.id, args.leaderboard, args.task))
    return 0


def _table(book: Ledger) -> str:
    from klassify.evaluation.tables import ABSENT, aligned

    rows = []
    for row in book.rows.values():
        cells = row | {
            task: row[task].rstrip("/").rpartition("/")[2] for task in ("task1", "task2")
        }
        rows.append([_plain(cells[name]) or ABSENT for name in SHOWN])
    return aligned([list(SHOWN), *rows])


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
