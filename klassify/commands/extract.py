"""Media -> features of one kind, in shards (stage 1).

    klassify extract --list data_lists/demo/train.tsv --root media/demo/train \\
        --out features/demo/mouth/train
    klassify extract --list ... --root ... --out features/demo/mouth/train \\
        --lips features/demo/lips/train
    klassify extract --kind audio --list ... --root ... --out features/demo/audio/train
    klassify extract --kind lmm --lmm llava-hf/llava-1.5-7b-hf --list ... --root ... \\
        --out features/demo/lmm/train
    klassify extract --kind reconstruction --vqvae exp/demo/multibranch/vqvae --list ... \\
        --root ... --out ...
    klassify extract --kind embedding --system exp/demo/fused/audio_frames --list ... --root ... \\
        --out features/demo/embedding-audio_frames/train

`--landmarks torch` runs Face Mesh's networks in torch, for `--batch` clips at a time in each of the
`--jobs` processes, on a GPU if there is one. Landmarks equal MediaPipe's to a fraction of a pixel;
shards of both kinds do not mix.

Every clip of the list gets one row; a row without features has a reason, which
failures-<i>-of-<n>.tsv repeats. `--shard i/n` (from 1) extracts every n-th clip of the list,
starting with the i-th; to merge shards of separate runs, put them into one folder. A part that
exists is complete. To resume an interrupted run, repeat the command; it ends with the same files.
`--status` lists what is missing and changes nothing.

`--lips` makes mouth features and mouth crops in one pass: the same files as `--kind mouth` and
`--kind lips`, in little more than half the time, because the face is tracked only once.

`--kind audio` (or `--audio`) decodes each clip once to 16 kHz mono, 32 kB per second. Training and
scoring then read features/<data>/audio/<split> instead of decoding, with identical results. The
environment variable KLASSIFY_AUDIO overrides this: `media` never reads the cache, `cache` reads
nothing else.

Damaged packets are concealed and reported if they are at most 10 % of a stream, or the share in the
environment variable KLASSIFY_DAMAGE; `--strict` refuses any damage.
"""

from __future__ import annotations

import argparse
import collections
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from klassify.arguments import at_least_1
from klassify.cluster.options import Options, add_launcher_arguments, launch_from, without
from klassify.cluster.record import Record
from klassify.cluster.submit import record_of, submitted
from klassify.cluster.work import ExtractWork
from klassify.errors import KlassifyError
from klassify.failures import read_failures
from klassify.features import lips
from klassify.features.base import Extraction
from klassify.features.extract import (
    Shard,
    extract,
    extract_together,
    extraction_settings,
    parse_shard,
    parts_there,
    status,
)
from klassify.features.kinds import KINDS
from klassify.features.mouth.face import TORCH
from klassify.files import check_output
from klassify.lists import data_list, subsets
from klassify.media.flow import refusing_damage

# modules that make kinds of features from others; they load torch
FROM_FEATURES = {
    "embedding": "klassify.systems.embeddings",
    "avhubert": "klassify.features.avhubert_extraction",
}


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--kind", choices=KINDS, default="mouth", help="kind of features (default: %(default)s)"
    )
    same = "the same as --kind audio: the audio cache, 340 GB for 1.1 million clips"
    kinds.add_argument("--audio", dest="kind", action="store_const", const="audio", help=same)
    add("--list", required=True, type=Path, help="data list (TSV) of the clips")
    add(
        "--root",
        required=True,
        type=Path,
        help="folder of the split's media, or the folder above it",
    )
    add("--out", required=True, type=Path, help="folder for the shards")
    add("--lips", type=Path, metavar="DIR", help="with --kind mouth: also write mouth crops to DIR")
    add("--jobs", type=at_least_1, help="processes, or threads of a model (default: all CPUs)")
    add("--shard", metavar="I/N", help="extract part I of N of the list, I from 1 (default: 1/1)")
    chunks = ", ".join(f"{kind.clips_per_file} for {name}" for name, kind in KINDS.items())
    add("--chunk", type=at_least_1, help=f"clips per file (default: {chunks})")
    add("--status", action="store_true", help="list what is missing (exit status 1 if anything is)")
    add(
        "--strict",
        action="store_true",
        help="refuse any damage; exit with 1 if a clip has no features",
    )
    add("--force", action="store_true", help="replace this shard")
    for names, options in _own_options().items():
        group = parser.add_argument_group(f"--kind {names}")
        for option, about in options.items():
            group.add_argument(option, **about, default=argparse.SUPPRESS)
    add_launcher_arguments(parser)


def _own_options() -> dict[str, dict[str, Mapping[str, Any]]]:
    """{kinds: {option: what argparse wants to know}} of the options that belong to some kinds."""
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    options = {option: about for kind in KINDS.values() for option, about in kind.arguments.items()}
    for option, about in options.items():
        names = " and ".join(name for name, kind in KINDS.items() if option in kind.arguments)
        groups.setdefault(names, {})[option] = about
    return groups


