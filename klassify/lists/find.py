"""What describes the splits of a data set below its root folder."""

from __future__ import annotations

import re
from pathlib import Path

from klassify.errors import KlassifyError, first_few
from klassify.lists import datasets, records, speech
from klassify.lists.subsets import SUBSETS, media_folder
from klassify.media.container import media_below

PLAIN = (".csv", ".tsv", ".json", ".jsonl")  # of tables and lists, which may be of anything
ENDINGS = ("_metadata.json", "_metadata.jsonl", *PLAIN, "_files.txt")
ALL_SPLITS = tuple(f"metadata{end}" for end in (".json", ".min.json", ".jsonl", ".csv", ".tsv"))
FAKEAVCELEB = "meta_data.csv"


def find_splits(root: Path, data: str) -> dict[str, Path]:
    """{split: what describes it} of all splits that the root describes, train and val first.

    data: the data set's name. Raises KlassifyError where there are none.
    """
    if data in speech.CORPORA:
        return _find_protocols(root, data)
    spelt = {name for name in datasets.FOLDERS if (root / name).is_dir()}
    for ending in ENDINGS:
        names = [path.name.removesuffix(ending) for path in root.glob(f"*{ending}")]
        # other files may lie beside those of the splits
        spelt |= {x for x in names if ending not in PLAIN or _is_plain_name(x)}
    of_all = next((root / name for name in ALL_SPLITS if (root / name).is_file()), None)
    spelt |= _named_splits(of_all) if of_all else _splits_of_parts(root)
    names = {told_split(name) for name in sorted(spelt)}
    if (root / FAKEAVCELEB).is_file():
        names.add("fakeavceleb")
    order = sorted(names, key=lambda name: (name not in ("train", "val"), name))
    found = {name: _find(root, name) for name in order}
    missing = [name for name, source in found.items() if source is None]
    for folder in [media_folder(root, name) for name in missing] if found else [root]:
        if folder == root or media_below(folder)[0]:
            raise _nothing_describes(folder, data)
    return {name: source for name, source in found.items() if source}


def _find_protocols(root: Path, data: str) -> dict[str, Path]:
    """{split: its protocol} of a data set of speech."""
    splits = speech.CORPORA[data].splits
    found = {split: speech.find_protocol(root, data, split) for split in splits}
    if not any(found.values()):
        raise _nothing_describes(root, data)
    return {split: source for split, source in found.items() if source}


def _is_plain_name(name: str) -> bool:
    """Whether SPLIT.csv or SPLIT.json with such a name describes a split; test_results does not."""
    return name in datasets.FOLDERS or bool(re.fullmatch(r"test[A-Za-z0-9]*", name))


def _nothing_describes(folder: Path, data: str) -> KlassifyError:
    unread = sorted(path.name for ending in PLAIN for path in folder.glob(f"*{ending}"))
    also = f"; no split is named by {first_few(unread)}" if unread else ""
    what = f"Nothing describes the clips here{also}."
    return KlassifyError(what, where=folder, fix=datasets.how_described(data))


def told_split(spelling: str) -> str:
    """`datasets.split_of`; says so where that is another name. KlassifyError for a name that cannot
    be that of a file: metadata may hold any.
    """
    if not re.fullmatch(r"\w+", spelling) or spelling in SUBSETS:
        what = f"{spelling[:80]!r} cannot be the name of a split."
        raise KlassifyError(what, fix=f"use letters, digits and _, but not {', '.join(SUBSETS)}")
    split = datasets.split_of(spelling)
    if split != spelling:
        print(f"the split {spelling} is written as {split}")
    return split


def _named_splits(path: Path) -> set[str]:
    """The splits that the entries of a file of all splits name."""
    named = set()
    for entries in records.read_entries(path):
        found = [entry.get("split") for entry in entries if isinstance(entry, dict)]
        named |= {name for name in found if isinstance(name, str)}
    return named


def _splits_of_parts(root: Path) -> set[str]:
    """The splits that the entries of part folders name, as DFDC's do."""
    return set().union(*map(_named_splits, records.part_files(root)))


def find_split(root: Path, data: str, split: str) -> Path:
    """What describes one split; KlassifyError with the splits that are described."""
    protocol = data in speech.CORPORA
    source = speech.find_protocol(root, data, split) if protocol else _find(root, split)
    if source is None:
        known = first_few(find_splits(root, data))
        what = f"Nothing describes the split {split!r}; described are: {known}."
        raise KlassifyError(what, where=root, fix=how_described(root, data, split))
    return source


def how_described(root: Path, data: str, split: str) -> str:
    """How to describe a split that is missing, as advice."""
    parts = [path.parent for path in records.part_files(root)]
    if data in datasets.known() or not parts:
        return datasets.how_described(data)
    return (
        f"move some of the parts to {root / split}, such as {parts[-1].name}, and run this again"
        " with --force (make: force=1)"
    )


def _find(root: Path, split: str) -> Path | None:
    """Its metadata or table, a list of names, a file of all splits, or a folder."""
    if split == "fakeavceleb" and (root / FAKEAVCELEB).is_file():
        return root / FAKEAVCELEB
    spellings = datasets.spellings(split)
    files = [f"{name}{ending}" for name in spellings for ending in ENDINGS]
    for path in (root / name for name in (*files, *ALL_SPLITS)):
        # a pipe is found, and refused when it is read
        if path.exists() and not path.is_dir():
            return path
    media = media_folder(root, split)
    folders = [*(root / f"{name}_metadata" for name in spellings), media]
    for folder in (folder for folder in folders if folder != root and folder.is_dir()):
        if records.label_folders(folder) or next(folder.rglob("*.json"), None):
            return folder
    if any(datasets.split_of(name) == split for name in _splits_of_parts(root)):
        return root
    # the clips of a test split need no labels
    return media if split.startswith("test") and media != root and media_below(media)[0] else None
