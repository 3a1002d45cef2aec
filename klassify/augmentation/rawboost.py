"""RawBoost (Tak et al., ICASSP 2022): three noises for raw waveforms, as in SSL_Anti-spoofing.

That system trains with algorithm 5 (convolutive, then impulsive noise; ASVspoof LA) or 3
(stationary noise; DF), on every clip, before it is cropped (klassify.augmentation.sets: after). As
published, the gain of the non-linear orders is lowered once, so that orders 2 to 5 share one range.
Unlike the published filters, which move the clip by one sample, these keep it in place.

Waves are (n,) at 16 kHz; randomness comes from the generator passed in.
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


def rawboost(wave: np.ndarray, rng: np.random.Generator, algorithm: int) -> np.ndarray:
    """Algorithm 3 is stationary noise, 5 convolutive then impulsive noise, 4 is 5 followed by 3."""
    if algorithm not in (3, 4, 5):
        raise ValueError(f"unknown RawBoost algorithm {algorithm} (known: 3, 4, 5)")
    boosted = wave.astype(float)
    if algorithm != 3:
        boosted = impulsive(convolutive(boosted, rng), rng)
    if algorithm != 5:
        boosted = stationary(boosted, rng)
    return boosted.astype(np.float32)


def convolutive(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Linear and non-linear convolutive noise: powers 1 to 5 of the wave, each notch-filtered."""
    total = np.zeros(len(wave))
    for order in range(1, ORDERS + 1):
        low, high = sorted(np.subtract(GAIN_DB, NONLINEAR_LOSS_DB if order > 1 else 0))
        total += filtered(wave**order, notches(rng, low, high))
    return in_range(total - total.mean())


def impulsive(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Impulsive, signal-dependent noise on up to 10 % of the samples, each drawn at most once."""
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
    """A linear-phase filter of five random notches, scaled to a random peak gain in the range."""
    from scipy.signal import firwin, freqz  # takes a second, so only where it is needed

    taps = np.ones(1)
    for _ in range(BANDS):
        centre, width, n = rng.uniform(*CENTRE_HZ), rng.uniform(*WIDTH_HZ), int(rng.uniform(*TAPS))
        edges = [max(centre - width / 2, 1e-3), min(centre + width / 2, SAMPLE_RATE / 2 - 1e-3)]
        n_taps = n + 1 - n % 2  # odd, so that the delay is a whole sample
        taps = np.convolve(taps, firwin(n_taps, edges, window="hamming", fs=SAMPLE_RATE))
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
