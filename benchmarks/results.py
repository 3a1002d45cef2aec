"""Make the numbers of recipes/*/RESULTS.md again, and write their tables: make results

    python benchmarks/results.py                       # hours; continues where it stopped
    python benchmarks/results.py --size tiny --out DIR # minutes: that everything runs

Runs the commands of STEPS that have not finished, then replaces what stands between
`<!-- results: NAME -->` and `<!-- /results -->` in copies of the three pages below --out (default:
the pages themselves). A table whose files are missing is left as it is and named. --only-tables
runs no command.
Tables beside the papers' numbers, of the settings' choice and of speed have no markers.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from klassify.evaluation.robustness import by_family
from klassify.files import read_json
from klassify.metrics.segments import METRICS

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (1, 2, 3)
SPLITS = ("testA", "testB")
BLOCK = re.compile(r"(<!-- results: ([\w-]+) -->\n\n).*?(\n<!-- /results -->)", re.DOTALL)
# (name, recipe, options of benchmarks/explanations.py): fewer clips where pixels are looked at
EXPLAINED = (
    ("klassify", "klassify", "--clips 24"),
    ("audio", "fused", "--systems audio_mil splice_audio audio_frames sync av_spans --clips 24"),
    ("lips", "fused", "--systems lips_frames splice_lips --clips 12 --orders 2"),
    ("ps", "multibranch", "--systems ps --clips 24"),
    ("visual", "multibranch", "--systems visual --clips 12 --orders 2"),
)
# {DATA} is demo-<size>. (what the step makes, the command that makes it)
STEPS = (
    ("exp/{DATA}/compare/testA/report.html", "klassify demo size={SIZE}"),
    (
        "exp/{DATA}/results/steps-task2.md",
        "{PYTHON} {ROOT}/benchmarks/steps.py exp/{DATA} --lists data_lists/{DATA}",
    ),
    (
        "exp/{DATA}/results/points/testA.thresholds.tsv",
        "klassify evaluate exp/{DATA}/klassify/tcn-platt exp/{DATA}/klassify/w2v_aasist-platt"
        " exp/{DATA}/klassify/avg exp/{DATA}/klassify/maxout --split testA --labels {LABELS}"
        " --false-alarms 0.01,0.05,0.1 --out exp/{DATA}/results/points",
    ),
    (
        "exp/{DATA}/audit/testA.tsv",
        "klassify audit {LABELS} --root media/{DATA} --out exp/{DATA}/audit",
    ),
    *(
        (
            f"exp/{{DATA}}/results/explanations-{name}.md",
            f"{{PYTHON}} {{ROOT}}/benchmarks/explanations.py exp/{{DATA}}/{recipe}"
            " --lists data_lists/{DATA} --media media/{DATA} --features features/{DATA}"
            f" --split val {options} --out exp/{{DATA}}/results/explanations-{name}.md",
        )
        for name, recipe, options in EXPLAINED
    ),
    (
        "exp/{DATA}/audit-systems/testA-changed.tsv",
        "klassify audit {LABELS} --root media/{DATA} --features features/{DATA}"
        " --out exp/{DATA}/audit-systems --clips 60 --systems exp/{DATA}/klassify/tcn"
        " exp/{DATA}/klassify/w2v_aasist exp/{DATA}/klassify/maxout",
    ),
    (
        "perturbed/{DATA}/robustness-testA.tsv",
        "klassify perturb exp/{DATA}/klassify/maxout exp/{DATA}/klassify/w2v_aasist-platt"
        " --list {LABELS} --root media/{DATA} --features features/{DATA} --out perturbed/{DATA}"
        " --clips 60 --families noise,mp3,amr,reverberation --levels 1,3,5",
    ),
    (
        "perturbed/{DATA}-picture/robustness-testA.tsv",
        "klassify perturb exp/{DATA}/klassify/maxout exp/{DATA}/klassify/merged"
        " --list {LABELS} --root media/{DATA} --features features/{DATA}"
        " --out perturbed/{DATA}-picture --clips 24 --levels 5"
        " --families blur,h264,pixel_noise",
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="large", help="of the demo (default: large)")
    parser.add_argument("--out", type=Path, default=ROOT / "recipes", help="default: recipes/")
    parser.add_argument("--only-tables", action="store_true", help="run no command")
    args = parser.parse_args()
    failed = [] if args.only_tables else run_steps(args.size)
    missing = write_pages(Path("exp", f"demo-{args.size}"), args.out)
    for text in [*failed, *missing]:
        print(text, file=sys.stderr)
    sys.exit(bool(failed or missing))


def run_steps(size: str) -> list[str]:
    """Run what is missing, in the working folder; the steps that failed."""
    data, failed = f"demo-{size}", []
    values = {"SIZE": size, "DATA": data, "ROOT": ROOT, "PYTHON": sys.executable}
    values["LABELS"] = f"data_lists/{data}/heldout/testA_labels.tsv"
    for made, command in STEPS:
        made, words = made.format(**values), command.format(**values).split()
        if Path(made).exists():
            print(f"{made}: exists")
            continue
        print("+", *words, flush=True)
        if words[0] == "klassify":
            words = [sys.executable, "-m", "klassify.cli", *words[1:]]
        if subprocess.run(words).returncode and not Path(made).exists():
            failed.append(f"failed: {command.format(**values)}")
    return failed


def write_pages(exp: Path, out: Path) -> list[str]:
    """Replace the marked tables of each recipe's page; the tables that cannot be made."""
    missing = []
    for page in sorted(ROOT.glob("recipes/*/RESULTS.md")):
        recipe = page.parent.name

        def table(found: re.Match, recipe: str = recipe) -> str:
            try:
                return found[1] + TABLES[found[2]](exp / recipe) + found[3]
            except FileNotFoundError as error:
                missing.append(f"{recipe}: no table {found[2]}: {error.filename} is missing")
                return found[0]

        text = BLOCK.sub(table, page.read_text(encoding="utf-8"))
        (out / recipe).mkdir(parents=True, exist_ok=True)
        (out / recipe / "RESULTS.md").write_text(text, encoding="utf-8")
    return missing


