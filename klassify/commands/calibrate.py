"""Fit Platt scaling of one system: p = 1 / (1 + exp(a s + b)) (paper 1, equation 2).

    klassify calibrate exp/demo/klassify/tcn --out exp/demo/klassify/tcn-platt \\
        --labels data_lists/demo

s is the system's probability, the sigmoid of its log-odds, as in the paper; `--input log_odds`
takes the log-odds themselves, which keeps clips apart whose probabilities are all but 1. There is
no minus sign before a, so a detector that works has a < 0. The label is the modality's own by
default: against the video label a clean sound track of a visually faked clip would pull the audio
towards "fake".

The fit uses val_fit alone; numbers on val are reported on val_report. Platt's smoothed targets,
(n_fake + 1) / (n_fake + 2) and 1 / (n_real + 2), keep a and b finite when scores separate the
classes.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from klassify.errors import KlassifyError
from klassify.lists import subsets
from klassify.scores.score_file import score_path
from klassify.settings import file_hash, settings_hash
from klassify.systems.calibrated import INPUTS, fit, label_name
from klassify.systems.scores import clip_scores
from klassify.systems.system import (
    SYSTEM,
    derived_system,
    load_system,
    made_before,
    system_hash,
    write_system,
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `klassify calibrate`."""
    parser.add_argument("system", type=Path, metavar="SYSTEM_DIR", help="the system to calibrate")
    parser.add_argument("--out", type=Path, required=True, help="folder of the calibrated system")
    parser.add_argument(
        "--labels",
        type=Path,
        required=True,
        help="folder of the data lists, such as data_lists/demo",
    )
    parser.add_argument(
        "--scores-split", default="val", help="split whose scores are used (default val)"
    )
    parser.add_argument(
        "--subset", default="val_fit", help="clips of it to fit on (default val_fit)"
    )
    parser.add_argument(
        "--label",
        choices=("own", "video"),
        default="own",
        help="the modality's own label, or the video's",
    )
    parser.add_argument(
        "--input", choices=INPUTS, default="probability", help="what s is (default probability)"
    )
    parser.add_argument(
        "--smooth-targets",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Platt's targets (default yes)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a calibration made from something else"
    )


def run(args: argparse.Namespace) -> int:
    """Run `klassify calibrate`."""
    if args.out.resolve() == args.system.resolve():
        raise KlassifyError("A calibrated system needs a folder of its own.", where=args.out)
    scores = clip_scores(args.system, args.scores_split)
    frame = subsets.load_split(args.labels, args.subset)
    label = subsets.label(frame, label_name(args.label, load_system(args.system)))
    made_with = {
        "input_system": system_hash(args.system),
        "scores": file_hash(score_path(args.system, args.scores_split, "clips")),
        "labels": settings_hash(dict(zip(frame["file"], label.tolist()))),
        "subset": args.subset,
        "label": args.label,
        "input": args.input,
        "smooth_targets": args.smooth_targets,
    }
    if made_before(args.out, made_with, force=args.force):
        print(f"{args.out / SYSTEM} is up to date")
        return 0
    fitted = fit(scores, frame["file"], label, input=args.input, smooth_targets=args.smooth_targets)
    parameters = {**dataclasses.asdict(fitted), "label": args.label, "made_with": made_with}
    parameters["fit_hash"] = settings_hash(made_with)
    system = derived_system(args.out, "calibrated", [args.system], "probability", parameters)
    write_system(args.out, system)
    print(
        f"{system.name}: a {fitted.a:.4g}, b {fitted.b:.4g} on {fitted.n} clips of {args.subset} "
        f"({fitted.n_fake} fake, {fitted.n_no_answer} more without an answer), "
        f"log-loss {fitted.log_loss_before:.4f} -> {fitted.log_loss_after:.4f}"
    )
    for warning in fitted.warnings:
        print(f"warning: {system.name}: {warning}", file=sys.stderr)
    return 0
