"""Score files: the one schema in which every system writes and every later step reads scores.

One row is one span of one clip: `file start end score [named columns]`, times in seconds, a higher
score always means "more fake". Labels never live here; rows are joined by `file`, never by position.

| kind     | file                     | rows                                                   |
|----------|--------------------------|--------------------------------------------------------|
| windows  | <split>.windows.tsv      | one a window, kept so that aggregation is a cheap re-run |
| clips    | <split>.clips.tsv        | exactly one a clip; empty score = no answer, `reason` says why |
| frames   | <split>.frames.parquet   | one a 40 ms frame                                      |
| segments | <split>.segments.tsv     | proposals, with `modality` and `method`                |

The header (`# key=value` lines in TSV, file metadata in Parquet) says which system made the scores,
on which split, on which scale, under which supervision, and with which settings.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError, some
from klassify.files import canonical_json, settings_hash, whole_file

KINDS = {
    "windows": ".windows.tsv",
    "clips": ".clips.tsv",
    "frames": ".frames.parquet",
    "segments": ".segments.tsv",
}
SCALES = ("log_odds", "probability", "cosine", "distance")
SUPERVISIONS = ("clip", "segment")
COLUMNS = ("file", "start", "end", "score")
TEXT_COLUMNS = ("file", "reason", "modality", "method")
DIGITS = "%.9g"  # a float32 softmax ties from a logit of about 17; nine digits of log-odds do not


@dataclasses.dataclass(frozen=True)
class Header:
    """What made a score file. `settings`: everything the scores depend on, JSON-serialisable."""

    system: str
    split: str
    kind: str
    scale: str
    supervision: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name, allowed in (("kind", KINDS), ("scale", SCALES), ("supervision", SUPERVISIONS)):
            if getattr(self, name) not in allowed:
                raise KlassifyError(
                    f"{name}={getattr(self, name)!r} is none of {', '.join(allowed)}.",
                    where="score file header",
                )

    def as_lines(self) -> dict[str, str]:
        """The header as written: flat strings, the settings as JSON with their hash beside them."""
        fields = {k: str(v) for k, v in dataclasses.asdict(self).items() if k != "settings"}
        return fields | {
            "settings_hash": settings_hash(self.settings),
            "settings": canonical_json(self.settings),
        }


@dataclasses.dataclass(frozen=True)
class ScoreFile:
    """A validated table of scores and what made it."""

    header: Header
    table: pd.DataFrame


def score_path(system_dir: str | os.PathLike, split: str, kind: str) -> Path:
    """Where a system keeps its scores of one kind for one split."""
    return Path(system_dir) / "scores" / f"{split}{KINDS[kind]}"


def write_scores(path: str | os.PathLike, table: pd.DataFrame, header: Header) -> None:
    """Validate and write a score file, whole or not at all."""
    validate(table, header, where=path)
    with whole_file(path) as partial:
        if header.kind == "frames":
            import pyarrow as pa
            import pyarrow.parquet as pq

            arrow = pa.Table.from_pandas(table, preserve_index=False)
            pq.write_table(arrow.replace_schema_metadata(header.as_lines()), partial, compression="zstd")
        else:
            with open(partial, "w", encoding="utf-8", newline="") as handle:
                handle.writelines(f"# {key}={value}\n" for key, value in header.as_lines().items())
                table.to_csv(handle, sep="\t", index=False, float_format=DIGITS, lineterminator="\n")


def write_frames(path: str | os.PathLike, parts: Iterable[pd.DataFrame], header: Header) -> None:
    """`write_scores` of a frames file in parts, so that a corpus is never in memory; at least one, maybe empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with whole_file(path) as partial:
        writer = None
        for part in parts:
            validate(part, header, where=path)
            arrow = pa.Table.from_pandas(part.astype({"file": "string"}), preserve_index=False)
            arrow = arrow.replace_schema_metadata(header.as_lines())
            writer = writer or pq.ParquetWriter(partial, arrow.schema, compression="zstd")
            writer.write_table(arrow)
        writer.close()


