"""Score files: the one schema in which every system writes and every later step reads scores.

One row is one span of one clip: `file start end score [named columns]`, times in seconds, a higher
score always means "more fake". Labels never live here; rows are joined by `file`, never by
position.

| kind | file | rows |
|---|---|---|
| windows | <split>.windows.tsv | one per window, kept so that aggregation is a cheap re-run |
| clips | <split>.clips.tsv | exactly one per clip; empty score = no answer; reason, seen, heard |
| frames | <split>.frames.parquet | one per frame, of 40 ms unless the header says otherwise |
| segments | <split>.segments.tsv | proposals, with `modality` and `method` |

The header (`# key=value` lines in TSV, file metadata in Parquet) says which system made the scores,
on which split, on which scale, under which supervision, and with which settings; that of a TSV file
says last how many rows follow, since nothing else would tell that some of them are lost.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError, first_few, first_line
from klassify.files import whole_file
from klassify.grid.frames import FRAME_S
from klassify.lists.data_list import refuse_rows
from klassify.settings import already_done, canonical_json, settings_hash
from klassify.untrusted import refuse_cut, refuse_irregular, refuse_swollen

KINDS = {
    "windows": ".windows.tsv",
    "clips": ".clips.tsv",
    "frames": ".frames.parquet",
    "segments": ".segments.tsv",
}
SCALES = ("log_odds", "probability", "cosine", "distance")
SUPERVISIONS = ("clip", "self", "pseudo", "segment")  # from the weakest labels to the strongest
COLUMNS = ("file", "start", "end", "score")
TEXT_COLUMNS = ("file", "reason", "modality", "method")
GRID = ("hop_s", "offset_s")  # of frames
SHARES = ("seen", "heard")  # of a clip, in [0, 1]; empty = unknown
ROWS = "rows"  # in the header of a TSV file
AGAIN = "remove it and make the scores again"
DIGITS = "%.9g"  # a float32 softmax ties from a logit of about 17; nine digits of log-odds do not


@dataclasses.dataclass(frozen=True)
class Header:
    """What made a score file. `settings`: everything the scores depend on, JSON-serialisable.

    hop_s, offset_s: of frames: seconds per frame, and where a clip's first one begins.
    """

    system: str
    split: str
    kind: str
    scale: str
    supervision: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hop_s: float = FRAME_S
    offset_s: float = 0.0

    def __post_init__(self):
        if not (0.001 <= self.hop_s <= 1 and 0 <= self.offset_s < self.hop_s):
            raise KlassifyError(
                f"hop_s={self.hop_s:g} is not within 0.001 to 1, or offset_s={self.offset_s:g} not"
                " within the first frame.",
                where="score file header",
            )
        for name, allowed in (("kind", KINDS), ("scale", SCALES), ("supervision", SUPERVISIONS)):
            if getattr(self, name) not in allowed:
                raise KlassifyError(
                    f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}.",
                    where="score file header",
                )

    def as_lines(self) -> dict[str, str]:
        """The header as written: flat strings, the settings as JSON with their hash beside them."""
        names = ["system", "split", "kind", "scale", "supervision"]
        # left out at their defaults, so that the bytes of such files do not change
        if self.kind == "frames" and (self.hop_s, self.offset_s) != (FRAME_S, 0.0):
            names += GRID
        return {name: str(getattr(self, name)) for name in names} | {
            "settings_hash": settings_hash(self.settings),
            "settings": canonical_json(self.settings),
        }


@dataclasses.dataclass(frozen=True)
class ScoreFile:
    """A validated table of scores and what made it."""

    header: Header
    table: pd.DataFrame


def strongest(supervisions: Iterable[str]) -> str:
    """The supervision of what was made with several: segment, pseudo, self, clip."""
    return max(supervisions, key=SUPERVISIONS.index)


def score_path(system_dir: str | os.PathLike, split: str, kind: str) -> Path:
    """Where a system keeps its scores of one kind for one split."""
    return Path(system_dir) / "scores" / f"{split}{KINDS[kind]}"


def write_scores(path: str | os.PathLike, table: pd.DataFrame, header: Header) -> None:
    """Validate and write a score file, whole or not at all."""
    write_blocks(path, [table], header)


def write_blocks(path: str | os.PathLike, blocks: Iterable[pd.DataFrame], header: Header) -> None:
    """`write_scores` of blocks of rows that follow each other, so that a corpus is never in memory.

    At least one block, maybe an empty one, and all with the same columns. In Parquet a block is a
    row group.
    """
    checked = (validate(block, header, where=path) for block in blocks)
    with whole_file(path) as partial:
        (_write_parquet if header.kind == "frames" else _write_tsv)(partial, checked, header)


def _write_parquet(path: Path, blocks: Iterable[pd.DataFrame], header: Header) -> None:
    import pyarrow.parquet as pq

    writer = None
    for block in blocks:
        arrow = as_arrow(block).replace_schema_metadata(header.as_lines())
        writer = writer or pq.ParquetWriter(path, arrow.schema, compression="zstd")
        writer.write_table(arrow)
    writer.close()


def _write_tsv(path: Path, blocks: Iterable[pd.DataFrame], header: Header) -> None:
    with open(path, "w", encoding="utf-8", newline="") as handle:
        handle.writelines(f"# {key}={value}\n" for key, value in header.as_lines().items())
        handle.write(f"# {ROWS}=")
        place, rows = handle.tell(), 0
        handle.write(f"{rows:012d}\n")
        for number, block in enumerate(blocks):
            block.to_csv(
                handle,
                sep="\t",
                index=False,
                header=not number,
                float_format=DIGITS,
                lineterminator="\n",
            )
            rows += len(block)
        handle.seek(place)
        handle.write(f"{rows:012d}")


def as_arrow(table: pd.DataFrame) -> Any:
    """A score table as a pyarrow.Table, with typed columns even without rows."""
    import pyarrow as pa

    text = {name: "string" for name in table.columns if name in TEXT_COLUMNS}
    untyped = {
        name: float for name in table.columns if name not in text and table[name].dtype == object
    }
    made = pa.Table.from_pandas(table.astype(text | untyped), preserve_index=False)
    fields = [
        field.with_type(pa.string()) if field.name in text else field  # large_string in pandas 3
        for field in made.schema
    ]
    return made.cast(pa.schema(fields))


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Turn what libraries raise for a damaged score file into a KlassifyError that names it."""
    import pyarrow as pa

    try:
        yield
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        LookupError,
        ArithmeticError,
        TypeError,
        AttributeError,
    ) as error:
        reason = first_line(error)
        raise KlassifyError(
            f"This score file is damaged: {reason}.", where=path, fix=AGAIN
        ) from None


