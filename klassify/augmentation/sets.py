"""The training's audio augmentations, as named sets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from klassify.augmentation import audio_effects, codecs
from klassify.augmentation.rawboost import in_range, rawboost

Effect = Callable[[np.ndarray, np.random.Generator], np.ndarray]
# samples: what is shorter passes untouched, since filters and rooms need something to work on
SHORTEST = 1600
P = 0.3  # paper 1, of every stage of its sets


def _codec(wave: np.ndarray, rng: np.random.Generator, format: str) -> np.ndarray:
    return codecs.round_trip(wave, codecs.draw(format, rng), rng)


def _rawboost(wave: np.ndarray, rng: np.random.Generator, algorithm: int) -> np.ndarray:
    return rawboost(wave, algorithm, rng)


EFFECTS: dict[str, Effect] = {
    **{
        name: getattr(audio_effects, name)
        for name in ("room", "time_stretch", "pitch_shift", "noise")
    },
    **{
        name: functools.partial(audio_effects.filtered, filter=name)
        for name in audio_effects.FILTERS
    },
    **{name: functools.partial(_codec, format=name) for name in codecs.FORMATS},
    **{f"rawboost{k}": functools.partial(_rawboost, algorithm=k) for k in (3, 4, 5)},
}
# a set is a row of stages; a stage is (probability, its effects), of which one is drawn
Stage = tuple[float, tuple[str, ...]]
RTPG: tuple[Stage, ...] = tuple(
    (P, (name,)) for name in ("room", "time_stretch", "pitch_shift", "noise")
)
BP: tuple[Stage, ...] = ((P, tuple(audio_effects.FILTERS)),)
CODECS: tuple[Stage, ...] = ((P, tuple(codecs.FORMATS)),)
SETS: dict[str, tuple[Stage, ...]] = {
    "rtpg": RTPG,
    "bp": BP,
    "codecs": CODECS,
    "all": RTPG + BP + CODECS,
    "rawboost": ((1.0, ("rawboost3", "rawboost4", "rawboost5")),),
    **{f"rawboost{k}": ((1.0, (f"rawboost{k}",)),) for k in (3, 4, 5)},
}


class AudioAugment:
    """A set of augmentations, for the `augment` argument of a data class that reads audio.

    The result has the clip's length, lies in [-1, 1] and depends on the generator alone, which the
    data classes draw from seed, epoch and clip: any number of workers, and a resumed run, make the
    same clips.

    Args:
        set: one of SETS.
        p: probability of each stage, instead of the set's own.
        without: effects to leave out: without time_stretch, rtpg and all keep the alignment too.
    """

    def __init__(self, set: str = "codecs", p: float | None = None, without: Sequence[str] = ()):
        if set not in SETS:
            raise ValueError(
                f"there is no set of augmentations {set!r}; there are {', '.join(SETS)}"
            )
        if p is not None and not 0 <= p <= 1:
            raise ValueError(f"p is a probability, not {p}")
        known = [name for _, names in SETS[set] for name in names]
        if strange := [name for name in without if name not in known]:
            raise ValueError(f"{set} has no {', '.join(strange)}; it has {', '.join(known)}")
        stages = [(own, tuple(n for n in names if n not in without)) for own, names in SETS[set]]
        self.stages = [(own if p is None else p, names) for own, names in stages if names]

    @property
    def aligned(self) -> bool:
        """Whether every sound stays at its time, as the labels of localisation need it."""
        return not any("time_stretch" in names for _, names in self.stages)

    def __call__(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(n,) float32 at 16 kHz -> an augmented copy, (n,) float32."""
        return self.apply(wave, rng)[0]

    def apply(self, wave: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        """The same, with the names of the effects that hit."""
        hits = [names[rng.integers(len(names))] for p, names in self.stages if rng.random() < p]
        if len(wave) < SHORTEST:
            hits = []
        wave = wave.astype(np.float32)
        for name in hits:
            wave = in_range(EFFECTS[name](wave, rng))  # rooms and shelves amplify, and codecs clip
        return wave, hits


def require_aligned(augment: AudioAugment | None) -> None:
    """Localisation learns from labels in time: a set that moves sounds is a ValueError."""
    if augment is not None and not augment.aligned:
        raise ValueError(
            "time_stretch moves sounds away from their labels: add `without: [time_stretch]`"
        )
