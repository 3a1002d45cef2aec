"""What a kind of features is: its row, its arguments, its settings, its extractor."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa

from klassify import workers
from klassify.arguments import at_least_1
from klassify.errors import KlassifyError
from klassify.media.container import MediaError, inside

CLIP_LIMIT_S = 1800.0  # an hour of video, the longest that is decoded, takes ten minutes
Numbered = Iterator[tuple[int, Any]]  # place in the list, row of the kind


@dataclasses.dataclass(frozen=True)
class Extraction:
    """How one kind of features is made.

    settings: what the features depend on. inputs(root, file): the paths whose sizes identify the
    input of a clip. rows(root, parts): the rows of all clips of the parts, numbered through, in any
    order; what is heavy is loaded only then. write_part: what writes its shards,
    where shards.write_part does not.
    """

    kind: str
    settings: dict[str, Any]
    inputs: Callable[[Path, str], list[Path]]
    rows: Callable[[Path, Sequence[Sequence[str]]], Numbered]
    write_part: Callable[..., Path] | None = None


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of features: everything that features/kinds.py needs to know of it.

    row_class: of the rows of its shards. clips_per_file: so that a file stays below a few hundred
    MB. extraction(**arguments): the Extraction; it takes `jobs` and the kind's own arguments. None
    where features of other kinds are read for it: `klassify.commands.extract.FROM_FEATURES`.
    arguments: {option of `klassify extract`: what argparse wants to know of it}. An option that is
    not given is left out of the call, so that the defaults are those of `extraction`.
    """

    name: str
    row_class: type
    clips_per_file: int
    extraction: Callable[..., Extraction] | None
    arguments: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


# of the kinds that run a model in this process
MODEL_ARGUMENTS = {
    "--device": {"help": "auto, cpu, cuda, cuda:1, ... (default: auto)"},
    "--batch": {"type": at_least_1, "help": "frames per batch (default: 8 for lmm, else 64)"},
}
# of the kinds that are made from other kinds
FEATURES = {"type": Path, "help": "folder of the features to read, such as features/demo"}


def media_only(root: Path, file: str) -> list[Path]:
    """The input of a clip is its file."""
    return [root / file]


def in_process(
    make: Callable[[Path], Any], threads: int | None, root: Path, parts: Sequence[Sequence[str]]
) -> Numbered:
    """Rows from one extractor here. No batch spans two parts: resumed runs equal whole ones."""
    if not any(parts):
        return
    import torch

    if threads:
        torch.set_num_threads(threads)
    extractor = make(root)
    first = 0
    for part in parts:
        numbers = {file: first + i for i, file in enumerate(part)}
        yield from ((numbers[row.file], row) for row in extractor.rows(part))
        first += len(part)


def in_workers(
    row_class: type,
    extract: Callable[[Any, str], Any],
    setup: Callable[[Path], Any],
    jobs: int | None,
    root: Path,
    parts: Sequence[Sequence[str]],
) -> Numbered:
    """Rows from worker processes, extract(state, file), whose state is setup(root)."""
    one = functools.partial(_only_one, extract)
    return in_workers_together(row_class, one, setup, jobs, 1, root, parts)


def in_workers_together(
    row_class: type,
    extract: Callable[[Any, Sequence[str]], Sequence[Any]],
    setup: Callable[[Path], Any],
    jobs: int | None,
    size: int,
    root: Path,
    parts: Sequence[Sequence[str]],
) -> Numbered:
    """Rows from worker processes that take up to `size` clips of a part at a time, extract(state,
    files). Those of a process that died are taken one by one.
    """
    files = [file for part in parts for file in part]
    ends = list(itertools.accumulate(map(len, parts)))
    groups = [
        range(first, min(first + size, end))
        for end, part in zip(ends, parts)
        for first in range(end - len(part), end, size)
    ]
    while groups:
        again = []
        tasks = [[files[number] for number in group] for group in groups]
        state, limit_s = functools.partial(setup, root), size * CLIP_LIMIT_S
        results = workers.each(extract, tasks, state, jobs=jobs or n_cpus(), limit_s=limit_s)
        for i, rows in results:
            if not isinstance(rows, workers.Died):
                yield from zip(groups[i], rows)
            elif len(groups[i]) > 1:
                again += [range(number, number + 1) for number in groups[i]]
            else:
                yield groups[i][0], row_class.failed(tasks[i][0], "worker", rows.reason)
        groups, size = again, 1


def _only_one(extract: Callable[[Any, str], Any], state: Any, files: Sequence[str]) -> list[Any]:
    return [extract(state, file) for file in files]


def n_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


T = TypeVar("T")


def attempt(
    row_class: type,
    root: Path,
    file: str,
    make: Callable[[Path], T],
    *,
    own_stage: str = "features",
) -> T:
    """make(path of the clip); an error becomes a row with its stage and reason.

    own_stage: the stage of a KlassifyError of `make` that is not a MediaError.
    """
    try:
        path = inside(root, file)
    except MediaError as error:
        return row_class.failed(file, "path", error.what)
    try:
        return make(path)
    except MediaError as error:
        return row_class.failed(file, "decode", error.what)
    except KlassifyError as error:
        return row_class.failed(file, own_stage, error.what)
    except Exception as error:  # native libraries raise anything; the other clips continue
        return row_class.failed(file, "features", f"{type(error).__name__}: {error}")


Columns = Mapping[str, pa.Array]


class Row:
    """What the rows of most kinds share: file, fps, values of their own, reason and stage.

    NOTHING: the values of their own of a clip that gave nothing at all.
    """

    NOTHING: ClassVar[tuple] = ()
    ROWS_A_GROUP: ClassVar = 1  # clips that one random read decodes
    KEPT_GROUPS: ClassVar = 16  # decoded groups that a store holds
    SPLIT_BYTES: ClassVar[tuple[str, ...]] = ()  # columns of floats, which makes files smaller

    @classmethod
    def failed(cls, file: str, stage: str, reason: str) -> Any:
        """The row of a clip that gave nothing at all."""
        return cls(file, 0.0, *cls.NOTHING, reason=reason, stage=stage)


def schema(*own: tuple[str, pa.DataType]) -> pa.Schema:
    """The columns of a kind that has values for frames: its own between those of all kinds."""
    before = [("file", pa.string()), ("n_frames", pa.int32()), ("fps", pa.float64())]
    return pa.schema([*before, *own, ("stage", pa.string()), ("reason", pa.string())])


def ragged(arrays: Sequence[np.ndarray], kind: pa.DataType, *, large: bool = False) -> pa.Array:
    """Arrays of different lengths as one list column."""
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays], dtype=np.int64)])
    joined = pa.array(np.concatenate(arrays) if arrays else [], kind)
    if large:
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), joined)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), joined)


def values(columns: Columns, name: str, i: int) -> np.ndarray:
    """Row i of a list column as a flat array."""
    return columns[name][i].values.to_numpy(zero_copy_only=False)


def matrix(columns: Columns, name: str, i: int) -> np.ndarray:
    """Row i of a column of bytes as (n_frames, C) float16; (0, 0) without frames."""
    flat = np.frombuffer(columns[name][i].as_buffer(), np.float16)
    n_frames = columns["n_frames"][i].as_py()
    return flat.reshape(n_frames, -1) if n_frames else flat.reshape(0, 0)


def common(columns: Columns, i: int) -> dict[str, Any]:
    """What every kind of row has."""
    return {name: columns[name][i].as_py() for name in ("file", "fps", "stage", "reason")}
