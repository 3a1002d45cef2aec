"""The metadata files of a generated corpus, named and laid out as the challenge's."""

from __future__ import annotations

from pathlib import Path

from klassify.corpus.plan import SPLITS, TEST_SPLITS
from klassify.files import read_json, write_json, write_text


def write_metadata(out: Path, entries: list[dict]) -> None:
    """Write train and val metadata, the lists of the test splits, and, apart from them, their
    labels.
    """
    for split in SPLITS:
        chosen = sorted(
            (entry for entry in entries if entry["split"] == split), key=lambda entry: entry["file"]
        )
        if split in TEST_SPLITS:
            write_json(out / "heldout" / f"{split}_metadata.json", chosen)
            write_text(
                out / f"{split}_files.txt", "".join(f"{entry['file']}\n" for entry in chosen)
            )
        else:
            write_json(out / f"{split}_metadata.json", chosen)


def read_entries(corpus: Path, splits: tuple[str, ...] = SPLITS) -> list[dict]:
    """Metadata entries of a generated corpus, those of the test splits from heldout/."""
    return [
        entry
        for split in splits
        for entry in read_json(
            (corpus / "heldout" if split in TEST_SPLITS else corpus) / f"{split}_metadata.json"
        )
    ]
