"""The effects of audiomentations that paper 1 trains with, on (n,) float32 at 16 kHz, length kept.

Each takes the wave and a numpy Generator, on which alone the result depends: the library's effects
draw from the global generators of Python and numpy, which are set for the call and put back after
it. Strengths are the library's defaults. All keep the alignment, but `time_stretch`: a room's first
sound comes undelayed, and the four Butterworth filters run forwards and backwards, at the same
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

LONGEST_ROOM_DELAY = 100  # samples: 40 of the simulation's filters, and 35 cm of way
# name: (class, arguments); the highest cut-offs, 7980 and 7500 Hz, lie below half the sample rate
FILTERS = {
    "band_pass": ("BandPassFilter", {"zero_phase": True}),
    "band_stop": ("BandStopFilter", {"zero_phase": True}),
    "low_pass": ("LowPassFilter", {"zero_phase": True}),
    "high_pass": ("HighPassFilter", {"zero_phase": True}),
    "high_shelf": ("HighShelfFilter", {}),
    "low_shelf": ("LowShelfFilter", {}),
    "peaking": ("PeakingFilter", {}),
}


@contextlib.contextmanager
def global_seed(rng: np.random.Generator) -> Iterator[None]:
    """Python's and numpy's global generators seeded from `rng`, and put back as they were."""
    before = random.getstate(), np.random.get_state()
    seed = int(rng.integers(2**32))
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@functools.cache
def _transform(name: str, **arguments: object) -> Any:
    import audiomentations

    return getattr(audiomentations, name)(p=1.0, **arguments)


def _transformed(
    wave: np.ndarray, rng: np.random.Generator, name: str, **arguments: object
) -> np.ndarray:
    with global_seed(rng):
        return _transform(name, **arguments)(np.ascontiguousarray(wave, np.float32), SAMPLE_RATE)


def room(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The clip in a simulated room of random size and absorption, 15 to 35 cm from the
    microphone.
    """
    import pyroomacoustics

    # its ray tracing has generators of its own
    pyroomacoustics.random.seed(*(int(seed) for seed in rng.integers(2**32, size=2)))
    padded = np.pad(wave, (0, LONGEST_ROOM_DELAY))
    heard = _transformed(padded, rng, "RoomSimulator", leave_length_unchanged=True)
    drawn = _transform("RoomSimulator", leave_length_unchanged=True).parameters
    way = [drawn[f"source_{axis}"] - drawn[f"mic_{axis}"] for axis in "xyz"]
    seconds = np.linalg.norm(way) / pyroomacoustics.constants.get("c")
    delay = round(pyroomacoustics.constants.get("frac_delay_length") // 2 + seconds * SAMPLE_RATE)
    return heard[delay : delay + len(wave)]


def time_stretch(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """0.8 to 1.25 times as fast: cut off at the old length, or followed by silence."""
    return _transformed(wave, rng, "TimeStretch")


def pitch_shift(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Up to four semitones up or down."""
    return _transformed(wave, rng, "PitchShift")


def noise(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise with a standard deviation of 0.001 to 0.015."""
    return _transformed(wave, rng, "AddGaussianNoise")


def filtered(wave: np.ndarray, rng: np.random.Generator, filter: str) -> np.ndarray:
    """One of FILTERS, with random frequencies, slopes and gains."""
    name, arguments = FILTERS[filter]
    return _transformed(wave, rng, name, **arguments)
