"""Run a system on a split and write its score files.

    klassify score exp/demo/klassify/tcn --split val,testA \
        --lists data_lists/demo --media media/demo --features features/demo
    klassify score exp/demo/klassify/tcn --split testA --shard 3/8 ...

A trained detector writes `scores/<split>.windows.tsv` (kept, so that another aggregation is a cheap
re-run) and `scores/<split>.clips.tsv`, a localiser `scores/<split>.frames.parquet` and the highest
of each clip's frames as its clip score (`--aggregate top`: the mean of the highest tenth), on the
scale of the frames; a calibrated or fused system derives its scores from those of its inputs. Every
clip of the list gets exactly one row; one that cannot be scored has an empty score with the reason,
and stands in `scores/<split>.failures.tsv` too.

A list is scored in chunks, each of which is kept in `scores/<split>.parts/` once it is done: the
same command goes on where it was ended. `--shard i/n` (from 1) does a share of the chunks, for a
cluster. Whoever does the last chunk joins all of them into the files that one process would have
written.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from klassify import datalist, derived, systems
from klassify.arguments import at_least_0, at_least_1
from klassify.errors import KlassifyError
from klassify.files import file_hash
from klassify.launch import Options, Record, add_launcher_arguments, record_of, submitted
from klassify.launch.work import ScoreWork
from klassify.scorefile import Header, score_path
from klassify.scoring.score_parts import Layout, Parts, parts_folder


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `klassify score`."""
    parser.add_argument(
        "systems", nargs="+", type=Path, metavar="SYSTEM_DIR", help="folders with a system.yaml"
    )
    parser.add_argument(
        "--split", required=True, help="splits or named subsets, with commas between"
    )
    parser.add_argument(
        "--lists", type=Path, help="folder of the data lists, such as data_lists/demo"
    )
    parser.add_argument("--media", type=Path, help="folder of the media, one folder a split")
    parser.add_argument(
        "--features", type=Path, help="folder of the features, such as features/demo"
    )
    parser.add_argument(
        "--aggregate", help="window or frame scores -> clip score (default: the system's own)"
    )
    parser.add_argument(
        "--batch-size", type=at_least_1, default=16, help="windows a forward pass (default 16)"
    )
    parser.add_argument(
        "--workers", type=at_least_0, default=0, help="processes that read inputs (default 0: none)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default)")
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="faster: run the audio front end once over each clip",
    )
    parser.add_argument(
        "--shard", metavar="I/N", help="score share I of N of the clips, I from 1 (default: 1/1)"
    )
    parser.add_argument(
        "--force", action="store_true", help="score again, whatever made the scores that are there"
    )
    add_launcher_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run `klassify score`."""
    if submitted(args, functools.partial(_on_cluster, args)):
        args.systems = [
            folder for folder in args.systems if systems.load_system(folder).kind != "model"
        ]
        if args.dry_run or not args.wait or not args.systems:
            return 0
    from klassify.extract import parse_shard

    i, n = parse_shard(args.shard or "1/1")
    loaded = [systems.load_system(folder) for folder in args.systems]
    for folder, system in zip(args.systems, loaded):
        if n > 1 and system.kind != "model":
            what = f"{system.name} is derived from other systems in one go, not in shards."
            raise KlassifyError(
                what, where=folder, fix="leave out --shard, once its inputs are scored"
            )
    for folder, system in zip(args.systems, loaded):
        for split in args.split.split(","):
            print(
                _score_model(folder, system, split, (i, n), args)
                if system.kind == "model"
                else _derive(folder, split, force=args.force)
            )
    return 0


def _on_cluster(args: argparse.Namespace, argv: list[str], options: Options) -> list[Record]:
    """Each trained system on each split as an array of tasks; derived ones are left for
    afterwards.
    """
    if args.shard:
        raise KlassifyError("--shard goes without --launcher slurm.")
    _check_sources(args)
    kinds = {folder: systems.load_system(folder).kind for folder in args.systems}
    models = [folder for folder, kind in kinds.items() if kind == "model"]
    if len(models) < len(kinds) and not args.wait:
        other = next(folder for folder, kind in kinds.items() if kind != "model")
        raise KlassifyError(
            f"{other.name} is made of the scores of others, which takes no cluster.",
            where=other,
            fix="score it here when those are done, or give --wait",
        )
    named = set(args.systems)
    rest = _without(argv, named, "--split")
    records = []
    for folder in models:
        for split in args.split.split(","):
            if n := _chunks_to_score(folder, split, args):
                shards = options.changed(shards=min(options.shards, n))
                command = ["score", str(folder), *rest, "--split", split]
                records.append(record_of(ScoreWork(folder, shards.shards, split), command, shards))
    return records


def _chunks_to_score(folder: Path, split: str, args: argparse.Namespace) -> int:
    """Into how many chunks the split is cut, or 0 where its scores are there, which then only get
    their clip scores.

    Scores made with other settings are refused, unless --force replaces them.
    """
    from klassify.scoring import score_shards

    parts, sources = _planned(folder, systems.load_system(folder), split, args)
    if args.force or args.dry_run or not score_shards.is_done(parts):
        return parts.layout.n_chunks
    print(_clip_scores(folder, parts, sources))
    return 0


def _without(argv: Sequence[str], folders: set[Path], option: str) -> list[str]:
    """Arguments without these folders, however they are written, and without one option and its
    value.
    """
    kept, skip = [], False
    for at, word in enumerate(argv):
        if skip:
            skip = False
        elif word == option:
            skip = True
        elif not word.startswith(f"{option}=") and not (
            Path(word) in folders and not _is_value(argv, at)
        ):
            kept.append(word)
    return kept


def _is_value(argv: Sequence[str], at: int) -> bool:
    """Whether the word belongs to the option before it: of those of `score`, only --lists and
    the like take paths.
    """
    return at > 0 and argv[at - 1] in ("--lists", "--media", "--features")


def _derive(folder: Path, split: str, *, force: bool) -> str:
    """Derive scores from those of other systems; returns what to say."""
    scores = derived.derive_scores(folder, split, force=force)
    return _said(score_path(folder, split, "clips"), int((~systems.answered(scores)).sum()))


def _said(path: Path, n_unanswered: int) -> str:
    return f"{path}{f', {n_unanswered} clips without an answer' if n_unanswered else ''}"


def _score_model(
    folder: Path,
    system: systems.System,
    split: str,
    shard: tuple[int, int],
    args: argparse.Namespace,
) -> str:
    """Score a share of a split with a trained model; returns what to say: which file is there,
    or what it lacks.
    """
    from klassify.scoring import score_shards

    parts, sources = _planned(folder, system, split, args)
    if not score_shards.is_done(parts, force=args.force):
        model, data = systems.load_model(folder)
        how = {
            name: getattr(args, name) for name in ("batch_size", "workers", "device", "approximate")
        }
        score_shards.score_share(parts, model, data, sources, *shard, **how)
        if not score_shards.finish(parts):
            i, n = shard
            return (
                f"{parts.folder}: shard {i}/{n} is done, {score_shards.missing_text(parts, n)}. Who"
                f" does the last one joins them; so does `klassify merge {folder} --split {split}`"
            )
    return _clip_scores(folder, parts, sources)


def _clip_scores(folder: Path, parts: Parts, sources: Any) -> str:
    """Write the clip scores of what is scored, if there are none of this aggregation; returns
    what to say.
    """
    from klassify.scoring import clip_scores

    reasons = clip_scores.read_failures(folder, parts.header.split)
    path = score_path(folder, parts.header.split, parts.header.kind)
    if parts.aggregate is not None:
        clips = clip_scores.keep_or_write(folder, parts.header, sources, reasons, parts.aggregate)
        path = clips if parts.header.kind == "windows" else path
    return _said(path, len(reasons))


def _check_scored(folder: Path, system: systems.System) -> None:
    if system.scale == "none":
        raise KlassifyError(
            f"{system.name} has no scores: other systems use what it makes.", where=folder
        )


def _check_sources(args: argparse.Namespace) -> None:
    if not (args.lists and args.media and args.features):
        raise KlassifyError(
            "Give --lists, --media and --features: a model is scored from its inputs."
        )


def _planned(
    folder: Path, system: systems.System, split: str, args: argparse.Namespace
) -> tuple[Parts, Any]:
    """What is to be scored and the Sources of it, before anything of the model's size is made or
    read.
    """
    _check_scored(folder, system)
    _check_sources(args)
    import torch

    from klassify.clip_data import Sources
    from klassify.experiment import load_experiment

    sources = Sources(args.lists, args.media, args.features)
    with torch.device("meta"):
        data = load_experiment(folder / systems.CONFIG).data
    return _parts(folder, system, split, data, sources, args), sources


def _parts(
    folder: Path,
    system: systems.System,
    split: str,
    data: Any,
    sources: Any,
    args: argparse.Namespace,
) -> Parts:
    """What is to be scored, in chunks, and what the scores depend on."""
    from klassify.scoring.clip_scores import check_how

    kind = "frames" if data.unit == "frame" else "windows"
    default = data.aggregate if kind == "windows" else "max" if hasattr(data, "aggregate") else None
    settings = {
        "system": systems.system_hash(folder),
        "list": file_hash(datalist.existing_list(sources.lists, split)),
        **data.settings(sources, split),
        **({"approximate": True} if args.approximate else {}),
    }
    if args.aggregate:
        check_how(kind, args.aggregate)
    header = Header(system.name, split, kind, system.scale, system.supervision, settings)
    layout = Layout.of(sources.table(split)["duration"].to_numpy(float))
    return Parts(
        parts_folder(folder, split), header, layout, default and (args.aggregate or default)
    )
