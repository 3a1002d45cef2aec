"""Stage 1: makes the missing feature shards of a data list."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError, first_few
from klassify.failures import Failure, write_failures
from klassify.features import shards as features_shards
from klassify.features.base import Extraction, Numbered
from klassify.parts import NAME, PartHeader, Place, check_together, headers_in, parts_in, read_rows
from klassify.progress import progress
from klassify.settings import already_done


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
    return {"kind": made_by.kind, **made_by.settings, **list_settings(files, chunk)}


def list_settings(files: Sequence[str], chunk: int) -> dict[str, Any]:
    """What the parts of one folder say about their list."""
    listed = hashlib.sha256("\n".join(files).encode()).hexdigest()[:16]
    return {"list": listed, "clips": len(files), "chunk": chunk}


def inputs_hash(files: Sequence[str], root: Path, paths: Callable[[Path, str], list[Path]]) -> str:
    """A hash of the input files' names and sizes (-1: missing): changed media are noticed."""
    digest = hashlib.sha256()
    for file in files:
        sizes = [str(_size(path)) for path in paths(root, file)]
        digest.update("\t".join([file, *sizes]).encode() + b"\n")
    return digest.hexdigest()[:16]


def parts_there(out: Path, settings: dict[str, Any], n: int) -> dict[Place, PartHeader]:
    """The finished parts in a folder; KlassifyError for other settings or another n."""
    headers = headers_in(out)
    if headers:
        check_together(headers, where=out)
        already_done(out, headers[0].settings | {"n": headers[0].place.n}, settings | {"n": n})
    return {header.place: header for header in headers}


def clear(shard: Shard) -> None:
    """Remove this shard's parts, and those of another number of shards."""
    for path in parts_in(shard.out):
        i, n, _ = map(int, NAME.fullmatch(path.name).groups())
        if n != shard.n or i == shard.i:
            path.unlink(missing_ok=True)
            path.with_suffix(".pcm").unlink(missing_ok=True)  # of the audio cache


def extract(
    shard: Shard, root: Path, made_by: Extraction, *, force: bool = False
) -> list[dict[str, str]]:
    """Make a shard's missing parts and failures file; (file, stage, reason) of its clips."""
    todo, inputs = _missing(shard, root, made_by, force)
    results = made_by.rows(root, [shard.part(place) for place in todo])
    write_part = made_by.write_part or features_shards.write_part
    for place, rows in finished_parts(shard, todo, results):
        write_part(shard.out, place, rows, shard.settings, inputs[place])
    return _ended(shard)


def extract_together(
    shards: Sequence[Shard],
    root: Path,
    made_by: Sequence[Extraction],
    in_one_pass: Extraction,
    *,
    force: bool = False,
) -> list[list[dict[str, str]]]:
    """As `extract`, for several kinds of the same clips.

    shards, made_by: of each kind. in_one_pass: its rows hold one of each. A clip that any kind
    lacks is read for all of them.
    """
    missing = [_missing(shard, root, made, force) for shard, made in zip(shards, made_by)]
    gathered = [Parts(shard, todo) for shard, (todo, _) in zip(shards, missing)]
    files = [file for file in shards[0].files if any(file in parts.lacking for parts in gathered)]
    results = in_one_pass.rows(root, [files])
    label = f"extract {shards[0].i}/{shards[0].n}"
    for number, rows in progress(results, len(files), label):
        for shard, parts, (_, inputs), row in zip(shards, gathered, missing, rows):
            for place, full in parts.add(files[number], row):
                features_shards.write_part(shard.out, place, full, shard.settings, inputs[place])
    for shard, parts, (_, inputs) in zip(shards, gathered, missing):
        for place, none in parts.empty():
            features_shards.write_part(shard.out, place, none, shard.settings, inputs[place])
    return [_ended(shard) for shard in shards]


