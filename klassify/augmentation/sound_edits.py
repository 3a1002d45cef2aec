"""Edits of a span of speech: fakes, which replace what was said there, and genuine disturbances.

Waves are mono float32 at 16 kHz; spans are samples [start, end). Every edit returns the span's new
sound with the span's number of samples, and `paste` puts it in with soft edges.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from scipy.signal import lfilter, resample

from klassify.augmentation import codecs
from klassify.augmentation.vocoder import VOCODERS, fit_length
from klassify.media.decoder import SAMPLE_RATE

MILLISECOND = SAMPLE_RATE // 1000
CROSSFADE = 6 * MILLISECOND
QUIET = 0.3  # of the clip's level: below this there is no speech worth replacing
REACH_S, STEP = 0.06, 5 * MILLISECOND  # how far an edge moves to a quiet place, and in which steps
TELEPHONES = ("gsm", "mp3", "vorbis", "amr-nb")
Span = tuple[int, int]
Sound = np.ndarray | None


def paste(
    wave: np.ndarray, start: int, end: int, sound: np.ndarray, gain_db: float, fade: int = CROSSFADE
) -> None:
    """Put a sound into wave[start:end], in place, with the loudness of what was there.

    fade: samples over which it is faded in and out, within the span.
    """
    sound = fit_length(sound, end - start)
    old = wave[start:end]
    level = np.sqrt((np.mean(old**2) + 1e-9) / (np.mean(sound**2) + 1e-9)) * 10 ** (gain_db / 20)
    place = np.arange(end - start)
    weight = np.minimum(1, np.minimum(place, place[::-1]) / fade)
    wave[start:end] = (1 - weight) * old + weight * np.clip(level, 0.2, 4) * sound


def level(wave: np.ndarray) -> float:
    """Root mean square of a wave; 0 of an empty one."""
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if len(wave) else 0.0


def at_pauses(wave: np.ndarray, span: Span) -> Span:
    """The span with both edges moved by at most REACH_S to where it is most quiet around them.

    Edges of words are such places. They stay on whole milliseconds if they were.
    """
    return _quietest(wave, span[0]), _quietest(wave, span[1])


def _quietest(wave: np.ndarray, edge: int) -> int:
    reach = int(REACH_S * SAMPLE_RATE) // STEP
    places = edge + STEP * np.arange(-reach, reach + 1)
    places = places[(places >= STEP) & (places <= len(wave) - STEP)]
    if not len(places):
        return edge
    return int(min(places, key=lambda place: level(wave[place - STEP : place + STEP])))


def elsewhere(wave: np.ndarray, span: Span, voice: np.ndarray, rng: Generator) -> Sound:
    """Speech of another place of `voice`, of about the span's length; None without any."""
    size = span[1] - span[0]
    loud = QUIET * level(voice)
    for _ in range(20):
        length = min(int(size * rng.uniform(0.85, 1.15)), len(voice))
        start = int(rng.integers(0, len(voice) - length + 1))
        begin, end = at_pauses(voice, (start, start + length))
        if voice is wave and begin < span[1] and span[0] < end:
            continue  # the span itself
        if 0.7 * size < end - begin < 1.4 * size and level(voice[begin:end]) > loud:
            return fit_length(voice[begin:end], size)
    return None


def at_another_pace(wave: np.ndarray, span: Span, voice: np.ndarray, rng: Generator) -> Sound:
    """8 to 15 % more or less of the speech in the same time."""
    size = span[1] - span[0]
    length = min(int(size * (1 + rng.choice([-1, 1]) * rng.uniform(0.08, 0.15))), len(wave))
    start = min(span[0], len(wave) - length)
    return fit_length(wave[start : start + length], size)


def at_another_pitch(wave: np.ndarray, span: Span, voice: np.ndarray, rng: Generator) -> Sound:
    """The same words 0.7 to 1.5 semitones higher or lower."""
    size = span[1] - span[0]
    factor = 2 ** (rng.choice([-1, 1]) * rng.uniform(0.7, 1.5) / 12)
    moved = resample(wave[slice(*span)], max(int(size / factor), 1))
    return fit_length(moved.astype(np.float32), size)


def _vocoded(
    wave: np.ndarray, span: Span, voice: np.ndarray, rng: Generator, *, vocoder: str
) -> Sound:
    """The same words by a vocoder (copy synthesis)."""
    return VOCODERS[vocoder](wave[slice(*span)], rng)


# each takes the wave, the span, more speech of the same voice (maybe the wave itself) and a
# generator
FAKES: dict[str, Callable[[np.ndarray, Span, np.ndarray, Generator], Sound]] = {
    "elsewhere": elsewhere,
    "pace": at_another_pace,
    "pitch": at_another_pitch,
    **{name: functools.partial(_vocoded, vocoder=name) for name in VOCODERS},
}


def coded(sound: np.ndarray, rng: Generator) -> np.ndarray:
    """A sound after a lossy codec."""
    return codecs.round_trip(sound, codecs.draw(str(rng.choice(TELEPHONES)), rng), rng)


def untouched(sound: np.ndarray, rng: Generator) -> np.ndarray:
    """The sound itself: an edit that changes nothing."""
    return sound


def tilted(sound: np.ndarray, rng: Generator) -> np.ndarray:
    """A sound with more or less of the high frequencies."""
    return lfilter([1, rng.uniform(-0.5, 0.5)], 1, sound).astype(np.float32)


DISTURBANCES: dict[str, Callable[[np.ndarray, Generator], np.ndarray]] = {
    "level": untouched,
    "tilt": tilted,
    "codec": coded,
}
