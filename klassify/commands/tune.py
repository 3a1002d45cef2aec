"""Choose the method and settings of a system's proposals: the highest official Score on val_fit.

    klassify tune exp/demo/klassify/bam --labels data_lists/demo

Writes SYSTEM_DIR/proposals.yaml, which `klassify localise` reads, and tuning.tsv with every setting
that was tried. For a merged system, the weights, the calibration and the soft-NMS are tuned. The
truth is fake_segments of either modality, as in the challenge; `--segments own` uses those of the
system's modality.

The search starts from the defaults and varies one setting at a time, twice over the grid. val_fit
is small and chance makes large differences, so another setting or method is taken only for a gain
in Score above 0.003. Your own --grid is YAML, {method: {setting: [values]}}; a setting that it
leaves out keeps its default.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.localisation.tune import tune
from klassify.systems.scores import PROPOSALS
from klassify.systems.system import load_system


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("system", type=Path, metavar="SYSTEM_DIR", help="a localiser, or a merged system")
    add("--labels", type=Path, required=True, help="folder of the data lists: data_lists/demo")
    add("--split", default="val", help="split whose scores are used (default val)")
    add("--subset", default="val_fit", help="clips of that split to tune on (default val_fit)")
    add(
        "--segments",
        choices=("union", "own"),
        default="union",
        help="true segments of either modality, or only of the system's own",
    )
    add("--grid", type=Path, metavar="FILE.yaml", help="YAML file with the grid to search")
    add("--force", action="store_true", help="replace a choice made from other inputs")


def run(args: argparse.Namespace) -> int:
    tuned = tune(
        load_system(args.system),
        args.labels,
        split=args.split,
        subset=args.subset,
        segments=args.segments,
        grid=args.grid,
        force=args.force,
    )
    path = args.system / PROPOSALS
    if tuned is None:
        print(f"{path} is up to date")
        return 0
    print(
        f"{path}: {tuned.best.choice.method}, Score {tuned.best.score:.4f} on {tuned.n_clips} clips"
        f" of {args.subset} (defaults {tuned.trials[0].score:.4f}, {len(tuned.trials)} tried)"
    )
    return 0
