"""One original: a speaker says a sentence to a camera. Everything its four versions share."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from klassify.corpus import audio_edits, visual_edits
from klassify.corpus.look import Voice, draw_speaker
from klassify.corpus.motion import FPS, Tracks, draw_tracks, mouth_curve
from klassify.corpus.plan import (
    ORIGINAL,
    SPEAKER,
    VERSION,
    Difficulty,
    Fake,
    Original,
    draw_fake,
    generator,
)
from klassify.corpus.portrait import paint
from klassify.corpus.render import SIZE, Renderer
from klassify.corpus.speech import SAMPLE_RATE, Speech, Utterance, speak
from klassify.corpus.text import Sentence, draw_sentence

MILLISECOND = SAMPLE_RATE // 1000
NOISE_MARGIN = 64  # pixels by which the sensor noise may shift from frame to frame


@dataclass
class Take:
    """The recording of an original.

    speeches: each version's sentence (`real` is the genuine one). klatt: the same by another
    engine. offset: sample at which speech begins. spans: samples [start, end) of each slot's word,
    by word number, on whole milliseconds. dry: (n,) float32 speech with its distractors. frames:
    pictures without sensor noise.
    """

    original: Original
    fakes: list[Fake]
    speeches: dict[str, Speech]
    klatt: dict[str, Speech]
    offset: int
    spans: dict[int, tuple[int, int]]
    dry: np.ndarray
    room: audio_edits.Room
    renderer: Renderer
    tracks: Tracks
    frames: list[np.ndarray]
    grain: Grain
    crf: int
    audio_bit_rate: int

    @functools.cached_property
    def recorded(self) -> list[np.ndarray]:
        """The pictures with sensor noise, uint8."""
        return [in_bytes(self.grain.on(picture, k)) for k, picture in enumerate(self.frames)]


class Grain:
    """Sensor noise: one field, shifted from frame to frame."""

    def __init__(self, rng: np.random.Generator, n_frames: int):
        side = SIZE + NOISE_MARGIN
        self.field = rng.normal(0, rng.uniform(1.5, 3.5), (side, side, 3)).astype(np.float32)
        self.shifts = rng.integers(0, NOISE_MARGIN, (n_frames, 2))

    def on(self, picture: np.ndarray, k: int, share: float = 1.0) -> np.ndarray:
        """Frame k with its noise, float32; `share` < 1 for weaker noise."""
        y, x = self.shifts[k]
        return picture + share * self.field[y : y + SIZE, x : x + SIZE]


def record(original: Original, seed: int, difficulty: Difficulty) -> Take:
    """Speak, draw and film an original, with distractors on its genuine words and frames."""
    renderer, voice = _speaker(seed, original.speaker)
    rng = generator(seed, ORIGINAL, original.index)
    sentence = draw_sentence(rng, original.short)
    fakes = [
        draw_fake(version, original, sentence, generator(seed, VERSION, original.index, number))
        for number, version in enumerate(original.files)
    ]
    speeches, retake, klatt = _speak(sentence, fakes, voice, rng)
    speech = speeches["real"]

    offset = int(rng.integers(150, 350)) * MILLISECOND
    n_frames = int(np.ceil((speech.duration + offset / SAMPLE_RATE + rng.uniform(0.1, 0.3)) * FPS))
    dry = np.zeros(n_frames * SAMPLE_RATE // FPS, np.float32)
    dry[offset : offset + len(speech.wave)] = speech.wave
    numbers = [number for number, _ in sentence.choices]
    spans = {number: in_samples(speech.span(sentence.text, number), offset) for number in numbers}
    for number in numbers:
        if rng.random() < difficulty.audio_distractors:
            again = slice(*in_samples(retake.span(sentence.text, number)))
            audio_edits.distract(dry, *spans[number], retake.wave[again], rng)
    room = audio_edits.Room(rng, dry)

    tracks = draw_tracks(rng, mouth_curve(speech.phonemes, n_frames, offset / SAMPLE_RATE))
    frames = [renderer.frame(tracks, k) for k in range(n_frames)]
    for _ in range(rng.poisson(difficulty.visual_distractors * n_frames / FPS)):
        visual_edits.distract(renderer, tracks, frames, rng)
    return Take(
        original=original,
        fakes=fakes,
        speeches=speeches,
        klatt=klatt,
        offset=offset,
        spans=spans,
        dry=dry,
        room=room,
        renderer=renderer,
        tracks=tracks,
        frames=frames,
        grain=Grain(rng, n_frames),
        crf=int(rng.integers(18, 27)),
        audio_bit_rate=int(rng.choice([48000, 64000, 96000])),
    )


def in_bytes(picture: np.ndarray) -> np.ndarray:
    """A float picture as uint8."""
    return np.clip(picture, 0, 255).astype(np.uint8)


def in_samples(span_s: tuple[float, float], offset: int = 0) -> tuple[int, int]:
    """Seconds -> samples on whole milliseconds, so that labels in seconds are exact."""
    start, end = (round(second * 1000) * MILLISECOND + offset for second in span_s)
    return start, end


@functools.lru_cache(maxsize=1)  # neighbouring originals have the same speaker
def _speaker(seed: int, number: int) -> tuple[Renderer, Voice]:
    look, voice = draw_speaker(generator(seed, SPEAKER, number))
    return Renderer(paint(look)), voice


def _speak(
    sentence: Sentence, fakes: list[Fake], voice: Voice, rng: np.random.Generator
) -> tuple[dict[str, Speech], Speech, dict[str, Speech]]:
    """The speech of each version, a second take of the genuine sentence, and klatt speeches."""
    rate, pitch = voice.rate + int(rng.integers(-8, 9)), voice.pitch + int(rng.integers(-3, 4))
    again = rate + int(rng.integers(-8, 9)), pitch + int(rng.integers(-2, 3))
    klatt = f"{voice.accent}+klatt{rng.integers(2, 5)}"
    coded = [fake for fake in fakes if fake.vocoder == "klatt"]
    texts = [fake.sentence.text for fake in fakes]
    spoken = speak(
        [Utterance(text, voice.name, rate, pitch) for text in texts]
        + [Utterance(sentence.text, voice.name, *again)]
        + [Utterance(fake.sentence.text, klatt, rate, pitch) for fake in coded],
        seed=int(rng.integers(2**31)),
    )
    n = len(fakes)
    speeches = {fake.modify_type: speech for fake, speech in zip(fakes, spoken)}
    klatt_speeches = {fake.modify_type: speech for fake, speech in zip(coded, spoken[n + 1 :])}
    return speeches, spoken[n], klatt_speeches
