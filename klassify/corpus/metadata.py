"""The metadata files of a generated corpus, with the challenge's names and layout."""

from __future__ import annotations

from pathlib import Path

from klassify.corpus.plan import SPLITS, TEST_SPLITS
from klassify.files import read_json, write_json, write_text


def write_metadata(out: Path, entries: list[dict]) -> None:
    """Write the metadata of all splits that have clips, and file lists of the test splits."""
    for split in SPLITS:
        chosen = [entry for entry in entries if entry["split"] == split]
        if not chosen:
            continue
        chosen.sort(key=lambda entry: entry["file"])
        write_json(metadata_path(out, split), chosen)
        if split in TEST_SPLITS:
            names = "".join(f"{entry['file']}\n" for entry in chosen)
            write_text(out / f"{split}_files.txt", names)


def read_entries(corpus: Path, splits: tuple[str, ...] = SPLITS) -> list[dict]:
    """The metadata entries of a generated corpus."""
    paths = [metadata_path(corpus, split) for split in splits]
    return [entry for path in paths if path.exists() for entry in read_json(path)]


def metadata_path(corpus: Path, split: str) -> Path:
    """The file with the metadata of a split; the test splits' labels are kept apart."""
    folder = corpus / "heldout" if split in TEST_SPLITS else corpus
    return folder / f"{split}_metadata.json"
