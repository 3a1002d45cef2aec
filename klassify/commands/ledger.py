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
from klassify.evaluation.tables import ABSENT, aligned
from klassify.submission.ledger import (
    COLUMNS,
    HOME,
    LEDGER,
    Ledger,
    printable,
    read_ledger,
    set_leaderboard,
)

SHOWN = COLUMNS[:11]


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--ledger",
        type=Path,
        default=Path(HOME, LEDGER),
        metavar="FILE",
        help="default: %(default)s",
    )
    add("--id", help="one package, by its id or the beginning of it")
    add("--leaderboard", type=float, metavar="X", help="the server's score for it, between 0 and 1")
    add("--task", type=int, choices=(1, 2), help="the score's task; default: 1 if it is answered")


def run(args: argparse.Namespace) -> int:
    if args.leaderboard is not None:
        if not args.id:
            raise KlassifyError(
                "Which package does this score belong to?",
                fix="give --id; `klassify ledger` lists them",
            )
        print(set_leaderboard(args.ledger, args.id, args.leaderboard, args.task))
        return 0
    book = read_ledger(args.ledger, must_exist=True)
    if args.id:
        row = book.row(args.id)
        print("\n".join(f"{name:<20} {printable(row[name])}".rstrip() for name in book.columns))
    else:
        print(_table(book))
    return 0


def _table(book: Ledger) -> str:
    rows = [list(SHOWN)]
    for row in book.rows.values():
        short = {task: row[task].rstrip("/").rpartition("/")[2] for task in ("task1", "task2")}
        rows.append([printable((row | short)[name]) or ABSENT for name in SHOWN])
    return aligned(rows)
