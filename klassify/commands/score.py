"""Run a system on a split and write its score files.

    klassify score exp/demo/klassify/tcn --split val,testA \\
        --lists data_lists/demo --media media/demo --features features/demo
    klassify score exp/demo/klassify/tcn --split testA --shard 3/8 ...

A trained detector writes `scores/<split>.windows.tsv` (kept, so that other pooling is a cheap
re-run) and `scores/<split>.clips.tsv`. A localiser writes `scores/<split>.frames.parquet`, and as
clip score the highest of its frames (`--aggregate top`: the mean of the highest tenth), on the
scale of the frames. A calibrated or fused system computes its scores from those of its inputs.
Every clip of the list gets exactly one row; a clip that cannot be scored has an empty score and a
reason, and is also listed in `scores/<split>.failures.tsv`.

A list is scored in chunks, which are kept in `scores/<split>.parts/` as they are done, so that an
interrupted command resumes. `--shard i/n` (from 1) scores a share of the chunks, for a cluster. The
process that finishes the last chunk merges all of them into the files that one process would have
written.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from klassify.arguments import add_precision, at_least_0, at_least_1
from klassify.cluster.options import Options, add_launcher_arguments, launch_from, without
from klassify.cluster.record import Record
from klassify.cluster.submit import record_of, submitted
from klassify.cluster.work import ScoreWork
from klassify.errors import KlassifyError
from klassify.systems.base import System
from klassify.systems.score import keep_clip_scores, plan, score, sources_of
from klassify.systems.system import load_systems
from klassify.systems.trained import Trained

SETTLED = ("aggregate", "approximate", "precision")  # what scores depend on


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("systems", nargs="+", type=Path, metavar="SYSTEM_DIR", help="folders with a system.yaml")
    add("--split", required=True, help="splits or named subsets, comma-separated")
    add("--lists", type=Path, help="folder of the data lists, such as data_lists/demo")
    add("--media", type=Path, help="folder of the media, with one folder per split")
    add("--features", type=Path, help="folder of the features, such as features/demo")
    add(
        "--aggregate",
        help="clip score: max, mean, topk, logit-mean or noisy-or of windows, max or top of frames"
        " (default: the system's)",
    )
    add("--batch-size", type=at_least_1, default=16, help="windows per forward pass (default 16)")
    add(
        "--workers", type=at_least_0, default=0, help="processes that read inputs (default 0: none)"
    )
    add("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default)")
    add_precision(parser)
    add(
        "--approximate", action="store_true", help="faster: one run of the audio front end per clip"
    )
    add("--shard", metavar="I/N", help="score share I of N of the clips, I from 1 (default: 1/1)")
    add("--force", action="store_true", help="replace existing scores")
    add_launcher_arguments(parser)


def run(args: argparse.Namespace) -> int:
    systems = load_systems(args.systems)
    if submitted(launch_from(args), functools.partial(_on_cluster, args, systems)):
        systems = [system for system in systems if not isinstance(system, Trained)]
        if args.dry_run or not args.wait or not systems:
            return 0
    from klassify.features.extract import parse_shard

    i, n = parse_shard(args.shard or "1/1")
    for system in systems:
        if n > 1 and not isinstance(system, Trained):
            what = f"{system.name} is derived from other systems in one go, not in shards."
            raise KlassifyError(
                what, where=system.folder, fix="leave out --shard, once its inputs are scored"
            )
    how = {
        name: getattr(args, name) for name in (*SETTLED, "batch_size", "workers", "device", "force")
    }
    sources = sources_of(args.lists, args.media, args.features)
    for system in systems:
        for split in args.split.split(","):
            print(score(system, split, sources, shard=(i, n), **how))
    return 0


def _on_cluster(
    args: argparse.Namespace, systems: Sequence[System], argv: list[str], options: Options
) -> list[Record]:
    """Each trained system on each split as an array; derived ones are left for afterwards."""
    if args.shard:
        raise KlassifyError("--shard goes without --launcher slurm.")
    models = [system for system in systems if isinstance(system, Trained)]
    if len(models) < len(systems) and not args.wait:
        other = next(system for system in systems if not isinstance(system, Trained))
        raise KlassifyError(
            f"{other.folder.name} is made of the scores of others, which takes no cluster.",
            where=other.folder,
            fix="score it here when those are done, or give --wait",
        )
    words = without(argv, "--split")
    # without the systems, however written; only these options take folders
    of_option = ("--lists", "--media", "--features")
    rest = [
        word
        for before, word in zip(["", *words], words)
        if before in of_option or Path(word) not in args.systems
    ]
    records = []
    for model in models:
        for split in args.split.split(","):
            if n := _chunks_to_score(model, split, args):
                shards = options.changed(shards=min(options.shards, n))
                command = ["score", str(model.folder), *rest, "--split", split]
                work = ScoreWork(model.folder, shards.shards, split)
                records.append(record_of(work, command, shards))
    return records


def _chunks_to_score(system: Trained, split: str, args: argparse.Namespace) -> int:
    """Into how many chunks the split is cut, or 0 where its scores are there, which then only get
    their clip scores.

    Scores made with other settings are refused, unless --force replaces them.
    """
    from klassify.scores.shards import is_done

    sources = sources_of(args.lists, args.media, args.features)
    parts = plan(system, split, sources, **{name: getattr(args, name) for name in SETTLED})
    if args.force or args.dry_run or not is_done(parts):
        return parts.layout.n_chunks
    print(keep_clip_scores(system, parts, sources))
    return 0
