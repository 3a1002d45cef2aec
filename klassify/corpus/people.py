"""Genuine clips of a folder: who is in them, where they come from, and the split of each person."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from klassify.corpus.plan import SPLITS
from klassify.errors import KlassifyError, first_few
from klassify.media.container import media_below

COLUMNS = ("file", "person", "licence", "origin")
SHARES = {"val": 0.2, "testA": 0.125, "testB": 0.125}  # of the people; train has the others
LEAST_VAL = 4  # people, where there are three times as many


class Source(NamedTuple):
    """A genuine clip: its name below the folder, who is in it, under which licence, from where."""

    file: str
    person: str
    licence: str = ""
    origin: str = ""


def find_sources(folder: Path, table: Path | None = None, licence: str = "") -> list[Source]:
    """The media files below a folder, or those that a TSV lists, sorted by name.

    table: with the columns file and person, and maybe licence and origin. Without it the person is
    the first folder below `folder`, or, of a file that lies in none, its name up to the first
    underscore. licence: of clips whose row names none. KlassifyError for a table that cannot be
    used and a folder without media.
    """
    if not folder.is_dir():
        raise KlassifyError("This folder does not exist.", where=folder)
    if table is not None:
        return _listed(folder, table, licence)
    names = [path.relative_to(folder).as_posix() for path in media_below(folder)[0]]
    if not names:
        raise KlassifyError("There are no media files in this folder.", where=folder)
    return [Source(name, _person_of(name), licence) for name in names]


def _person_of(name: str) -> str:
    first, *rest = name.split("/")
    return first if rest else Path(first).stem.split("_")[0]


def _listed(folder: Path, table: Path, licence: str) -> list[Source]:
    try:
        with open(table, encoding="utf-8", newline="") as handle:
            rows = list(csv.DictReader(handle, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise KlassifyError(f"This table cannot be read: {error}.", where=table) from None
    sources = []
    for number, row in enumerate(rows, start=2):
        file, person = row.get("file"), row.get("person")
        if not file or not person:
            raise KlassifyError(
                f"Row {number} has no file or no person; the columns are file, person and maybe"
                " licence and origin, separated by tabs.",
                where=table,
            )
        more = (row.get("licence") or licence, row.get("origin") or "")
        sources.append(Source(file, person, *more))
    files = [source.file for source in sources]
    if twice := sorted({file for file in files if files.count(file) > 1}):
        raise KlassifyError(f"Files appear more than once: {first_few(twice)}.", where=table)
    absent = [file for file in files if not (folder / file).is_file()]
    if absent or not sources:
        what = f"{len(absent)} of {len(files)} files are not in {folder}: {first_few(absent)}"
        raise KlassifyError(f"{what if absent else 'The table has no rows'}.", where=table)
    return sorted(sources)


def splits_of(people: Sequence[str], heard: Collection[str], seed: int) -> dict[str, str]:
    """The split of each person, drawn by a hash of the name and the seed.

    A fifth of the people is for val and an eighth for each test split, at least one each; so it is
    of those who are heard, whose clips have sound. KlassifyError for fewer than four people.
    """

    def rank(name: str) -> tuple[bool, bytes]:
        return name in heard, hashlib.sha256(f"{seed} {name}".encode()).digest()

    ranked = sorted(set(people), key=rank)
    n = len(ranked)
    if n < len(SPLITS):
        raise KlassifyError(
            f"The clips show {n} people ({first_few(ranked)}); four splits that share nobody need"
            " at least four.",
            fix="sort the clips into one folder per person, or name people with --people FILE.tsv",
        )
    sizes = {split: max(1, round(share * n)) for split, share in SHARES.items()}
    sizes["val"] = max(sizes["val"], min(LEAST_VAL, n // 3))
    sizes["train"] = n - sum(sizes.values())
    split_of: dict[str, str] = {}
    left = dict(sizes)
    for number, name in enumerate(ranked):
        # the split that is furthest behind its share of the people so far
        behind = {s: left[s] - sizes[s] * (n - number - 1) / n for s in sizes if left[s]}
        split_of[name] = max(behind, key=behind.__getitem__)
        left[split_of[name]] -= 1
    return split_of
