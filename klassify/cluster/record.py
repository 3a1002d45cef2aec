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
        has_jobs = self.work.command in ("extract", "perturb")
        jobs = ["--jobs", str(self.options.cpus)] if has_jobs else []
        return [*self.arguments, *jobs]

    @property
    def may_fail_whole(self) -> bool:
        """Whether a task may fail although its files are complete: merging must not wait for it."""
        return self.work.command == "extract" and "--strict" in self.arguments

    @property
    def name(self) -> str:
        """The jobs' name, unique to the folder and step however the folder's path is written."""
        folder = self.work.folder.resolve()
        unique = os.fsencode(folder) + b"\0" + os.fsencode(self.work.step)
        words = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{self.work.step}-{folder.name}")[:40]
        return f"klassify-{words}-{hashlib.sha256(unique).hexdigest()[:8]}"

    @property
    def merge_name(self) -> str:
        """The name of the job that merges."""
        return f"{self.name}-merge"

    def log_of(self, shard: int) -> Path | None:
        """The log of the last job that had the shard."""
        for sent in reversed(self.submissions):
            if shard in unspanned(sent.shards):
                index = f"_{shard - sent.offset}" if self.work.command != "train" else ""
                return self.folder / "logs" / f"{sent.job}{index}.log"
        return None

    def shard_of(self, job: int, index: int | None) -> int:
        """The shard of an array task."""
        offsets = {sent.job: sent.offset for sent in self.submissions}
        return 1 if index is None else index + offsets.get(job, 0)

    def save(self) -> None:
        """Write job.json."""
        content = {
            "command": self.work.command,
            "split": self.work.split,
            "shards": self.work.n,
            "arguments": self.arguments,
            "cwd": self.cwd,
            "options": dataclasses.asdict(self.options),
            "submissions": [dataclasses.asdict(sent) for sent in self.submissions],
            "merge_job": self.merge_job,
        }
        write_json(self.folder / FILE, content)


def read_record(path: Path) -> Record:
    """A record from its file; KlassifyError if the file is not one."""
    content: dict[str, Any] = read_json(path)
    try:
        options = content["options"]
        options |= {name: tuple(options[name]) for name in ("sbatch", "modules")}
        command, n, split = content["command"], content["shards"], content["split"]
        return Record(
            work_of(command, path.parent.parent.parent, n, split),
            content["arguments"],
            content["cwd"],
            Options(**options),
            [Submission(**sent) for sent in content["submissions"]],
            content["merge_job"],
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"This is not a record of submitted jobs ({error!r})."
        raise KlassifyError(what, where=path, fix="remove it; no results are lost") from None


def records_in(folder: Path) -> list[Record]:
    """The records of a folder and of the folders in it, up to two levels down."""
    if not folder.is_dir():
        what = "This is not a folder." if folder.exists() else "This folder does not exist."
        raise KlassifyError(what, where=folder)
    paths = (sorted(folder.glob(f"{level}{FOLDER}/*/{FILE}")) for level in ("", "*/", "*/*/"))
    return [read_record(path) for level in paths for path in level]
