"""The work of a command that can run in shards, read from its files alone: which shards are done,
and how they are merged.

| work | folder | a shard is done when these exist | merging |
|---|---|---|---|
| extract | of the feature shards | all its parts | checks, lists the failures |
| perturb | of the parts of a list | all parts of all families and levels | checks |
| score | of the system, per split | all its chunks, or the scores | writes the score files |
| train | of the system; one shard | training.json | nothing |
"""

from __future__ import annotations

import abc
import collections
import contextlib
import dataclasses
import functools
import itertools
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from klassify.errors import KlassifyError, first_few
from klassify.failures import Failure, read_failures, write_failures
from klassify.parts import PartHeader, check_together, headers_in, n_shards_in, parts_in, read_rows
from klassify.perturbation.families import FAMILIES
from klassify.scores import chunks, shards
from klassify.scores.score_file import score_path


@dataclasses.dataclass(frozen=True)
class Work(abc.ABC):
    """A command's work on one output folder, in n shards numbered from 1."""

    folder: Path
    n: int
    split: str | None = None

    command = ""
    merged = True  # whether nothing is left to merge once all shards are done
    pattern = ""  # names of the files that show progress, for a shell that knows $shard

    @property
    def step(self) -> str:
        """Its name, unique in the folder."""
        return self.command

    @property
    def title(self) -> str:
        """Its name for messages."""
        return f"klassify {self.step.replace('-', ' ')} of {self.folder.resolve().name}"

    @property
    def every(self) -> set[int]:
        """All its shards."""
        return set(range(1, self.n + 1))

    @abc.abstractmethod
    def done(self) -> set[int]:
        """The shards whose files exist, which are complete."""

    @abc.abstractmethod
    def merge(self) -> str:
        """Merge the shards; a line about the result. KlassifyError names what does not fit."""

    @abc.abstractmethod
    def clear(self) -> None:
        """Remove the files that --force replaces."""

    def refuse_gaps(self) -> None:
        """KlassifyError that names the missing shards."""
        missing = sorted(self.every - self.done())
        if not missing:
            return
        by_hand = first_few((f"--shard {i}/{self.n}" for i in missing), 3)
        fix = f"repeat the command with {by_hand}"
        if (self.folder / "slurm" / self.step / "job.json").exists():
            fix = f"klassify resume {shlex.quote(str(self.folder))}, or {fix}"
        what = f"{len(missing)} of {self.n} shards are missing: {spans(missing)}."
        raise KlassifyError(what, where=self.folder, fix=fix)


class _WorkInParts(Work):
    """Work whose shards are parts, as klassify.parts names them."""

    @property
    def pattern(self) -> str:
        """The parts of the shard."""
        return f"part-$shard-of-{self.n}-*.parquet"

    @property
    def failures(self) -> Path:
        """The list of the clips that failed; it exists once all shards are done."""
        return self.folder / "failures.tsv"


class ExtractWork(_WorkInParts):
    """Feature shards of one folder."""

    command = "extract"

    @property
    def merged(self) -> bool:
        """Whether failures.tsv exists."""
        return self.failures.exists()

    def headers(self) -> list[PartHeader]:
        """Of each part; KlassifyError if one is damaged or they do not belong together."""
        headers = headers_in(self.folder)
        check_together(headers, where=self.folder)
        if headers and headers[0].place.n != self.n:
            raise KlassifyError(
                f"These parts are of {headers[0].place.n} shards, not of {self.n}.",
                where=self.folder,
                fix=f"continue with --shards {headers[0].place.n}, or use --force",
            )
        return headers

    def done(self) -> set[int]:
        """The shards that have all parts; each part says how many there are."""
        places = [header.place for header in self.headers()]
        counts = collections.Counter(place.i for place in places)
        return {place.i for place in places if counts[place.i] == place.parts}

    def merge(self) -> str:
        """Check that each clip of the list appears once, and write failures.tsv."""
        listed = next((header.settings.get("clips") for header in self.headers()), 0)
        self.refuse_gaps()
        parts_of: dict[str, list[str]] = {}
        failed, n_clips = [], 0
        for path in parts_in(self.folder):
            for row in read_rows(path):
                n_clips += 1
                parts_of.setdefault(row["file"], []).append(path.name)
                if row["reason"]:
                    failed.append(Failure(**row))
        repeated = [
            f"{file} (in {' and '.join(parts)})"
            for file, parts in parts_of.items()
            if len(parts) > 1
        ]
        if repeated:
            raise KlassifyError(
                f"{len(repeated)} clips appear more than once: {first_few(repeated)}.",
                where=self.folder,
                fix="remove the parts that do not belong here, then run klassify resume",
            )
        if listed not in (None, n_clips):
            what = f"The list has {listed} clips, the shards {n_clips}."
            raise KlassifyError(what, where=self.folder, fix="extract again with --force")
        path = write_failures(self.failures, failed)
        return f"{n_clips} clips in {self.n} shards, {len(failed)} without features ({path})"

    def clear(self) -> None:
        """Remove the parts, the audio beside them and the lists of failures."""
        beside = map(self.folder.glob, ("part-*.pcm", "failures*.tsv"))
        for path in itertools.chain(parts_in(self.folder), *beside):
            path.unlink(missing_ok=True)


