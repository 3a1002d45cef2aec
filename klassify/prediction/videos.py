"""The videos that a user names, and the names of their answers."""

from __future__ import annotations

import collections
import glob
import itertools
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from klassify.errors import KlassifyError, first_few
from klassify.files import readable, similar
from klassify.media.container import media_below

# bytes, of the 255 of a name: a number, suffixes and what is half written need some
LONGEST_STEM = 180


def find_videos(given: Iterable[str]) -> list[Path]:
    """The files that the arguments name, expanded, each once; KlassifyError for none."""
    found: dict[Path, None] = {}
    for text in given:
        path = Path(text)
        if path.is_dir():
            here, passed = media_below(path)
            if passed:
                names = first_few(readable(other.relative_to(path)) for other in passed)
                print(
                    f"{readable(path)}: not media, by name: {names}; name one to have it read",
                    file=sys.stderr,
                )
        elif path.is_file():
            here = [path]
        else:
            here = sorted(
                Path(name) for name in glob.glob(text, recursive=True) if os.path.isfile(name)
            )
        if not here:
            raise _nothing(text)
        found |= dict.fromkeys(here)
    return list(found)


def _nothing(text: str) -> KlassifyError:
    """Why an argument names no video."""
    path = Path(text)
    if "://" in text:
        what, fix = "This is a web address; only files are read.", "download it, then name the file"
    elif path.is_dir() or glob.has_magic(text):
        what, fix = "There is no video or sound here.", "give files, folders or quoted globs"
    else:
        what = "This file does not exist."
        fix = similar(path) or "give files, folders or quoted globs"
    return KlassifyError(what, where=text, fix=fix)


def output_names(paths: Sequence[Path]) -> list[str]:
    """The stems of the files' answers, in order: each file's own stem as text, cut where it is too
    long for a name.

    Stems that are equal, or differ only in case, get numbers.
    """
    stems = [readable(path.stem if path.stem.strip(".") else "video") for path in paths]
    stems = [stem.encode()[:LONGEST_STEM].decode(errors="ignore") for stem in stems]
    count = collections.Counter(map(_key, stems))
    taken = {key for key, n in count.items() if n == 1}
    numbers: dict[str, Iterator[int]] = collections.defaultdict(lambda: itertools.count(1))
    for place, stem in enumerate(stems):
        key = _key(stem)
        if count[key] > 1:
            tried = (f"{stem}-{number}" for number in numbers[key])
            stems[place] = next(name for name in tried if _key(name) not in taken)
            taken.add(_key(stems[place]))
    return stems


def _key(name: str) -> str:
    """Equal for names that some file systems take for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
