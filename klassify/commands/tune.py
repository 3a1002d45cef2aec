"""Choose how a system makes proposals: the method and settings of the highest official Score on
val_fit.

    klassify tune exp/demo/klassify/bam --labels data_lists/demo

Writes SYSTEM_DIR/proposals.yaml, which `klassify localise` takes up, and tuning.tsv with every
setting that was tried. Of a merged system the weights, the calibration and the soft-NMS are tuned.
The truth is the challenge's, fake_segments of either modality; `--segments own` takes those of the
system's.

The search goes from setting to setting, SWEEPS times over the grid, and starts from the defaults.
val_fit is small and chance differences are large: a setting is changed, and a later method
preferred, only for a gain above MARGIN. A grid of your own is YAML, {method: {setting: [values]}};
a setting that it leaves out keeps its default.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.localisation import localise
from klassify.localisation.tune import (
    GRID,
    MERGE_GRID,
    MERGE_WEIGHTS,
    _truth_hash,
    _write,
    read_clips,
    read_grid,
    read_truth,
    tune_frames,
    tune_merge,
)
from klassify.scores.score_file import score_path
from klassify.settings import already_done, file_hash, settings_hash
from klassify.systems.scores import PROPOSALS, frames_path, is_merged, segment_scores
from klassify.systems.system import input_folders, load_system, system_hash


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `klassify tune`."""
    parser.add_argument(
        "system", type=Path, metavar="SYSTEM_DIR", help="a localiser, or a merged system"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        required=True,
        help="folder of the data lists, such as data_lists/demo",
    )
    parser.add_argument("--split", default="val", help="split whose scores are used (default val)")
    parser.add_argument(
        "--subset", default="val_fit", help="clips of it to tune on (default val_fit)"
    )
    parser.add_argument(
        "--segments",
        choices=("union", "own"),
        default="union",
        help="either modality's (default), or the system's own",
    )
    parser.add_argument("--grid", type=Path, metavar="FILE.yaml", help="another grid")
    parser.add_argument(
        "--force", action="store_true", help="replace a choice made from something else"
    )


def run(args: argparse.Namespace) -> int:
    """Run `klassify tune`."""
    system = load_system(args.system)
    truth = read_truth(
        args.labels, args.subset, system.modality if args.segments == "own" else "both"
    )
    folders = input_folders(args.system)
    if is_merged(system):
        inputs = [segment_scores(folder, args.split) for folder in folders]
        paths = [score_path(folder, args.split, "segments") for folder in folders]
    else:
        paths = [frames_path(args.system, args.split)]
    grid = read_grid(args.grid) if args.grid else None
    made_with = {
        "system": system_hash(args.system),
        "scores": [file_hash(path) for path in paths],
        "labels": _truth_hash(truth),
        "split": args.split,
        "subset": args.subset,
        "segments": args.segments,
        "grid": (
            grid
            or f"default {settings_hash({'frames': GRID, 'merge': [MERGE_WEIGHTS, MERGE_GRID]})}"
        ),
    }
    path = args.system / PROPOSALS
    before = (
        localise.read_proposals(path).get("tuned", {}).get("made_with", {})
        if path.exists()
        else None
    )
    if already_done(path, before, made_with, force=args.force):
        print(f"{path} is up to date")
        return 0
    if is_merged(system):
        best, trials = tune_merge(
            [localise.candidates(scores.table, truth.files) for scores in inputs], truth, grid
        )
    else:
        best, trials = tune_frames(read_clips(paths[0], truth), truth, grid)
    _write(path, best, trials, made_with)
    print(
        f"{path}: {best.choice.method}, Score {best.score:.4f} on {len(truth.files)} clips of"
        f" {args.subset} (defaults {trials[0].score:.4f}, {len(trials)} tried)"
    )
    return 0
