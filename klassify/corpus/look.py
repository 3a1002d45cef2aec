"""How a speaker looks and sounds: everything that is drawn once per speaker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# sRGB 0-255
SKIN = (
    (244, 208, 184),
    (236, 192, 160),
    (224, 176, 138),
    (206, 154, 116),
    (184, 130, 94),
    (150, 100, 70),
    (122, 80, 56),
    (98, 64, 46),
)
HAIR = (
    (38, 28, 24),
    (60, 42, 32),
    (92, 62, 40),
    (132, 88, 50),
    (176, 136, 84),
    (150, 78, 42),
    (128, 124, 122),
)
IRIS = ((70, 46, 30), (94, 66, 40), (86, 110, 76), (84, 122, 150), (104, 118, 126))
SHIRTS = (
    (58, 84, 120),
    (130, 60, 58),
    (70, 100, 84),
    (196, 188, 172),
    (52, 54, 66),
    (146, 120, 88),
    (110, 92, 130),
)
WALLS = (
    (176, 184, 186),
    (142, 158, 172),
    (190, 176, 156),
    (120, 134, 126),
    (160, 148, 164),
    (96, 108, 126),
)
MALE_VOICES = tuple(f"m{number}" for number in range(1, 9))
FEMALE_VOICES = tuple(f"f{number}" for number in range(1, 6))
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-us-nyc")


@dataclass(frozen=True)
class Look:
    """Proportions are factors about 1, offsets in units of the outer eye distance, colours sRGB
    0-255.
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
    """An espeak-ng variant with the speaker's usual pitch (0-99) and rate (words a minute)."""

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
    hair = np.array(HAIR[rng.integers(len(HAIR))] if dark < 0.5 else HAIR[rng.integers(3)], float)
    lips = skin * (0.82, 0.57, 0.60) + rng.uniform(-6, 6, 3) + (10 * woman, 0, 4 * woman)
    styles = (
        ("parted", "long", "curly", "bob")
        if woman
        else ("short", "parted", "curly", "bald", "short")
    )
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
        iris=np.array(
            IRIS[rng.integers(len(IRIS))] if dark < 0.5 else IRIS[rng.integers(2)], float
        ),
        shirt=np.array(SHIRTS[rng.integers(len(SHIRTS))], float) * rng.uniform(0.8, 1.15),
        wall=np.array(WALLS[rng.integers(len(WALLS))], float) * rng.uniform(0.75, 1.1),
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


def _between(palette: Sequence[tuple[int, int, int]], at: float) -> np.ndarray:
    low = min(int(at), len(palette) - 2)
    return np.array(palette[low], float) * (low + 1 - at) + np.array(palette[low + 1], float) * (
        at - low
    )
