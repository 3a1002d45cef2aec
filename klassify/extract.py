"""Media -> features of one kind, in shards (stage 1).

    klassify extract --list data_lists/demo/train.tsv --root media/demo/train \\
        --out features/demo/mouth/train
    klassify extract --kind audio --list ... --root ... --out features/demo/audio/train
    klassify extract --kind lmm --lmm llava-hf/llava-1.5-7b-hf --list ... --root ... \\
        --out features/demo/lmm/train
    klassify extract --kind reconstruction --vqvae exp/demo/multibranch/vqvae --list ... \\
        --root ... --out ...

Every clip of the list gets one row, those without features with the reason, which
failures-<i>-of-<n>.tsv repeats. `--shard i/n` (from 1) does every n-th clip of the list from the
i-th on; shards of separate runs merge by lying in one folder. A part that exists is whole: a run
that was ended anywhere, repeated, does what is missing and ends with the same files. `--status`
lists what is missing and changes nothing.

`--kind audio` (or `--audio`) decodes each clip once to 16 kHz mono, 32 kB a second of it. Training
and scoring take what they find in features/<data>/audio/<split> instead of decoding, with the same
results to the bit; the environment variable KLASSIFY_AUDIO says otherwise: `media` (never the
cache) or `cache` (nothing else).
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import hashlib
import itertools
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from klassify import datalist, store, systems, workers
from klassify.arguments import at_least_1
from klassify.errors import KlassifyError, first_few
from klassify.extract_kinds import CHUNKS, Extraction, Numbered, add_arguments, extraction
from klassify.files import TEMPORARY, already_done, write_text
from klassify.launch import Options, Record, add_launcher_arguments, record_of, submitted
from klassify.launch.options import without
from klassify.launch.work import ExtractWork
from klassify.store import PartHeader, Place

STALE_S = 3600.0  # a temporary file lives for seconds


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `klassify extract`."""
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--kind", choices=CHUNKS, default="mouth", help="kind of features (default: %(default)s)"
    )
    same = "the same as --kind audio: the audio cache, 32 kB a second, 340 GB for 1.1 million clips"
    kinds.add_argument("--audio", dest="kind", action="store_const", const="audio", help=same)
    parser.add_argument("--list", required=True, type=Path, help="data list (TSV) of the clips")
    parser.add_argument(
        "--root", required=True, type=Path, help="folder of the media, or the one above the splits"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the shards")
    parser.add_argument(
        "--jobs",
        type=at_least_1,
        help="worker processes; threads for a model on the CPU (default: all CPUs)",
    )
    parser.add_argument(
        "--shard", metavar="I/N", help="do part I of N of the list, I from 1 (default: 1/1)"
    )
    chunks = ", ".join(f"{chunk} for {kind}" for kind, chunk in CHUNKS.items())
    parser.add_argument("--chunk", type=at_least_1, help=f"clips a file (default: {chunks})")
    parser.add_argument(
        "--status", action="store_true", help="say what is missing (exit 1 if anything is)"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 if a clip has no features")
    parser.add_argument("--force", action="store_true", help="redo this shard, whatever is there")
    add_arguments(parser)
    add_launcher_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run `klassify extract`; 0 done, 1 failures under --strict or parts missing under --status."""
    chunk = CHUNKS[args.kind] if args.chunk is None else args.chunk
    if submitted(args, functools.partial(_on_cluster, args, chunk)):
        knows = args.strict and args.wait and not args.dry_run
        return int(knows and ExtractWork(args.out, 1).has_failures())
    files = datalist.read_list(args.list)["file"].tolist()
    made_by = extraction(args, load_vqvae=systems.load_vqvae)
    settings = extraction_settings(made_by, files, chunk)
    if args.status:
        return status(args.out, len(files), settings, args.shard)
    i, n = parse_shard(args.shard or "1/1")
    shard = Shard(args.out, i, n, files[i - 1 :: n], settings)
    rows = extract(
        shard, datalist.media_folder(args.root, args.list.stem, files), made_by, force=args.force
    )
    failed = [row for row in rows if row["reason"]]
    stages = ", ".join(
        f"{n} {stage}"
        for stage, n in sorted(collections.Counter(row["stage"] for row in failed).items())
    )
    print(
        f"{args.out}: shard {i}/{n} has {len(rows)} clips, {len(failed)} without features"
        + (f" ({stages}; {shard.failures_path})" if failed else "")
    )
    if settings.get("untrained"):
        print(
            f"{args.out}: made with random weights ({settings['lmm']}): these features mean nothing"
        )
    return int(bool(failed) and args.strict)


def _on_cluster(
    args: argparse.Namespace, chunk: int, argv: list[str], options: Options
) -> list[Record]:
    """The shards as an array of tasks. What every task would trip over is found here."""
    if args.shard or args.status:
        raise KlassifyError("--shard and --status go without --launcher slurm.")
    files = datalist.read_list(args.list)["file"].tolist()
    settings = extraction_settings(extraction(args, _device_of_a_task(args, options)), files, chunk)
    if not args.force:
        parts_there(args.out, settings, options.shards)
    datalist.media_folder(args.root, args.list.stem, files)
    command = ["extract", *without(argv, "--jobs")]  # which follows the CPUs of a task
    return [record_of(ExtractWork(args.out, options.shards), command, options)]


def _device_of_a_task(args: argparse.Namespace, options: Options) -> str:
    """cuda or cpu: what a node has and the machine that submits may not."""
    if args.device == "auto":
        return "cuda" if options.asks_for_gpus else "cpu"
    device = args.device.partition(":")[0]
    if device not in ("cuda", "cpu"):
        raise KlassifyError(
            f"A task on a cluster has no device {args.device!r}.", fix="--device auto, cpu or cuda"
        )
    return device


# ------------------------------------------------------------------------------ what is to be done


@dataclasses.dataclass(frozen=True)
class Shard:
    """Shard i of n of a list: its clips, cut into parts of `settings["chunk"]`."""

    out: Path
    i: int
    n: int
    files: Sequence[str]
    settings: dict[str, Any]

    @property
    def places(self) -> list[Place]:
        """Its parts; one empty part where the list is shorter than n."""
        parts = max(1, math.ceil(len(self.files) / self.settings["chunk"]))
        return [Place(self.i, self.n, k, parts) for k in range(parts)]

    def part(self, place: Place) -> Sequence[str]:
        """The clips of one part."""
        chunk = self.settings["chunk"]
        return self.files[place.k * chunk : (place.k + 1) * chunk]

    @property
    def failures_path(self) -> Path:
        """Where its clips without features are listed."""
        return self.out / f"failures-{self.i}-of-{self.n}.tsv"


def parse_shard(text: str) -> tuple[int, int]:
    """'3/8' -> (3, 8)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise KlassifyError(f"--shard {text!r} is not I/N with 1 <= I <= N.")
    return int(match[1]), int(match[2])


def extraction_settings(made_by: Extraction, files: Sequence[str], chunk: int) -> dict[str, Any]:
    """Everything the shards of one folder have in common."""
    listed = hashlib.sha256("\n".join(files).encode()).hexdigest()[:16]
    return {
        "kind": made_by.kind,
        **made_by.settings,
        "list": listed,
        "clips": len(files),
        "chunk": chunk,
    }


def inputs_hash(files: Sequence[str], root: Path, paths: Callable[[Path, str], list[Path]]) -> str:
    """A hash of the input files' names and sizes (-1: missing), so that changed media are
    noticed.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(
            "\t".join([file, *(str(_size(path)) for path in paths(root, file))]).encode() + b"\n"
        )
    return digest.hexdigest()[:16]


def unfinished(shard: Shard, inputs: Callable[[Place], str], *, force: bool) -> list[Place]:
    """The parts that are still to be made. What was made otherwise is refused unless `force`."""
    made = {} if force else parts_there(shard.out, shard.settings, shard.n)
    for place in shard.places:
        if place in made:
            already_done(
                shard.out / place.name, {"media": made[place].inputs}, {"media": inputs(place)}
            )
    return [place for place in shard.places if place not in made]


def parts_there(out: Path, settings: dict[str, Any], n: int) -> dict[Place, PartHeader]:
    """The finished parts in a folder; KlassifyError where they were made with other settings or
    another n.
    """
    headers = [store.read_header(path) for path in store.parts_in(out)]
    if headers:
        store.check_together(headers, where=out)
        already_done(out, headers[0].settings | {"n": headers[0].place.n}, settings | {"n": n})
    return {header.place: header for header in headers}


def sweep(shard: Shard, *, force: bool) -> None:
    """Remove what dead runs of this shard left half written; with `force`, also what is to be
    replaced.
    """
    ours = re.compile(rf"(part|failures)-{shard.i}-of-{shard.n}\b.*{re.escape(TEMPORARY)}-(\d+)-.*")
    for path in shard.out.glob(f"*{TEMPORARY}-*"):
        match = ours.fullmatch(path.name)
        # on a cluster the process may live on another node
        dead = "SLURM_JOB_ID" not in os.environ and match and not _alive(int(match[2]))
        if match and (dead or time.time() - path.stat().st_mtime > STALE_S):
            path.unlink(missing_ok=True)
    for path in store.parts_in(shard.out) if force else []:
        i, n, _ = map(int, store.NAME.fullmatch(path.name).groups())
        if n != shard.n or i == shard.i:
            path.unlink(missing_ok=True)
            path.with_suffix(".pcm").unlink(missing_ok=True)  # of the audio cache


# ------------------------------------------------------------------------------ doing it


def extract(
    shard: Shard, root: Path, made_by: Extraction, *, force: bool = False
) -> list[dict[str, str]]:
    """Make the missing parts of a shard and its failures file; (file, stage, reason) of all its
    clips.
    """
    sweep(shard, force=force)
    inputs = {place: inputs_hash(shard.part(place), root, made_by.inputs) for place in shard.places}
    todo = unfinished(shard, inputs.__getitem__, force=force)
    if len(todo) < len(shard.places):
        print(
            f"{shard.out}: {len(shard.places) - len(todo)} of {len(shard.places)} parts are there",
            file=sys.stderr,
        )
    results = made_by.rows(root, [shard.part(place) for place in todo])
    write_part = made_by.write_part or store.write_part
    for place, rows in finished_parts(shard, todo, results, made_by.row_class):
        write_part(shard.out, place, rows, shard.settings, inputs[place])
    return write_failures(shard)


def finished_parts(
    shard: Shard, todo: Sequence[Place], results: Numbered, row_class: type
) -> Iterator[tuple[Place, list[Any]]]:
    """Each part with its rows in the order of the list, as soon as its last clip is done."""
    tasks = [(place, file) for place in todo for file in shard.part(place)]
    rows: dict[Place, dict[str, Any]] = {place: {} for place in todo}
    for number, row in workers.progress(results, len(tasks), f"extract {shard.i}/{shard.n}"):
        place, file = tasks[number]
        died = isinstance(row, workers.Died)
        rows[place][file] = row_class.failed(file, "worker", row.reason) if died else row
        if len(rows[place]) == len(shard.part(place)):
            of_part = rows.pop(place)
            yield place, [of_part[file] for file in shard.part(place)]
    yield from (
        (place, []) for place in rows
    )  # a shard beyond the end of the list has one empty part


def write_failures(shard: Shard) -> list[dict[str, str]]:
    """List the clips without features, as the finished parts name them; returns the rows of all
    clips.
    """
    rows = [row for place in shard.places for row in store.read_rows(shard.out / place.name)]
    lines = ["file\tstage\treason"]
    lines += [
        "\t".join([row["file"], row["stage"], " ".join(row["reason"].split())])
        for row in rows
        if row["reason"]
    ]
    write_text(shard.failures_path, "\n".join(lines) + "\n")
    return rows


# ------------------------------------------------------------------------------ what is missing


def status(out: Path, n_clips: int, settings: dict[str, Any], only: str | None) -> int:
    """Print which parts are missing, of all shards or of `only` "i/n"; 1 if any is."""
    there = {store.read_header(path).place for path in store.parts_in(out)}
    i, n = parse_shard(only) if only else (None, next(iter(there)).n if there else 1)
    parts_there(out, settings, n)
    shards = [
        Shard(out, j, n, range(j - 1, n_clips, n), settings)
        for j in ([i] if only else range(1, n + 1))
    ]
    places = [(shard, place) for shard in shards for place in shard.places]
    missing = [(shard, place) for shard, place in places if place not in there]
    clips, lacking = (
        sum(len(shard.part(place)) for shard, place in side) for side in (places, missing)
    )
    print(
        f"{out}: {clips - lacking} of {clips} clips, {len(places) - len(missing)} of {len(places)}"
        " parts"
    )
    for j, group in itertools.groupby(missing, key=lambda item: item[0].i):
        print(f"  missing: --shard {j}/{n}: {first_few(place.name for _, place in group)}")
    return int(bool(missing))


# ------------------------------------------------------------------------------ small things


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return -1


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
