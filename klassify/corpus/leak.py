"""Do the containers of the generated corpus tell real from fake? Loudness is looked at as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from klassify import leaks, media
from klassify.corpus.metadata import read_entries
from klassify.leaks import leak_auc


def container_traits(path: Path) -> dict[str, float | str]:
    """`leaks.container_traits` and the loudness in dB."""
    power = float(np.mean(media.read_audio(path) ** 2))
    return {**leaks.container_traits(path), "loudness_db": float(10 * np.log10(power + 1e-12))}


def corpus_leak_auc(corpus: Path) -> float:
    """`leak_auc` over all clips of a generated corpus."""
    entries = read_entries(corpus)
    traits = pd.DataFrame([container_traits(corpus / entry["split"] / entry["file"]) for entry in entries])
    is_fake = np.array([int(entry["modify_type"] != "real") for entry in entries])
    original = np.array([f"{entry['split']}/{entry['original']}" for entry in entries])
    return leak_auc(traits, is_fake, original)