def read_header(path: str | os.PathLike) -> Header:
    """The header alone; cheap on a file of any size."""
    path = Path(path)
    fields = _header_fields(path)
    try:
        settings = json.loads(fields.pop("settings"))
        names = ("system", "split", "kind", "scale", "supervision")
        grid = {name: float(fields[name]) for name in GRID if name in fields}
        return Header(*(fields[name] for name in names), dict(settings), **grid)
    except KlassifyError as error:
        raise KlassifyError(error.what, where=path) from None
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise KlassifyError(
            f"The header of this score file is incomplete ({error}).", where=path
        ) from None


def made_with(path: str | os.PathLike) -> dict[str, Any] | None:
    """The settings of a score file, None where there is none."""
    return dict(read_header(path).settings) if Path(path).exists() else None


def is_current(
    path: str | os.PathLike, settings: Mapping[str, Any], *, force: bool = False
) -> bool:
    """Whether a score file with these settings exists; others are refused, unless `force`."""
    return already_done(path, made_with(path), settings, force=force)


def _header_fields(path: Path) -> dict[str, str]:
    if not path.exists():
        what = "This score file does not exist."
        raise KlassifyError(what, where=path, fix="score the system on this split first")
    refuse_irregular(path)
    with reading(path):
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            raw = pq.read_schema(path).metadata or {}
            return {key.decode(): value.decode() for key, value in raw.items()}
        with open(path, encoding="utf-8") as handle:
            lines = itertools.takewhile(lambda line: line.startswith("# "), handle)
            pairs = (line[2:].rstrip("\n").partition("=") for line in lines)
            return {key: value for key, _, value in pairs}


def read_scores(path: str | os.PathLike) -> ScoreFile:
    """Read and validate a score file."""
    header = read_header(path)
    if header.kind == "frames":
        import pyarrow.parquet as pq

        with reading(path), pq.ParquetFile(path) as parquet:
            refuse_swollen(parquet, path, fix=AGAIN)
            table = parquet.read().to_pandas()
        return ScoreFile(header, validate(table, header, where=path))
    (table,) = _read_tsv(path, header, None)
    return ScoreFile(header, table)


