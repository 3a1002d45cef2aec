"""The families of perturbations and their levels: one table, from mild (1) to strong (5).

A family changes the sound, the picture or both. Its value at a level is a parameter with a unit;
docs/perturbations.md shows the table with the sources of the values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from klassify.corpus.encode import LOSSLESS_AUDIO, LOSSLESS_VIDEO, X264, Encoding
from klassify.errors import KlassifyError
from klassify.perturbation import both, sound

LEVELS = (1, 2, 3, 4, 5)
Sound = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
Picture = Callable[[Iterable[np.ndarray], float, np.random.Generator], Iterable[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of perturbation.

    about: what it does, with the unit of its values. values: of the levels 1 to 5.
    sound, picture: the function of (n,) samples at 16 kHz, or of the RGB frames at 25 fps, with a
    value and a generator; None where that stream is left alone.
    video, audio: the encoding of a changed stream at a value; lossless unless given.
    cut_s: seconds that a value cuts from both ends of a clip of so many seconds. speed: how many
    times as fast a value makes the clip.
    """

    name: str
    about: str
    values: tuple[float, float, float, float, float]
    sound: Sound | None = None
    picture: Picture | None = None
    video: Callable[[float], Encoding] = lambda value: LOSSLESS_VIDEO
    audio: Callable[[float], Encoding] = lambda value: LOSSLESS_AUDIO
    cut_s: Callable[[float, float], float] | None = None
    speed: Callable[[float], float] = lambda value: 1.0

    def value(self, level: int) -> float:
        """The value at a level; KlassifyError for another level than 1 to 5."""
        if level not in LEVELS:
            raise KlassifyError(f"There is no level {level} of {self.name}; there are 1 to 5.")
        return self.values[level - 1]


AAC_OF_CRF = {18: 128_000, 23: 96_000, 28: 64_000, 33: 48_000, 38: 32_000}


def _x264(crf: float) -> Encoding:
    return Encoding("libx264", {"crf": str(int(crf)), "preset": "superfast", **X264})


def _aac_beside(crf: float) -> Encoding:
    return Encoding("aac", bit_rate=AAC_OF_CRF[int(crf)])


_TABLE = (
    Family(
        "trim",
        "cuts both ends, by milliseconds, at most a quarter of the clip each",
        (40, 80, 200, 400, 800),
        sound=both.same,
        picture=both.same,
        cut_s=both.cut_s,
    ),
    Family(
        "loudness",
        "normalises to a loudness in LUFS (ITU-R BS.1770)",
        (-16, -20, -23, -27, -31),
        sound=sound.loudness,
    ),
    Family(
        "reencode",
        "H.264 at a constant rate factor (CRF) and AAC at 128, 96, 64, 48, 32 kbit/s",
        tuple(AAC_OF_CRF),
        sound=both.same,
        picture=both.same,
        video=_x264,
        audio=_aac_beside,
    ),
)
FAMILIES = {family.name: family for family in _TABLE}


def family_of(name: str) -> Family:
    """A family by its name; KlassifyError for an unknown one."""
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise KlassifyError(f"There is no family {name!r}; there are: {known}.")
    return FAMILIES[name]
