"""Compare systems of any recipes on one split: tables, and an HTML page (report.html).

    klassify compare exp/demo/klassify exp/demo/multibranch --split testA \\
        --out exp/demo/compare --labels data_lists/demo/heldout/testA_labels.tsv \\
        --media media/demo --features features/demo
    klassify compare exp/demo/klassify/{maxout,avg} --split testA --out exp/demo/compare

SYSTEM is a system's folder, or a recipe's folder with a detector.yaml: then all systems that it
names are compared, and the page shows its answers first. With --labels: AUC, EER, log-loss; AP, AR,
Score; 40 ms frames; groups of clips; every difference with its interval (bootstrap over sources);
what joining the recipes would gain; and how well the containers alone predict the label. On val the
numbers are those of val_report. Without labels: which systems answered which clips, how scores are
distributed, where systems disagree, and how far the scores have moved from those of val.

--val names the labelled list of val, on whose val_fit answers are calibrated and joined, and
thresholds fitted; the default is val.tsv beside the labels or one folder up. --media reads the
containers of the clips and shows pictures and sound of the selected ones; --features shows their
mouth features, and the LMM's words. The page also shows the findings of `klassify audit`, with
--robustness the table of `klassify perturb SYSTEM...`, and with --crosstest that of
`klassify crosstest`. It is one file that needs no network; its videos play as long as they are not
moved.

Writes <out>/<split>/: report.html, comparison.txt and the tables as TSV. If the folder holds an
earlier comparison, the page also shows which numbers have changed since.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from klassify.arguments import add_thresholds, at_least_0
from klassify.errors import KlassifyError
from klassify.evaluation.tables import write_table
from klassify.files import check_output, write_text
from klassify.metrics.decisions import ASVSPOOF_5, Cost
from klassify.systems.operating import RATES


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("systems", nargs="+", type=Path, metavar="SYSTEM", help="folders of systems or recipes")
    add("--split", required=True, help="split to compare")
    add("--labels", type=Path, metavar="FILE", help="data list of the split, with labels")
    add("--subset", help="named part of the list, or `all` (default: val_report on val, else all)")
    add("--val", type=Path, metavar="FILE", help="labelled list of val (default: beside --labels)")
    add("--media", type=Path, metavar="DIR", help="folder of the media")
    add("--features", type=Path, metavar="DIR", help="folder of the feature shards")
    add(
        "--audit",
        type=Path,
        metavar="DIR",
        help="folder written by klassify audit (default: exp/<data>/audit)",
    )
    add("--robustness", type=Path, metavar="TSV", help="table of klassify perturb")
    add("--crosstest", type=Path, metavar="TSV", help="table of klassify crosstest")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    add(
        "--metric",
        choices=("official", "textbook"),
        default="official",
        help="Task 2's metric: as the challenge computes it (default), or without its quirks",
    )
    add_thresholds(parser, RATES, ASVSPOOF_5)
    add("--bootstrap", type=at_least_0, default=1000, help="resamples for intervals (default 1000)")
    add(
        "--clips",
        type=at_least_0,
        default=30,
        help="how many mistakes and disagreements to show (default 30)",
    )
    add(
        "--explain",
        type=at_least_0,
        default=0,
        metavar="N",
        help="explain the first N mistakes and disagreements, some seconds each (default 0)",
    )
    add("--seed", type=at_least_0, default=0, help="random seed of the bootstrap (default 0)")


def run(args: argparse.Namespace) -> int:
    from klassify.report import page
    from klassify.report.comparison import compare
    from klassify.report.summary import changes, earlier
    from klassify.report.text import describe

    page.check_library()  # before minutes of work
    if args.explain and not (args.media and args.features):
        raise KlassifyError("--explain needs --media and --features.")
    out = args.out / args.split
    check_output(out)
    comparison = compare(
        args.systems,
        args.split,
        labels=args.labels,
        subset=args.subset,
        val=args.val,
        media=args.media,
        audit=args.audit,
        perturbed=args.robustness,
        crosstested=args.crosstest,
        metric=args.metric,
        rates=args.false_alarms,
        cost=Cost(*args.cost),
        n_bootstrap=args.bootstrap,
        seed=args.seed,
    )
    comparison.tables["changes"] = changes(comparison, earlier(out))
    for text in page.leaks_in(comparison):
        print(f"warning: possible leak: {text}", file=sys.stderr)
    for text in (text for one in comparison.audits for text in one.warnings):
        print(f"warning: shortcut: {text}", file=sys.stderr)
    text = describe(comparison)
    print(text)
    for name, table in comparison.tables.items():
        write_table(out / f"{name}.tsv", table)
    write_text(out / "comparison.txt", text + "\n")
    path = out / "report.html"
    page.write(
        path,
        comparison,
        media_root=args.media,
        features=args.features,
        n_clips=args.clips,
        n_explained=args.explain,
        command=["klassify", *sys.argv[1:]],
    )
    print(path)
    return 0
