"""Fit Platt scaling of one system: p = 1 / (1 + exp(a s + b)) (paper 1, equation 2).

    klassify calibrate exp/demo/klassify/tcn --out exp/demo/klassify/tcn-platt \\
        --labels data_lists/demo

s is the system's probability, the sigmoid of its log-odds, as in the paper. `--input log_odds` uses
the log-odds, which separate clips whose probabilities are nearly 1. There is no minus sign before
a, so a working detector has a < 0. By default the label is that of the system's own modality:
against the video's label, the clean audio of a visually faked clip would pull audio scores towards
"fake".

The fit uses only val_fit; numbers on val are reported on val_report. Platt's smoothed targets,
(n_fake + 1) / (n_fake + 2) and 1 / (n_real + 2), keep a and b finite if scores separate the
classes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from klassify.systems.base import SYSTEM
from klassify.systems.calibrated import INPUTS, calibrate
from klassify.systems.system import load_system


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("system", type=Path, metavar="SYSTEM_DIR", help="the system to calibrate")
    add("--out", type=Path, required=True, help="folder of the calibrated system")
    add("--labels", type=Path, required=True, help="folder of the data lists: data_lists/demo")
    add("--scores-split", default="val", help="split whose scores are used (default val)")
    add("--subset", default="val_fit", help="clips of that split to fit on (default val_fit)")
    add(
        "--label",
        choices=("own", "video"),
        default="own",
        help="label of the system's own modality (default), or of the video",
    )
    add("--input", choices=INPUTS, default="probability", help="what s is (default probability)")
    add(
        "--smooth-targets",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="use Platt's smoothed targets (default yes)",
    )
    add("--force", action="store_true", help="replace a calibration made from other inputs")


def run(args: argparse.Namespace) -> int:
    fitted = calibrate(
        args.out,
        load_system(args.system),
        args.labels,
        scores_split=args.scores_split,
        subset=args.subset,
        label=args.label,
        input=args.input,
        smooth_targets=args.smooth_targets,
        force=args.force,
    )
    if fitted is None:
        print(f"{args.out / SYSTEM} is up to date")
        return 0
    name = args.out.resolve().name
    print(
        f"{name}: a {fitted.a:.4g}, b {fitted.b:.4g} on {fitted.n} clips of {args.subset} "
        f"({fitted.n_fake} fake, {fitted.n_no_answer} more without an answer), "
        f"log-loss {fitted.log_loss_before:.4f} -> {fitted.log_loss_after:.4f}"
    )
    for warning in fitted.warnings:
        print(f"warning: {name}: {warning}", file=sys.stderr)
    return 0
