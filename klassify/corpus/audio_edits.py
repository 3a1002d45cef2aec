"""The sound of an original and its versions: replaced words, distractors, room and noise."""

from __future__ import annotations

import io

import numpy as np
import soundfile
from scipy.signal import fftconvolve, lfilter, resample_poly

from klassify.augmentation.sound_edits import paste
from klassify.augmentation.vocoder import VOCODERS, fit_length
from klassify.corpus.speech import SAMPLE_RATE


def fake_word(
    word: np.ndarray, n_samples: int, method: str, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """A word as the vocoder renders it, mixed with the clean word below strength 1."""
    word = fit_length(word, n_samples)
    if method not in VOCODERS:
        return word  # already spoken by another synthesiser
    coded = VOCODERS[method](word, rng)
    coded *= np.sqrt((np.mean(word**2) + 1e-9) / (np.mean(coded**2) + 1e-9))
    share = min(strength, 1.0)
    return share * coded + (1 - share) * word


def distract(
    wave: np.ndarray, start: int, end: int, retake: np.ndarray, rng: np.random.Generator
) -> None:
    """Change a genuine word, in place, so that it fools detectors of splices, levels or codecs."""
    kind = rng.integers(4)
    if kind <= 1:  # the same word in the same voice, said again
        paste(wave, start, end, retake, rng.uniform(-2, 2))
    elif kind == 2:
        codec = str(rng.choice(["ULAW", "GSM610"]))
        paste(wave, start, end, telephone(wave[start:end], codec), 0.0)
    else:
        shaped = lfilter([1, rng.uniform(-0.5, 0.5)], 1, wave[start:end])
        paste(wave, start, end, shaped.astype(np.float32), rng.uniform(-3, 3))


def telephone(wave: np.ndarray, codec: str) -> np.ndarray:
    """Through an 8 kHz codec of libsndfile (ULAW, GSM610) and back."""
    buffer = io.BytesIO()
    narrow = np.clip(resample_poly(wave, 1, 2), -1, 1)
    soundfile.write(buffer, narrow, SAMPLE_RATE // 2, format="WAV", subtype=codec)
    buffer.seek(0)
    decoded = soundfile.read(buffer, dtype="float32")[0]
    wide = resample_poly(decoded, 2, 1)
    return np.pad(wide, (0, max(0, len(wave) - len(wide))))[: len(wave)].astype(np.float32)


class Room:
    """Echo, noise and recording level of one original; the same for all its versions."""

    def __init__(self, rng: np.random.Generator, dry: np.ndarray):
        time = np.arange(int(0.25 * SAMPLE_RATE)) / SAMPLE_RATE
        echo = rng.standard_normal(len(time)) * np.exp(-time / rng.uniform(0.02, 0.06))
        echo *= rng.uniform(0.01, 0.05)
        self.response = np.concatenate([[1.0], echo[160:]]).astype(np.float32)
        level = np.sqrt(np.mean(dry**2))
        white = rng.standard_normal(len(dry))
        coloured = lfilter([1], [1, -rng.uniform(0.2, 0.9)], white)
        coloured = coloured / np.sqrt(np.mean(coloured**2))
        self.noise = coloured * level * 10 ** (-rng.uniform(24, 40) / 20)
        self.gain = 10 ** (rng.uniform(-27, -20) / 20) / level

    def record(self, dry: np.ndarray) -> np.ndarray:
        """(n,) float32 in [-1, 1]: what the microphone hears."""
        wet = fftconvolve(dry, self.response)[: len(dry)]
        return np.clip(self.gain * (wet + self.noise), -1, 1).astype(np.float32)
