"""Whether explanations are true of trained systems: deletion, insertion, true segments.

    python benchmarks/explanations.py RECIPE_DIR --lists DIR --media DIR --features DIR
        [--split val] [--labels FILE] [--systems tcn w2v_aasist] [--over time features]
        [--clips 40] [--orders 5] [--method shown] [--device auto] [--seed 0] [--out table.md]

RECIPE_DIR: a folder with a detector.yaml, whose systems have scored the split; --systems may name
others of that folder. Of each model and each kind of contribution, on the clips with the highest
scores of those that are fake in the model's own modality: by how much the mean probability in
deletion is below that of random orders, and in insertion above it; how many clips each holds for;
and the share of contributions over time inside the true segments beside the share of time. See
docs/explanations.md. Intervals are 95 % over sources. Fails if an interval of deletion or insertion
reaches 0.

--method measures what `predict --explain` shows, or for all models another one: `left-out` hides
each part, `sum` adds to that the score of each part alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from klassify.data.base import Sources
from klassify.explanation.axes import axes_of
from klassify.explanation.explain import Explainer, occlusion
from klassify.explanation.faithfulness import curves, inside_share, mean_by_source
from klassify.lists.data_list import SEGMENTS_OF, read_list
from klassify.systems.detector import read_detector
from klassify.systems.system import load_systems
from klassify.systems.trained import Trained

COLUMNS = (
    "system",
    "over",
    "clips",
    "sources",
    "random",
    "deletion: below random",
    "insertion: above random",
    "clips below, above",
    "inside true segments",
    "share of time",
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    for name in ("lists", "media", "features"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--labels", type=Path, help="list with labels (default: that of the split)")
    parser.add_argument("--systems", nargs="+", help="default: all models of the detector")
    parser.add_argument("--over", nargs="+", help="default: all that there is")
    parser.add_argument("--clips", type=int, default=40, help="of each system (default 40)")
    parser.add_argument("--orders", type=int, default=5, help="random ones of a clip (default 5)")
    parser.add_argument("--method", choices=("shown", "left-out", "sum"), default="shown")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sources = Sources(args.lists, args.media, args.features)
    detector = read_detector(args.recipe)
    others = [detector.answering("task2")] if "task2" in detector.answers else []
    wanted = [args.recipe / name for name in args.systems or ()]
    others += load_systems([one for one in wanted if one.name not in detector.systems])
    how = {"others": others, "device": args.device}
    explainer = Explainer(detector.answering("task1"), args.split, sources, **how)
    table = sources.table(args.split, segments=True)
    if args.labels:
        table = read_list(args.labels, segments=True)
    lines, failed = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"], []
    print(*lines, sep="\n")
    for system in explainer.systems.values():
        if not isinstance(system, Trained) or system.name not in (args.systems or [system.name]):
            continue
        began = time.perf_counter()
        rows = pd.DataFrame(checked(explainer, system, table, args))
        for over, group in rows.groupby("over", sort=False) if len(rows) else ():
            line, holds = row_of(system.name, str(over), group)
            failed += [] if holds else [f"{system.name} over {over}"]
            lines.append(line)
            print(line, flush=True)
        print(f"{system.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")
    if failed:
        sys.exit(f"not better than random orders: {', '.join(failed)}")


def checked(
    explainer: Explainer, system: Trained, table: pd.DataFrame, args: argparse.Namespace
) -> Iterator[dict]:
    """A row of numbers for each clip and kind of contribution, the highest scores first."""
    column = SEGMENTS_OF["video" if system.modality == "both" else system.modality]
    fakes = table[table[column].map(bool)]
    scores = [
        explainer.clip_score(system, file).table["score"].iloc[0] for file in fakes["file"].tolist()
    ]
    fakes = fakes.assign(score=scores).dropna(subset=["score"])
    fakes = fakes.sort_values("score", ascending=False).head(args.clips)
    answering, reader = explainer.answering(system), explainer.reader(system)
    for clip in fakes.itertuples():
        read = reader.read(clip.file)
        axes = axes_of(answering.data, answering.model, read)
        axes = {over: axis for over, axis in axes.items() if over in (args.over or axes)}
        if args.method == "shown":
            contributions = explainer.contributions(system, clip.file)
        else:
            alone = args.method == "sum"
            contributions = [occlusion(answering, axis, alone) for axis in axes.values()]
        for one in contributions:
            if one.over not in axes:
                continue
            how = {"rng": np.random.default_rng(args.seed), "n_random": args.orders}
            found = curves(answering, axes[one.over], one, **how)._asdict()
            row = {"over": one.over, "source": clip.source} | found
            if one.over == "time":
                segments = np.array(getattr(clip, column), float)
                row |= dict(zip(("inside", "share"), inside_share(one, segments)))
            yield row


def row_of(name: str, over: str, rows: pd.DataFrame) -> tuple[str, bool]:
    """The line of a system and a kind, and whether both orders beat random ones."""
    source = rows["source"]
    below = (rows["random"] - rows["deletion"]).to_numpy()
    above = (rows["insertion"] - rows["random"]).to_numpy()
    intervals = [mean_by_source(values, source) for values in (below, above)]
    cells = [name, over, len(rows), source.nunique(), f"{rows['random'].mean():.3f}"]
    cells += [shown(one) for one in intervals]
    cells.append(f"{np.mean(below > 0):.0%}, {np.mean(above > 0):.0%}")
    inside = ["", ""]
    if "inside" in rows and rows["inside"].notna().any():
        inside = [shown(mean_by_source(rows[key], source), "") for key in ("inside", "share")]
    return f"| {' | '.join(map(str, cells + inside))} |", all(one[1] > 0 for one in intervals)


def shown(interval: tuple[float, float, float], sign: str = "+") -> str:
    """A mean and its interval."""
    value, low, high = interval
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


if __name__ == "__main__":
    main()
