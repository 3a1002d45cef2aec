"""The training's audio augmentations, as named sets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from klassify.augmentation import audio_effects, codecs, levels
from klassify.augmentation.rawboost import in_range, rawboost

Effect = Callable[[np.ndarray, np.random.Generator], np.ndarray]
SHORTEST = 1600  # samples: filters and rooms need some sound, so shorter clips stay unchanged
P = 0.3  # of every stage of paper 1's sets


def _codec(wave: np.ndarray, rng: np.random.Generator, format: str) -> np.ndarray:
    return codecs.round_trip(wave, codecs.draw(format, rng), rng)


EFFECTS: dict[str, Effect] = {
    "room": audio_effects.room,
    "gain": audio_effects.gain,
    "ends": levels.ends,
    "loudness": levels.loudness,
    "offset": levels.offset,
    "clipping": levels.clipping,
}
for _name in audio_effects.TRANSFORMS:
    EFFECTS[_name] = functools.partial(audio_effects.transformed, effect=_name)
for _name in codecs.FORMATS:
    EFFECTS[_name] = functools.partial(_codec, format=_name)
for _k in (3, 4, 5):
    EFFECTS[f"rawboost{_k}"] = functools.partial(rawboost, algorithm=_k)

# a set is a sequence of stages; a stage is (probability, effects), one of which is drawn
Stage = tuple[float, tuple[str, ...]]
RTPG: tuple[Stage, ...] = (
    (P, ("room",)),
    (P, ("time_stretch",)),
    (P, ("pitch_shift",)),
    (P, ("noise",)),
)
BP: tuple[Stage, ...] = ((P, tuple(audio_effects.FILTERS)),)
CODECS: tuple[Stage, ...] = ((P, tuple(codecs.FORMATS)),)
SETS: dict[str, tuple[Stage, ...]] = {
    "rtpg": RTPG,
    "bp": BP,
    "codecs": CODECS,
    "all": RTPG + BP + CODECS,
    "fused": (
        (P, ("room",)),
        (P, ("noise",)),
        *CODECS,
        (P, ("rawboost3", "rawboost4", "rawboost5")),
        (1.0, ("gain",)),
    ),
    "shortcuts": (  # what `klassify audit` measures
        (1.0, ("offset",)),
        (1.0, ("ends",)),
        (0.5, ("low_pass",)),
        (0.5, ("noise",)),
        (P, ("clipping",)),
        (1.0, ("loudness",)),
    ),
    "rawboost": ((1.0, ("rawboost3", "rawboost4", "rawboost5")),),
    "rawboost3": ((1.0, ("rawboost3",)),),
    "rawboost4": ((1.0, ("rawboost4",)),),
    "rawboost5": ((1.0, ("rawboost5",)),),
}


class AudioAugment:
    """A set of augmentations, for the `augment` argument of a data class that reads audio.

    The result has the clip's length and lies in [-1, 1]. It depends only on the generator, which
    the data classes derive from seed, epoch and clip: any number of workers, and a resumed run,
    make the same clips.

    Args:
        set: one of SETS.
        p: probability of each stage, instead of the set's own.
        without: effects to leave out; without time_stretch, rtpg and all keep sounds in place.
    """

    def __init__(self, set: str = "codecs", p: float | None = None, without: Sequence[str] = ()):
        if set not in SETS:
            raise ValueError(f"unknown set of augmentations {set!r} (known: {', '.join(SETS)})")
        if p is not None and not 0 <= p <= 1:
            raise ValueError(f"p must be a probability, not {p}")
        known = [name for _, names in SETS[set] for name in names]
        unknown = [name for name in without if name not in known]
        if unknown:
            raise ValueError(f"{set} has no {', '.join(unknown)} (it has {', '.join(known)})")
        stages = [(own, tuple(n for n in names if n not in without)) for own, names in SETS[set]]
        self.stages = [(own if p is None else p, names) for own, names in stages if names]

    @property
    def aligned(self) -> bool:
        """Whether every sound keeps its time, which labels of localisation need."""
        return not any("time_stretch" in names for _, names in self.stages)

    def __call__(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(n,) float32 at 16 kHz -> an augmented copy, (n,) float32."""
        return self.apply(wave, rng)[0]

    def apply(self, wave: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        """The augmented copy and the names of the effects that were applied."""
        hits = [names[rng.integers(len(names))] for p, names in self.stages if rng.random() < p]
        if len(wave) < SHORTEST:
            hits = []
        wave = wave.astype(np.float32)
        for name in hits:
            wave = in_range(EFFECTS[name](wave, rng))  # rooms and shelves amplify, and codecs clip
        return wave, hits


def require_aligned(augment: AudioAugment | None) -> None:
    """ValueError for a set that moves sounds: localisation learns from labels in time."""
    if augment is not None and not augment.aligned:
        raise ValueError(
            "time_stretch moves sounds away from their labels: add `without: [time_stretch]`"
        )
