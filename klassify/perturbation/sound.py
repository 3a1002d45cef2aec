"""Perturbations of sound: (n,) float32 at 16 kHz in, the same number of samples at the same times
out.

Each takes the wave, a value (its meaning is in klassify.perturbation.families) and a generator.
"""

from __future__ import annotations

import numpy as np

from klassify.media.decoder import SAMPLE_RATE


def loudness(wave: np.ndarray, lufs: float, rng: np.random.Generator) -> np.ndarray:
    """The wave at an integrated loudness (ITU-R BS.1770-4), lower where it would clip; silence
    stays.
    """
    import loudness as bs1770

    measured = bs1770.integrated_loudness(wave, SAMPLE_RATE)
    if not np.isfinite(measured):
        return wave
    gain = 10 ** ((lufs - measured) / 20)
    return wave * np.float32(min(gain, 1 / np.abs(wave).max()))