def _missing(
    shard: Shard, root: Path, made_by: Extraction, force: bool
) -> tuple[list[Place], dict[Place, str]]:
    """The parts of a shard that are to be made, and the hash of the inputs of each part."""
    if force:
        clear(shard)
    made = {} if force else parts_there(shard.out, shard.settings, shard.n)
    inputs = {place: inputs_hash(shard.part(place), root, made_by.inputs) for place in shard.places}
    for place in made.keys() & inputs.keys():
        before, now = {"media": made[place].inputs}, {"media": inputs[place]}
        already_done(shard.out / place.name, before, now)
    todo = [place for place in shard.places if place not in made]
    if len(todo) < len(shard.places):
        print(
            f"{shard.out}: {len(shard.places) - len(todo)} of {len(shard.places)} parts exist",
            file=sys.stderr,
        )
    return todo, inputs


def _ended(shard: Shard) -> list[dict[str, str]]:
    """List the failures of a complete shard; (file, stage, reason) of its clips."""
    rows = [row for place in shard.places for row in read_rows(shard.out / place.name)]
    write_failures(shard.failures_path, (Failure(**row) for row in rows if row["reason"]))
    return rows


class Parts:
    """Gathers the rows of a shard's missing parts, which come in any order.

    lacking: the clips of these parts, in order, each with its part.
    """

    def __init__(self, shard: Shard, todo: Sequence[Place]):
        self.shard = shard
        self.lacking = {file: place for place in todo for file in shard.part(place)}
        self._rows: dict[Place, dict[str, Any]] = {place: {} for place in todo}

    def add(self, file: str, row: Any) -> Iterator[tuple[Place, list[Any]]]:
        """The part that this row completes, if it does, with its rows in the order of the list."""
        place = self.lacking.get(file)
        if place is None:
            return
        self._rows[place][file] = row
        part = self.shard.part(place)
        if len(self._rows[place]) == len(part):
            rows = self._rows.pop(place)
            yield place, [rows[file] for file in part]

    def empty(self) -> Iterator[tuple[Place, list[Any]]]:
        """The one part, without rows, of a shard beyond the end of the list."""
        yield from ((place, []) for place in self._rows if not self.shard.part(place))


def rows_in_order(made_by: Extraction, root: Path, files: Sequence[str]) -> Iterator[Any]:
    """The row of each clip, in the order of the list, as soon as it and those before it are done.

    No batch spans two clips.
    """
    waiting: dict[int, Any] = {}
    following = 0
    for number, row in made_by.rows(root, [[file] for file in files]):
        waiting[number] = row
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def finished_parts(
    shard: Shard, todo: Sequence[Place], results: Numbered, label: str = "extract"
) -> Iterator[tuple[Place, list[Any]]]:
    """Each part with its rows in the order of the list, as soon as its last clip is done."""
    files = [file for place in todo for file in shard.part(place)]
    parts = Parts(shard, todo)
    for number, row in progress(results, len(files), f"{label} {shard.i}/{shard.n}"):
        yield from parts.add(files[number], row)
    yield from parts.empty()


def status(out: Path, n_clips: int, settings: dict[str, Any], only: str | None) -> int:
    """Print which parts are missing, of all shards or of `only` "i/n"; 1 if any is."""
    there = {header.place for header in headers_in(out)}
    i, n = parse_shard(only) if only else (None, next(iter(there)).n if there else 1)
    parts_there(out, settings, n)
    shards = [
        Shard(out, j, n, range(j - 1, n_clips, n), settings)
        for j in ([i] if only else range(1, n + 1))
    ]
    places = [(shard, place) for shard in shards for place in shard.places]
    missing = [(shard, place) for shard, place in places if place not in there]
    clips, lacking = (sum(len(s.part(place)) for s, place in side) for side in (places, missing))
    done = len(places) - len(missing)
    print(f"{out}: {clips - lacking} of {clips} clips, {done} of {len(places)} parts")
    for j, group in itertools.groupby(missing, key=lambda item: item[0].i):
        print(f"  missing: --shard {j}/{n}: {first_few(place.name for _, place in group)}")
    return int(bool(missing))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return -1
