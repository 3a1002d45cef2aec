"""Compare systems with labels: AUC, EER, log-loss, intervals, calibration curves, score histograms
(Task 1).

    klassify evaluate exp/demo/klassify/{tcn,tcn-platt,maxout} --split val \\
        --labels data_lists/demo/val.tsv \
        --out exp/demo/klassify/evaluation
    klassify evaluate exp/demo/multibranch/{ps,visual,fused} --task 2 --split testA \\
        --labels ... --out ...
    klassify evaluate exp/demo/multibranch/ps --task 2 --columns ps40,ps80,ps160,ps320,ps640 \\
        --split testA ...
    klassify evaluate \\
        --mean seed1/evaluation/testA.tsv seed2/evaluation/testA.tsv seed3/evaluation/testA.tsv

Every system is measured against the video's label and against its modality's own (a perfect
sound-only detector reaches about 0.83 against the video's label when the four types are equally
frequent), over all clips and with each fake type against the real clips. Intervals are 95 %
percentiles of a bootstrap over sources; `gain` is the AUC of the system named by --versus minus
this one's on the same resamples. A clip without an answer counts as its system's prior: the
fusion's, the calibration's base rate, else 0.5. On val the numbers are those of val_report, since
calibration is fitted on val_fit. A score that is no probability and no log-odds (a cosine) is
ranked and has no log-loss.

--task 2 measures proposals by the challenge's Score, and the frame scores of systems that have any
against the same labels; where a system has heads of several resolutions (PartialSpoof) each is
measured at its own, the paper's Table 1. --columns measures such heads alone, without proposals.

Writes <out>/<split>.tsv (long form), <split>.txt and two PNG figures, and metrics-<split>.json in
each system's folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify import datalist
from klassify.arguments import at_least_0
from klassify.calibrate import label_name
from klassify.errors import KlassifyError, first_few
from klassify.evaluation.measure import GROUPS, METRICS, Scored, load_scored, measure
from klassify.evaluation.tables import comparison, mean_of_tables
from klassify.files import file_hash, whole_file, write_json, write_text

KEY = ("system", "split", "label", "group")


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `klassify evaluate`."""
    parser.add_argument(
        "systems", nargs="*", type=Path, metavar="SYSTEM_DIR", help="systems scored on the split"
    )
    parser.add_argument(
        "--task", type=int, choices=(1, 2), default=1, help="1: clip scores (default), 2: proposals"
    )
    parser.add_argument(
        "--metric",
        choices=("official", "textbook"),
        default="official",
        help="of Task 2; see docs/",
    )
    parser.add_argument(
        "--columns", metavar="HEAD,...", help="of Task 2: only these heads, such as ps40,ps160"
    )
    parser.add_argument("--split", help="the split whose scores are evaluated")
    parser.add_argument("--labels", type=Path, help="its data list with labels")
    parser.add_argument(
        "--subset", help="named part of the list, or `all` (default: val_report on val, else all)"
    )
    parser.add_argument("--out", type=Path, help="folder of the tables and figures")
    parser.add_argument(
        "--versus", metavar="NAME", help="system the others are compared with (default: the last)"
    )
    parser.add_argument(
        "--bootstrap",
        type=at_least_0,
        default=1000,
        help="resamples for the intervals (default 1000)",
    )
    parser.add_argument("--seed", type=at_least_0, default=0, help="of the bootstrap (default 0)")
    parser.add_argument(
        "--mean", nargs="+", type=Path, metavar="TSV", help="only print the mean of such tables"
    )


def run(args: argparse.Namespace) -> int:
    """Run `klassify evaluate`."""
    if args.mean:
        if len({path.resolve() for path in args.mean}) < len(args.mean):
            raise KlassifyError("A table is named twice.")
        print(mean_of_tables([read_table(path) for path in args.mean]))
        return 0
    missing = [name for name in ("systems", "split", "labels", "out") if not getattr(args, name)]
    if missing:
        raise KlassifyError(f"Missing: {', '.join(missing)}.", fix="see klassify evaluate --help")
    if args.task == 2:
        return run_task2(args)
    if args.columns:
        raise KlassifyError("--columns are heads of frame scores.", fix="--task 2")
    frame, subset = labelled_list(args.labels, args.split, args.subset)
    scored = [load_scored(folder, args.split, frame["file"].tolist()) for folder in args.systems]
    versus = check_names([one.system.name for one in scored], args.versus)
    table = measure(scored, frame, versus=versus, n_bootstrap=args.bootstrap, seed=args.seed)
    table.insert(1, "split", args.split)
    table.insert(2, "subset", subset)
    print(comparison(table))
    write_results(table, scored, args)
    draw(scored, frame, args.out, args.split, f"{args.split} ({subset})")
    return 0