class PerturbWork(_WorkInParts):
    """The perturbed media of a list, with one folder of parts for each family and level."""

    command = "perturb"

    @property
    def steps(self) -> list[Path]:
        """The folders of its families and levels, also those without any part."""
        return sorted(path for path in self.folder.glob("*") if _is_step(path))

    def done(self) -> set[int]:
        """The shards that have all parts of all families and levels."""
        return self.every.intersection(*(ExtractWork(one, self.n).done() for one in self.steps))

    def merge(self) -> str:
        """The shard that was done last has written the lists."""
        self.refuse_gaps()
        failed = len(read_failures(self.failures))
        return f"{len(self.steps)} families and levels in {self.n} shards, {failed} failures"

    def clear(self) -> None:
        """Remove the parts and the list of failures."""
        for one in self.steps:
            ExtractWork(one, self.n).clear()
        self.failures.unlink(missing_ok=True)


class ScoreWork(Work):
    """The scores of a trained system on one split."""

    command = "score"
    pattern = "part-*.parquet"  # without the shard's number: any new chunk counts as progress

    @property
    def step(self) -> str:
        """The command with the split, since each split is a work of its own."""
        return f"score-{self.split}"

    @property
    def whole(self) -> list[Path]:
        """The score files of the model itself that exist."""
        paths = (score_path(self.folder, self.split, kind) for kind in ("windows", "frames"))
        return [path for path in paths if path.exists()]

    @property
    def merged(self) -> bool:
        """Whether the score file exists and no parts do."""
        return bool(self.whole) and not self._parts()

    def _parts(self) -> list[Path]:
        return parts_in(chunks.parts_folder(self.folder, self.split))

    def done(self) -> set[int]:
        """The shards that have all their chunks; all if only the score file exists."""
        done = set()
        with contextlib.suppress(KlassifyError, FileNotFoundError):
            done = self._done()
        return done or self._done()  # another process may have merged the parts meanwhile

    def _done(self) -> set[int]:
        if not self._parts():
            return self.every if self.whole else set()
        parts = chunks.Parts.found(self.folder, self.split)
        there = parts.there()
        if not there:
            return set()
        return {i for i in self.every if there.issuperset(parts.layout.share(i, self.n))}

    def merge(self) -> str:
        """Merge the parts; returns the file of clip scores, or that of the model."""
        if not self.merged:
            self.refuse_gaps()
            shards.merge(self.folder, self.split)
        clips = score_path(self.folder, self.split, "clips")
        return str(clips if clips.exists() else self.whole[0])

    def clear(self) -> None:
        """Remove the parts and the model's own score files."""
        shutil.rmtree(chunks.parts_folder(self.folder, self.split), ignore_errors=True)
        for path in self.whole:
            path.unlink(missing_ok=True)


class TrainWork(Work):
    """The training of one system."""

    command = "train"
    pattern = "last.pt"

    def done(self) -> set[int]:
        """The one shard, if training.json exists."""
        return {1} if (self.folder / "training.json").exists() else set()

    def merge(self) -> str:
        """There is nothing to merge."""
        self.refuse_gaps()
        return f"{self.folder}: trained"

    def clear(self) -> None:
        """Remove the state, weights and scores of the previous training."""
        from klassify.training.settings import clear  # imports torch

        clear(self.folder)


def _is_step(folder: Path) -> bool:
    """Whether a folder holds the parts of one family and level of perturbations."""
    return folder.name.rpartition("-")[0] in FAMILIES


def work_of(command: str, folder: Path, n: int, split: str | None = None) -> Work:
    """The work of a command on a folder."""
    kinds = {kind.command: kind for kind in (ExtractWork, PerturbWork, ScoreWork, TrainWork)}
    return kinds[command](folder, n, split)


def found_works(folder: Path, split: str | None = None) -> list[Work]:
    """The works whose files lie in a folder, or in folders up to two levels down.

    split: only the scores of this one.
    """
    below = sorted(path for level in ("*", "*/*") for path in folder.glob(level) if path.is_dir())
    places = [folder, *(path for path in below if path.parent.name != "scores")]
    return [work for place in places for work in _works_of(place, split)]


def _works_of(folder: Path, split: str | None) -> list[Work]:
    """The works whose files lie in this very folder."""
    if n := n_shards_in(folder):
        belongs_above = _is_step(folder)  # to a PerturbWork
        return [] if split or belongs_above else [ExtractWork(folder, n)]
    counts = {n_shards_in(one) for one in PerturbWork(folder, 1).steps} - {0}
    if counts:
        return [] if split else [PerturbWork(folder, counts.pop())]
    splits = {
        match[1]
        for path in folder.glob("scores/*")
        if (match := re.fullmatch(r"(.+)\.(parts|(windows|frames)\..*)", path.name))
    }
    works = []
    for name in sorted(splits) if split is None else [split]:
        n = n_shards_in(chunks.parts_folder(folder, name))
        work = ScoreWork(folder, n or 1, name)
        if n or work.whole:
            works.append(work)
    return works


def spans(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 7] -> '1-3,7', as `sbatch --array` takes it."""
    pieces = []
    for _, group in itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        pieces.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(pieces)


@functools.lru_cache(maxsize=1024)  # asked for each of thousands of shards
def unspanned(text: str) -> frozenset[int]:
    """'1-3,7' -> {1, 2, 3, 7}."""
    ends = ([int(end) for end in piece.split("-")] for piece in text.split(",") if piece)
    return frozenset(number for pair in ends for number in range(pair[0], pair[-1] + 1))
