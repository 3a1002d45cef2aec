"""Effects that remove what the content audit looks at: (n,) float32 at 16 kHz, same length.

Each reaches its target whatever the clip was like, so that the label can no longer be read from
it. All keep sounds in place.
"""

from __future__ import annotations

import numpy as np

from klassify.media.content import QUIET
from klassify.media.decoder import SAMPLE_RATE

LONGEST_END_S = 0.3
FILL = (0.001, 0.003)  # standard deviations of the noise in place of silence
LOUDNESS_DB = (-35.0, -15.0)  # of full scale
CLIPPED = 0.01  # largest share of samples
SILENT = 1e-5  # a clip below this level stays silent


def ends(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The silence at each end becomes noise; then half of the ends get up to 300 ms of silence."""
    changed = wave.copy()
    for end in (changed, changed[::-1]):
        audible = np.flatnonzero(np.abs(end) > QUIET)
        silent = end[: audible[0] if len(audible) else len(end)]
        silent += rng.normal(0, rng.uniform(*FILL), len(silent)).astype(np.float32)
        seconds = rng.uniform(0, LONGEST_END_S) if rng.random() < 0.5 else 0.0
        end[: min(round(seconds * SAMPLE_RATE), len(end) // 4)] = 0
    return changed


def loudness(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The wave at a random level, -35 to -15 dB of full scale, whatever it was before."""
    level = float(wave.std())
    wanted = 10 ** (rng.uniform(*LOUDNESS_DB) / 20)
    return wave * np.float32(wanted / level) if level > SILENT else wave


def offset(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The wave without its offset; nothing is drawn."""
    return wave - wave.mean()


def clipping(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The wave with up to 1 % of its samples cut at full scale."""
    limit = np.quantile(np.abs(wave), 1 - rng.uniform(0, CLIPPED))
    return np.clip(wave / np.float32(limit), -1, 1) if limit > SILENT else wave
