"""The record of a submission: <output>/slurm/<step>/job.json, beside its scripts and logs."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from klassify.cluster.options import Options
from klassify.cluster.work import Work, unspanned, work_of
from klassify.errors import KlassifyError
from klassify.files import read_json, write_json

FOLDER, FILE = "slurm", "job.json"
MOST_SHARDS = 1_000_000
SPANS = re.compile(r"\d{1,7}(-\d{1,7})?(,\d{1,7}(-\d{1,7})?)*")


@dataclasses.dataclass(frozen=True)
class Submission:
    """One job of some shards, written as in `1-5,7`; shard = index in the array + offset."""

    job: int
    shards: str
    offset: int = 0


@dataclasses.dataclass
class Record:
    """A command that was sent to the cluster.

    arguments: of klassify, without those of the launcher.
    """

    work: Work
    arguments: list[str]
    cwd: str
    options: Options
    submissions: list[Submission] = dataclasses.field(default_factory=list)
    merge_job: int | None = None

    @property
    def folder(self) -> Path:
        """The folder of the scripts, the logs and this record."""
        return self.work.folder / FOLDER / self.work.step

    @property
    def command_line(self) -> list[str]:
        """What a task runs, without its --shard."""
        jobs = ["--jobs", str(self.options.cpus)] if self.work.command == "extract" else []
        return [*self.arguments, *jobs]

    @property
    def may_fail_whole(self) -> bool:
        """Whether a task may fail although its files are complete, so that merging must not depend
        on its status.
        """
        return self.work.command == "extract" and "--strict" in self.arguments

    @property
    def name(self) -> str:
        """The jobs' name, unique to the folder and step; relative paths and links do not change
        it.
        """
        folder = self.work.folder.resolve()
        which = hashlib.sha256(
            os.fsencode(folder) + b"\0" + os.fsencode(self.work.step)
        ).hexdigest()[:8]
        words = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{self.work.step}-{folder.name}")[:40]
        return f"klassify-{words}-{which}"

    @property
    def merge_name(self) -> str:
        """The name of the job that merges."""
        return f"{self.name}-merge"

    def log_of(self, shard: int) -> Path | None:
        """The log of the last job that had the shard."""
        for submission in reversed(self.submissions):
            if shard in unspanned(submission.shards):
                index = f"_{shard - submission.offset}" if self.work.command != "train" else ""
                return self.folder / "logs" / f"{submission.job}{index}.log"
        return None

    def shard_of(self, job: int, index: int | None) -> int:
        """The shard of an array task."""
        offsets = {submission.job: submission.offset for submission in self.submissions}
        return 1 if index is None else index + offsets.get(job, 0)

    def save(self) -> None:
        """Write job.json."""
        write_json(
            self.folder / FILE,
            {
                "command": self.work.command,
                "split": getattr(self.work, "split", None),
                "shards": self.work.n,
                "arguments": self.arguments,
                "cwd": self.cwd,
                "options": dataclasses.asdict(self.options),
                "submissions": [dataclasses.asdict(submission) for submission in self.submissions],
                "merge_job": self.merge_job,
            },
        )


def read_record(path: Path) -> Record:
    """A record from its file; KlassifyError if the file is not one."""
    content: dict[str, Any] = read_json(path)
    try:
        options = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in content["options"].items()
        }
        record = Record(
            work_of(
                content["command"], path.parent.parent.parent, content["shards"], content["split"]
            ),
            content["arguments"],
            content["cwd"],
            Options(**options),
            [Submission(**submission) for submission in content["submissions"]],
            content["merge_job"],
        )
        _check(record)
        return record
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise KlassifyError(
            f"This is not a record of submitted jobs ({error!r}).",
            where=path,
            fix="remove it; no results are lost",
        ) from None


def _check(record: Record) -> None:
    """ValueError for impossible values: the folder may come from anywhere."""
    texts = [*record.arguments, record.cwd, getattr(record.work, "split", "")]
    numbers = [
        record.work.n,
        *(one.job for one in record.submissions),
        *(one.offset for one in record.submissions),
    ]
    if not isinstance(record.arguments, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("arguments must be texts")
    if not all(
        isinstance(number, int) and 0 <= number < 2**31
        for number in (*numbers, record.merge_job or 0)
    ):
        raise ValueError("jobs and shards must be numbers")
    if not 1 <= record.work.n <= MOST_SHARDS:
        raise ValueError(f"{record.work.n} shards")
    for one in record.submissions:
        if (
            not SPANS.fullmatch(one.shards)
            or max(map(int, re.findall(r"\d+", one.shards))) > record.work.n
        ):
            raise ValueError(f"shards {one.shards[:80]!r} of {record.work.n}")


def records_in(folder: Path) -> list[Record]:
    """The records of a folder and of the folders in it, up to two levels down."""
    if not folder.is_dir():
        raise KlassifyError(
            "This is not a folder." if folder.exists() else "This folder does not exist.",
            where=folder,
        )
    levels = ("", "*/", "*/*/")
    return [
        read_record(path)
        for level in levels
        for path in sorted(folder.glob(f"{level}{FOLDER}/*/{FILE}"))
    ]
