"""What each step from KLASSify's answers to those of the third recipe brings, on both test splits.

    python benchmarks/steps.py exp/demo-large --lists data_lists/demo-large

Needs all stages of the recipes klassify and fused, for one or more training seeds. Fits and tunes
unions and stacks of fewer systems on val_fit, below EXP_DIR/results/steps/, and writes
EXP_DIR/results/steps-task1.md and steps-task2.md: means over the seeds, and by how much a row
differs from KLASSify's answer, for each seed with its 95 % interval (paired bootstrap over
sources).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from klassify import cli
from klassify.files import write_text

# name of the step's folder: (its row, the systems that it joins as recipe/system); without systems,
# one of the recipe fused
TASK2 = {
    "pair": ("method `union` over the same two", ("klassify/bam", "klassify/tcn_tags")),
    "grid": (
        "grid and targets: `audio_frames` (20 ms, covered share) instead of `bam`",
        ("fused/audio_frames", "fused/tcn_tags"),
    ),
    "lips": (
        "lips: and `lips_frames`",
        ("fused/audio_frames", "fused/tcn_tags", "fused/lips_frames"),
    ),
    "av_spans": ("spans: `av_spans` alone", ()),
    "without_lips": (
        "`audio_frames`, `tcn_tags`, `av_spans`",
        ("fused/audio_frames", "fused/tcn_tags", "fused/av_spans"),
    ),
    "not_snapped": (  # in the order of `spans`, whose settings it takes
        "all four, edges not snapped",
        ("fused/tcn_tags", "fused/audio_frames", "fused/lips_frames", "fused/av_spans"),
    ),
    "spans": ("**`spans`: all four, edges snapped**", ()),
}
TASK1 = {
    "pair_stack": ("rule `stack` over the same two", ("fused/tcn", "fused/w2v_aasist")),
    "and_audio_mil": ("and `audio_mil`", ("fused/tcn", "fused/w2v_aasist", "fused/audio_mil")),
    "and_splices": (
        "`tcn`, `w2v_aasist`, `splice_audio`, `splice_lips`",
        ("fused/tcn", "fused/w2v_aasist", "fused/splice_audio", "fused/splice_lips"),
    ),
    "all_but_sync": (
        "all five",
        (
            *("fused/tcn", "fused/w2v_aasist", "fused/audio_mil"),
            *("fused/splice_audio", "fused/splice_lips"),
        ),
    ),
    "stack": ("**`stack`: all five and `sync`**", ()),
}
# of each task: KLASSify's answer, its row, the steps, {title: column of the evaluation's table}
TASKS = {
    1: ("maxout", "max-out of KLASSify: `tcn`, `w2v_aasist`", TASK1, {"AUC": "auc"}),
    2: (
        "merged",
        "`merged` of KLASSify: `bam` (40 ms, any overlap), `tcn_tags`",
        TASK2,
        {"Score": "Score", "AP@0.95": "AP@0.95"},
    ),
}


def main() -> None:
    """Make what is missing, and write both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("exp", type=Path, help="folder of the recipes' folders")
    parser.add_argument("--lists", type=Path, required=True, help="folder of the data lists")
    args = parser.parse_args()
    labels = {  # small corpora have no testB
        split: path
        for split in ("testA", "testB")
        if (path := args.lists / f"heldout/{split}_labels.tsv").exists()
    }
    seeds = ["", *sorted(path.name for path in (args.exp / "fused").glob("seed-[0-9]*"))]
    for task, (versus, _, steps, _) in TASKS.items():
        tables = {split: [] for split in labels}
        for seed in seeds:
            made = args.exp / "results/steps" / (seed or "seed-1")
            compared = [args.exp / "klassify" / seed / versus]
            for name, (_, parts) in steps.items():
                compared.append(made / name if parts else args.exp / "fused" / seed / name)
                if parts:
                    folders = [
                        args.exp / Path(part).parent / seed / Path(part).name for part in parts
                    ]
                    join(task, folders, made / name, args.lists, ",".join(labels))
            for split, path in labels.items():
                out = made / f"task{task}"
                words = ("--split", split, "--labels", path, "--versus", versus, "--out", out)
                run("evaluate", *compared, "--task", task, *words)
                kind = "" if task == 1 else ".task2"
                rows = pd.read_csv(out / f"{split}{kind}.tsv", sep="\t").query("group == 'all'")
                if task == 1:
                    rows = rows.query("label == 'video'")
                tables[split].append(rows.set_index("system"))
        write_text(args.exp / f"results/steps-task{task}.md", table(task, tables))


def join(task: int, parts: Sequence[Path], out: Path, lists: Path, splits: str) -> None:
    """Make a system of others, fitted or tuned on val_fit, and its answers about the splits."""
    if task == 1:
        run("fuse", *parts, "--rule", "stack", "--labels", lists, "--out", out)
        run("score", out, "--split", splits)
        return
    settings = ()
    run("localise", "--merge", *parts, "--method", "union", "--out", out)
    if out.name == "not_snapped":
        tuned = parts[0].with_name("spans") / "proposals.yaml"
        settings = ("--proposals", tuned, "--set", "snap_s=0")
    else:
        run("tune", out, "--labels", lists)
    run("localise", out, "--split", splits, *settings)


def run(*words: object) -> None:
    """Run a command of klassify, quietly."""
    words = [str(word) for word in words]
    print("+ klassify", *words, file=sys.stderr, flush=True)
    if status := cli.main([*words, "--quiet"]):
        sys.exit(status)


def table(task: int, by_split: dict[str, list[pd.DataFrame]]) -> str:
    """One row a step: means of the columns and differences from KLASSify, for each split."""
    versus, first, steps, columns = TASKS[task]
    main_title = next(iter(columns))
    titles = [f"Task {task}"]
    for split in by_split:
        own = [f"{split}: {main_title}", *list(columns)[1:]]
        titles += [*own, f"{main_title} minus `{versus}`"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, (title, _) in ({versus: (first, ())} | steps).items():
        cells = [title]
        for seeds in by_split.values():
            rows = [rows.loc[name] for rows in seeds]
            cells += [f"{np.mean([r[column] for r in rows]):.3f}" for column in columns.values()]
            # gain: by how much versus is ahead
            mean = signed(-np.mean([r.gain for r in rows]))
            each = [
                f"{signed(-r.gain)} [{signed(-r.gain_high)}, {signed(-r.gain_low)}]" for r in rows
            ]
            cells.append("" if name == versus else f"{mean}: {', '.join(each)}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def signed(value: float) -> str:
    """Three digits with their sign, and no -0.000."""
    return f"{round(value, 3) + 0:+.3f}"


if __name__ == "__main__":
    main()