def made(recipe: Path) -> str:
    """The training seeds, and the commits and machines of the trained systems."""
    told = [read_json(path) for path in sorted(recipe.glob("**/env.json"))]
    if not told:
        raise FileNotFoundError(2, "", str(recipe / "*/env.json"))
    seeds = [1, *sorted(int(path.name[5:]) for path in recipe.glob("seed-[0-9]*"))]
    commits = sorted({str(one["commit"])[:7] for one in told})
    machines = sorted({f"{one['cpus']} CPUs, torch {one['versions']['torch']}" for one in told})
    return (
        f"Training seeds: {', '.join(map(str, seeds))}. Trained with the code of commit"
        f" {', '.join(commits)} on {'; '.join(machines)}.\n"
    )


def by_split(recipe: Path, kind: str = "") -> dict[str, list[pd.DataFrame]]:
    """{split: the rows of all clips by system, one table for each training seed}."""
    folders = [recipe, *(recipe / f"seed-{seed}" for seed in SEEDS[1:])]
    folders = [folder for folder in folders if folder == recipe or folder.exists()]
    found = {}
    for split in SPLITS:
        paths = [folder / "evaluation" / f"{split}{kind}.tsv" for folder in folders]
        if split == "testA" or paths[0].exists():  # small corpora have no testB
            tables = [pd.read_csv(path, sep="\t") for path in paths]
            found[split] = [rows[rows["group"] == "all"].set_index("system") for rows in tables]
    return found


def of_label(rows: list[pd.DataFrame], *, own: bool) -> list[pd.DataFrame]:
    """Rows against the video's label, or each system's own where that is another one."""
    picked = []
    for table in rows:
        is_own = (table["label"] == "own") | (table["modality"] == "both")
        picked.append(table[is_own if own else table["label"] == "video"])
    return picked


def task1(recipe: Path) -> str:
    """AUC by seed against the video's label, and its means against each system's own."""
    tables = by_split(recipe)
    video = {split: of_label(rows, own=False) for split, rows in tables.items()}
    own = {split: of_label(rows, own=True) for split, rows in tables.items()}
    return by_seed(video, own, "auc", "auc", "")


def frames(recipe: Path) -> str:
    """AUC of frames by seed, against fakes of either modality and of the system's own."""
    tables = by_split(recipe, ".task2")
    scored = {
        split: [rows[rows["frame_auc"].notna()] for rows in seeds]
        for split, seeds in tables.items()
    }
    return by_seed(scored, scored, "frame_auc", "frame_auc_own", " frame AUC")


