"""Look for shortcuts: does the content of clips tell real from fake without any model?

    klassify audit data_lists/demo/val.tsv --root media/demo --out exp/demo/audit
    klassify extract --kind content --list data_lists/demo/val.tsv --root media/demo \\
        --out features/demo/content/val
    klassify audit data_lists/demo/val.tsv --features features/demo --out exp/demo/audit

Of every clip: silence at both ends, noise floor, loudness, bandwidth, offset, clipping, repeated
and frozen pictures, jumps of sound and picture, length, size, rates and codecs. Each alone, and a
random forest on all of them, is measured as a detector: AUC in the better direction, its interval
(bootstrap over sources), and what chance gives (labels permuted). Above chance and above 0.6 it is
a shortcut, and a warning names what removes it from training.

--detector also measures a recipe: the AUC of its Task 1 before and after 200 ms are cut from both
ends, the loudness is normalised, and the clips are encoded again. What rests on a shortcut falls.

    klassify audit data_lists/demo/val.tsv --root media/demo --out exp/demo/audit \\
        --detector exp/demo/klassify

At most --clips clips, whole sources of them, are decoded, in worker processes; a clip that cannot
be decoded is left out and counted. An interrupted audit, repeated, continues. --features reads what
`klassify extract --kind content` made, for instance on a cluster, and decodes nothing.

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
from klassify.features.extract import Shard, extract, extraction_settings
from klassify.features.shards import FeatureStore
from klassify.files import short_names
from klassify.lists import data_list, subsets
from klassify.systems.detector import DetectorFile, read_detector


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("list", type=Path, help="data list with labels")
    media = parser.add_mutually_exclusive_group(required=True)
    media.add_argument("--root", type=Path, metavar="DIR", help="folder of the media")
    media.add_argument(
        "--features", type=Path, metavar="DIR", help="folder of the feature shards, kind content"
    )
    add(
        "--detector",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of recipes to measure on changed media (need --root)",
    )
    add("--device", default="auto", help="of the detectors: cpu, cuda, cuda:1 or auto (default)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    add(
        "--clips",
        type=at_least_1,
        default=leaks.MOST_OPENED,
        help="clips to look at (default: %(default)s)",
    )
    add("--jobs", type=at_least_1, help="processes (default: all CPUs)")
    add("--bootstrap", type=at_least_0, default=200, help="resamples for intervals (default 200)")
    add("--permutations", type=at_least_1, default=200, help="of the labels (default 200)")


def run(args: argparse.Namespace) -> int:
    """Run `klassify audit`."""
    if args.detector and not args.root:
        raise KlassifyError("--detector changes the media of clips.", fix="give --root")
    detectors = [read_detector(folder) for folder in args.detector]
    frame = data_list.read_list(args.list, segments=True)
    split = args.list.stem.removesuffix("_labels")
    chosen = subsets.sample_of_sources(subsets.sources_of(frame), args.clips)
    frame = frame.iloc[chosen].reset_index(drop=True)
    files = frame["file"].tolist()
    if args.features:
        store = FeatureStore(args.features / content.KIND.name / split)
        if store.row_class is not content.ContentRow:
            raise KlassifyError("These are not shards of the kind content.", where=store.folder)
    else:
        store = _extracted(args.out, split, files, args.root, args.jobs)
    found = shortcuts.audit(
        split,
        frame,
        [store[file].traits if file not in store.reasons else {} for file in files],
        n_bootstrap=args.bootstrap,
        n_permuted=args.permutations,
    )
    if detectors:
        found = dataclasses.replace(found, systems=_systems(args, split, detectors, frame))
    shortcuts.write(args.out, found)
    print(shortcuts.describe(found))
    for text in found.warnings:
        print(f"warning: shortcut: {text}", file=sys.stderr)
    return 0


def _systems(
    args: argparse.Namespace, split: str, detectors: Sequence[DetectorFile], frame: pd.DataFrame
) -> pd.DataFrame:
    """The detectors before and after changes of the media."""
    from klassify.prediction.changed import measure

    root = subsets.media_folder(args.root, split, frame["file"].tolist())
    how = {"device": args.device, "jobs": args.jobs, "n_bootstrap": args.bootstrap}
    tables = []
    for detector, name in zip(detectors, short_names([one.folder for one in detectors])):
        out = args.out / "answers" / split / name
        tables.append(measure(detector, name, frame, root, out, **how))
    return pd.concat(tables, ignore_index=True)


def _extracted(
    out: Path, split: str, files: Sequence[str], root: Path, jobs: int | None
) -> FeatureStore:
    """The content of the clips, extracted where it is missing."""
    made_by = content.extraction(jobs=jobs)
    settings = extraction_settings(made_by, files, content.KIND.clips_per_file)
    shard = Shard(out / content.KIND.name / split, 1, 1, files, settings)
    extract(shard, subsets.media_folder(root, split, files), made_by)
    return FeatureStore(shard.out)
