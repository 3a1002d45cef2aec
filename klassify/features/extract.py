"""Stage 1: makes the missing feature shards of a data list."""

from __future__ import annotations

import dataclasses
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

from klassify import workers
from klassify.errors import KlassifyError, first_few
from klassify.features import shards as features_shards
from klassify.features.base import Extraction, Numbered
from klassify.features.parts import (
    NAME,
    PartHeader,
    Place,
    check_together,
    parts_in,
    read_header,
    read_rows,
)
from klassify.files import TEMPORARY, write_text
from klassify.settings import already_done

STALE_S = 3600.0  # a temporary file lives for seconds


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
    headers = [read_header(path) for path in parts_in(out)]
    if headers:
        check_together(headers, where=out)
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
    for path in parts_in(shard.out) if force else []:
        i, n, _ = map(int, NAME.fullmatch(path.name).groups())
        if n != shard.n or i == shard.i:
            path.unlink(missing_ok=True)
            path.with_suffix(".pcm").unlink(missing_ok=True)  # of the audio cache


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
    write_part = made_by.write_part or features_shards.write_part
    for place, rows in finished_parts(shard, todo, results, made_by.row_class):
        write_part(shard.out, place, rows, shard.settings, inputs[place])
    return write_failures(shard)


def rows_in_order(made_by: Extraction, root: Path, files: Sequence[str]) -> Iterator[Any]:
    """The row of each clip, in the order of the list, as soon as it and those before it are done.

    No batch spans two clips.
    """
    waiting: dict[int, Any] = {}
    following = 0
    for number, row in made_by.rows(root, [[file] for file in files]):
        if isinstance(row, workers.Died):
            row = made_by.row_class.failed(files[number], "worker", row.reason)
        waiting[number] = row
        while following in waiting:
            yield waiting.pop(following)
            following += 1


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
    rows = [row for place in shard.places for row in read_rows(shard.out / place.name)]
    lines = ["file\tstage\treason"]
    lines += [
        "\t".join([row["file"], row["stage"], " ".join(row["reason"].split())])
        for row in rows
        if row["reason"]
    ]
    write_text(shard.failures_path, "\n".join(lines) + "\n")
    return rows


def status(out: Path, n_clips: int, settings: dict[str, Any], only: str | None) -> int:
    """Print which parts are missing, of all shards or of `only` "i/n"; 1 if any is."""
    there = {read_header(path).place for path in parts_in(out)}
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