def by_seed(
    tables: dict[str, list[pd.DataFrame]],
    own: dict[str, list[pd.DataFrame]],
    column: str,
    own_column: str,
    what: str,
) -> str:
    """One row per system: each seed, their mean, and the mean against the own label."""
    heads = [head for split in tables for head in (f"{split}{what}: seeds", "mean")]
    lines = head("system", *heads, f"own label, {' / '.join(tables)}")
    for name in tables["testA"][0].index:
        cells = [name]
        for rows in tables.values():
            values = [table.loc[name, column] for table in rows]
            cells += [", ".join(map(four, values)), f"**{np.mean(values):.4f}**"]
        means = [np.mean([rows.loc[name, own_column] for rows in seeds]) for seeds in own.values()]
        cells.append(" / ".join(map(four, means)) if np.isfinite(means).all() else "-")
        lines.append(row(*cells))
    return "\n".join(lines) + "\n"


def task2(recipe: Path) -> str:
    """Score by seed, and means of the other metrics."""
    names = [name for name in METRICS if name != "Score"]
    lines = head("split", "system", "Score: seeds", "mean", *names)
    for split, rows in by_split(recipe, ".task2").items():
        for system in rows[0].index[~rows[0].index.str.startswith("perfect")]:
            values = [table.loc[system, "Score"] for table in rows]
            means = [np.mean([table.loc[system, name] for table in rows]) for name in names]
            seeds = ", ".join(map(four, values))
            lines.append(row(split, system, seeds, f"**{np.mean(values):.4f}**", *map(four, means)))
    return "\n".join(lines) + "\n"


def task1_gains(recipe: Path) -> str:
    """How far the compared system is ahead in AUC."""
    return gains({split: of_label(rows, own=False) for split, rows in by_split(recipe).items()})


def task2_gains(recipe: Path) -> str:
    """How far the compared system is ahead in Score."""
    return gains(by_split(recipe, ".task2"))


def gains(tables: dict[str, list[pd.DataFrame]]) -> str:
    """One row per system: the lead of the one that the evaluations compare with, by split, seed."""
    first = tables["testA"][0]
    versus = first["versus"].dropna().iloc[0]
    seeds = SEEDS[: len(tables["testA"])]
    lines = head(
        f"{versus} minus", *(f"{split}, seed {seed}" for split in tables for seed in seeds)
    )
    for name in first.index[first["gain"].notna() & (first.index != versus)]:
        found = [table.loc[name] for rows in tables.values() for table in rows]
        lines.append(row(name, *map(lead, found)))
    return "\n".join(lines) + "\n"


def points_of(recipe: Path, kind: str) -> pd.DataFrame:
    """A table of the operating points of seed 1 on testA."""
    folder = recipe.parent / "results/points"
    return pd.read_csv(folder / f"testA.{kind}.tsv", sep="\t")


def costs(recipe: Path) -> str:
    """What errors cost, of the calibrated and joined systems."""
    auc = points_of(recipe, "costs").merge(
        pd.read_csv(recipe.parent / "results/points/testA.tsv", sep="\t").query(
            "group == 'all' and label == 'video'"
        )[["system", "auc"]]
    )
    lines = head("system", "AUC", "min DCF", "actual DCF", "Cllr, bits", "min Cllr", "t-EER")
    for _, r in auc.iterrows():
        spans = [span(r, name) for name in ("min_dcf", "act_dcf", "cllr")]
        lines.append(row(r.system, four(r.auc), *spans, f"{r.min_cllr:.3f}", span(r, "t_eer")))
    return "\n".join(lines) + "\n"


def thresholds(recipe: Path) -> str:
    """The thresholds of max-out: what they were fitted for, and what they do on testA."""
    lines = head(
        *("max-out at", "fake above, real below", "false alarms on val_fit", "on testA"),
        *("misses on testA", "cannot tell", "real as fake / cannot tell / real"),
        *("fakes likewise", "reading"),
    )
    table = points_of(recipe, "thresholds")
    for _, r in table[table["system"] == "maxout"].iterrows():
        if not np.isfinite(r.fake_above):
            lines.append(row(r.point, "none", *["-"] * 6, r.reading))
            continue
        one = r.fake_above == r.real_below
        limits = f"{r.fake_above:.4f}" if one else f"{r.fake_above:.4f}, {r.real_below:.4f}"
        rates = [percent(r, name) for name in ("val_false_alarms", "false_alarms", "misses")]
        counts = [
            f"{r[f'n_{kind}_fake']:.0f} / {r[f'n_{kind}_unsure']:.0f} / {r[f'n_{kind}_real']:.0f}"
            for kind in ("real", "fake")
        ]
        lines.append(row(r.point, limits, *rates, f"{r.unsure:.1%}", *counts, r.reading))
    return "\n".join(lines) + "\n"


