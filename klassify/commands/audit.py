"""Look for shortcuts: does the content of clips tell real from fake without any model?

    klassify audit data_lists/demo/val.tsv --root media/demo --out exp/demo/audit
    klassify extract --kind content --list data_lists/demo/val.tsv --root media/demo \\
        --out features/demo/content/val
    klassify audit data_lists/demo/val.tsv --features features/demo --out exp/demo/audit

The properties of each clip are silence at both ends, noise floor, loudness, bandwidth, offset,
clipping, repeated and frozen pictures, jumps of sound and picture, length, size, rates and codecs.
Each of them, and a random forest on all, is measured as a detector: AUC in the better direction,
its interval (bootstrap over sources), and what chance gives (labels permuted). Above chance and
above 0.6 it is a shortcut, and a warning names what removes it from training.

--systems also measures systems that have scored the list: their AUC before and after 200 ms are cut
from both ends, the loudness is normalised, and clips are encoded again (with --trim, only the
first). A system that relies on a shortcut gets worse.

    klassify audit data_lists/demo/val.tsv --root media/demo --features features/demo \\
        --out exp/demo/audit --systems exp/demo/klassify/maxout

At most --clips clips, as whole sources, are decoded, in worker processes; a clip that cannot be
decoded is left out and counted. To resume an interrupted audit, repeat the command. Features in
--features are not extracted again: the kind content, and for --systems the kinds that they read.

Writes <out>/<split>.json, .tsv and .txt. `klassify compare` and `klassify check` read
exp/<data>/audit and repeat the warnings.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from klassify.arguments import at_least_0, at_least_1
from klassify.errors import KlassifyError
from klassify.evaluation import leaks, shortcuts
from klassify.features import content
from klassify.features.base import n_cpus
from klassify.features.extract import Shard, extract, extraction_settings
from klassify.features.shards import FeatureStore
from klassify.lists import data_list, subsets
from klassify.perturbation.splits import Plan, make
from klassify.systems.base import System
from klassify.systems.system import load_systems


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("list", type=Path, help="data list with labels")
    add("--root", type=Path, metavar="DIR", help="folder of the media")
    add("--features", type=Path, metavar="DIR", help="folder of feature shards")
    add(
        "--systems",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of systems to measure on changed media (need --root)",
    )
    add(
        "--trim",
        action="store_true",
        help="with --systems: only cut the ends, the fastest of the changes",
    )
    add(
        "--device",
        default="auto",
        help="device of the systems: cpu, cuda, cuda:1 or auto (default)",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    add(
        "--clips",
        type=at_least_1,
        default=leaks.MOST_OPENED,
        help="clips to look at (default: %(default)s)",
    )
    add("--jobs", type=at_least_1, help="processes (default: all CPUs)")
    add("--bootstrap", type=at_least_0, default=200, help="resamples for intervals (default 200)")
    add(
        "--permutations",
        type=at_least_1,
        default=200,
        help="permutations of the labels (default 200)",
    )


def run(args: argparse.Namespace) -> int:
    frame = data_list.read_list(args.list, segments=True)
    split = args.list.stem.removesuffix("_labels")
    shortcuts.labels_of(split, frame)  # what lacks them is refused before clips are decoded
    systems = _systems(args, split)
    chosen = subsets.sample_of_sources(subsets.sources_of(frame), args.clips)
    frame = frame.iloc[chosen].reset_index(drop=True)
    files = frame["file"].tolist()
    store = _content(args, split, files)
    found = shortcuts.audit(
        split,
        frame,
        [store[file].traits if file not in store.reasons else {} for file in files],
        n_bootstrap=args.bootstrap,
        n_permuted=args.permutations,
    )
    if systems:
        found = dataclasses.replace(found, systems=_on_changed_media(args, split, systems, frame))
    shortcuts.write(args.out, found)
    print(shortcuts.describe(found))
    for text in found.warnings:
        print(f"warning: shortcut: {text}", file=sys.stderr)
    return 0


def _systems(args: argparse.Namespace, split: str) -> list[System]:
    """The systems to measure; they must have scores of the split."""
    if not args.systems:
        return []
    if not args.root:
        raise KlassifyError("--systems changes the media of the clips.", fix="give --root")
    from klassify.evaluation.robustness import require_clean_scores

    systems = load_systems(args.systems)
    require_clean_scores(systems, split)
    return systems


def _content(args: argparse.Namespace, split: str, files: Sequence[str]) -> FeatureStore:
    """The content of the clips: from --features, else extracted where it is missing."""
    kind = content.KIND.name
    if args.features and (args.features / kind / split).is_dir():
        return FeatureStore(args.features / kind / split)
    if not args.root:
        raise KlassifyError(
            f"There are no features of the kind {kind} of {split}.",
            where=args.features,
            fix="give --root, the folder of the media",
        )
    made_by = content.extraction(jobs=args.jobs)
    settings = extraction_settings(made_by, files, content.KIND.clips_per_file)
    shard = Shard(args.out / kind / split, 1, 1, files, settings)
    extract(shard, subsets.media_folder(args.root, split, files), made_by)
    return FeatureStore(shard.out)


def _on_changed_media(
    args: argparse.Namespace, split: str, systems: Sequence[System], frame: pd.DataFrame
) -> pd.DataFrame:
    """The systems before and after changes of the media, which are kept in <out>/changed."""
    from klassify.evaluation import robustness

    changes = ["trim"] if args.trim else list(shortcuts.CHANGES)
    levels = (shortcuts.CHANGE_LEVEL,)
    plan = Plan(args.out / "changed", split, frame, changes, levels)
    jobs = args.jobs or n_cpus()
    make(plan, subsets.media_folder(args.root, split, plan.files), jobs=jobs)
    how = {"clean_features": args.features, "jobs": jobs, "device": args.device}
    robustness.answer(systems, plan, plan.out / "features", **how)
    table = robustness.measure(systems, plan, n_bootstrap=args.bootstrap)
    return shortcuts.on_changed_media(table)
