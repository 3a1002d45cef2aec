"""Splits derived from a data list: one for each family and level, with media and a list.

    <out>/lists/<split>-<family>-<level>.tsv
    <out>/media/<split>-<family>-<level>/<file>
    <out>/parts/<split>/<family>-<level>/part-<i>-of-<n>-<k>.parquet

A part holds what was done to each clip's time, and why a clip could not be perturbed; the work
resumes from the parts. The lists are written when all parts are there. Clips keep their names.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from klassify import workers
from klassify.errors import first_line
from klassify.failures import Failure, write_failures
from klassify.features.base import CLIP_LIMIT_S, media_only
from klassify.features.extract import (
    Shard,
    clear,
    finished_parts,
    inputs_hash,
    list_settings,
    parts_there,
)
from klassify.files import whole_file
from klassify.lists import data_list
from klassify.media.container import MediaError, inside
from klassify.media.info import MediaInfo
from klassify.parts import Place, header_of, read_rows
from klassify.perturbation.clip import Change, Clip, perturb
from klassify.perturbation.families import LEVELS, family_of
from klassify.perturbation.labels import changed_row
from klassify.settings import already_done

VERSION = 1  # of the perturbations: raise it when the same settings give other media
CLIPS_A_PART = 64
COLUMNS = ("file", "stage", "reason", "change")
Row = dict[str, str]
SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])


class Step(NamedTuple):
    """A family at a level, as in testA-mp3-3."""

    family: str
    level: int

    def __str__(self) -> str:
        return f"{self.family}-{self.level}"


Task = tuple[str, Sequence[Step]]  # a clip's name, and what is done to it


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be made of a list.

    frame: the list with its segments. seed: of the random numbers, together with clips' names.
    """

    out: Path
    split: str
    frame: pd.DataFrame
    families: Sequence[str]
    levels: Sequence[int] = LEVELS
    seed: int = 0
    chunk: int = CLIPS_A_PART

    @property
    def files(self) -> list[str]:
        """The clips' names."""
        return self.frame["file"].tolist()

    @property
    def lists(self) -> Path:
        """The folder of the derived lists."""
        return self.out / "lists"

    @property
    def media(self) -> Path:
        """The folder of the derived media, with one folder per split."""
        return self.out / "media"

    @property
    def parts(self) -> Path:
        """The folder of the parts, with one folder per family."""
        return self.out / "parts" / self.split

    @property
    def steps(self) -> list[Step]:
        """What is done, each to all clips."""
        return [Step(family, level) for family in self.families for level in self.levels]

    def split_of(self, step: Step) -> str:
        """The name of a derived split, such as testA-mp3-3."""
        return f"{self.split}-{step}"

    def settings(self, step: Step) -> dict[str, Any]:
        """What the media of a step depend on."""
        own = {"kind": "perturb", "family": step.family, "seed": self.seed, "version": VERSION}
        own["value"] = family_of(step.family).value(step.level)
        return own | list_settings(self.files, self.chunk)

    def shard(self, step: Step, i: int, n: int) -> Shard:
        """Shard i of n of a step."""
        return Shard(self.parts / str(step), i, n, self.files[i - 1 :: n], self.settings(step))


def make(
    plan: Plan, root: Path, *, shard: tuple[int, int] = (1, 1), jobs: int = 1, force: bool = False
) -> bool:
    """Make the missing media of a shard; whether all shards are done and the lists are written.

    root: the folder of the clips. KlassifyError for media made with other settings, unless force.
    """
    i, n = shard
    shards = {step: plan.shard(step, i, n) for step in plan.steps}
    missing = _missing(shards, root, force)
    places = sorted(missing, key=lambda place: place.k)
    one = next(iter(shards.values()))  # all have the same clips
    tasks = [(file, missing[place]) for place in places for file in one.part(place)]
    work = functools.partial(_perturb_all, plan=dataclasses.replace(plan, frame=None), root=root)
    each = functools.partial(workers.each, work, setup=_one_thread, jobs=jobs)
    results = _answers(tasks, each)
    for place, made in finished_parts(one, places, results, label="perturb"):
        inputs = inputs_hash(one.part(place), root, media_only)
        for step in missing[place]:
            _write_part(shards[step], place, [of_clip[step] for of_clip in made], inputs)
    return write_lists(plan, n)