def audit(recipe: Path) -> str:
    """How well each property of the content tells fake from real."""
    table = pd.read_csv(recipe.parent / "audit/testA.tsv", sep="\t")
    lines = head("property", "label", "AUC", "chance", "reading")
    for _, r in table[table["auc"].notna()].iterrows():
        auc = interval(r, "auc", ".3f")
        lines.append(row(f"`{r.trait}`", r.label, auc, f"{r.chance:.3f}", r.reading))
    return "\n".join(lines) + "\n"


def changed(recipe: Path) -> str:
    """AUC of systems before and after changes of the media that leave the fake alone."""
    table = pd.read_csv(recipe.parent / "audit-systems/testA-changed.tsv", sep="\t")
    lines = head("system", "AUC", *table["change"].unique())
    for system, rows in table.groupby("system", sort=False):
        changes = [
            f"{r.auc_after:.3f}: {interval(r, 'difference', '+.3f')}" for _, r in rows.iterrows()
        ]
        lines.append(row(f"`{system}`", interval(rows.iloc[0], "auc", ".3f"), *changes))
    return "\n".join(lines) + "\n"


def explanations(*names: str) -> Callable[[Path], str]:
    """Deletion, insertion and true segments, as benchmarks/explanations.py prints them."""

    def table(recipe: Path) -> str:
        folder = recipe.parent / "results"
        texts = [(folder / f"explanations-{name}.md").read_text("utf-8") for name in names]
        heads = texts[0].splitlines()[:2]
        return (
            "\n".join([*heads, *(line for one in texts for line in one.split("\n")[2:] if line)])
            + "\n"
        )

    return table


def steps(task: int) -> Callable[[Path], str]:
    """What each step of the third recipe brings, as benchmarks/steps.py prints it."""
    name = f"results/steps-task{task}.md"
    return lambda recipe: (recipe.parent / name).read_text(encoding="utf-8")


def perturbed(recipe: Path) -> str:
    """AUC clean and on perturbed clips, and the largest loss."""
    path = Path("perturbed", recipe.parent.name, "robustness-testA.tsv")
    lines = head("system", "family", "clean", "level 1", "level 3", "level 5", "largest loss")
    for _, r in by_family(pd.read_csv(path, sep="\t").query("metric == 'AUC'")).iterrows():
        levels = [f"{r[f'level {level}']:.3f}" for level in (1, 3, 5)]
        loss = interval(r, "change", "+.3f")
        lines.append(row(f"`{r.system}`", r.family, f"{r.clean:.3f}", *levels, loss))
    return "\n".join(lines) + "\n"


def perturbed_picture(recipe: Path) -> str:
    """AUC of max-out and Score of merged on clips perturbed at level 5."""
    path = Path("perturbed", f"{recipe.parent.name}-picture", "robustness-testA.tsv")
    table = pd.read_csv(path, sep="\t").query("level == 5")
    lines = head("family", "AUC of `maxout`", "change", "Score of `merged`", "change")
    for family, rows in table.groupby("family", sort=False):
        cells = []
        for system, metric in (("maxout", "AUC"), ("merged", "Score")):
            r = rows[(rows["system"] == system) & (rows["metric"] == metric)].iloc[0]
            cells += [f"{r.value:.3f}", interval(r, "change", "+.3f")]
        lines.append(row(family, *cells))
    return "\n".join(lines) + "\n"


def summary(recipe: Path) -> str:
    """KLASSify on testA: sound, picture, both, guessing; means of the seeds."""
    clips = of_label(by_split(recipe)["testA"], own=False)
    segments = by_split(recipe, ".task2")["testA"]
    lines = head(f"testA, mean of the seeds ({len(clips)})", "audio", "video", "both", "guessing")
    auc = [mean(clips, name, "auc") for name in ("w2v_aasist", "tcn", "maxout")]
    score = [mean(segments, name, "Score") for name in ("bam", "tcn_tags", "merged", "random")]
    lines.append(row("Task 1, AUC", *auc, "0.5"))
    lines.append(row("Task 2, Score", *score))
    return "\n".join(lines) + "\n"


