"""The work of a command that can run in shards, read from its files alone: which shards are done,
and how they are merged.

| work | folder | a shard is done when these exist | merging |
|---|---|---|---|
| extract | of the feature shards | all its parts | checks, lists the failures |
| score | of the system, per split | all its chunks, or the scores | writes the score files |
| train | of the system; one shard | training.json | nothing |
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import functools
import itertools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError, first_few


@dataclasses.dataclass(frozen=True)
class Work(abc.ABC):
    """A command's work on one output folder, in n shards numbered from 1."""

    folder: Path
    n: int

    command = ""

    @property
    def step(self) -> str:
        """Its name, unique in the folder."""
        return self.command

    @property
    def title(self) -> str:
        """Its name for messages."""
        return f"klassify {self.step.replace('-', ' ')} of {self.folder.resolve().name}"

    @abc.abstractmethod
    def done(self) -> set[int]:
        """The shards whose files exist, which are complete."""

    @abc.abstractmethod
    def merge(self) -> str:
        """Merge the shards; returns a line about the result. KlassifyError names gaps, duplicates
        and other settings.
        """

    @abc.abstractmethod
    def clear(self) -> None:
        """Remove the files that --force replaces."""

    merged = True  # whether nothing is left to merge once all shards are done
    pattern = ""  # names of the files that show progress, for a shell that knows $shard

    def refuse_gaps(self) -> None:
        """KlassifyError that names the missing shards."""
        missing = sorted(set(range(1, self.n + 1)) - self.done())
        if missing:
            by_hand = first_few((f"--shard {i}/{self.n}" for i in missing), 3)
            fix = f"repeat the command with {by_hand}"
            if (self.folder / "slurm" / self.step / "job.json").exists():
                fix = f"klassify resume {shlex.quote(str(self.folder))}, or {fix}"
            raise KlassifyError(
                f"{len(missing)} of {self.n} shards are missing: {spans(missing)}.",
                where=self.folder,
                fix=fix,
            )