def read_header(path: str | os.PathLike) -> Header:
    """The header alone; cheap on a file of any size."""
    path = Path(path)
    if not path.exists():
        raise KlassifyError("This score file does not exist.", where=path, mend="score the system on this split first")
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            raw = pq.read_schema(path).metadata or {}
        except pa.ArrowInvalid as error:
            raise KlassifyError(f"This is not a whole Parquet file: {error}.", where=path) from None
        fields = {key.decode(): value.decode() for key, value in raw.items()}
    else:
        fields = {}
        with open(path, encoding="utf-8") as handle:
            for line in handle:
                if not line.startswith("# "):
                    break
                key, _, value = line[2:].rstrip("\n").partition("=")
                fields[key] = value
    try:
        settings = json.loads(fields.pop("settings"))
        names = [field.name for field in dataclasses.fields(Header) if field.name != "settings"]
        return Header(**{name: fields[name] for name in names}, settings=settings)
    except (KeyError, ValueError) as error:
        raise KlassifyError(f"The header of this score file is incomplete ({error}).", where=path) from None


def read_scores(path: str | os.PathLike) -> ScoreFile:
    """Read and validate a score file."""
    header = read_header(path)
    if header.kind == "frames":
        table = pd.read_parquet(path)
    else:
        skip = len(header.as_lines())
        try:
            table = pd.read_csv(
                path, sep="\t", skiprows=skip, quoting=csv.QUOTE_MINIMAL, keep_default_na=False, encoding="utf-8",
                na_values={"score": [""]}, dtype=dict.fromkeys(TEXT_COLUMNS, str),
            )  # fmt: skip
        except (ValueError, pd.errors.ParserError) as error:
            raise KlassifyError(f"This score file cannot be parsed: {error}.", where=path) from None
    validate(table, header, where=path)
    return ScoreFile(header, table)


def validate(table: pd.DataFrame, header: Header, *, where: object) -> None:
    """Raise KlassifyError for a missing column, a repeated clip, a bad time or a score that is no number."""
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise KlassifyError(f"Columns {missing} are missing; there are {list(table.columns)}.", where=where)
    for name in set(table.columns) - set(TEXT_COLUMNS):
        if len(table) and table[name].dtype.kind not in "fiu":  # an empty column has no type of its own
            raise KlassifyError(f"Column {name!r} holds something that is no number.", where=where)
    start, end = table["start"].to_numpy(float), table["end"].to_numpy(float)
    bad = ~(np.isfinite(start) & np.isfinite(end) & (start >= 0) & (start <= end))
    _refuse_rows(table, bad, "times need 0 <= start <= end", where)
    score = table["score"].to_numpy(float)
    bad = ~np.isfinite(score)
    if header.kind == "clips":
        excused = table["reason"].fillna("").ne("").to_numpy() if "reason" in table else np.zeros(len(table), bool)
        bad &= ~(np.isnan(score) & excused)
        _refuse_rows(table, table["file"].duplicated().to_numpy(), "a clip stands here twice", where)
    _refuse_rows(table, bad, "the score is no finite number (an empty score needs a reason)", where)
    if header.scale == "probability":
        _refuse_rows(table, (score < 0) | (score > 1), "a probability lies in [0, 1]", where)


def _refuse_rows(table: pd.DataFrame, bad: np.ndarray, why: str, where: object) -> None:
    if bad.any():
        names = some(f"row {i + 1} ({table['file'].iloc[i]})" for i in np.flatnonzero(bad)[:50])
        raise KlassifyError(f"{int(bad.sum())} of {len(table)} rows are wrong: {why}: {names}.", where=where)


def align(scores: ScoreFile, files: Sequence[str], *, where: object) -> pd.DataFrame:
    """The clip scores in the order of `files`, joined by name.

    Raises KlassifyError that counts and names the clips that only one side has.
    """
    table = scores.table.set_index("file")
    missing = [name for name in files if name not in table.index]
    extra = table.index.difference(pd.Index(files))
    if missing or len(extra):
        raise KlassifyError(
            f"Scores and list do not cover the same clips: {len(missing)} without a score ({some(missing)}), "
            f"{len(extra)} scored but not listed ({some(extra)}).",
            where=where,
            mend="score this list again, or use the list that was scored",
        )
    return table.loc[list(files)].reset_index()
