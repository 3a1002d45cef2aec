"""What the corpus holds: sizes, splits, speakers and the four versions of every original.

Everything drawn later comes from `generator(seed, stream, ...)`, so that any clip can be made alone, in any
order and by any number of processes, with the same result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

VERSIONS = ("real", "audio_modified", "visual_modified", "both_modified")
FILE_NAMES = {  # as AV-Deepfake1M names its files
    "real": "real.mp4",
    "audio_modified": "real_video_fake_audio.mp4",
    "visual_modified": "fake_video_real_audio.mp4",
    "both_modified": "fake_video_fake_audio.mp4",
}
SPLITS = ("train", "val", "testA", "testB")
TEST_SPLITS = ("testA", "testB")
SPEAKER, BASE, VERSION, ORDER = range(4)  # streams of random numbers

TRAIN_VOCODERS = ("griffin_lim", "linear_prediction", "klatt")
TRAIN_PROFILES = ("soft", "jittery", "smooth")
HELD_BACK = {"testA": ("harmonic", "blocky"), "testB": ("channel", "ghosting")}


@dataclass(frozen=True)
class Size:
    """Originals per split; short: sentences of about 2.5 s, and two versions of each original."""

    originals: tuple[int, int, int, int]
    short: bool = False


SIZES = {
    "tiny": Size((4, 5, 2, 1), short=True),
    "default": Size((16, 6, 4, 4)),
    "large": Size((112, 26, 24, 20)),
}


@dataclass(frozen=True)
class Difficulty:
    """strength: factor on every artefact; distractors: artefacts on genuine words, a second;
    sharpened: share of fake mouths that are sharpened again."""

    strength: float
    distractors: float
    sharpened: float


DIFFICULTIES = {
    "easy": Difficulty(1.6, 0.0, 0.0),
    "normal": Difficulty(1.0, 0.4, 0.3),
    "hard": Difficulty(0.6, 0.7, 0.5),
}


@dataclass(frozen=True)
class Original:
    """One recording that never was. index: unique in the corpus; files: name inside the split by version."""

    index: int
    split: str
    speaker: int
    files: dict[str, str]
    short: bool

    @property
    def speaker_name(self) -> str:
        return f"spk{self.speaker:04d}"


def generator(seed: int, *stream: int) -> np.random.Generator:
    """The random numbers of one thing."""
    return np.random.default_rng([seed, *stream])


def originals(size: Size, seed: int) -> list[Original]:
    """All originals of a corpus; two neighbours share a speaker, and no speaker is in two splits."""
    planned, index, speaker = [], 0, 0
    for split, count in zip(SPLITS, size.originals):
        versions = [_versions(number, size.short) for number in range(count)]
        names = _names(split, versions, speaker, seed)
        for number in range(count):
            owner = speaker + number // 2
            planned.append(Original(index, split, owner, names[number], size.short))
            index += 1
        speaker += (count + 1) // 2
    return planned


def _versions(number: int, short: bool) -> tuple[str, ...]:
    if not short:
        return VERSIONS
    return ("real", ("both_modified", "audio_modified", "both_modified", "visual_modified")[number % 4])


def _names(split: str, versions: list[tuple[str, ...]], speaker: int, seed: int) -> list[dict[str, str]]:
    if split not in TEST_SPLITS:
        return [
            {
                version: f"spk{speaker + number // 2:04d}/{number:05d}/{FILE_NAMES[version]}"
                for version in kinds
            }
            for number, kinds in enumerate(versions)
        ]
    # flat numbers in random order, as the challenge names its test files
    total = sum(map(len, versions))
    numbers = iter(generator(seed, ORDER, SPLITS.index(split)).permutation(total) + 1)
    return [{version: f"{next(numbers):06d}.mp4" for version in kinds} for kinds in versions]
