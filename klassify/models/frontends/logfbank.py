"""AV-HuBERT's view of sound: four log filterbank frames of 10 ms for each video frame."""

from __future__ import annotations

import numpy as np

from klassify.models.frontends.ssl import SAMPLE_RATE

FRAME, STEP, FFT, BANDS, STACKED = 400, 160, 512, 26, 4
PRE_EMPHASIS = 0.97
FLOOR = np.finfo(float).eps  # instead of a power of zero


def audio_frames(wave: np.ndarray) -> np.ndarray:
    """(T, 104) float32 of a waveform (N,) in [-1, 1] at 16 kHz: normalised frames, 25 a second.

    The scale of the waveform matters only to the last frame, where it is padded, and to digital
    silence.
    """
    frames = stacked(log_filterbank(wave))
    mean, variance = frames.mean(axis=1, keepdims=True), frames.var(axis=1, keepdims=True)
    return ((frames - mean) / np.sqrt(variance + 1e-5)).astype(np.float32)


def log_filterbank(wave: np.ndarray) -> np.ndarray:
    """(n, 26) float32: natural logarithms of the power in triangular mel bands, 100 a second.

    Without a window function, and with zeros behind the end.
    """
    wave = np.asarray(wave, float)
    n_frames = 1 + max(0, -(-(len(wave) - FRAME) // STEP))
    padded = np.zeros((n_frames - 1) * STEP + FRAME)
    padded[: len(wave)] = np.append(wave[:1], wave[1:] - PRE_EMPHASIS * wave[:-1])
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::STEP]
    power = np.abs(np.fft.rfft(frames, FFT)) ** 2 / FFT
    bands = power @ _mel_filters().T
    return np.log(np.where(bands == 0, FLOOR, bands)).astype(np.float32)


def stacked(frames: np.ndarray) -> np.ndarray:
    """(ceil(n / 4), 104) of frames (n, 26); the last one is filled up with zeros."""
    missing = -len(frames) % STACKED
    return np.pad(frames, ((0, missing), (0, 0))).reshape(-1, STACKED * frames.shape[1])


def _mel_filters() -> np.ndarray:
    """(26, 257) weights of triangles, evenly spaced on the mel scale from 0 to 8 kHz."""
    mel = np.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700), BANDS + 2)
    corners = np.floor((FFT + 1) * 700 * (10 ** (mel / 2595) - 1) / SAMPLE_RATE)
    filters = np.zeros((BANDS, FFT // 2 + 1))
    for weights, (low, middle, high) in zip(filters, zip(corners, corners[1:], corners[2:])):
        rising, falling = np.arange(low, middle), np.arange(middle, high)
        weights[rising.astype(int)] = (rising - low) / (middle - low)
        weights[falling.astype(int)] = (high - falling) / (high - middle)
    return filters
