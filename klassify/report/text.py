"""A comparison as text, for a terminal: coverage first."""

from __future__ import annotations

from klassify.evaluation.tables import aligned
from klassify.report.comparison import Comparison
from klassify.report.tables import TABLES

SHOWN = {
    "coverage": "coverage",
    "task1": "Task 1",
    "costs": "costs of errors",
    "task2": "Task 2",
    "frames": "40 ms frames",
    "joined": "recipes joined",
    "drift": "drift from val",
    "thresholds": "thresholds of val",
    "gaps": "largest gaps",
    "leaks": "leak audit",
    "shortcuts": "shortcuts in the content",
    "changed_media": "AUC on changed media",
}


def describe(result: Comparison) -> str:
    """The main tables, aligned, then the notes; intervals are 95 %, bootstrap over sources."""
    blocks = [result.title]
    for name, title in SHOWN.items():
        table = result.tables.get(name)
        if table is not None and not table.empty:
            columns = TABLES[name]
            rows = [[title, *(column.title for column in columns[1:])]]
            for _, row in table.iterrows():
                cells = [column.cell(row) for column in columns]
                rows.append([f"{cell.text} {cell.small}".strip() for cell in cells])
            blocks.append(aligned(rows))
    return "\n\n".join([*blocks, *(f"note: {note}" for note in result.notes)])
