"""Systems on several data sets side by side, from the tables of `klassify evaluate`.

A system is trained on one data set and tested on others, whose splits it calls DATA-SPLIT. One
table per metric: systems as rows, data sets as columns, each with the interval that was measured by
source. Where systems of several data sets are compared, their own splits are called DATA-SPLIT too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError
from klassify.evaluation.tables import ABSENT, aligned, read_table, with_interval
from klassify.files import short_names

KEY = ["metric", "system", "split"]
COLUMNS = (*KEY, "value", "value_low", "value_high")  # of the table, among others


class Metric(NamedTuple):
    """A number of the tables: the value in `column` of the rows where `rows` hold."""

    title: str
    column: str
    rows: dict[str, str]
    form: str = ".4f"


METRICS = (
    Metric("AUC", "auc", {"label": "video", "group": "all"}),
    Metric("EER", "eer", {"label": "video", "group": "all"}),
    Metric("Score of Task 2", "Score", {"group": "all"}),
    Metric("AUC of 40 ms frames", "frame_auc", {"group": "all"}),
    Metric("utterance EER", "eer", {"measure": "utterance"}),
    Metric("EER of 160 ms frames", "eer", {"measure": "160 ms"}),
    Metric("range-based EER", "eer", {"measure": "range"}),
)


def tables_in(places: Sequence[Path]) -> list[Path]:
    """The tables among files and folders, by name."""
    paths = [p for place in places for p in (sorted(place.glob("*.tsv")) or [place])]
    return list(dict.fromkeys(paths))


def gather(paths: Sequence[Path]) -> pd.DataFrame:
    """One row per metric, system and split: `value` with its ends, clips and sources.

    Tables of several folders name their systems `<recipe>/<system>`. KlassifyError if no table was
    written by `klassify evaluate`, and for two numbers of one system on one split.
    """
    folders = [_recipe(path) for path in paths]
    several, names = len(set(folders)) > 1, short_names(folders)
    data = [_data(folder) for folder in folders]
    rows, origins = [], []
    for path, name, of in zip(paths, names, data):
        table = read_table(path, (), "klassify evaluate")
        for row in (row for metric in METRICS for row in _rows_of(table, metric)):
            if several:
                row["system"] = f"{name}/{row['system']}"
            if len(set(data)) > 1 and _is_own(row["split"]):
                row["split"] = f"{of}-{row['split']}"
            rows.append(row)
            origins.append(path)
    if not rows:
        raise KlassifyError(
            "There is no table of klassify evaluate here.",
            where=paths[0] if paths else None,
            fix="make stage4, or klassify evaluate",
        )
    found = pd.DataFrame(rows)
    if found.duplicated(KEY).any():
        twice = found[found.duplicated(KEY)].iloc[0]
        same = (found[KEY] == twice[KEY]).all(axis=1)
        named = [str(path) for path, is_one in zip(origins, same) if is_one]
        raise KlassifyError(
            f"Two tables have the {twice['metric']} of {twice['system']} on {twice['split']}.",
            where=" and ".join(dict.fromkeys(named)),
            fix="name the tables to join, with one of these, instead of their folder",
        )
    return found


def _recipe(path: Path) -> Path:
    """The folder of the recipe whose systems a table measures: exp/<data>/<recipe>, with the seed
    if there is one; elsewhere the table's own.
    """
    folder = path.resolve().parent
    return folder.parent if folder.name == "evaluation" else folder


def _data(recipe: Path) -> str:
    """The data set that a recipe's systems were trained on."""
    return (recipe.parent if recipe.name.startswith("seed-") else recipe).parent.name


def _is_own(split: str) -> bool:
    """Whether a split is of the data that the systems were trained on."""
    return re.fullmatch(r"val|test\w*", split) is not None


def _rows_of(table: pd.DataFrame, metric: Metric) -> list[dict]:
    needed = {"system", "split", metric.column, *metric.rows}
    if not needed <= set(table.columns):
        return []
    chosen = np.logical_and.reduce([table[name] == value for name, value in metric.rows.items()])
    rows = []
    for row in table[chosen].to_dict("records"):
        if pd.isna(row[metric.column]):
            continue
        ends = {
            f"value_{end}": row.get(f"{metric.column}_{end}", np.nan) for end in ("low", "high")
        }
        counts = {name: row.get(name, np.nan) for name in ("n", "n_sources")}
        key = {"metric": metric.title, "system": row["system"], "split": row["split"]}
        rows.append(key | {"value": row[metric.column]} | ends | counts)
    return rows


def text(found: pd.DataFrame) -> str:
    """The tables of all metrics."""
    blocks = []
    for metric in METRICS:
        table = found[found["metric"] == metric.title]
        if table.empty:
            continue
        splits = splits_of(table)
        cells = table.set_index(["system", "split"])
        rows = [[metric.title, *splits]]
        for name in dict.fromkeys(table["system"]):
            shown = [
                with_interval(cells.loc[name, split], "value", metric.form)
                if (name, split) in cells.index
                else ABSENT
                for split in splits
            ]
            rows.append([name, *shown])
        sources = table.groupby("split")["n_sources"].first()
        rows.append(["sources", *(f"{sources[split]:.0f}" for split in splits)])
        blocks.append(aligned(rows))
    return "\n\n".join(blocks) + "\n\n[95 % interval, bootstrap over sources]"


def splits_of(found: pd.DataFrame) -> list[str]:
    """The splits of a table: those of the systems' own data first, then those of other data."""
    return sorted(set(found["split"]), key=_place)


def by_split(found: pd.DataFrame) -> pd.DataFrame:
    """One row per metric and system, in the order of METRICS; of each split a column, with its ends
    in <split>_low and <split>_high.
    """
    ends = {"value": "", "value_low": "_low", "value_high": "_high"}
    wide = found.pivot(index=["system", "metric"], columns="split", values=list(ends))
    wide.columns = [f"{split}{ends[value]}" for value, split in wide.columns]
    place = {metric.title: number for number, metric in enumerate(METRICS)}
    found = found.sort_values("metric", key=lambda titles: titles.map(place), kind="stable")
    order = found[["system", "metric"]].drop_duplicates()
    return wide.loc[pd.MultiIndex.from_frame(order)].reset_index()


def _place(split: str) -> tuple:
    return not _is_own(split), split != "val", split
