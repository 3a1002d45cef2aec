"""The tables of the page: what stands in which cell, and what a column sorts by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from klassify.evaluation.tables import number
from klassify.metrics import segments
from klassify.report.comparison import Comparison

NAMES = {"auc": "AUC", "eer": "EER", "log_loss": "log-loss", "frame_auc": "frame AUC"}
APS, ARS = segments.METRICS[:4], segments.METRICS[4:-1]
STATES = ("answered", "fell back", "failed")


class Column(NamedTuple):
    """A column of a table. numeric: to the right, sorted as numbers; help: shown over its title."""

    title: str
    numeric: bool = True
    help: str = ""


class Cell(NamedTuple):
    """text as shown, with an interval in small below; key: what a number sorts by, None for
    text.
    """

    text: str
    key: str | None = None
    small: str = ""


class Row(NamedTuple):
    """A line of a table. strong: it stands out, as a recipe's answer does."""

    cells: list[Cell]
    strong: bool = False


class Table(NamedTuple):
    """A table of the page: its columns, and one cell for each in every row."""

    head: list[Column]
    rows: list[Row]


SYSTEM = Column("system", False)


def value(row: pd.Series, name: str, form: str = ".4f") -> Cell:
    """A number, with its interval where it has one."""
    low, high = row.get(f"{name}_low", np.nan), row.get(f"{name}_high", np.nan)
    small = "" if pd.isna(low) else f"[{number(low, form)}, {number(high, form)}]"
    return Cell(number(row[name], form), repr(float(row[name])), small)


def count(row: pd.Series, name: str) -> Cell:
    """A whole number."""
    return Cell(str(int(row[name])), str(int(row[name])))


def texts(row: pd.Series, *names: str) -> list[Cell]:
    """Texts as they are, a cell for each name."""
    return [Cell(str(row[name])) for name in names]


# ------------------------------------------------------------------------------ one row each


def _coverage(row: pd.Series) -> list[Cell]:
    counts = [count(row, state) for state in STATES]
    return [Cell(row["system"]), Cell(row["task"][-1]), *counts, Cell(row["reasons"])]


def _task1(row: pd.Series) -> list[Cell]:
    metrics = [
        value(row, "auc"),
        value(row, "eer", ".3f"),
        value(row, "log_loss"),
        value(row, "log_loss_calibrated"),
    ]
    return [
        *texts(row, "system", "modality", "supervision"),
        *metrics,
        value(row, "auc_own"),
        count(row, "n_no_answer"),
    ]


def _task2(row: pd.Series) -> list[Cell]:
    return [
        Cell(row["system"]),
        value(row, "Score"),
        *(value(row, name, ".3f") for name in (*APS, *ARS)),
    ]


def _frames(row: pd.Series) -> list[Cell]:
    others = [value(row, name) for name in ("frame_auc_own", "seg_auc", "clip_auc")]
    first = [Cell(row["system"]), value(row, "frame_auc"), value(row, "frame_eer", ".3f")]
    return [*first, *others, count(row, "n_no_frames")]


def _differences(row: pd.Series) -> list[Cell]:
    metric = NAMES.get(row["metric"], row["metric"])
    return [*texts(row, "a", "b"), Cell(metric), value(row, "difference", "+.4f")]


def _agreement(row: pd.Series) -> list[Cell]:
    return [
        *texts(row, "a", "b"),
        value(row, "rank_correlation", ".3f"),
        value(row, "equal_decisions", ".1%"),
    ]


def _joined(row: pd.Series) -> list[Cell]:
    numbers = [
        value(row, "auc"),
        value(row, "eer", ".3f"),
        value(row, "log_loss"),
        value(row, "gain", "+.4f"),
    ]
    return [Cell(row["system"]), *numbers]


def _drift(row: pd.Series) -> list[Cell]:
    return [
        Cell(row["system"]),
        value(row, "psi", ".3f"),
        value(row, "by_chance", ".3f"),
        Cell(row["reading"]),
    ]


def _leaks(row: pd.Series) -> list[Cell]:
    return [
        Cell(row["trait"]),
        value(row, "auc", ".3f"),
        count(row, "n"),
        Cell("warning" if row["leaks"] else ""),
    ]