def run_task2(args: argparse.Namespace) -> int:
    """The localisers of --task 2: <out>/<split>.task2.tsv and .txt, metrics-<split>.task2.json
    in each folder.
    """
    from klassify.evaluation.measure_segments import comparison_task2, load_localised, measure_task2

    frame, subset = labelled_list(args.labels, args.split, args.subset, segments=True)
    if args.columns:
        write_heads(args.systems, frame, subset, args, args.columns.split(","))
        return 0
    localised = [
        load_localised(folder, args.split, frame["file"].tolist()) for folder in args.systems
    ]
    versus = check_names([one.system.name for one in localised], args.versus)
    table = measure_task2(
        localised,
        frame,
        versus=versus,
        mode=args.metric,
        n_bootstrap=args.bootstrap,
        seed=args.seed,
    )
    table.insert(1, "split", args.split)
    table.insert(2, "subset", subset)
    text = comparison_task2(table)
    print(text)
    with whole_file(args.out / f"{args.split}.task2.tsv") as partial:
        table.to_csv(partial, sep="\t", index=False, float_format="%.6g", lineterminator="\n")
    write_text(args.out / f"{args.split}.task2.txt", text + "\n")
    for one in localised:
        row = (
            table[(table["system"] == one.system.name) & (table["group"] == "all")].iloc[0].dropna()
        )
        write_json(
            one.folder / f"metrics-{args.split}.task2.json",
            row.to_dict() | {"labels": file_hash(args.labels)},
        )
    write_heads([one.folder for one in localised if one.frames is not None], frame, subset, args)
    return 0


def write_heads(
    folders: Sequence[Path],
    frame: pd.DataFrame,
    subset: str,
    args: argparse.Namespace,
    heads: list[str] | None = None,
) -> None:
    """<out>/<split>.heads.tsv and .txt of the systems that have heads (Table 1); nothing where
    none has.
    """
    from klassify.evaluation.measure_frames import heads_text, measure_heads

    bootstrap = {"n_bootstrap": args.bootstrap, "seed": args.seed}
    tables = [measure_heads(folder, args.split, frame, heads, **bootstrap) for folder in folders]
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
        write_json(one.folder / f"metrics-{args.split}.json", summary)


def read_table(path: Path) -> pd.DataFrame:
    """A table that `klassify evaluate` wrote."""
    try:
        table = pd.read_csv(path, sep="\t", dtype={"versus": str})
    except (OSError, ValueError) as error:
        raise KlassifyError(f"This table cannot be read: {error}.", where=path) from None
    if not {*KEY, *METRICS} <= set(table.columns):
        raise KlassifyError("This is no table of klassify evaluate.", where=path)
    return table


def labelled_list(
    path: Path, split: str, subset: str | None, *, segments: bool = False
) -> tuple[pd.DataFrame, str]:
    """The labelled clips to evaluate on, and the subset's name."""
    subset = subset or ("val_report" if split == "val" else "all")
    if subset in ("all", split, path.stem):
        return datalist.read_list(path, segments=segments), "all"
    base = datalist.SUBSETS.get(subset, (None,))[0]
    if base != path.stem:
        of = [name for name, rule in datalist.SUBSETS.items() if rule[0] == path.stem]
        raise KlassifyError(
            f"{path.name} has no subset {subset!r}; it has: {first_few(['all', *of], 20)}.",
            where=path,
        )
    return datalist.load_split(path.parent, subset, segments=segments), subset


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
            label = datalist.label(
                frame, label_name(one.system.parameters.get("label", "own"), one.system)
            )
            curves.append((one.system.name, label, one.before, one.probability))
    if curves:
        plots.calibration_curves(curves, out / f"{split}-calibration.png", title)
    ranked = [(one.system.name, one.system.scale, one.score) for one in scored]
    plots.score_histograms(
        ranked, frame["modify_type"].to_numpy(str), out / f"{split}-scores.png", title
    )
