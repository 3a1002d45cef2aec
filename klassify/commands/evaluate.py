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
calibration is fitted on val_fit. A score that is neither a probability nor log-odds (a cosine) is
ranked and has no log-loss.

--task 2 measures proposals by the challenge's Score, and the frame scores of systems that have any
against the same labels; where a system has heads of several resolutions (PartialSpoof) each is
measured at its own, the paper's Table 1. --columns measures such heads alone, without proposals.

Writes <out>/<split>.tsv (long form), <split>.txt and two PNG figures, and metrics-<split>.json in
each system's folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.arguments import at_least_0
from klassify.errors import KlassifyError
from klassify.evaluation.clips import load_scored, measure
from klassify.evaluation.results import (
    check_names,
    draw,
    labelled_list,
    read_table,
    write_heads,
    write_results,
)
from klassify.evaluation.tables import comparison, mean_of_tables
from klassify.files import whole_file, write_json, write_text
from klassify.settings import file_hash
from klassify.systems.system import load_systems


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
    systems = load_systems(args.systems)
    scored = [load_scored(system, args.split, frame["file"].tolist()) for system in systems]
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
    from klassify.evaluation.segments import comparison_task2, load_localised, measure_task2

    frame, subset = labelled_list(args.labels, args.split, args.subset, segments=True)
    systems = load_systems(args.systems)
    if args.columns:
        write_heads(systems, frame, subset, args, args.columns.split(","))
        return 0
    localised = [load_localised(system, args.split, frame["file"].tolist()) for system in systems]
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
            one.system.folder / f"metrics-{args.split}.task2.json",
            row.to_dict() | {"labels": file_hash(args.labels)},
        )
    write_heads([one.system for one in localised if one.frames is not None], frame, subset, args)
    return 0