def _missing(shards: Mapping[Step, Shard], root: Path, force: bool) -> dict[Place, list[Step]]:
    """The steps that lack each part."""
    missing: dict[Place, list[Step]] = {}
    inputs: dict[Place, str] = {}
    for step, shard in shards.items():
        if force:
            clear(shard)
        there = parts_there(shard.out, shard.settings, shard.n)
        for place in shard.places:
            if place not in there:
                missing.setdefault(place, []).append(step)
                continue
            if place not in inputs:
                inputs[place] = inputs_hash(shard.part(place), root, media_only)
            before, now = {"media": there[place].inputs}, {"media": inputs[place]}
            already_done(shard.out / place.name, before, now)
    return missing


def _one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)


def _answers(
    tasks: Sequence[Task], each: Callable[..., Iterator[tuple[int, Any]]]
) -> Iterator[tuple[int, dict[Step, Row]]]:
    """The rows of each clip by step. Where a worker died, the families of the clip are made one by
    one, so that a native crash costs one family alone.
    """
    died = []
    families = max((len(_by_family(steps)) for _, steps in tasks), default=1)
    for number, found in each(tasks=tasks, limit_s=CLIP_LIMIT_S * families):
        if isinstance(found, workers.Died):
            died.append(number)
        else:
            yield number, found
    alone = [(number, steps) for number in died for steps in _by_family(tasks[number][1])]
    rows: dict[int, dict[Step, Row]] = {number: {} for number in died}
    again = [(tasks[number][0], steps) for number, steps in alone]
    for k, found in each(tasks=again, limit_s=CLIP_LIMIT_S):
        number, steps = alone[k]
        if isinstance(found, workers.Died):
            found = dict.fromkeys(steps, _row(tasks[number][0], "worker", found.reason))
        rows[number] |= found
        if len(rows[number]) == len(tasks[number][1]):
            yield number, rows[number]


def _by_family(steps: Sequence[Step]) -> list[list[Step]]:
    return [list(own) for _, own in itertools.groupby(steps, key=lambda step: step.family)]


def _row(file: str, stage: str = "", reason: str = "", change: Change | None = None) -> Row:
    text = "" if change is None else json.dumps(dataclasses.asdict(change))
    return dict(zip(COLUMNS, (file, stage, reason, text)))


def _perturb_all(_: None, task: Task, *, plan: Plan, root: Path) -> dict[Step, Row]:
    """Write a clip as some steps change it; a row of a part for each."""
    file, steps = task
    try:
        clip = Clip(inside(root, file), file, plan.seed)
    except MediaError as error:
        return dict.fromkeys(steps, _row(file, "path", error.what))
    return {step: _perturb(clip, step, plan.media / plan.split_of(step) / file) for step in steps}


def _perturb(clip: Clip, step: Step, target: Path) -> Row:
    try:
        return _row(clip.name, change=perturb(clip, step.family, step.level, target))
    except MediaError as error:
        return _row(clip.name, "decode", error.what)
    except Exception as error:  # native libraries raise anything; the other clips continue
        return _row(clip.name, "perturb", f"{type(error).__name__}: {first_line(error)}")


def _write_part(shard: Shard, place: Place, rows: Sequence[Mapping[str, str]], inputs: str) -> None:
    schema = SCHEMA.with_metadata(header_of(place, shard.settings, inputs))
    with whole_file(shard.out / place.name) as partial:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), partial)


def write_lists(plan: Plan, n: int) -> bool:
    """Write the derived lists and failures.tsv; False where parts of the n shards are missing.

    A clip that could not be perturbed keeps its row, as every clip of a list has one.
    """
    known: dict[Step, dict[str, Change]] = {}
    failures = []
    for step in plan.steps:
        folder = plan.parts / str(step)
        there = parts_there(folder, plan.settings(step), n)
        wanted = [place for i in range(1, n + 1) for place in plan.shard(step, i, n).places]
        if any(place not in there for place in wanted):
            return False
        known[step] = {}
        for row in (row for place in wanted for row in read_rows(folder / place.name, COLUMNS)):
            if row["reason"]:
                stage = f"{step}: {row['stage']}"
                failures.append(Failure(row["file"], stage, row["reason"]))
            else:
                known[step][row["file"]] = _change(json.loads(row["change"]))
    rows = plan.frame.to_dict("records")
    for step, changes in known.items():
        derived = [
            changed_row(row, changes[row["file"]]) if row["file"] in changes else row
            for row in rows
        ]
        table = pd.DataFrame(derived, columns=plan.frame.columns, dtype=object)
        data_list.write_list(plan.lists / f"{plan.split_of(step)}.tsv", table)
    write_failures(plan.parts / "failures.tsv", failures)
    return True


def _change(values: Mapping[str, Any]) -> Change:
    return Change(values["start_s"], values["speed"], MediaInfo(**values["written"]))
