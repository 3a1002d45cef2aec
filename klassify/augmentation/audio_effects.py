"""The effects of audiomentations that paper 1 trains with: (n,) float32 at 16 kHz, same length.

Each takes the wave and a numpy Generator, and the result depends on nothing else: the library draws
from the global generators of Python and numpy, which are seeded for the call and restored after it.
Strengths are the library's defaults. All but `time_stretch` keep sounds in place: a room's direct
sound is not delayed, and the four Butterworth filters run forwards and backwards, at the same
roll-off.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from klassify.media.decoder import SAMPLE_RATE

LONGEST_ROOM_DELAY = 100  # samples: 40 of the simulation's filters, and 35 cm of distance
# name: (class, arguments); the highest cut-offs, 7980 and 7500 Hz, are below half the sample rate
FILTERS = {
    "band_pass": ("BandPassFilter", {"zero_phase": True}),
    "band_stop": ("BandStopFilter", {"zero_phase": True}),
    "low_pass": ("LowPassFilter", {"zero_phase": True}),
    "high_pass": ("HighPassFilter", {"zero_phase": True}),
    "high_shelf": ("HighShelfFilter", {}),
    "low_shelf": ("LowShelfFilter", {}),
    "peaking": ("PeakingFilter", {}),
}
TRANSFORMS = {
    # 0.8 to 1.25 times as fast: cut to the old length, or padded with silence
    "time_stretch": ("TimeStretch", {}),
    "pitch_shift": ("PitchShift", {}),  # up to four semitones up or down
    "noise": ("AddGaussianNoise", {}),  # white, with a standard deviation of 0.001 to 0.015
    **FILTERS,
}


@contextlib.contextmanager
def global_seed(rng: np.random.Generator) -> Iterator[None]:
    """Seed Python's and numpy's global generators from `rng`, and restore them afterwards."""
    before = random.getstate(), np.random.get_state()
    seed = int(rng.integers(2**32))
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def with_library(
    wave: np.ndarray, rng: np.random.Generator, name: str, **arguments: object
) -> np.ndarray:
    """A class of audiomentations with its arguments."""
    with global_seed(rng):
        return _transform(name, **arguments)(np.ascontiguousarray(wave, np.float32), SAMPLE_RATE)


@functools.cache
def _transform(name: str, **arguments: object) -> Any:
    import audiomentations

    return getattr(audiomentations, name)(p=1.0, **arguments)


def transformed(wave: np.ndarray, rng: np.random.Generator, effect: str) -> np.ndarray:
    """One of TRANSFORMS, with random frequencies, slopes, gains, ..."""
    name, arguments = TRANSFORMS[effect]
    return with_library(wave, rng, name, **arguments)


def room(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A simulated room of random size and absorption, 15 to 35 cm from source to microphone."""
    import pyroomacoustics

    # the ray tracing has its own generators
    pyroomacoustics.random.seed(*(int(seed) for seed in rng.integers(2**32, size=2)))
    simulator = _transform("RoomSimulator", leave_length_unchanged=True)
    padded = np.pad(wave, (0, LONGEST_ROOM_DELAY)).astype(np.float32)
    with global_seed(rng):
        heard = simulator(padded, SAMPLE_RATE)
    drawn = simulator.parameters
    path = [drawn[f"source_{axis}"] - drawn[f"mic_{axis}"] for axis in "xyz"]
    seconds = np.linalg.norm(path) / pyroomacoustics.constants.get("c")
    delay = round(pyroomacoustics.constants.get("frac_delay_length") // 2 + seconds * SAMPLE_RATE)
    return heard[delay : delay + len(wave)]


def gain(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The wave at a random level, 12 dB lower to 6 dB higher."""
    return wave * np.float32(10 ** (rng.uniform(-12, 6) / 20))