def n_rows(path: str | os.PathLike) -> int:
    """The rows of a TSV score file, by its header; 0 where an old one does not say."""
    return int(_header_fields(Path(path)).get(ROWS, 0))


def read_blocks(
    path: str | os.PathLike, rows: int, *, without: Collection[str] = ()
) -> Iterator[pd.DataFrame]:
    """The table of a TSV score file, validated, `rows` rows at a time; nothing of an empty one.

    without: columns that are not needed.
    """
    return _read_tsv(path, read_header(path), rows, without)


def _read_tsv(
    path: str | os.PathLike, header: Header, rows: int | None, without: Collection[str] = ()
) -> Iterator[pd.DataFrame]:
    """One table, or with `rows` blocks of so many."""
    refuse_cut(path)
    fields = _header_fields(Path(path))
    read = 0
    with reading(path):
        found = pd.read_csv(
            path,
            sep="\t",
            skiprows=len(fields),
            quoting=csv.QUOTE_MINIMAL,
            keep_default_na=False,
            encoding="utf-8",
            na_values=dict.fromkeys(("score", *SHARES), [""]),
            dtype=dict.fromkeys(TEXT_COLUMNS, str),
            usecols=lambda name: name not in without,
            chunksize=rows,
        )
    tables = iter([found] if rows is None else found)
    while True:
        with reading(path):
            table = next(tables, None)
        if table is None:
            break
        read += len(table)
        yield validate(table, header, where=path)
    if fields.get(ROWS, f"{read:012d}") != f"{read:012d}":  # a file may lack this line
        what = f"This score file has {read} rows; its header says {fields[ROWS].lstrip('0') or 0}."
        raise KlassifyError(what, where=path, fix=AGAIN)


def validate(table: pd.DataFrame, header: Header, *, where: object) -> pd.DataFrame:
    """The table; KlassifyError for a missing column, a repeated clip, a bad time or score."""
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise KlassifyError(
            f"Columns {missing} are missing; there are {list(table.columns)}.", where=where
        )
    for name in set(table.columns) - set(TEXT_COLUMNS):
        # an empty column has no type of its own
        if len(table) and table[name].dtype.kind not in "fiu":
            raise KlassifyError(
                f"Column {name!r} holds something that is not a number.", where=where
            )
    start, end = table["start"].to_numpy(float), table["end"].to_numpy(float)
    bad = ~(np.isfinite(start) & np.isfinite(end) & (start >= 0) & (start <= end))
    refuse_rows(table, bad, "times need 0 <= start <= end", where)
    score = table["score"].to_numpy(float)
    bad = ~np.isfinite(score)
    if header.kind == "clips":
        excused = (
            table["reason"].fillna("").ne("").to_numpy()
            if "reason" in table
            else np.zeros(len(table), bool)
        )
        bad &= ~(np.isnan(score) & excused)
        refuse_rows(
            table, table["file"].duplicated().to_numpy(), "a clip appears more than once", where
        )
    refuse_rows(
        table, bad, "the score is not a finite number (an empty score needs a reason)", where
    )
    if header.scale == "probability":
        refuse_rows(table, (score < 0) | (score > 1), "a probability outside [0, 1]", where)
    return table


def joined_shares(tables: Sequence[pd.DataFrame]) -> dict[str, np.ndarray]:
    """`seen` and `heard` (n,) of what is computed from several clip tables of the same clips in one
    order: the larger share; a column that no table has is left out.
    """
    columns = {name: [table[name] for table in tables if name in table] for name in SHARES}
    return {name: np.fmax.reduce(shares) for name, shares in columns.items() if shares}


def align(scores: ScoreFile, files: Sequence[str], *, where: object) -> pd.DataFrame:
    """The clip scores in the order of `files`, joined by name.

    Raises KlassifyError that counts and names the clips that only one side has.
    """
    there, wanted = pd.Index(scores.table["file"]), pd.Index(files, dtype=object)
    place = there.get_indexer(wanted)
    missing = wanted[place < 0]
    if len(missing) or len(np.unique(place)) < len(there):
        extra = there.difference(wanted)
        raise KlassifyError(
            f"Scores and list do not cover the same clips: {len(missing)} without a score"
            f" ({first_few(missing)}), {len(extra)} scored but not listed ({first_few(extra)}).",
            where=where,
            fix="score this list again, or use the list that was scored",
        )
    return scores.table.iloc[place].reset_index(drop=True)
