"""Aligned text tables of `klassify evaluate`, and means over its tables (training seeds,
splits).
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from klassify.errors import KlassifyError, first_few

ABSENT = "-"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: the first column to the left, the others to the right, a rule under
    the head.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
    return "\n".join(
        [lines[0].rstrip(), "-" * len(lines[0]), *(line.rstrip() for line in lines[1:])]
    )


def number(value: float, form: str = ".4f") -> str:
    """A formatted number, `-` where it is not defined."""
    return ABSENT if pd.isna(value) else format(value, form)


def with_interval(row: pd.Series, name: str, form: str = ".4f") -> str:
    """`0.8123 [0.7000, 0.9001]` from the columns name, name_low and name_high."""
    if pd.isna(row[f"{name}_low"]):
        return number(row[name], form)
    return (
        f"{number(row[name], form)} [{number(row[f'{name}_low'], form)},"
        f" {number(row[f'{name}_high'], form)}]"
    )


def comparison(table: pd.DataFrame) -> str:
    """The systems of one evaluation side by side; `table` as `klassify evaluate` writes it."""
    cells = table.set_index(["system", "label", "group"])
    names = list(dict.fromkeys(table["system"]))
    first = table[table["group"] == "all"].iloc[0]
    types = [group for group in dict.fromkeys(table["group"]) if group != "all"]
    versus = table["versus"].dropna()
    gain = f"{versus.iloc[0]} minus it" if len(versus) else "gain"
    auc = [["AUC", "video label", "own label", *types, gain, "no answer"]]
    rest = [["", "EER video", "EER own", "log-loss video", "(before)", "log-loss own", "(before)"]]
    for name in names:
        video, own = cells.loc[name, "video", "all"], cells.loc[name, "own", "all"]
        by_type = [number(cells.loc[name, "video", group]["auc"]) for group in types]
        auc.append(
            [
                name,
                with_interval(video, "auc"),
                with_interval(own, "auc"),
                *by_type,
                with_interval(video, "gain", "+.4f"),
                str(video["n_no_answer"]),
            ]
        )
        losses = [
            number(row[key]) for row in (video, own) for key in ("log_loss", "log_loss_before")
        ]
        rest.append(
            [name, with_interval(video, "eer", ".3f"), with_interval(own, "eer", ".3f"), *losses]
        )
    title = (
        f"{first['split']} ({first['subset']}): {first['n']} clips, {first['n_fake']} of them fake,"
        f" of {first['n_sources']} sources; [95 % interval, bootstrap over sources]"
    )
    return "\n".join([title, "", aligned(auc), "", aligned(rest)])


def mean_over_tables(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Mean and standard deviation over tables of `klassify evaluate`, such as those of training
    seeds.

    Returns one row a system, split, label and group with, for every metric m, `m` and `m_sd` (of
    the sample; NaN for one table). Several splits get further rows whose split is `mean`: the mean
    of theirs. Raises KlassifyError where the tables of a split do not hold the same systems.
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
        over_splits = (
            means.groupby(["system", "label", "group"], sort=False)[values].mean().reset_index()
        )
        means = pd.concat([means, over_splits.assign(split="mean")], ignore_index=True)
    return means


def mean_of_tables(tables: Sequence[pd.DataFrame]) -> str:
    """The AUC, and the gain of the system compared with, of every table and their mean, as text."""
    means = mean_over_tables(tables)
    blocks = []
    for split in dict.fromkeys(means["split"]):
        runs = [table for table in tables if split in set(table["split"])]
        versus = first_few(sorted({name for table in tables for name in table["versus"].dropna()}))
        blocks += [
            _runs_and_mean(
                f"{split}: AUC, video label", runs, means, (split, "video"), "auc", ".4f"
            ),
            _runs_and_mean(f"{split}: AUC, own label", runs, means, (split, "own"), "auc", ".4f"),
            _runs_and_mean(
                f"{split}: AUC of {versus} minus it", runs, means, (split, "video"), "gain", "+.4f"
            ),
        ]
    return "\n\n".join(blocks)


def _runs_and_mean(
    title: str,
    runs: Sequence[pd.DataFrame],
    means: pd.DataFrame,
    cell: tuple[str, str],
    metric: str,
    form: str,
) -> str:
    """One block: a row a system, a column a run, then mean and standard deviation; cell =
    (split, label).
    """

    def chosen(table: pd.DataFrame) -> pd.DataFrame:
        wanted = (
            (table["split"] == cell[0]) & (table["label"] == cell[1]) & (table["group"] == "all")
        )
        return table[wanted].set_index("system")

    each = [chosen(run) for run in runs]
    rows = [[title, *(f"run {i + 1}" for i in range(len(runs))), "mean", "sd"]]
    for name, mean in chosen(means).iterrows():
        shown = [with_interval(run.loc[name], metric, form) for run in each]
        rows.append([name, *shown, number(mean[metric], form), number(mean[f"{metric}_sd"])])
    return aligned(rows)