def summary_multibranch(recipe: Path) -> str:
    """The multi-branch system on testA: sound, picture, both, guessing; means of the seeds."""
    clips = of_label(by_split(recipe)["testA"], own=False)
    segments = by_split(recipe, ".task2")["testA"]
    lines = head(f"testA, mean of the seeds ({len(clips)})", "audio", "video", "both", "guessing")
    branches = ("ps", "visual", "fused")
    by_segment = [mean(clips, name, "auc") for name in branches]
    by_clip = [mean(clips, f"{name}_clip", "auc") for name in branches]
    lines.append(row("clips, AUC, trained on segment labels", *by_segment, "0.5"))
    lines.append(row("clips, AUC, trained on clip labels alone (Task 1)", *by_clip, "0.5"))
    auc = [mean(segments, name, "frame_auc") for name in branches]
    lines.append(row("40 ms frames, AUC", *auc, "0.5"))
    lines.append(
        row("Task 2, Score", *(mean(segments, name, "Score") for name in (*branches, "random")))
    )
    return "\n".join(lines) + "\n"


def summary_fused(recipe: Path) -> str:
    """The answers of the three recipes, means of the seeds."""
    answers = {
        "klassify": ("KLASSify", "maxout", "merged"),
        "multibranch": ("multi-branch", "ps_clip-platt", "fused"),
        "fused": ("**this recipe**", "stack", "spans"),
    }
    splits = list(by_split(recipe))
    heads = [f"{split}: {name}" for split in splits for name in ("AUC", "Score", "AP@0.95")]
    lines, means = head("mean of the seeds", *heads), {}
    for name, (title, first, second) in answers.items():
        clips, segments = by_split(recipe.parent / name), by_split(recipe.parent / name, ".task2")
        means[name] = np.array(
            [
                np.mean([rows.loc[system, column] for rows in tables])
                for split in splits
                for tables, system, column in (
                    (of_label(clips[split], own=False), first, "auc"),
                    (segments[split], second, "Score"),
                    (segments[split], second, "AP@0.95"),
                )
            ]
        )
        lines.append(row(f"{title}: `{first}`, `{second}`", *(f"{m:.3f}" for m in means[name])))
    gained = means["fused"] - means["klassify"]
    lines.append(row("its gain over KLASSify", *(f"{gain:+.3f}" for gain in gained)))
    return "\n".join(lines) + "\n"


TABLES: dict[str, Callable[[Path], str]] = {
    "made": made,
    "summary": summary,
    "summary-multibranch": summary_multibranch,
    "summary-fused": summary_fused,
    "task1": task1,
    "task1-gains": task1_gains,
    "task2": task2,
    "task2-gains": task2_gains,
    "frames": frames,
    "costs": costs,
    "thresholds": thresholds,
    "audit": audit,
    "changed": changed,
    "steps-task1": steps(1),
    "steps-task2": steps(2),
    "explanations": explanations("klassify"),
    "explanations-others": explanations("audio", "lips", "ps", "visual"),
    "perturbed": perturbed,
    "perturbed-picture": perturbed_picture,
}


def mean(seeds: list[pd.DataFrame], system: str, column: str) -> str:
    """The mean over seeds, three digits; a dash for a system that the demo leaves out."""
    if system not in seeds[0].index:
        return "-"
    return f"{np.mean([rows.loc[system, column] for rows in seeds]):.3f}"


def four(value: float) -> str:
    """Four digits."""
    return f"{value:.4f}"


def span(r: pd.Series, name: str) -> str:
    """A value and its interval, or a dash."""
    return interval(r, name, ".3f") if np.isfinite(r[name]) else "-"


def lead(r: pd.Series) -> str:
    """A gain and its interval, which clips of a single source do not have."""
    return interval(r, "gain", "+.4f") if np.isfinite(r.gain_low) else f"{r.gain:+.4f}"


def percent(r: pd.Series, name: str) -> str:
    """A rate and its interval."""
    return interval(r, name, ".1%")


def interval(r: pd.Series, name: str, form: str) -> str:
    """A value and its 95 % interval, columns NAME, NAME_low and NAME_high."""
    value, low, high = (f"{r[name + end]:{form}}" for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"


def row(*cells: str) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def head(*cells: str) -> list[str]:
    """The first two lines of a Markdown table."""
    return [row(*cells), "|---" * len(cells) + "|"]


if __name__ == "__main__":
    main()
