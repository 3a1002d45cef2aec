"""Perturbations of sound: (n,) float32 at 16 kHz in, the same number of samples at the same times
out, but for `tempo`.

Each takes the wave, a value (its meaning is in klassify.perturbation.families) and a generator,
which has drawn nothing yet, so that all levels of a clip have the same noise, room or losses.
"""

from __future__ import annotations

import functools

import numpy as np

from klassify.augmentation import audio_effects, codecs
from klassify.media.decoder import SAMPLE_RATE

GATE = SAMPLE_RATE * 2 // 5  # 400 ms, the blocks of which loudness is a mean
PACKET = SAMPLE_RATE // 50  # 20 ms
ROOM_M3, DISTANCE_M = 100.0, 1.0
FIRST_ECHO_S = 0.0025
BEAT_S = 0.5
SCALE_HZ = 220 * 2 ** (np.array([0, 2, 4, 7, 9, 12, 14, 16]) / 12)  # major pentatonic
OVERTONES = 5


def loudness(wave: np.ndarray, lufs: float, rng: np.random.Generator) -> np.ndarray:
    """The wave at an integrated loudness (ITU-R BS.1770-4), lower where it would clip; silence,
    and a clip that is shorter than what loudness is defined on, stays.
    """
    import loudness as bs1770

    if len(wave) < GATE:
        return wave
    measured = bs1770.integrated_loudness(wave, SAMPLE_RATE)
    if not np.isfinite(measured):
        return wave
    gain = 10 ** ((lufs - measured) / 20)
    return wave * np.float32(min(gain, 1 / np.abs(wave).max()))


def noise(wave: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """White noise at a ratio of the clip's power to the noise's."""
    return _mixed(wave, rng.standard_normal(len(wave)), snr_db)


def music(wave: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """Plucked chords, two a second, at a ratio of the clip's power to theirs."""
    n, beat = len(wave), round(BEAT_S * SAMPLE_RATE)
    time = np.arange(4 * beat) / SAMPLE_RATE
    played = np.zeros(n + len(time))
    for start in range(0, n, beat):
        for pitch in rng.choice(SCALE_HZ, 3, replace=False):
            tones = [
                np.exp(-3 * k * time) * np.sin(2 * np.pi * k * pitch * time) / k
                for k in range(1, OVERTONES + 1)
            ]
            played[start : start + len(time)] += np.sum(tones, axis=0)
    return _mixed(wave, played[:n], snr_db)


def _mixed(wave: np.ndarray, other: np.ndarray, snr_db: float) -> np.ndarray:
    """A wave and another one, so many dB below it; silence stays."""
    power, added = np.mean(np.square(wave, dtype=float)), np.mean(other**2)
    gain = np.sqrt(power / added / 10 ** (snr_db / 10)) if added else 0.0
    return wave + gain * other


def reverberation(wave: np.ndarray, rt60_s: float, rng: np.random.Generator) -> np.ndarray:
    """A room in which sound falls by 60 dB in so many seconds (Polack's model): the direct sound
    and exponentially decaying noise, as strong as in a room of 100 m3 at 1 m.
    """
    from scipy.signal import oaconvolve

    time = np.arange(1, round(rt60_s * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / rt60_s)
    tail[time < FIRST_ECHO_S] = 0
    # ratio of direct to reverberant energy: the square of critical distance over distance
    ratio = 0.057**2 * ROOM_M3 / rt60_s / DISTANCE_M**2
    tail /= np.sqrt(ratio * np.sum(tail**2))
    return oaconvolve(wave, np.append(1.0, tail))[: len(wave)]


def resample(wave: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Down to a sample rate and up again."""
    from scipy.signal import resample_poly

    narrow = resample_poly(wave, int(rate), SAMPLE_RATE)
    return resample_poly(narrow, SAMPLE_RATE, int(rate))[: len(wave)]


def encoded(
    wave: np.ndarray, kbit: float, rng: np.random.Generator, *, codec: str, format: str
) -> np.ndarray:
    """Through an encoder of FFmpeg at a constant bit rate."""
    return codecs.encoded(wave, codec, format, int(1000 * kbit), rate=SAMPLE_RATE)


mp3 = functools.partial(encoded, codec="libmp3lame", format="mp3")
aac = functools.partial(encoded, codec="aac", format="mp4")
opus = functools.partial(encoded, codec="libopus", format="ogg")


def amr(wave: np.ndarray, kbit: float, rng: np.random.Generator) -> np.ndarray:
    """Through AMR narrow band at one of its bit rates."""
    return codecs.amr(wave, round(1000 * kbit))


def pitch(wave: np.ndarray, semitones: float, rng: np.random.Generator) -> np.ndarray:
    """Another pitch at the same pace, up or down by the clip's draw."""
    shift = semitones * rng.choice([-1, 1])
    how = {"min_semitones": shift, "max_semitones": shift}
    return audio_effects.with_library(wave, rng, "PitchShift", **how)


def tempo(wave: np.ndarray, speed: float, rng: np.random.Generator) -> np.ndarray:
    """So many times as fast at the same pitch: round(n / speed) samples."""
    how = {"min_rate": speed, "max_rate": speed, "leave_length_unchanged": False}
    stretched = audio_effects.with_library(wave, rng, "TimeStretch", **how)
    n = round(len(wave) / speed)
    return np.pad(stretched, (0, max(n - len(stretched), 0)))[:n]


def clipping(wave: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    """The loudest samples, so many percent of all, cut to one level."""
    most = np.quantile(np.abs(wave), 1 - percent / 100) if len(wave) else 0.0
    return np.clip(wave, -most, most)


def packet_loss(wave: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    """Silence in place of so many percent of all packets of 20 ms, independently drawn."""
    kept = rng.random(-(-len(wave) // PACKET)) >= percent / 100
    return wave * np.repeat(kept, PACKET)[: len(wave)]
