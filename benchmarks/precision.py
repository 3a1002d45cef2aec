"""What bfloat16 changes in the scores of trained systems: an upper bound for TF32.

    python benchmarks/precision.py SYSTEM_DIR ... --lists DIR --media DIR --features DIR
        [--split val_report] [--clips N] [--device cpu]

Scores a labelled split in float32 and with automatic casts to bfloat16 (7 bits), in one run, and
prints the AUC of clips, or of frames for a localiser, the largest and the mean change of a score in
standard deviations of the scores, and Spearman's correlation of the ranks. TF32 keeps 10 bits, so
that its changes are about an eighth of these. A CPU computes the same numbers as a GPU, in another
order.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from klassify.data.base import Sources
from klassify.grid.frames import encode_labels
from klassify.metrics.clips import roc_auc
from klassify.models.devices import computing, pick_device
from klassify.scores.inference import clip_table, score_clips, score_frames
from klassify.systems.trained import load_model


def scores_of(model, data, sources: Sources, split: str, clips: int | None, **how):
    """Scores and labels of the clips of a split, or of their frames; n/a clips are left out."""
    segments = data.unit == "frame"
    table = sources.table(split, segments=segments)
    table = table.sample(clips, random_state=0) if clips and clips < len(table) else table
    how |= {"files": table["file"].tolist(), "progress": False}
    if not segments:
        scored, reasons = score_clips(model, data, sources, split, **how)
        found = clip_table(scored, table, reasons, data.aggregate)["score"].to_numpy(float)
        there = np.isfinite(found)
        return found[there], data.labels(table)[there]
    frames, _ = score_frames(model, data, sources, split, **how)
    fake = dict(zip(table["file"], data.segments_of(table)))
    by_clip = frames.groupby("file", sort=False, observed=True)
    labels = [encode_labels(fake[file], len(rows), **data.score_grid) for file, rows in by_clip]
    return frames["score"].to_numpy(float), np.concatenate(labels)


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Print what bfloat16 changes in one system."""
    device = pick_device(args.device)
    model, data = load_model(folder)
    sources = Sources(args.lists, args.media, args.features)
    found = {}
    for precision in ("32", "bf16"):
        with computing(device, precision):
            found[precision], labels = scores_of(
                model, data.for_validation(), sources, args.split, args.clips, device=device
            )
    exact, rounded = found["32"], found["bf16"]
    aucs = [roc_auc(labels, scores) for scores in (exact, rounded)]
    change = np.abs(exact - rounded) / exact.std()
    ranks = spearmanr(exact, rounded).statistic
    print(
        f"| {folder.name} | {len(labels)} {data.unit}s | {aucs[0]:.5f} | {aucs[1] - aucs[0]:+.5f}"
        f" | {change.mean():.4f} | {change.max():.4f} | {ranks:.6f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="SYSTEM_DIR")
    for name in ("lists", "media", "features"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--split", default="val_report")
    parser.add_argument("--clips", type=int, help="score so many of them, at random")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print("| system | scores | AUC | change of AUC | mean change | largest | rank correlation |")
    print("|---|---|---|---|---|---|---|")
    for folder in args.folders:
        compare(folder, args)


if __name__ == "__main__":
    main()
