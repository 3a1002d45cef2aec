"""Compare systems with labels: AUC, EER, log-loss, intervals, calibration curves, score histograms
(Task 1).

    klassify evaluate exp/demo/klassify/{tcn,tcn-platt,maxout} --split val \\
        --labels data_lists/demo/val.tsv --out exp/demo/klassify/evaluation
    klassify evaluate exp/demo/multibranch/{ps,visual,fused} --task 2 --split testA \\
        --labels ... --out ...
    klassify evaluate exp/demo/multibranch/ps --task 2 --columns ps40,ps80,ps160,ps320,ps640 \\
        --split testA ...
    klassify evaluate \\
        --mean seed1/evaluation/testA.tsv seed2/evaluation/testA.tsv seed3/evaluation/testA.tsv

Every system is measured against the video's label and against the label of its own modality (a
perfect sound-only detector reaches an AUC of about 0.83 against the video's label when the four
types are equally frequent), over all clips and with each fake type against the real clips.
Intervals are 95 % percentiles of a bootstrap over sources; `gain` is the AUC of the system named by
--versus minus this one's on the same resamples. A clip without an answer counts as its system's
prior: the fusion's, the calibration's base rate, else 0.5. On val the numbers are those of
val_report, because calibration is fitted on val_fit. Cosine scores are ranked and have no log-loss.

--task 2 measures proposals by the challenge's Score, and the frame scores of systems that have them
against the same labels. If a system has heads of several resolutions (PartialSpoof), each is
measured at its own, as in the paper's Table 1. --columns measures such heads alone, without
proposals. --eer measures what benchmarks of partly fake speech report, also without proposals: the
EER of clips, of frames at 20 to 640 ms, and of time (range-based).

Task 1 also reports (docs/operating-points.md) what errors cost: DCF, lowest and with the threshold
that the probabilities imply; Cllr, the cost of the scores as log-likelihood ratios; the tandem EER
of a fusion of sound and picture. It applies thresholds fitted on val_fit (--val) and counts errors
here. AUC and error rates by type of fake, generator, race, gender, language and data set, where the
list has them, come with the largest gap of each.

Writes <out>/<split>.tsv (long form) and <split>.txt, the tables <split>.costs, .thresholds, .gaps
and .groups in the same two formats, two PNG figures, and metrics-<split>.json in each system's
folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from klassify.arguments import add_thresholds, at_least_0
from klassify.errors import KlassifyError
from klassify.evaluation import decisions, groups, results
from klassify.evaluation.clips import Scored, load_scored, measure
from klassify.evaluation.tables import comparison, mean_of_tables, read_table
from klassify.files import write_json, write_text
from klassify.metrics.decisions import ASVSPOOF_5, Cost
from klassify.settings import file_hash
from klassify.systems.base import System
from klassify.systems.operating import RATES
from klassify.systems.system import load_systems


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("systems", nargs="*", type=Path, metavar="SYSTEM_DIR", help="systems scored on the split")
    add(
        "--task", type=int, choices=(1, 2), default=1, help="1: clip scores (default), 2: proposals"
    )
    add(
        "--metric",
        choices=("official", "textbook"),
        default="official",
        help="Task 2's metric: as the challenge computes it (default), or without its quirks",
    )
    add("--columns", metavar="HEAD,...", help="Task 2: only these heads, such as ps40,ps160")
    add("--eer", action="store_true", help="Task 2: only EERs of clips, frames and time")
    add("--split", help="split to evaluate")
    add("--labels", type=Path, help="data list of the split, with labels")
    add("--val", type=Path, metavar="FILE", help="labelled list of val (default: beside --labels)")
    add("--subset", help="named part of the list, or `all` (default: val_report on val, else all)")
    add("--out", type=Path, help="folder for tables and figures")
    add("--versus", metavar="NAME", help="system to compare the others with (default: the last)")
    add_thresholds(parser, RATES, ASVSPOOF_5)
    add("--bootstrap", type=at_least_0, default=1000, help="resamples for intervals (default 1000)")
    add("--seed", type=at_least_0, default=0, help="seed of the bootstrap (default 0)")
    add(
        "--mean",
        nargs="+",
        type=Path,
        metavar="TSV",
        help="only average these tables of several seeds (mean.txt)",
    )


def run(args: argparse.Namespace) -> int:
    if args.mean:
        if len({path.resolve() for path in args.mean}) < len(args.mean):
            raise KlassifyError("A table is named more than once.")
        columns, command = results.COLUMNS, "klassify evaluate"
        text = mean_of_tables([read_table(path, columns, command) for path in args.mean])
        print(text)
        if args.out:
            write_text(args.out / "mean.txt", f"{text}\n")
        return 0
    missing = [name for name in ("systems", "split", "labels", "out") if not getattr(args, name)]
    if missing:
        names = ", ".join("a system" if name == "systems" else f"--{name}" for name in missing)
        raise KlassifyError(f"Not given: {names}.", fix="klassify evaluate --help")
    if args.columns and args.task == 1:
        raise KlassifyError("--columns names heads of frame scores.", fix="add --task 2")
    frame, subset = results.labelled_list(
        args.labels, args.split, args.subset, segments=args.task == 2
    )
    systems = load_systems(args.systems)
    if args.eer and args.task == 1:
        raise KlassifyError("--eer needs frame scores.", fix="add --task 2")
    if args.eer:
        _eers(args, systems, frame, subset)
        return 0
    if args.columns:
        _heads(args, systems, frame, subset)
        return 0
    (_task1 if args.task == 1 else _task2)(args, systems, frame, subset)
    return 0


def _task1(
    args: argparse.Namespace, systems: list[System], frame: pd.DataFrame, subset: str
) -> None:
    scored = [load_scored(system, args.split, frame["file"].tolist()) for system in systems]
    versus = results.check_names(systems, args.versus)
    table = measure(scored, frame, versus=versus, n_bootstrap=args.bootstrap, seed=args.seed)
    stem = f"{args.out / args.split}"
    print(results.write_results(stem, table, args.split, subset, comparison))
    decided = _decisions(args, scored, frame, subset)
    record = {
        "labels": file_hash(args.labels),
        "bootstrap": {"n": args.bootstrap, "seed": args.seed, "unit": "source"},
    }
    for system in systems:
        rows = table[table["system"] == system.name]
        warnings = results.warnings_of(rows)
        for line in warnings:
            print(f"warning: {system.name}: {line}", file=sys.stderr)
        metrics = results.system_metrics(rows) | decided[system.name] | record
        metrics |= {"warnings": warnings}
        write_json(system.folder / f"metrics-{args.split}.json", metrics)
    results.draw(scored, frame, args.out, args.split, f"{args.split} ({subset})")


def _decisions(
    args: argparse.Namespace, scored: list[Scored], frame: pd.DataFrame, subset: str
) -> dict[str, dict[str, Any]]:
    """<out>/<split>.costs.tsv, .thresholds.tsv, .gaps.tsv and .groups.tsv, each with its text;
    returns the numbers of each system for its metrics file.
    """
    by_name = {one.system.name: one for one in scored}
    how = {"cost": Cost(*args.cost), "n_bootstrap": args.bootstrap, "seed": args.seed}
    costs = decisions.measure_costs(by_name, frame, args.split, **how)
    val_fit, why = results.labelled_val_fit(args.val, args.labels)
    systems = {name: one.system for name, one in by_name.items()}
    points, notes = decisions.fit_points(systems, val_fit, rates=args.false_alarms, **how)
    for note in notes if why is None else [f"No thresholds: {why.what}"]:
        print(f"note: {note}", file=sys.stderr)
    tables = [("costs", costs, decisions.costs_text)]
    thresholds = decisions.apply_points(by_name, frame, points)
    if len(thresholds):
        tables.append(("thresholds", thresholds, decisions.points_text))
    resamples = {"n_bootstrap": args.bootstrap, "seed": args.seed}
    by_group = groups.measure_groups(by_name, frame, points, **resamples)
    if len(by_group.gaps):
        tables.append(("gaps", by_group.gaps, groups.gaps_text))
    if len(by_group.groups):
        tables.append(("groups", by_group.groups, groups.groups_text))
    for name in ("thresholds", "gaps", "groups"):  # of an earlier evaluation
        for ending in ("tsv", "txt"):
            (args.out / f"{args.split}.{name}.{ending}").unlink(missing_ok=True)
    for name, table, as_text in tables:
        stem = f"{args.out / args.split}.{name}"
        print("\n" + results.write_results(stem, table, args.split, subset, as_text))
    return decisions.by_system(costs, thresholds)


def _task2(
    args: argparse.Namespace, systems: list[System], frame: pd.DataFrame, subset: str
) -> None:
    """<out>/<split>.task2.tsv and .txt, metrics-<split>.task2.json in each folder."""
    from klassify.evaluation.segments import comparison_task2, load_localised, measure_task2

    localised = [load_localised(system, args.split, frame["file"].tolist()) for system in systems]
    table = measure_task2(
        localised,
        frame,
        versus=results.check_names(systems, args.versus),
        mode=args.metric,
        n_bootstrap=args.bootstrap,
        seed=args.seed,
    )
    stem = f"{args.out / args.split}.task2"
    print(results.write_results(stem, table, args.split, subset, comparison_task2))
    whole = table[table["group"] == "all"].set_index("system", drop=False)
    for system in systems:
        metrics = whole.loc[system.name].dropna().to_dict() | {"labels": file_hash(args.labels)}
        write_json(system.folder / f"metrics-{args.split}.task2.json", metrics)
    _heads(args, [one.system for one in localised if one.frames is not None], frame, subset)


def _eers(
    args: argparse.Namespace, systems: list[System], frame: pd.DataFrame, subset: str
) -> None:
    """<out>/<split>.eer.tsv and .txt."""
    from klassify.evaluation.eer import eer_text, measure_eer
    from klassify.scores.frame_file import FrameFile, frame_table

    results.check_names(systems, None)
    tables = {one.name: frame_table(FrameFile(one.frames_path(args.split))) for one in systems}
    table = measure_eer(tables, frame, n_bootstrap=args.bootstrap, seed=args.seed)
    stem = f"{args.out / args.split}.eer"
    print(results.write_results(stem, table, args.split, subset, eer_text))


def _heads(
    args: argparse.Namespace, systems: list[System], frame: pd.DataFrame, subset: str
) -> None:
    """<out>/<split>.heads.tsv and .txt of the systems that have heads (Table 1)."""
    from klassify.evaluation.frames import heads_text, measure_heads

    heads = args.columns.split(",") if args.columns else None
    resamples = {"n_bootstrap": args.bootstrap, "seed": args.seed}
    tables = [measure_heads(system, args.split, frame, heads, **resamples) for system in systems]
    tables = [table for table in tables if len(table)]
    if tables:
        table, stem = pd.concat(tables, ignore_index=True), f"{args.out / args.split}.heads"
        print("\n" + results.write_results(stem, table, args.split, subset, heads_text))
