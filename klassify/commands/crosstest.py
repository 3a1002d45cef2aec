"""Train on one data set, test on others: one table of the evaluations of stage 4.

    klassify crosstest exp/demo/klassify/evaluation --out exp/demo/klassify/evaluation/crosstest

Reads the tables of `klassify evaluate`: all in the folders, or those that are named. Systems are
rows, and the data sets that they were tested on are columns, with intervals by source. `make stage3
stage4 data=B from=A` tests the systems of A on B, whose splits are then called B-<split>, and calls
this command. Tables of several folders name their systems <recipe>/<system>; of recipes trained on
several data sets, such as exp/a/klassify and exp/b/klassify, each one's own splits are called
DATA-<split> too, so that a column is one data set.

Writes <out>.tsv (long form) and <out>.txt.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.evaluation.crosstest import gather, tables_in, text
from klassify.evaluation.tables import write_table
from klassify.files import write_text


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "tables",
        nargs="+",
        type=Path,
        metavar="FOLDER_OR_TSV",
        help="tables of klassify evaluate, or folders of them",
    )
    add("--out", type=Path, help="path of the files, without ending (default: only print)")


def run(args: argparse.Namespace) -> int:
    found = gather(tables_in(args.tables))
    print(text(found))
    if args.out:
        write_table(Path(f"{args.out}.tsv"), found)
        write_text(f"{args.out}.txt", text(found) + "\n")
    return 0
