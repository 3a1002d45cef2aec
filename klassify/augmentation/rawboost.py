"""RawBoost (Tak et al., ICASSP 2022): three noises for raw waveforms, as SSL_Anti-spoofing combines
them.

That system trains on algorithm 5 (convolutive, then impulsive noise; ASVspoof LA) or 3 (stationary
noise; DF), on every clip, before it is cropped (klassify.augmentation.sets: after). As published,
the gain of the non-linear orders is lowered once, so that orders 2 to 5 share one range. Other than
published, no filter moves the clip: those did by one sample.

Waves are (n,) at 16 kHz; randomness comes from the generator that is handed in.
"""

from __future__ import annotations

import numpy as np

from klassify.media.decoder import SAMPLE_RATE

ORDERS = 5  # powers of the wave that are filtered and summed
BANDS = 5  # notches a filter
CENTRE_HZ, WIDTH_HZ = (20, 8000), (100, 1000)
TAPS = (10, 100)  # a notch
GAIN_DB = (0, 0)
NONLINEAR_LOSS_DB = (5, 20)  # of the orders from the second on
IMPULSES_PERCENT, IMPULSE_GAIN = 10, 2
SNR_DB = (10, 40)


def rawboost(wave: np.ndarray, algorithm: int, rng: np.random.Generator) -> np.ndarray:
    """Algorithm 3: stationary noise; 5: convolutive, then impulsive noise; 4: all three,
    stationary last.
    """
    if algorithm not in (3, 4, 5):
        raise ValueError(f"RawBoost's algorithms here are 3, 4 and 5, not {algorithm}")
    boosted = wave.astype(float)
    if algorithm != 3:
        boosted = impulsive(convolutive(boosted, rng), rng)
    if algorithm != 5:
        boosted = stationary(boosted, rng)
    return boosted.astype(np.float32)


def convolutive(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Linear and non-linear convolutive noise: powers 1 to 5 of the wave, each through notches
    of its own.
    """
    total = np.zeros(len(wave))
    for order in range(1, ORDERS + 1):
        low, high = sorted(np.subtract(GAIN_DB, NONLINEAR_LOSS_DB if order > 1 else 0))
        total += filtered(wave**order, notches(rng, low, high))
    return in_range(total - total.mean())


def impulsive(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Impulsive, signal-dependent noise on up to 10 % of the samples, drawn without repetition."""
    n = int(len(wave) * rng.uniform(0, IMPULSES_PERCENT) / 100)
    hit = rng.permutation(len(wave))[:n]
    strength = rng.uniform(-1, 1, n) * rng.uniform(-1, 1, n)
    noisy = wave.copy()
    noisy[hit] += IMPULSE_GAIN * wave[hit] * strength
    return in_range(noisy)


def stationary(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Stationary, signal-independent noise: coloured by notches, at 10 to 40 dB below the wave."""
    noise = filtered(rng.normal(0, 1, len(wave)), notches(rng, *GAIN_DB))
    snr = rng.uniform(*SNR_DB)
    return wave + noise / np.linalg.norm(noise) * np.linalg.norm(wave) / 10 ** (snr / 20)


def notches(rng: np.random.Generator, low_db: float, high_db: float) -> np.ndarray:
    """A linear-phase filter of five random notches in a row, scaled to a peak gain between the
    two.
    """
    from scipy.signal import firwin, freqz  # a second that only those who augment pay

    taps = np.ones(1)
    for _ in range(BANDS):
        centre, width, n = rng.uniform(*CENTRE_HZ), rng.uniform(*WIDTH_HZ), int(rng.uniform(*TAPS))
        edges = [max(centre - width / 2, 1e-3), min(centre + width / 2, SAMPLE_RATE / 2 - 1e-3)]
        taps = np.convolve(
            taps, firwin(n + 1 - n % 2, edges, window="hamming", fs=SAMPLE_RATE)
        )  # odd: no half delay
    _, response = freqz(taps, fs=SAMPLE_RATE)
    return taps * 10 ** (rng.uniform(low_db, high_db) / 20) / np.abs(response).max()


def filtered(wave: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """The wave through a symmetric filter of odd length, its delay removed."""
    from scipy.signal import oaconvolve

    middle = len(taps) // 2
    return oaconvolve(wave, taps)[middle : middle + len(wave)]


def in_range(wave: np.ndarray) -> np.ndarray:
    """Scaled down to a peak of 1 where it is higher."""
    return wave / max(np.abs(wave).max(initial=0.0), 1.0)
