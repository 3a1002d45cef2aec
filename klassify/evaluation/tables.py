"""Text tables of `klassify evaluate`, and means over its tables (training seeds, splits)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.files import whole_file
from klassify.metrics.clips import interval

ABSENT = "-"


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a TSV with six digits."""
    with whole_file(path) as partial:
        table.to_csv(partial, sep="\t", index=False, float_format="%.6g", lineterminator="\n")


def read_table(path: Path, columns: Collection[str], command: str) -> pd.DataFrame:
    """A TSV with these columns, among others; KlassifyError for what `command` did not write."""
    try:
        table = pd.read_csv(path, sep="\t", dtype={"versus": str})
    except FileNotFoundError:
        raise KlassifyError("This table does not exist.", where=path) from None
    except (OSError, ValueError) as error:
        raise KlassifyError(f"This table cannot be read: {error}.", where=path) from None
    if not set(columns) <= set(table.columns):
        raise KlassifyError(f"This is not a table of {command}.", where=path)
    return table


def with_ends(name: str, value: float, samples: np.ndarray) -> dict[str, float]:
    """A value and its interval from bootstrap samples (n,): {name, name_low, name_high}."""
    low, high = interval(samples)
    return {name: float(value), f"{name}_low": low, f"{name}_high": high}


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: the first column left-aligned, a rule below the head."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:])]
        lines.append("  ".join(cells))
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)


def number(value: float, form: str = ".4f") -> str:
    """A formatted number, `-` where it is not defined."""
    return ABSENT if pd.isna(value) else format(value, form)


def with_interval(row: pd.Series, name: str, form: str = ".4f") -> str:
    """`0.8123 [0.7000, 0.9001]` from the columns name, name_low and name_high."""
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if pd.isna(low):
        return number(value, form)
    return f"{number(value, form)} [{number(low, form)}, {number(high, form)}]"


def comparison(table: pd.DataFrame) -> str:
    """The systems of one evaluation side by side; `table` as `klassify evaluate` writes it."""
    cells = table.set_index(["system", "label", "group"])
    first = table[table["group"] == "all"].iloc[0]
    types = [group for group in dict.fromkeys(table["group"]) if group != "all"]
    versus = table["versus"].dropna()
    gain = f"{versus.iloc[0]} minus it" if len(versus) else "gain"
    auc = [["AUC", "video label", "own label", *types, gain, "no answer"]]
    rest = [["", "EER video", "EER own", "log-loss video", "(before)", "log-loss own", "(before)"]]
    for name in dict.fromkeys(table["system"]):
        video, own = (cells.loc[name, label, "all"] for label in ("video", "own"))
        by_type = [number(cells.loc[name, "video", group]["auc"]) for group in types]
        aucs = [with_interval(video, "auc"), with_interval(own, "auc"), *by_type]
        gained = with_interval(video, "gain", "+.4f")
        auc.append([name, *aucs, gained, str(video["n_no_answer"])])
        eers = [with_interval(row, "eer", ".3f") for row in (video, own)]
        losses = [
            number(row[key]) for row in (video, own) for key in ("log_loss", "log_loss_before")
        ]
        rest.append([name, *eers, *losses])
    title = (
        f"{first['split']} ({first['subset']}): {first['n']} clips, {first['n_fake']} of them fake,"
        f" of {first['n_sources']} sources; [95 % interval, bootstrap over sources]"
    )
    return "\n".join([title, "", aligned(auc), "", aligned(rest)])


def mean_over_tables(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Mean and standard deviation over tables of `klassify evaluate`, such as those of training
    seeds.

    Returns one row per system, split, label and group with, for every metric m, `m` and `m_sd` (of
    the sample; NaN for one table). Several splits get further rows whose split is `mean`: the mean
    of theirs. KlassifyError if the tables of a split do not hold the same systems.
    """
    values, key = ["auc", "eer", "log_loss", "gain"], ["system", "split", "label", "group"]
    rows = pd.concat(tables, ignore_index=True)
    groups = rows.groupby(key, sort=False)
    n_tables = {
        split: sum(split in set(table["split"]) for table in tables)
        for split in rows["split"].unique()
    }
    uneven = [" ".join(name) for name, count in groups.size().items() if count != n_tables[name[1]]]
    if uneven:
        raise KlassifyError(
            f"The tables do not hold the same systems once each: {first_few(uneven)}."
        )
    means = groups[values].mean().join(groups[values].std().add_suffix("_sd")).reset_index()
    if len(n_tables) > 1:
        whole = means.groupby(["system", "label", "group"], sort=False)[values].mean()
        means = pd.concat([means, whole.reset_index().assign(split="mean")], ignore_index=True)
    return means


def mean_of_tables(tables: Sequence[pd.DataFrame]) -> str:
    """The AUC of every table and their mean, and likewise the gain, as text."""
    means = mean_over_tables(tables)
    versus = first_few(sorted({name for table in tables for name in table["versus"].dropna()}))
    blocks = []
    for split in dict.fromkeys(means["split"]):
        runs = [table for table in tables if split in set(table["split"])]
        for what, label, metric, form in (
            ("AUC, video label", "video", "auc", ".4f"),
            ("AUC, own label", "own", "auc", ".4f"),
            (f"AUC of {versus} minus it", "video", "gain", "+.4f"),
        ):
            *each, mean = (_overall(table, split, label) for table in (*runs, means))
            heads = [f"run {i + 1}" for i in range(len(runs))]
            rows = [[f"{split}: {what}", *heads, "mean", "sd"]]
            for name, row in mean.iterrows():
                shown = [with_interval(run.loc[name], metric, form) for run in each]
                spread = number(row[f"{metric}_sd"], form)
                rows.append([name, *shown, number(row[metric], form), spread])
            blocks.append(aligned(rows))
    return "\n\n".join(blocks)


def _overall(table: pd.DataFrame, split: str, label: str) -> pd.DataFrame:
    """The rows of all clips against one label, by system."""
    chosen = (table["split"] == split) & (table["label"] == label) & (table["group"] == "all")
    return table[chosen].set_index("system")
