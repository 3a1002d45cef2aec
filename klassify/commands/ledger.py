"""The ledger of submissions: one row per package, with the leaderboard's results.

    klassify ledger                                        all rows
    klassify ledger --id 3f2a81c09e                        one, with every column
    klassify ledger --id 3f2a81c09e --leaderboard 0.87
        fill in the server's AUC (--task 2: its Score)

`klassify package` appends to ledger.tsv at the top of the `submissions` folder and keeps the
manifest of each package in manifests/<id>.json beside it. You may edit the file: your own columns,
lines that begin with '#' and the order of the columns are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.errors import KlassifyError
from klassify.submission.ledger import (
    COLUMNS,
    HOME,
    LEDGER,
    Ledger,
    _plain,
    read_ledger,
    set_leaderboard,
)

SHOWN = COLUMNS[:11]


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--ledger", type=Path, default=Path(HOME, LEDGER), metavar="FILE")
    add("--id", help="one package, by its id or its first digits")
    add("--leaderboard", type=float, metavar="X", help="record the server's score, 0 to 1")
    add(
        "--task",
        type=int,
        choices=(1, 2),
        help="task of that score (default: 1 if the package answers it)",
    )


def run(args: argparse.Namespace) -> int:
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
