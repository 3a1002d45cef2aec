"""What the corpus holds: sizes, splits, speakers and the four versions of every original.

All random numbers come from `generator(seed, stream, ...)`, so that each clip can be made alone, in
any order and by any number of processes, with the same result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from klassify.corpus.text import Sentence

VERSIONS = ("real", "audio_modified", "visual_modified", "both_modified")
FILE_NAMES = {  # as AV-Deepfake1M names its files
    "real": "real.mp4",
    "audio_modified": "real_video_fake_audio.mp4",
    "visual_modified": "fake_video_real_audio.mp4",
    "both_modified": "fake_video_fake_audio.mp4",
}
SPLITS = ("train", "val", "testA", "testB")
TEST_SPLITS = ("testA", "testB")
SPEAKER, ORIGINAL, VERSION, EDITS, ORDER = range(5)  # streams of random numbers

TRAIN_VOCODERS = ("griffin_lim", "linear_prediction", "klatt")
TRAIN_PROFILES = ("soft", "jittery", "smooth")
HELD_BACK = {"testA": ("harmonic", "blocky"), "testB": ("channel", "ghosting")}
HELD_BACK_SHARE = 0.5  # of a test split's fakes
SEGMENT_COUNTS = (0.28, 0.36, 0.2, 0.11, 0.05)  # share of fakes that replace 1, 2, ... 5 words


@dataclass(frozen=True)
class Size:
    """originals: number per split; short: sentences of about 2.5 s, two versions per original;
    version: raise it when the same seed gives other clips of this size.
    """

    originals: tuple[int, int, int, int]
    short: bool = False
    version: int = 1


SIZES = {
    "tiny": Size((4, 5, 2, 1), short=True),
    "small": Size((16, 6, 4, 4)),
    "default": Size((64, 26, 36, 0), version=3),
    "large": Size((112, 26, 24, 20)),
}


@dataclass(frozen=True)
class Difficulty:
    """How hard the fakes are to detect.

    strength: factor on every artefact of the fakes. audio_distractors: share of genuine slot words
    that are spliced, coded or filtered. visual_distractors: spans per second of genuine frames with
    an artefact. sharpened: share of fake mouths that are sharpened again.
    """

    strength: float
    audio_distractors: float
    visual_distractors: float
    sharpened: float


DIFFICULTIES = {
    "easy": Difficulty(1.6, 0.0, 0.0, 0.0),
    "normal": Difficulty(1.0, 0.2, 0.6, 0.4),
    "hard": Difficulty(0.6, 0.4, 0.8, 0.5),
}


@dataclass(frozen=True)
class Fake:
    """What one version says and how it is made.

    sentence: with the fake words. replaced: their word numbers. vocoder, profile: None where the
    sound or the picture is genuine.
    """

    modify_type: str
    sentence: Sentence
    replaced: tuple[int, ...] = ()
    vocoder: str | None = None
    profile: str | None = None


@dataclass(frozen=True)
class Original:
    """One recording. index: unique in the corpus; files: name inside the split by version."""

    index: int
    split: str
    speaker: int
    files: dict[str, str]
    short: bool

    @property
    def speaker_name(self) -> str:
        """The speaker as the metadata names it, such as spk0003."""
        return f"spk{self.speaker:04d}"


def generator(seed: int, *stream: int) -> np.random.Generator:
    """The random numbers of one stream."""
    return np.random.default_rng([seed, *stream])


def originals(size: Size, seed: int) -> list[Original]:
    """All originals of a corpus; each speaker has two, both in the same split."""
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


def draw_fake(
    version: str, original: Original, sentence: Sentence, rng: np.random.Generator
) -> Fake:
    """Which words a version replaces, and with which vocoder and lip-sync artefacts."""
    if version == "real":
        return Fake(version, sentence)
    count = 1 + int(rng.choice(len(SEGMENT_COUNTS), p=SEGMENT_COUNTS))
    slots = rng.permutation(len(sentence.choices))[:count]
    words = dict(sentence.other_word(int(slot), rng) for slot in slots)
    vocoder, profile = str(rng.choice(TRAIN_VOCODERS)), str(rng.choice(TRAIN_PROFILES))
    if original.split in HELD_BACK and rng.random() < HELD_BACK_SHARE:
        vocoder, profile = HELD_BACK[original.split]
    return Fake(
        version,
        sentence.with_words(words),
        tuple(sorted(words)),
        vocoder if version != "visual_modified" else None,
        profile if version != "audio_modified" else None,
    )


def _versions(number: int, short: bool) -> tuple[str, ...]:
    if not short:
        return VERSIONS
    fakes = ("both_modified", "audio_modified", "both_modified", "visual_modified")
    return "real", fakes[number % 4]


def _names(
    split: str, versions: list[tuple[str, ...]], speaker: int, seed: int
) -> list[dict[str, str]]:
    if split not in TEST_SPLITS:
        folders = [f"spk{speaker + n // 2:04d}/{n:05d}" for n in range(len(versions))]
        return [
            {version: f"{folder}/{FILE_NAMES[version]}" for version in kinds}
            for folder, kinds in zip(folders, versions)
        ]
    # numbers in random order, as the challenge names its test files
    total = sum(map(len, versions))
    numbers = iter(generator(seed, ORDER, SPLITS.index(split)).permutation(total) + 1)
    return [{version: f"{next(numbers):06d}.mp4" for version in kinds} for kinds in versions]