TABLES: dict[str, tuple[Sequence[Column], Callable[[pd.Series], list[Cell]]]] = {
    "coverage": (
        [SYSTEM, Column("task", False), *map(Column, STATES), Column("commonest reasons", False)],
        _coverage,
    ),
    "task1": (
        [
            SYSTEM,
            Column("hears or sees", False),
            Column("labels of", False, "what it learned from"),
            Column("AUC"),
            Column("EER"),
            Column("log-loss"),
            Column("calibrated", help="log-loss after Platt scaling on val_fit"),
            Column("own label", help="AUC against the label of the system's own modality"),
            Column("no answer"),
        ],
        _task1,
    ),
    "task2": ([SYSTEM, Column("Score"), *map(Column, (*APS, *ARS))], _task2),
    "frames": (
        [
            SYSTEM,
            Column("AUC"),
            Column("EER"),
            Column("own label"),
            Column("AUC, 400 ms"),
            Column("mean AUC in a clip"),
            Column("clips without"),
        ],
        _frames,
    ),
    "differences": (
        [Column("A", False), Column("B", False), Column("metric", False), Column("A minus B")],
        _differences,
    ),
    "agreement": (
        [
            Column("A", False),
            Column("B", False),
            Column("rank correlation"),
            Column("equal decisions"),
        ],
        _agreement,
    ),
    "joined": ([SYSTEM, Column("AUC"), Column("EER"), Column("log-loss"), Column("gain")], _joined),
    "drift": ([SYSTEM, Column("PSI"), Column("by chance"), Column("reading", False)], _drift),
    "leaks": (
        [Column("property", False), Column("AUC"), Column("clips"), Column("", False)],
        _leaks,
    ),
}


def of(result: Comparison) -> dict[str, Table | None]:
    """All tables of the page; None for one that there is nothing for."""
    strong = {one.name for one in (*result.answers1, *result.answers2)}
    made: dict[str, Table | None] = {"headline": headline(result)}
    for name, (head, cells) in TABLES.items():
        table = result.tables.get(name)
        rows = (
            []
            if table is None
            else [Row(cells(row), row.get("system") in strong) for _, row in table.iterrows()]
        )
        made[name] = Table(list(head), rows) if rows else None
    return made


HEADLINE = (
    ("task1", "auc", ".4f", "AUC"),
    ("task1", "eer", ".3f", "EER"),
    ("task1", "log_loss", ".4f", "log-loss"),
    ("task2", "Score", ".4f", "Score"),
    ("task2", "AP@0.5", ".3f", "AP@0.5"),
    ("task2", "AR@50", ".3f", "AR@50"),
    ("frames", "frame_auc", ".4f", "frame AUC"),
)


def headline(result: Comparison) -> Table:
    """One column a recipe: its answers to both tasks. It stays narrow enough for a phone."""
    recipes: dict[Path, dict[str, str]] = {}
    for task, answers in (("task1", result.answers1), ("task2", result.answers2)):
        for one in answers:
            recipes.setdefault(one.system.folder.parent, {})[task] = one.name
    tables = {
        name: result.tables[name].set_index("system")
        for name, *_ in HEADLINE
        if name in result.tables
    }
    rows = []
    for task, title in (("task1", "Task 1 by"), ("task2", "Task 2 by")):
        if any(task in names for names in recipes.values()):
            rows.append(
                Row(
                    [
                        Cell(title),
                        *(Cell(names.get(task, "-"), "NaN") for names in recipes.values()),
                    ],
                    True,
                )
            )
        for table, column, form, metric in HEADLINE:
            if table in tables and (table == "task1") == (task == "task1"):
                cells = [
                    _of_answer(tables[table], names.get(task), column, form)
                    for names in recipes.values()
                ]
                rows.append(Row([Cell(metric), *cells]))
    return Table([Column("", False), *(Column(folder.name) for folder in recipes)], rows)


def _of_answer(table: pd.DataFrame, name: str | None, column: str, form: str) -> Cell:
    return value(table.loc[name], column, form) if name in table.index else Cell("-", "NaN")
