"""Copy-synthesis of words: analysis and re-synthesis, which leave traces like neural speech does.

Every function takes and returns mono float32 at 16 kHz with the same number of samples; noise comes
from the generator passed in.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy.linalg import solve_toeplitz
from scipy.ndimage import convolve1d
from scipy.signal import butter, get_window, istft, lfilter, sosfilt, stft

SAMPLE_RATE = 16000
FRAME, HOP = 512, 128
COARSE_MELS = 28  # so few that a few hundred clips are enough to learn the artefacts


def fit_length(wave: np.ndarray, n_samples: int) -> np.ndarray:
    """Stretch or squeeze in time without changing the pitch (waveform-similarity overlap-add).

    Verhelst and Roelands, ICASSP 1993: each output frame is the input frame near the wanted place
    that continues the previous one best.
    """
    frame, hop, reach = 400, 200, 120
    if len(wave) == n_samples:
        return wave.astype(np.float32)
    padded = np.pad(wave, (reach, frame + 2 * reach + hop))
    window = np.hanning(frame + 1)[:-1]
    n_frames = n_samples // hop + 2
    out = np.zeros((n_frames + 1) * hop)
    weight = np.full_like(out, 1e-3)
    previous = reach
    for index in range(n_frames):
        wanted = reach + min(int(index * hop * len(wave) / n_samples), len(wave))
        target = padded[previous + hop : previous + hop + frame]
        region = padded[max(wanted - reach, 0) : wanted + reach + frame]
        if index and len(target) == frame:
            best = int(np.argmax(np.correlate(region, target, mode="valid")))
            wanted = max(wanted - reach, 0) + best
        wanted = min(wanted, len(padded) - frame)
        out[index * hop : index * hop + frame] += window * padded[wanted : wanted + frame]
        weight[index * hop : index * hop + frame] += window
        previous = wanted
    return (out / weight)[:n_samples].astype(np.float32)


@functools.cache
def mel_filters(n_mels: int, n_bins: int = FRAME // 2 + 1) -> np.ndarray:
    """(n_mels, n_bins) triangular filters on the mel scale, 60-7600 Hz."""
    edges_mel = np.linspace(*(2595 * np.log10(1 + np.array([60, 7600]) / 700)), n_mels + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)
    frequencies = np.linspace(0, SAMPLE_RATE / 2, n_bins)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling))


def griffin_lim(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Magnitudes from few mels smoothed in time, phases by one round of Griffin and Lim (1984)."""
    spectrum = _stft(wave)
    mels = mel_filters(COARSE_MELS)
    energies = convolve1d(mels @ np.abs(spectrum), [0.25, 0.5, 0.25], axis=1, mode="nearest")
    magnitude = np.maximum(np.linalg.pinv(mels) @ energies, 1e-6)
    phase = rng.uniform(-np.pi, np.pi, magnitude.shape)
    rebuilt = _stft(_istft(magnitude * np.exp(1j * phase), len(wave)))[:, : magnitude.shape[1]]
    return _istft(magnitude * np.exp(1j * np.angle(rebuilt)), len(wave))


