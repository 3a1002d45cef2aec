"""How a speaker looks and sounds: everything drawn once per speaker."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def _palette(colours: str) -> np.ndarray:
    """(n, 3) float sRGB 0-255 of hexadecimal colours."""
    return np.array([list(bytes.fromhex(colour)) for colour in colours.split()], float)


SKIN = _palette("f4d0b8 ecc0a0 e0b08a ce9a74 b8825e 966446 7a5038 62402e")
HAIR = _palette("261c18 3c2a20 5c3e28 845832 b08854 964e2a 807c7a")
IRIS = _palette("462e1e 5e4228 566e4c 547a96 68767e")
SHIRTS = _palette("3a5478 823c3a 466454 c4bcac 343642 927858 6e5c82")
WALLS = _palette("b0b8ba 8e9eac beb09c 78867e a094a4 606c7e")
MEN_HAIRSTYLES = ("short", "parted", "curly", "bald", "short")
WOMEN_HAIRSTYLES = ("parted", "long", "curly", "bob")
MALE_VOICES = tuple(f"m{number}" for number in range(1, 9))
FEMALE_VOICES = tuple(f"f{number}" for number in range(1, 6))
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-us-nyc")


@dataclass(frozen=True)
class Look:
    """A speaker's face, hair and surroundings.

    Proportions are factors about 1, offsets in units of the outer eye distance, colours sRGB 0-255.
    """

    seed: int
    width: float
    jaw: float
    chin: float
    eye_size: float
    nose: float
    lip_fullness: float
    mouth_width: float
    brow_weight: float
    hairline: float
    hairstyle: str
    beard: float
    skin: np.ndarray
    lips: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    shirt: np.ndarray
    wall: np.ndarray
    light: np.ndarray
    zoom: float


@dataclass(frozen=True)
class Voice:
    """An espeak-ng variant with the speaker's usual pitch (0-99) and rate (words per minute)."""

    accent: str
    variant: str
    pitch: int
    rate: int

    @property
    def name(self) -> str:
        """The voice as espeak-ng names it, such as en-us+m3."""
        return f"{self.accent}+{self.variant}"


def draw_speaker(rng: np.random.Generator) -> tuple[Look, Voice]:
    """A random speaker; men and women differ in voice, hair and beard."""
    woman = rng.random() < 0.5
    skin_at = rng.uniform(0, len(SKIN) - 1)
    skin = _between(SKIN, skin_at) * rng.uniform(0.97, 1.03, 3)
    dark = skin_at / (len(SKIN) - 1)
    hair = _one_of(HAIR if dark < 0.5 else HAIR[:3], rng)
    lips = skin * (0.82, 0.57, 0.60) + rng.uniform(-6, 6, 3) + (10 * woman, 0, 4 * woman)
    styles = WOMEN_HAIRSTYLES if woman else MEN_HAIRSTYLES
    azimuth, elevation = rng.uniform(-0.9, 0.9), rng.uniform(0.2, 0.7)
    look = Look(
        seed=int(rng.integers(2**31)),
        width=rng.uniform(0.93, 1.06),
        jaw=rng.uniform(-0.12, 0.04) if woman else rng.uniform(-0.04, 0.1),
        chin=rng.uniform(-0.06, 0.08),
        eye_size=rng.uniform(1.0, 1.2) if woman else rng.uniform(0.92, 1.1),
        nose=rng.uniform(0.85, 1.18),
        lip_fullness=rng.uniform(0.95, 1.3) if woman else rng.uniform(0.8, 1.15),
        mouth_width=rng.uniform(0.92, 1.1),
        brow_weight=rng.uniform(0.6, 0.9) if woman else rng.uniform(0.8, 1.25),
        hairline=rng.uniform(-0.06, 0.06),
        hairstyle=str(rng.choice(styles)),
        beard=0.0 if woman or rng.random() < 0.5 else rng.uniform(0.15, 0.5),
        skin=skin,
        lips=np.clip(lips, 20, 240),
        hair=hair * rng.uniform(0.85, 1.15),
        iris=_one_of(IRIS if dark < 0.5 else IRIS[:2], rng),
        shirt=_one_of(SHIRTS, rng) * rng.uniform(0.8, 1.15),
        wall=_one_of(WALLS, rng) * rng.uniform(0.75, 1.1),
        light=np.array([np.sin(azimuth), -np.sin(elevation), -np.cos(azimuth) * np.cos(elevation)]),
        zoom=rng.uniform(62, 72),
    )
    voice = Voice(
        accent=str(rng.choice(ACCENTS)),
        variant=str(rng.choice(FEMALE_VOICES if woman else MALE_VOICES)),
        pitch=int(rng.integers(42, 68) if woman else rng.integers(28, 58)),
        rate=int(rng.integers(178, 205)),
    )
    return look, voice


def _one_of(palette: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return palette[rng.integers(len(palette))]


def _between(palette: np.ndarray, at: float) -> np.ndarray:
    low = min(int(at), len(palette) - 2)
    return palette[low] * (low + 1 - at) + palette[low + 1] * (at - low)
