"""Perturbed splits of a data list, and how systems fare on them.

    klassify perturb --list data_lists/demo/testA.tsv --root media/demo --out perturbed/demo
    klassify perturb exp/demo/klassify/maxout --list data_lists/demo/testA.tsv --root media/demo \\
        --features features/demo --out perturbed/demo --families mp3,h264,trim --clips 200

Each family of perturbations at each level (1 mild to 5 strong) is a split of its own:
<out>/lists/testA-mp3-3.tsv with its labels, and <out>/media/testA-mp3-3/. Every command takes it:

    klassify score SYSTEM --split testA-mp3-3 --lists perturbed/demo/lists \\
        --media perturbed/demo/media --features perturbed/demo/features

With systems: their features are extracted, every split is scored, and a table compares AUC, and
Score of localisers, with those of the clean clips, with intervals by bootstrap over sources:
<out>/robustness-<split>.tsv. The clean split must have been scored; --features names its features,
which serve every split whose picture is unchanged.

docs/perturbations.md lists the families. Media are the same for the same --seed, whatever the order
or number of clips. Repeat the command to make what is missing, which --status lists; families and
levels may be added later. --shard and --launcher slurm make shares of the media.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from klassify.arguments import at_least_0, at_least_1
from klassify.cluster.options import Options, add_launcher_arguments, launch_from, without
from klassify.cluster.record import Record
from klassify.cluster.submit import record_of, submitted
from klassify.cluster.work import PerturbWork
from klassify.errors import KlassifyError
from klassify.failures import read_failures
from klassify.features.base import n_cpus
from klassify.features.extract import parse_shard, status
from klassify.lists import data_list, subsets
from klassify.perturbation.families import FAMILIES, LEVELS, family_of
from klassify.perturbation.splits import Plan, make


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("systems", nargs="*", type=Path, metavar="SYSTEM_DIR", help="systems to score and compare")
    add("--list", required=True, type=Path, help="data list (TSV) of the clips")
    add(
        "--root",
        required=True,
        type=Path,
        help="folder of the split's media, or the folder above it",
    )
    add("--split", help="name of the split (default: that of the list, without _labels)")
    add("--out", required=True, type=Path, help="folder for lists, media, features and the table")
    add("--families", default="all", help="comma-separated (default: all that change the clips)")
    add("--levels", default="1,2,3,4,5", help="comma-separated (default: 1,2,3,4,5)")
    add("--clips", type=at_least_1, metavar="N", help="at most N clips, as whole sources")
    add("--features", type=Path, help="with systems: folder of the clean features")
    add("--device", default="auto", help="with systems: cpu, cuda, cuda:1 or auto (default)")
    add("--bootstrap", type=at_least_0, default=1000, help="resamples (default 1000)")
    add("--seed", type=at_least_0, default=0, help="random seed (default 0)")
    add("--jobs", type=at_least_1, help="processes (default: all CPUs)")
    add("--shard", metavar="I/N", help="make share I of N of the media, I from 1 (default: 1/1)")
    add("--status", action="store_true", help="list what is missing (exit status 1 if anything is)")
    add("--force", action="store_true", help="make these media again")
    add_launcher_arguments(parser)


def run(args: argparse.Namespace) -> int:
    plan = _plan(args)
    if submitted(launch_from(args), functools.partial(_on_cluster, args, plan)):
        return 0
    if args.status:
        missing = [
            status(plan.parts / str(step), len(plan.files), plan.settings(step), args.shard)
            for step in plan.steps
        ]
        return int(any(missing))
    if args.systems:
        _check(args, plan)
    root = subsets.media_folder(args.root, plan.split, plan.files)
    shard = parse_shard(args.shard or "1/1")
    if not make(plan, root, shard=shard, jobs=args.jobs or n_cpus(), force=args.force):
        print(f"{plan.parts}: shard {args.shard} is done; the last shard writes the lists")
        return 0
    failed = read_failures(plan.parts / "failures.tsv")
    told = f", {len(failed)} failures ({plan.parts / 'failures.tsv'})" if failed else ""
    print(f"{plan.lists}: {len(plan.steps)} splits of {len(plan.files)} clips{told}")
    if args.systems:
        _compare(args, plan)
    return 0


def _check(args: argparse.Namespace, plan: Plan) -> None:
    """KlassifyError for what would end the comparison after hours of work."""
    from klassify.evaluation.robustness import require_clean_scores
    from klassify.systems.system import load_systems

    subsets.label(plan.frame, "video")
    require_clean_scores(load_systems(args.systems), plan.split)


def _compare(args: argparse.Namespace, plan: Plan) -> None:
    """Score the systems on all splits; write and print the table."""
    from klassify.evaluation import robustness
    from klassify.evaluation.tables import write_table
    from klassify.systems.system import load_systems

    systems = load_systems(args.systems)
    features = args.out / "features"
    how = {"jobs": args.jobs or n_cpus(), "device": args.device}
    robustness.answer(systems, plan, features, clean_features=args.features, **how)
    table = robustness.measure(systems, plan, n_bootstrap=args.bootstrap)
    path = args.out / f"robustness-{plan.split}.tsv"
    write_table(path, table)
    print(robustness.describe(table))
    print(path)


def _plan(args: argparse.Namespace) -> Plan:
    levels = tuple(level for level in LEVELS if str(level) in args.levels.split(","))
    if set(map(str, levels)) != set(args.levels.split(",")):
        raise KlassifyError(f"--levels {args.levels!r} has other values than 1, 2, 3, 4 and 5.")
    frame = data_list.read_list(args.list, segments=True)
    families = _families(args, has_picture=not frame["n_frames"].eq(0).all())
    if args.clips:
        rows = subsets.sample_of_sources(subsets.sources_of(frame), args.clips)
        frame = frame.iloc[rows].reset_index(drop=True)
    split = args.split or args.list.stem.removesuffix("_labels")
    return Plan(args.out, split, frame, families, levels, args.seed)


def _families(args: argparse.Namespace, has_picture: bool) -> list[str]:
    """Those of --families; by default all, without those of the picture where no clip has one."""
    if args.families == "all":
        return [one.name for one in FAMILIES.values() if one.sound or has_picture]
    families = [family_of(name) for name in dict.fromkeys(args.families.split(","))]
    unchanged = [one.name for one in families if not (one.sound or has_picture)]
    if unchanged:
        what = f"{', '.join(unchanged)} would change nothing: no clip of this list has a picture."
        raise KlassifyError(what, where=args.list, fix="leave out these --families")
    return [one.name for one in families]


def _on_cluster(
    args: argparse.Namespace, plan: Plan, argv: list[str], options: Options
) -> list[Record]:
    """The shards as an array of tasks; systems are left for a command of its own."""
    if args.shard or args.status or args.systems:
        what = "--launcher slurm cannot be combined with --shard, --status or systems."
        raise KlassifyError(what, fix="leave them out; name the systems once the media are made")
    subsets.media_folder(args.root, plan.split, plan.files)
    for step in plan.steps:
        (plan.parts / str(step)).mkdir(parents=True, exist_ok=True)
    command = ["perturb", *without(argv, "--jobs")]  # which follows the CPUs of a task
    return [record_of(PerturbWork(plan.parts, options.shards), command, options)]