def linear_prediction(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """LPC vocoder: order-16 all-pole frames driven by pitch pulses, or noise where unvoiced."""
    frames, pitch, voiced = _pitch_frames(wave)
    source = _excitation(pitch, voiced, len(frames) * HOP, rng)
    out = np.zeros(len(source))
    state = np.zeros(16)
    window = np.hanning(frames.shape[1])
    for index, frame in enumerate(frames):
        correlation = np.correlate(frame * window, frame * window, mode="full")
        lags = correlation[len(frame) - 1 : len(frame) + 16]
        lags[0] = lags[0] * 1.001 + 1e-7
        coefficients = np.concatenate([[1], -solve_toeplitz(lags[:-1], lags[1:])])
        gain = np.sqrt(max(np.dot(coefficients, lags), 1e-10) / np.sum(window**2))
        span = slice(index * HOP, (index + 1) * HOP)
        out[span], state = lfilter([gain], coefficients, source[span], zi=state)
    return _same_length(out, len(wave))


def harmonic(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Harmonics below 4 kHz from a coarse mel envelope, and noise above (Stylianou, 2001)."""
    frames, pitch, voiced = _pitch_frames(wave)
    mels = mel_filters(COARSE_MELS)
    envelope = np.abs(np.fft.rfft(frames * np.hanning(FRAME), axis=1))
    back = mels / (mels.sum(axis=1, keepdims=True) * (mels.sum(axis=0) + 1e-6))
    envelope = (envelope @ mels.T) @ back
    n, every = len(frames) * HOP, np.arange(len(frames))
    at = (np.arange(n) / HOP).clip(0, len(frames) - 1)
    phase = 2 * np.pi * np.cumsum(np.interp(at, every, pitch)) / SAMPLE_RATE
    out = np.zeros(n)
    for number in range(1, 4000 // 70):
        bins = np.minimum(number * pitch / SAMPLE_RATE * FRAME, FRAME // 2).astype(int)
        amplitude = envelope[every, bins] * voiced * (number * pitch < 4000)
        out += np.interp(at, every, amplitude) * np.sin(number * phase)
    low = sosfilt(_band(100, 4000), rng.standard_normal(n))
    high = sosfilt(_band(4000, 7500), rng.standard_normal(n))
    low_level = envelope[:, 4:128].mean(axis=1) * np.where(voiced, 0.2, 1)
    high_level = envelope[:, 128:240].mean(axis=1)
    noise = low * np.interp(at, every, low_level) + high * np.interp(at, every, high_level)
    return _same_length((4 * out + 8 * noise) / FRAME, len(wave))


def channel(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Channel vocoder: 16 bands of a pulse and noise carrier, each with the word's band level."""
    frames, pitch, voiced = _pitch_frames(wave)
    carrier = _same_length(_excitation(pitch, voiced, len(frames) * HOP, rng), len(wave))
    target, source = _stft(wave), _stft(carrier)
    filters = mel_filters(16)
    want, have = filters @ np.abs(target) ** 2, filters @ np.abs(source) ** 2
    gain = filters.T @ np.sqrt(want / (have + 1e-9)) / (filters.sum(axis=0)[:, None] + 1e-6)
    return _istft(source * gain[:, : source.shape[1]], len(wave))


VOCODERS = {
    "griffin_lim": griffin_lim,
    "linear_prediction": linear_prediction,
    "harmonic": harmonic,
    "channel": channel,
}


def _stft(wave: np.ndarray) -> np.ndarray:
    return stft(wave, nperseg=FRAME, noverlap=FRAME - HOP, boundary="zeros", padded=True)[2]


def _istft(spectrum: np.ndarray, n_samples: int) -> np.ndarray:
    return _same_length(istft(spectrum, nperseg=FRAME, noverlap=FRAME - HOP)[1], n_samples)


def _same_length(wave: np.ndarray, n_samples: int) -> np.ndarray:
    return np.pad(wave, (0, max(0, n_samples - len(wave))))[:n_samples].astype(np.float32)


@functools.cache
def _band(low_hz: float, high_hz: float) -> np.ndarray:
    return butter(4, [low_hz, high_hz], btype="band", fs=SAMPLE_RATE, output="sos")


def _pitch_frames(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames (k, 512) at every HOP, their pitch (k,) in Hz, and voiced (k,) bool.

    The pitch is that of the autocorrelation, 70 to 350 Hz.
    """
    padded = np.pad(wave.astype(np.float64), (FRAME // 2, FRAME))
    starts = np.arange(0, max(len(wave), HOP), HOP)
    frames = padded[starts[:, None] + np.arange(FRAME)] * 1.0
    frames = frames - frames.mean(axis=1, keepdims=True)
    power = np.abs(np.fft.rfft(frames * get_window("hann", FRAME), 2 * FRAME, axis=1)) ** 2
    lags = np.fft.irfft(power, axis=1)[:, : SAMPLE_RATE // 70 + 1]
    shortest = SAMPLE_RATE // 350
    best = shortest + np.argmax(lags[:, shortest:], axis=1)
    strength = lags[np.arange(len(best)), best] / (lags[:, 0] + 1e-9)
    voiced = (strength > 0.3) & (lags[:, 0] > 0.02 * lags[:, 0].max())
    pitch = SAMPLE_RATE / best
    usual = np.median(pitch[voiced]) if voiced.any() else 120.0
    plausible = voiced & (np.abs(np.log2(pitch / usual)) < 0.6)
    return frames, np.where(plausible, pitch, usual), voiced


def _excitation(
    pitch: np.ndarray, voiced: np.ndarray, n: int, rng: np.random.Generator
) -> np.ndarray:
    """Unit-power pulses at the pitch where voiced, noise elsewhere."""
    frame = np.minimum(np.arange(n) // HOP, len(pitch) - 1)
    cycles = np.floor(np.cumsum(pitch[frame]) / SAMPLE_RATE)
    pulses = np.diff(cycles, prepend=0) * np.sqrt(SAMPLE_RATE / pitch[frame])
    return np.where(voiced[frame], pulses, rng.standard_normal(n))
