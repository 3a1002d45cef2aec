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
from klassify.perturbation import both, picture, sound

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


def _x265(crf: float) -> Encoding:
    # One thread, and without the settings in the stream. The lookahead crashes on narrow frames,
    # and B-frames make the bytes of clips of 2 frames differ from run to run.
    own = "pools=none:frame-threads=1:info=0:log-level=none:rc-lookahead=0:bframes=0"
    return Encoding("libx265", {"crf": str(int(crf)), "preset": "ultrafast", "x265-params": own})


def _aac_beside(crf: float) -> Encoding:
    return Encoding("aac", bit_rate=AAC_OF_CRF[int(crf)])


_TABLE = (
    Family(
        "trim",
        "milliseconds cut from each end, at most a quarter of the clip",
        (40, 80, 200, 400, 800),
        sound=both.same,
        picture=both.same,
        cut_s=both.cut_s,
    ),
    Family(
        "tempo",
        "times as fast, at the same pitch",
        (1.05, 1.1, 1.2, 1.35, 1.5),
        sound=sound.tempo,
        picture=picture.tempo,
        speed=float,
    ),
    Family(
        "reencode",
        "H.264 constant rate factor, beside AAC at 128, 96, 64, 48, 32 kbit/s",
        tuple(AAC_OF_CRF),
        sound=both.same,
        picture=both.same,
        video=_x264,
        audio=_aac_beside,
    ),
    Family("loudness", "LUFS (ITU-R BS.1770)", (-16, -20, -23, -27, -31), sound=sound.loudness),
    Family("noise", "dB from the clip to white noise", (30, 20, 15, 10, 5), sound=sound.noise),
    Family("music", "dB from the clip to plucked chords", (20, 15, 10, 5, 0), sound=sound.music),
    Family(
        "reverberation",
        "seconds until sound has fallen by 60 dB",
        (0.2, 0.4, 0.6, 0.9, 1.3),
        sound=sound.reverberation,
    ),
    Family(
        "resample",
        "Hz, down to this sample rate and up again",
        (12_000, 8000, 6000, 4000, 3000),
        sound=sound.resample,
    ),
    Family("mp3", "kbit/s of MP3", (64, 32, 24, 16, 8), sound=sound.mp3),
    Family("aac", "kbit/s of AAC", (64, 48, 32, 24, 16), sound=sound.aac),
    Family("opus", "kbit/s of Opus", (32, 24, 16, 10, 6), sound=sound.opus),
    Family("amr", "kbit/s of AMR narrow band", (12.2, 10.2, 7.95, 5.9, 4.75), sound=sound.amr),
    Family("pitch", "semitones up or down", (0.5, 1, 2, 3, 4), sound=sound.pitch),
    Family("clipping", "percent of samples clipped", (1, 3, 8, 16, 30), sound=sound.clipping),
    Family(
        "packet_loss",
        "percent of packets of 20 ms that are silent",
        (2, 5, 10, 20, 30),
        sound=sound.packet_loss,
    ),
    Family("jpeg", "quality of JPEG", (75, 50, 30, 15, 5), picture=picture.jpeg),
    Family(
        "h264", "H.264 constant rate factor", (30, 32, 35, 38, 40), picture=both.same, video=_x264
    ),
    Family(
        "h265", "H.265 constant rate factor", (30, 34, 38, 42, 46), picture=both.same, video=_x265
    ),
    Family(
        "blur",
        "standard deviation in percent of the shorter side",
        (0.25, 0.5, 0.75, 1, 1.5),
        picture=picture.blur,
    ),
    Family(
        "resize",
        "factor, down and up again",
        (0.75, 0.5, 0.375, 0.25, 0.15),
        picture=picture.resize,
    ),
    Family(
        "pixel_noise",
        "standard deviation in grey levels of 255",
        (8, 11, 18, 25, 57),
        picture=picture.pixel_noise,
    ),
    Family(
        "brightness",
        "grey levels brighter or darker",
        (10, 25, 40, 60, 80),
        picture=picture.brightness,
    ),
    Family(
        "contrast",
        "factor of the distance to middle grey",
        (0.85, 0.725, 0.6, 0.475, 0.35),
        picture=picture.contrast,
    ),
    Family(
        "saturation",
        "factor of the colours' distance to grey",
        (0.4, 0.3, 0.2, 0.1, 0),
        picture=picture.saturation,
    ),
    Family("frame_rate", "frames per second", (20, 15, 12, 8, 5), picture=picture.frame_rate),
    Family(
        "block_loss",
        "percent of blocks that are grey",
        (1.5, 3, 4.5, 6, 8),
        picture=picture.block_loss,
    ),
)
FAMILIES = {family.name: family for family in _TABLE}


def family_of(name: str) -> Family:
    """A family by its name; KlassifyError for an unknown one."""
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise KlassifyError(f"There is no family {name!r}; there are: {known}.")
    return FAMILIES[name]
