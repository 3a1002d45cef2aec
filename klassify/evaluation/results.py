"""What is measured of systems, as tables and files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.evaluation.clips import GROUPS, METRICS, Scored
from klassify.evaluation.tables import comparison
from klassify.files import whole_file, write_json, write_text
from klassify.lists import data_list, subsets
from klassify.settings import file_hash
from klassify.systems.base import System
from klassify.systems.calibrated import label_name

KEY = ("system", "split", "label", "group")


def write_heads(
    systems: Sequence[System],
    frame: pd.DataFrame,
    subset: str,
    args: argparse.Namespace,
    heads: list[str] | None = None,
) -> None:
    """<out>/<split>.heads.tsv and .txt of the systems that have heads (Table 1); nothing where
    none has.
    """
    from klassify.evaluation.frames import heads_text, measure_heads

    bootstrap = {"n_bootstrap": args.bootstrap, "seed": args.seed}
    tables = [measure_heads(system, args.split, frame, heads, **bootstrap) for system in systems]
    tables = [table for table in tables if len(table)]
    if not tables:
        return
    table = pd.concat(tables, ignore_index=True)
    table.insert(1, "split", args.split)
    table.insert(2, "subset", subset)
    text = heads_text(table)
    print("\n" + text)
    with whole_file(args.out / f"{args.split}.heads.tsv") as partial:
        table.to_csv(partial, sep="\t", index=False, float_format="%.6g", lineterminator="\n")
    write_text(args.out / f"{args.split}.heads.txt", text + "\n")


def check_names(names: Sequence[str], versus: str | None) -> str:
    """The system that the others are compared with: `versus`, or the last one. Names must
    differ.
    """
    versus = versus or names[-1]
    if len(set(names)) < len(names) or versus not in names:
        raise KlassifyError(
            f"Systems need different names, one of them {versus!r}; given: {', '.join(names)}."
        )
    return versus


def write_results(table: pd.DataFrame, scored: Sequence[Scored], args: argparse.Namespace) -> None:
    """The tables in --out, and each system's metrics-<split>.json; warnings go to stderr as
    well.
    """
    with whole_file(args.out / f"{args.split}.tsv") as partial:
        table.to_csv(partial, sep="\t", index=False, float_format="%.6g", lineterminator="\n")
    write_text(args.out / f"{args.split}.txt", comparison(table) + "\n")
    record = {
        "labels": file_hash(args.labels),
        "bootstrap": {"n": args.bootstrap, "seed": args.seed, "unit": "source"},
    }
    for one in scored:
        rows = table[table["system"] == one.system.name]
        warnings = warn_of(rows)
        for line in warnings:
            print(f"warning: {one.system.name}: {line}", file=sys.stderr)
        summary = system_metrics(rows) | record | {"warnings": warnings}
        write_json(one.system.folder / f"metrics-{args.split}.json", summary)


def read_table(path: Path) -> pd.DataFrame:
    """A table that `klassify evaluate` wrote."""
    try:
        table = pd.read_csv(path, sep="\t", dtype={"versus": str})
    except (OSError, ValueError) as error:
        raise KlassifyError(f"This table cannot be read: {error}.", where=path) from None
    if not {*KEY, *METRICS} <= set(table.columns):
        raise KlassifyError("This is not a table of klassify evaluate.", where=path)
    return table


def labelled_list(
    path: Path, split: str, subset: str | None, *, segments: bool = False
) -> tuple[pd.DataFrame, str]:
    """The labelled clips to evaluate on, and the subset's name."""
    subset = subset or ("val_report" if split == "val" else "all")
    if subset in ("all", split, path.stem):
        return data_list.read_list(path, segments=segments), "all"
    base = subsets.SUBSETS.get(subset, (None,))[0]
    if base != path.stem:
        of = [name for name, rule in subsets.SUBSETS.items() if rule[0] == path.stem]
        raise KlassifyError(
            f"{path.name} has no subset {subset!r}; it has: {first_few(['all', *of], 20)}.",
            where=path,
        )
    return subsets.load_split(path.parent, subset, segments=segments), subset


def warn_of(rows: pd.DataFrame) -> list[str]:
    """What a reader of one system's rows must know."""
    own = rows[(rows["label"] == "own") & (rows["group"] == "all")].iloc[0]
    lines = []
    highest = own["auc"] if np.isnan(own["auc_high"]) else own["auc_high"]
    if highest < 0.5:
        lines.append(
            f"scores look inverted: AUC {own['auc']:.4f}, EER {own['eer']:.1%} against its own"
            " label"
        )
    if own["split"] == "val" and own["subset"] == "all":
        lines.append("these numbers include val_fit, on which calibration is fitted")
    return lines


def system_metrics(rows: pd.DataFrame) -> dict:
    """One system's metrics-<split>.json: overall numbers flat (`auc`, `auc_own`, ...), then by
    fake type.
    """

    def plain(value: Any) -> Any:
        return None if pd.isna(value) else value.item() if isinstance(value, np.generic) else value

    cells = {
        (row["label"], row["group"]): {k: plain(v) for k, v in row.items()}
        for _, row in rows.iterrows()
    }
    first = cells["video", "all"]
    summary = {
        k: first[k]
        for k in ("system", "split", "subset", "n", "n_fake", "n_sources", "n_no_answer")
    }
    for against, suffix in (("video", ""), ("own", "_own")):
        cell = cells[against, "all"]
        for metric in METRICS:
            summary[metric + suffix] = cell[metric]
            summary[f"{metric}{suffix}_interval"] = [cell[f"{metric}_low"], cell[f"{metric}_high"]]
        summary[f"log_loss_before{suffix}"] = cell["log_loss_before"]
    summary["gain"] = (
        {k: first[k] for k in ("versus", "gain", "gain_low", "gain_high")}
        if first["versus"]
        else None
    )
    summary["auc_by_type"] = {group: cells["video", group]["auc"] for group in GROUPS[1:]}
    summary["auc_own_by_type"] = {group: cells["own", group]["auc"] for group in GROUPS[1:]}
    return summary


def draw(scored: Sequence[Scored], frame: pd.DataFrame, out: Path, split: str, title: str) -> None:
    """<split>-calibration.png of the calibrated systems, <split>-scores.png of all."""
    from klassify.evaluation import plots

    curves = []
    for one in scored:
        if one.before is not None:
            label = subsets.label(
                frame, label_name(one.system.parameters.get("label", "own"), one.system)
            )
            curves.append((one.system.name, label, one.before, one.probability))
    if curves:
        plots.calibration_curves(curves, out / f"{split}-calibration.png", title)
    ranked = [(one.system.name, one.system.scale, one.score) for one in scored]
    plots.score_histograms(
        ranked, frame["modify_type"].to_numpy(str), out / f"{split}-scores.png", title
    )