class ExtractWork(Work):
    """Feature shards of one folder."""

    command = "extract"

    @property
    def pattern(self) -> str:
        """The parts of the shard."""
        return f"part-$shard-of-{self.n}-*.parquet"

    def headers(self) -> list[Any]:
        """The PartHeader of each part; KlassifyError if one is damaged or they do not belong
        together.
        """
        from klassify.features.parts import check_together, parts_in, read_header

        headers = [read_header(path) for path in parts_in(self.folder)]
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
        """Check that each clip of the list appears once, and write failures.tsv, the clips without
        features.
        """
        from klassify.failures import Failure, write_failures
        from klassify.features.parts import parts_in, read_rows

        listed = next((header.settings.get("clips") for header in self.headers()), 0)
        self.refuse_gaps()
        rows = [
            row | {"part": path.name} for path in parts_in(self.folder) for row in read_rows(path)
        ]
        self._refuse_other_clips(rows, listed)
        failed = [
            Failure(row["file"], row["stage"], row["reason"]) for row in rows if row["reason"]
        ]
        write_failures(self.failures, failed)
        return (
            f"{len(rows)} clips in {self.n} shards, {len(failed)} without features"
            f" ({self.failures})"
        )

    def _refuse_other_clips(self, rows: Sequence[dict], listed: int | None) -> None:
        places: dict[str, list[str]] = {}
        for row in rows:
            places.setdefault(row["file"], []).append(row["part"])
        twice = [
            f"{file} (in {' and '.join(parts)})" for file, parts in places.items() if len(parts) > 1
        ]
        if twice:
            raise KlassifyError(
                f"{len(twice)} clips appear more than once: {first_few(twice)}.",
                where=self.folder,
                fix="remove the parts that do not belong here, then run klassify resume",
            )
        if listed not in (None, len(rows)):
            raise KlassifyError(
                f"The list has {listed} clips, the shards {len(rows)}.",
                where=self.folder,
                fix="extract again with --force",
            )

    @property
    def failures(self) -> Path:
        """The file of the clips without features, written by merge()."""
        return self.folder / "failures.tsv"

    def has_failures(self) -> bool:
        """Whether merge() found a clip without features."""
        from klassify.failures import read_failures

        return bool(read_failures(self.failures))

    @property
    def merged(self) -> bool:
        """Whether failures.tsv exists."""
        return self.failures.exists()

    def clear(self) -> None:
        """Remove the parts, the audio beside them and the lists of failures."""
        from klassify.features.parts import parts_in

        for path in [
            *parts_in(self.folder),
            *self.folder.glob("part-*.pcm"),
            *self.folder.glob("failures*.tsv"),
        ]:
            path.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class ScoreWork(Work):
    """The scores of a trained system on one split."""

    split: str

    command = "score"

    @property
    def step(self) -> str:
        """The command with the split, since each split is a work of its own."""
        return f"score-{self.split}"

    @property
    def whole(self) -> list[Path]:
        """The score files of the model itself that exist."""
        from klassify.scores.score_file import score_path

        paths = (score_path(self.folder, self.split, kind) for kind in ("windows", "frames"))
        return [path for path in paths if path.exists()]

    @property
    def pattern(self) -> str:
        """Names of chunks do not have the shard's number: any new one counts as progress."""
        return "chunk-*.parquet"

    def done(self) -> set[int]:
        """The shards that have all their chunks; without parts, all shards if the score file
        exists.
        """
        for last in (False, True):
            if not _parts_of(self.folder, self.split):
                return set(range(1, self.n + 1)) if self.whole else set()
            try:
                parts = self.parts()
                if there := parts.there():
                    return {
                        i
                        for i in range(1, self.n + 1)
                        if there.issuperset(parts.layout.share(i, self.n))
                    }
            except (KlassifyError, FileNotFoundError):
                if last:
                    raise
            # another process merged them meanwhile: look again
        return set()

    def parts(self) -> Any:
        """The Parts that exist; KlassifyError names the settings in which they differ."""
        from klassify.scores.chunks import Parts
        from klassify.scores.score_file import made_with

        of_each = {match[3]: path for path, match in _parts_of(self.folder, self.split)}
        if len(of_each) > 1:
            one, other = (made_with(path) or {} for path in list(of_each.values())[:2])
            keys = (
                key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)
            )
            differences = first_few(
                f"{key}: {one.get(key)!r} and {other.get(key)!r}" for key in keys
            )
            raise KlassifyError(
                f"These parts were made with different settings ({differences}).",
                where=self.folder,
                fix="repeat the klassify score command with --force",
            )
        return Parts.found(self.folder, self.split)

    @property
    def merged(self) -> bool:
        """Whether the score file exists and no parts do."""
        return bool(self.whole) and not _parts_of(self.folder, self.split)

    def merge(self) -> str:
        """Merge the parts into the score files; returns the file of clip scores, or that of the
        model.
        """
        from klassify.scores.score_file import score_path
        from klassify.scores.shards import merge

        if not self.merged:
            self.refuse_gaps()
            merge(self.folder, self.split)
        clips = score_path(self.folder, self.split, "clips")
        return str(clips if clips.exists() else self.whole[0])

    def clear(self) -> None:
        """Remove the parts and the model's own score files."""
        import shutil

        from klassify.scores.chunks import parts_folder

        shutil.rmtree(parts_folder(self.folder, self.split), ignore_errors=True)
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
        from klassify.training.settings import clear

        clear(self.folder)


def work_of(command: str, folder: Path, n: int, split: str | None = None) -> Work:
    """The work of a command on a folder."""
    if command == "score":
        return ScoreWork(folder, n, split)
    return {"extract": ExtractWork, "train": TrainWork}[command](folder, n)


def found_works(folder: Path, split: str | None = None) -> list[Work]:
    """The works whose files lie in a folder, or in folders up to two levels down.

    split: only the scores of this one.
    """
    below = sorted(path for level in ("*", "*/*") for path in folder.glob(level) if path.is_dir())
    return [work for place in (folder, *below) for work in _works_of(place, split)]


def _works_of(folder: Path, split: str | None) -> list[Work]:
    """The works whose files lie in this very folder."""
    from klassify.features.parts import NAME, parts_in

    if parts := parts_in(folder):
        return [] if split else [ExtractWork(folder, int(NAME.fullmatch(parts[0].name)[2]))]
    files = [path.name for path in folder.glob("scores/*")]
    names = {name.removesuffix(".parts") for name in files if name.endswith(".parts")}
    names |= {
        name.rpartition(f".{kind}.")[0]
        for kind in ("windows", "frames")
        for name in files
        if f".{kind}." in name
    }
    works = []
    for name in sorted(names) if split is None else [split]:
        if parts := _parts_of(folder, name):
            works.append(ScoreWork(folder, int(parts[0][1][2]), name))
        elif (one := ScoreWork(folder, 1, name)).whole:
            works.append(one)
    return works


def _parts_of(folder: Path, split: str) -> list[tuple[Path, re.Match]]:
    """The parts of a split, without files that are being written."""
    from klassify.scores.chunks import NAME, parts_folder

    paths = sorted(parts_folder(folder, split).glob("chunk-*.parquet"))
    return [(path, match) for path in paths if (match := NAME.fullmatch(path.name))]


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