def _extraction(
    args: argparse.Namespace,
    kind: str = "",
    make: Callable[..., Extraction] | None = None,
    **changed: Any,
) -> Extraction:
    """The extraction that the arguments ask for; one of another kind's is refused.

    kind: instead of that of the arguments, and `make` instead of what makes it.
    """
    given: dict[str, Any] = {}
    for names, options in _own_options().items():
        for option in options:
            name = option.lstrip("-").replace("-", "_")
            if hasattr(args, name) and option not in KINDS[args.kind].arguments:
                what = f"{option} belongs to --kind {names}, not to --kind {args.kind}."
                raise KlassifyError(what)
            if hasattr(args, name):
                given[name] = getattr(args, name)
    make = make or KINDS[kind or args.kind].extraction
    if make is None:
        module = importlib.import_module(FROM_FEATURES[args.kind])
        make = functools.partial(module.extraction, args.list)
    return make(**(given | changed), jobs=args.jobs)


def run(args: argparse.Namespace) -> int:
    """Run `klassify extract`; 0 done, 1 failures under --strict or parts missing under --status."""
    with refusing_damage(args.strict):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    if args.lips and args.kind != "mouth":
        raise KlassifyError(f"--lips belongs to --kind mouth, not to --kind {args.kind}.")
    chunk = args.chunk or KINDS[args.kind].clips_per_file
    if submitted(launch_from(args), functools.partial(_on_cluster, args, chunk)):
        knows = args.strict and args.wait and not args.dry_run
        return int(knows and bool(read_failures(ExtractWork(args.out, 1).failures)))
    outs = {args.kind: args.out} | ({"lips": args.lips} if args.lips else {})
    files = data_list.read_list(args.list)["file"].tolist()
    made_by = [_extraction(args, kind) for kind in outs]
    settings = [
        extraction_settings(made, files, args.chunk or KINDS[made.kind].clips_per_file)
        for made in made_by
    ]
    if args.status:
        told = zip(outs.values(), settings)
        return max(status(out, len(files), own, args.shard) for out, own in told)
    for out in outs.values():
        check_output(out)
    i, n = parse_shard(args.shard or "1/1")
    shards = [Shard(out, i, n, files[i - 1 :: n], own) for out, own in zip(outs.values(), settings)]
    media = subsets.media_folder(args.root, args.list.stem, files)
    if args.lips:
        both = _extraction(args, make=lips.both_extraction)
        rows = extract_together(shards, media, made_by, both, force=args.force)
    else:
        rows = [extract(shards[0], media, made_by[0], force=args.force)]
    failures = [_tell(shard, found) for shard, found in zip(shards, rows)]
    return int(any(failures) and args.strict)


def _tell(shard: Shard, rows: Sequence[Mapping[str, str]]) -> int:
    """Say what a shard holds; the number of clips without features."""
    failed = [row for row in rows if row["reason"]]
    said = f"{shard.out}: shard {shard.i}/{shard.n} has {len(rows)} clips,"
    said += f" {len(failed)} without features"
    if failed:
        stages = sorted(collections.Counter(row["stage"] for row in failed).items())
        counts = ", ".join(f"{count} {stage}" for stage, count in stages)
        said += f" ({counts}; {shard.failures_path})"
    print(said)
    if shard.settings.get("untrained"):
        made = f"made with random weights ({shard.settings['lmm']})"
        print(f"{shard.out}: {made}: these features mean nothing")
    return len(failed)


def _on_cluster(
    args: argparse.Namespace, chunk: int, argv: list[str], options: Options
) -> list[Record]:
    """The shards as an array of tasks. What every task would trip over is found here."""
    if args.shard or args.status or args.lips:
        raise KlassifyError("--shard, --status and --lips go without --launcher slurm.")
    files = data_list.read_list(args.list)["file"].tolist()
    device = _device_of_a_task(args, options)
    settings = extraction_settings(_extraction(args, **device), files, chunk)
    if not args.force:
        parts_there(args.out, settings, options.shards)
    subsets.media_folder(args.root, args.list.stem, files)
    command = ["extract", *without(argv, "--jobs")]  # which follows the CPUs of a task
    return [record_of(ExtractWork(args.out, options.shards), command, options)]


def _device_of_a_task(args: argparse.Namespace, options: Options) -> dict[str, Any]:
    """{"device": cuda or cpu}, what a node has and the machine that submits may not; {} where torch
    runs no model.
    """
    arguments = KINDS[args.kind].arguments
    by_mediapipe = "--landmarks" in arguments and getattr(args, "landmarks", None) != TORCH
    if "--device" not in arguments or by_mediapipe:
        return {}
    import torch

    wanted = getattr(args, "device", "auto")
    if wanted == "auto":
        wanted = "cuda" if options.asks_for_gpus else "cpu"
    device = wanted.partition(":")[0]
    if device not in ("cuda", "cpu"):
        raise KlassifyError(
            f"A task on a cluster has no device {wanted!r}.", fix="--device auto, cpu or cuda"
        )
    return {"device": torch.device(device)}
