"""Measured systems as tables, records and figures on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError, first_few
from klassify.evaluation.clips import GROUPS, METRICS, Scored
from klassify.evaluation.tables import write_table
from klassify.files import write_text
from klassify.lists import data_list, subsets
from klassify.systems.base import System
from klassify.systems.calibrated import label_name

COLUMNS = ("system", "split", "label", "group", *METRICS)  # of the table of Task 1, among others


def labelled_list(
    path: Path, split: str, subset: str | None, *, segments: bool = False
) -> tuple[pd.DataFrame, str]:
    """The labelled clips to evaluate on, and the subset; None: val_report on val, else all."""
    subset = subset or ("val_report" if split == "val" else "all")
    if subset in ("all", split, path.stem):
        return data_list.read_list(path, segments=segments), "all"
    known = [name for name, rule in subsets.SUBSETS.items() if rule[0] == path.stem]
    if subset not in known:
        raise KlassifyError(
            f"{path.name} has no subset {subset!r}; it has: {first_few(['all', *known], 20)}.",
            where=path,
            fix=f"name the list of {split} as --labels, or give --subset all",
        )
    return subsets.load_split(path.parent, subset, segments=segments), subset


def labelled_val_fit(
    path: Path | None, labels: Path | None
) -> tuple[pd.DataFrame | None, KlassifyError | None]:
    """The labelled clips of val_fit, or None and why.

    path: the list of val; None looks for val.tsv beside `labels` or one folder up. KlassifyError
    for a path that is not such a list.
    """
    if path is not None and (path.name != "val.tsv" or not path.exists()):
        raise KlassifyError(
            "This is not a list of val.", where=path, fix="name an existing val.tsv"
        )
    path = path or val_beside(labels)
    if path is None:
        return None, KlassifyError("There is no labelled list of val (--val).")
    try:
        return subsets.load_split(path.parent, "val_fit"), None
    except KlassifyError as error:
        return None, error


def val_beside(labels: Path | None) -> Path | None:
    """The list val.tsv beside a list or one folder up, if there is one."""
    if labels is None:
        return None
    beside = [labels.parent / "val.tsv", labels.parent.parent / "val.tsv"]
    return next((one for one in beside if one.exists()), None)


def check_names(systems: Sequence[System], versus: str | None) -> str:
    """The name of the system to compare with: `versus`, or the last; names must differ."""
    names = [system.name for system in systems]
    versus = versus or names[-1]
    if len(set(names)) < len(names) or versus not in names:
        raise KlassifyError(
            f"Systems need different names, one of them {versus!r}; given: {', '.join(names)}."
        )
    return versus


def write_results(
    stem: str, table: pd.DataFrame, split: str, subset: str, as_text: Callable[[pd.DataFrame], str]
) -> str:
    """Write <stem>.tsv, with the columns split and subset, and <stem>.txt; returns the text."""
    table.insert(1, "split", split)
    table.insert(2, "subset", subset)
    text = as_text(table)
    write_table(Path(f"{stem}.tsv"), table)
    write_text(Path(f"{stem}.txt"), text + "\n")
    return text


def warnings_of(rows: pd.DataFrame) -> list[str]:
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


def system_metrics(rows: pd.DataFrame) -> dict[str, Any]:
    """One system's metrics-<split>.json: overall numbers (`auc`, ...), then by fake type."""
    rows = rows.astype(object).where(rows.notna(), None)
    cells = {(row["label"], row["group"]): row for row in rows.to_dict("records")}
    first = cells["video", "all"]
    counts = ("system", "split", "subset", "n", "n_fake", "n_sources", "n_no_answer")
    summary = {name: first[name] for name in counts}
    for against, suffix in (("video", ""), ("own", "_own")):
        cell = cells[against, "all"]
        for metric in METRICS:
            summary[metric + suffix] = cell[metric]
            summary[f"{metric}{suffix}_interval"] = [cell[f"{metric}_low"], cell[f"{metric}_high"]]
        summary[f"log_loss_before{suffix}"] = cell["log_loss_before"]
    gain = {name: first[name] for name in ("versus", "gain", "gain_low", "gain_high")}
    summary["gain"] = gain if first["versus"] else None
    for against, name in (("video", "auc_by_type"), ("own", "auc_own_by_type")):
        summary[name] = {group: cells[against, group]["auc"] for group in GROUPS[1:]}
    return summary


def draw(scored: Sequence[Scored], frame: pd.DataFrame, out: Path, split: str, title: str) -> None:
    """<split>-calibration.png of the calibrated systems, <split>-scores.png of all."""
    from klassify.evaluation import plots

    curves = []
    for one in scored:
        if one.before is not None:
            name = label_name(one.system.parameters.get("label", "own"), one.system)
            label = subsets.label(frame, name)
            curves.append((one.system.name, label, one.before, one.probability))
    if curves:
        plots.calibration_curves(curves, out / f"{split}-calibration.png", title)
    ranked = [(one.system.name, one.system.scale, one.score) for one in scored]
    types = frame["modify_type"].to_numpy(str)
    plots.score_histograms(ranked, types, out / f"{split}-scores.png", title)
