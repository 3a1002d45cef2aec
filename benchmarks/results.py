"""The tables of recipes/*/RESULTS.md from the evaluations of three training seeds, as Markdown.

    make demo size=large
    python benchmarks/results.py exp/demo-large/klassify

Prints, for testA and testB: AUC of Task 1 and Score, AP and AR of Task 2, each with the gains of
the system that the evaluations compare with and their 95 % intervals.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from klassify.metrics.segments import METRICS

SPLITS = ("testA", "testB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", type=Path, help="folder of a recipe's systems, seed 1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    folders = [args.recipe if seed == 1 else args.recipe / f"seed-{seed}" for seed in args.seeds]
    print(task1(folders))
    print(task2(folders))


def tables(folders: list[Path], split: str, kind: str = "") -> list[pd.DataFrame]:
    """The rows of all clips of an evaluation, by system, for each seed."""
    found = []
    for folder in folders:
        table = pd.read_csv(folder / "evaluation" / f"{split}{kind}.tsv", sep="\t")
        found.append(table[table["group"] == "all"].set_index("system"))
    return found


def of_label(rows: list[pd.DataFrame], own: bool) -> list[pd.DataFrame]:
    """Rows against the video's label, or each system's own where that is another one."""
    picked = []
    for table in rows:
        is_own = (table["label"] == "own") | (table["modality"] == "both")
        picked.append(table[is_own if own else table["label"] == "video"])
    return picked


def task1(folders: list[Path]) -> str:
    """AUC by seed, and gains."""
    by_split = {split: tables(folders, split) for split in SPLITS}
    video = {split: of_label(rows, own=False) for split, rows in by_split.items()}
    own = {split: of_label(rows, own=True) for split, rows in by_split.items()}
    lines = ["| system | testA: seeds | mean | testB: seeds | mean | own label, testA / testB |"]
    lines.append("|---|---|---|---|---|---|")
    for name in video["testA"][0].index:
        cells = [name]
        for split in SPLITS:
            values = [table.loc[name, "auc"] for table in video[split]]
            cells += [listed(values), f"**{np.mean(values):.4f}**"]
        means = [np.mean([table.loc[name, "auc"] for table in own[split]]) for split in SPLITS]
        lines.append(row(*cells, " / ".join(f"{mean:.4f}" for mean in means)))
    return "\n".join([*lines, "", *gains(video)]) + "\n"


def task2(folders: list[Path]) -> str:
    """Score by seed; means of the other metrics; gains of Score."""
    by_split = {split: tables(folders, split, ".task2") for split in SPLITS}
    names = [name for name in METRICS if name != "Score"]
    lines = [row("split", "system", "Score: seeds", "mean", *names)]
    lines.append("|---" * (4 + len(names)) + "|")
    for split, rows in by_split.items():
        for system in rows[0].index:
            if system.startswith("perfect"):
                continue
            values = [table.loc[system, "Score"] for table in rows]
            means = [np.mean([table.loc[system, name] for table in rows]) for name in names]
            cells = [split, system, listed(values), f"**{np.mean(values):.4f}**"]
            lines.append(row(*cells, *(f"{mean:.4f}" for mean in means)))
    return "\n".join([*lines, "", *gains(by_split)]) + "\n"


def gains(by_split: dict[str, list[pd.DataFrame]]) -> list[str]:
    """One line per system: how far the compared one is ahead, by split and seed."""
    first = by_split["testA"][0]
    versus = first["versus"].dropna().iloc[0]
    seeds = range(1, len(by_split["testA"]) + 1)
    heads = [f"{split}, seed {seed}" for split in SPLITS for seed in seeds]
    lines = [row(f"{versus} minus", *heads), "|---" * (1 + len(heads)) + "|"]
    for name in first.index[first["gain"].notna() & (first.index != versus)]:
        found = [table.loc[name] for split in SPLITS for table in by_split[split]]
        cells = [f"{r.gain:+.4f} [{r.gain_low:+.4f}, {r.gain_high:+.4f}]" for r in found]
        lines.append(row(name, *cells))
    return lines


def listed(values: list[float]) -> str:
    """Numbers with four digits, separated by commas."""
    return ", ".join(f"{value:.4f}" for value in values)


def row(*cells: str) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
