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
from pathlib import Path

import numpy as np
import pandas as pd

from klassify import cli
from klassify.files import write_text

K, F = "{klassify}", "{fused}"
TOGETHER = ("tcn_tags", "audio_frames", "lips_frames", "av_spans")  # as spans has them
# name of the step's folder: (its row, the systems that it joins); without systems, one that exists
TASK2 = {
    "pair": ("method `union` over the same two", (f"{K}/bam", f"{K}/tcn_tags")),
    "grid": (
        "grid and targets: `audio_frames` (20 ms, covered share) instead of `bam`",
        (f"{F}/audio_frames", f"{F}/tcn_tags"),
    ),
    "lips": ("lips: and `lips_frames`", (f"{F}/audio_frames", f"{F}/tcn_tags", f"{F}/lips_frames")),
    "av_spans": ("spans: `av_spans` alone", ()),
    "without_lips": (
        "`audio_frames`, `tcn_tags`, `av_spans`",
        (f"{F}/audio_frames", f"{F}/tcn_tags", f"{F}/av_spans"),
    ),
    "not_snapped": ("all four, edges not snapped", tuple(f"{F}/{name}" for name in TOGETHER)),
    "spans": ("**`spans`: all four, edges snapped**", ()),
}
TASK1 = {
    "pair_stack": ("rule `stack` over the same two", ("tcn", "w2v_aasist")),
    "and_audio_mil": ("and `audio_mil`", ("tcn", "w2v_aasist", "audio_mil")),
    "and_splices": (
        "`tcn`, `w2v_aasist`, `splice_audio`, `splice_lips`",
        ("tcn", "w2v_aasist", "splice_audio", "splice_lips"),
    ),
    "all_but_sync": ("all five", ("tcn", "w2v_aasist", "audio_mil", "splice_audio", "splice_lips")),
    "stack": ("**`stack`: all five and `sync`**", ()),
}


def main() -> None:
    """Make what is missing, and write both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("exp", type=Path, help="folder of the recipes' folders")
    parser.add_argument("--lists", type=Path, required=True, help="folder of the data lists")
    args = parser.parse_args()
    results = args.exp / "results"
    labels = {  # small corpora have no testB
        split: path
        for split in ("testA", "testB")
        if (path := args.lists / f"heldout/{split}_labels.tsv").exists()
    }
    tables = {task: {split: [] for split in labels} for task in (1, 2)}
    seeds = ["", *sorted(path.name for path in (args.exp / "fused").glob("seed-[0-9]*"))]
    for seed in seeds:
        folders = {name: str(args.exp / name / seed) for name in ("klassify", "fused")}
        made = results / "steps" / (seed or "seed-1")
        ours = (args.lists, ",".join(labels))
        systems = {
            1: [folders["klassify"] + "/maxout", *stacks(made, folders["fused"], *ours)],
            2: [folders["klassify"] + "/merged", *unions(made, folders, *ours)],
        }
        for task, compared in systems.items():
            for split, path in labels.items():
                out = made / f"task{task}"
                versus = Path(compared[0]).name
                words = ("--split", split, "--labels", path, "--versus", versus, "--out", out)
                run("evaluate", *compared, "--task", task, *words)
                kind = "" if task == 1 else ".task2"
                rows = pd.read_csv(out / f"{split}{kind}.tsv", sep="\t").query("group == 'all'")
                if task == 1:
                    rows = rows.query("label == 'video'")
                tables[task][split].append(rows.set_index("system"))
    first = "max-out of KLASSify: `tcn`, `w2v_aasist`"
    steps = {"maxout": (first, ())} | TASK1
    write_text(results / "steps-task1.md", table(tables[1], steps, ["AUC"], "maxout"))
    first = "`merged` of KLASSify: `bam` (40 ms, any overlap), `tcn_tags`"
    steps = {"merged": (first, ())} | TASK2
    write_text(results / "steps-task2.md", table(tables[2], steps, ["Score", "AP@0.95"], "merged"))


def unions(made: Path, folders: dict[str, str], lists: Path, splits: str) -> list[str]:
    """Tune the unions of Task 2 on val_fit and localise the splits; the folders of all rows."""
    found = []
    for name, (_, parts) in TASK2.items():
        found.append(str(made / name) if parts else f"{folders['fused']}/{name}")
        if not parts:
            continue
        parts, settings = [part.format(**folders) for part in parts], ()
        run("localise", "--merge", *parts, "--method", "union", "--out", made / name)
        if name == "not_snapped":
            tuned = f"{folders['fused']}/spans/proposals.yaml"
            settings = ("--proposals", tuned, "--set", "snap_s=0")
        else:
            run("tune", made / name, "--labels", lists)
        run("localise", made / name, "--split", splits, *settings)
    return found


def stacks(made: Path, fused: str, lists: Path, splits: str) -> list[str]:
    """Fit the stacks of Task 1 on val_fit and score the splits; the folders of all rows."""
    found = []
    for name, (_, parts) in TASK1.items():
        found.append(str(made / name) if parts else f"{fused}/{name}")
        if parts:
            parts = [f"{fused}/{part}" for part in parts]
            run("fuse", *parts, "--rule", "stack", "--labels", lists, "--out", made / name)
            run("score", made / name, "--split", splits)
    return found


def run(*words: object) -> None:
    """Run a command of klassify, quietly."""
    words = [str(word) for word in words]
    print("+ klassify", *words, file=sys.stderr, flush=True)
    if status := cli.main([*words, "--quiet"]):
        sys.exit(status)


def table(
    by_split: dict[str, list[pd.DataFrame]],
    steps: dict[str, tuple[str, tuple[str, ...]]],
    columns: list[str],
    versus: str,
) -> str:
    """One row a step: for each split the means of the columns, and the differences from versus."""
    titles = [
        f"{split}: {title}" if title == columns[0] else title
        for split in by_split
        for title in (*columns, f"{columns[0]} minus `{versus}`")
    ]
    lines = [f"| Task {len(columns)} | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name, (title, _) in steps.items():
        cells = [title]
        for seeds in by_split.values():
            rows = [rows.loc[name] for rows in seeds]
            of_columns = ("auc",) if columns == ["AUC"] else columns
            cells += [f"{np.mean([r[column] for r in rows]):.3f}" for column in of_columns]
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
