"""The tables of the page: which columns they have, how a cell reads, and what a column sorts by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from klassify.evaluation.tables import number
from klassify.metrics import segments
from klassify.report.comparison import Comparison

NAMES = {"auc": "AUC", "eer": "EER", "log_loss": "log-loss", "frame_auc": "frame AUC"}
STATES = ("answered", "fell back", "failed")
COUNT = "d"


class Cell(NamedTuple):
    """text, with an interval in small below; key: what a number sorts by, None for text."""

    text: str
    key: str | None = None
    small: str = ""


class Row(NamedTuple):
    """A line of a table. strong: it stands out, as a recipe's answer does."""

    cells: list[Cell]
    strong: bool = False


class Column(NamedTuple):
    """A column of a table. name: where its values are; form: how a number is written, or a function
    that makes a text of a value; help: shown over its title.
    """

    title: str
    name: str = ""
    form: str | Callable[[Any], str] = str
    help: str = ""

    @property
    def numeric(self) -> bool:
        """Whether it is right-aligned and sorted as numbers."""
        return isinstance(self.form, str)

    def cell(self, row: pd.Series) -> Cell:
        """A row's value, with its interval where it has one."""
        content = row[self.name]
        if not self.numeric:
            return Cell(self.form(content))
        if self.form == COUNT:
            return Cell(str(int(content)), str(int(content)))
        low, high = row.get(f"{self.name}_low", np.nan), row.get(f"{self.name}_high", np.nan)
        small = "" if pd.isna(low) else f"[{number(low, self.form)}, {number(high, self.form)}]"
        return Cell(number(content, self.form), repr(float(content)), small)


class Table(NamedTuple):
    """A table of the page: its columns, and one cell for each in every row."""

    head: list[Column]
    rows: list[Row]


SYSTEM = Column("system", "system")
PAIR = [Column("A", "a"), Column("B", "b")]
AUC, EER = Column("AUC", "auc", ".4f"), Column("EER", "eer", ".3f")
LOG_LOSS = Column("log-loss", "log_loss", ".4f")
TABLES = {
    "coverage": [
        SYSTEM,
        Column("task", "task", lambda task: task[-1]),
        *(Column(state, state, COUNT) for state in STATES),
        Column("seen", "seen", ".1%", "mean share of frames with a face, or a picture"),
        Column("heard", "heard", ".1%", "mean share of a clip that has sound"),
        Column("commonest reasons", "reasons"),
    ],
    "task1": [
        SYSTEM,
        Column("hears or sees", "modality"),
        Column("labels of", "supervision", help="what it learned from"),
        AUC,
        EER,
        LOG_LOSS,
        Column(
            "calibrated", "log_loss_calibrated", ".4f", "log-loss after Platt scaling on val_fit"
        ),
        Column("own label", "auc_own", ".4f", "AUC against the label of the system's own modality"),
        Column("no answer", "n_no_answer", COUNT),
    ],
    "task2": [
        SYSTEM,
        Column("Score", "Score", ".4f"),
        *(Column(name, name, ".3f") for name in segments.METRICS[:-1]),
    ],
    "frames": [
        SYSTEM,
        Column("AUC", "frame_auc", ".4f"),
        Column("EER", "frame_eer", ".3f"),
        Column("own label", "frame_auc_own", ".4f"),
        Column("AUC, 400 ms", "seg_auc", ".4f"),
        Column("mean AUC in a clip", "clip_auc", ".4f"),
        Column("clips without", "n_no_frames", COUNT),
    ],
    "differences": [
        *PAIR,
        Column("metric", "metric", lambda metric: NAMES.get(metric, metric)),
        Column("A minus B", "difference", "+.4f"),
    ],
    "agreement": [
        *PAIR,
        Column("rank correlation", "rank_correlation", ".3f"),
        Column("equal decisions", "equal_decisions", ".1%"),
    ],
    "joined": [SYSTEM, AUC, EER, LOG_LOSS, Column("gain", "gain", "+.4f")],
    "drift": [
        SYSTEM,
        Column("PSI", "psi", ".3f"),
        Column("by chance", "by_chance", ".3f"),
        Column("reading", "reading"),
    ],
    "leaks": [
        Column("property", "trait"),
        Column("AUC", "auc", ".3f"),
        Column("clips", "n", COUNT),
        Column("", "leaks", lambda leaks: "warning" if leaks else ""),
    ],
    "shortcuts": [
        Column("property", "trait"),
        Column("split", "split"),
        Column("label", "label", help="of the clip, its sound or its picture"),
        Column("AUC", "auc", ".3f"),
        Column("chance", "chance", ".3f", "95 % of permuted labels stay below"),
        Column("clips", "n", COUNT),
        Column("reading", "reading"),
        Column("remedy", "remedy"),
    ],
}


def of(result: Comparison) -> dict[str, Table | None]:
    """All tables of the page; None for one without rows."""
    strong = {one.name for one in (*result.answers1, *result.answers2)}
    made: dict[str, Table | None] = {"headline": headline(result)}
    for name, columns in TABLES.items():
        rows = [
            Row([column.cell(row) for column in columns], row.get("system") in strong)
            for _, row in result.tables.get(name, pd.DataFrame()).iterrows()
        ]
        made[name] = Table(columns, rows) if rows else None
    return made


HEADLINE = {
    "Task 1 by": {"task1": [AUC, EER, LOG_LOSS]},
    "Task 2 by": {
        "task2": [
            Column("Score", "Score", ".4f"),
            Column("AP@0.5", "AP@0.5", ".3f"),
            Column("AR@50", "AR@50", ".3f"),
        ],
        "frames": [Column("frame AUC", "frame_auc", ".4f")],
    },
}
NOTHING = Cell("-", "NaN")


def headline(result: Comparison) -> Table:
    """One column per recipe: its answers to both tasks. It stays narrow enough for a phone."""
    answers = {"Task 1 by": result.answers1, "Task 2 by": result.answers2}
    recipes = dict.fromkeys(one.system.folder.parent for some in answers.values() for one in some)
    rows = []
    for title, tables in HEADLINE.items():
        by_recipe = {one.system.folder.parent: one.name for one in answers[title]}
        names = [by_recipe.get(folder) for folder in recipes]
        if by_recipe:
            rows.append(Row([Cell(title), *(Cell(name or "-", "NaN") for name in names)], True))
        for table, columns in tables.items():
            if table in result.tables:
                measured = {row["system"]: row for _, row in result.tables[table].iterrows()}
                for column in columns:
                    cells = [
                        column.cell(measured[name]) if name in measured else NOTHING
                        for name in names
                    ]
                    rows.append(Row([Cell(column.title), *cells]))
    heads = [Column(folder.name, form=".4f") for folder in recipes]
    return Table([Column(""), *heads], rows)
