"""Makes all versions of one original: speech and pictures once, then only the fake spans again."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from klassify.corpus import audio_edits, visual_edits
from klassify.corpus.encode import write_clip
from klassify.corpus.look import Look, Voice, draw_speaker
from klassify.corpus.motion import FPS, Tracks, draw_tracks, mouth_curve
from klassify.corpus.plan import (
    BASE,
    HELD_BACK,
    SPEAKER,
    TRAIN_PROFILES,
    TRAIN_VOCODERS,
    VERSION,
    VERSIONS,
    Difficulty,
    Original,
    generator,
)
from klassify.corpus.portrait import Portrait, paint
from klassify.corpus.render import SIZE, Renderer
from klassify.corpus.speech import SAMPLE_RATE, Speech, Utterance, speak
from klassify.corpus.text import Sentence, draw_sentence
from klassify.files import whole_file

SEGMENT_COUNTS = (0.28, 0.36, 0.2, 0.11, 0.05)  # share of fake clips with 1, 2, ... 5 fake words
MILLISECOND = SAMPLE_RATE // 1000


@dataclass(frozen=True)
class FakePlan:
    """One fake version. words: what is said instead, by word number."""

    modify_type: str
    words: dict[int, str]
    vocoder: str | None
    profile: str | None

    @property
    def audio(self) -> bool:
        return self.vocoder is not None

    @property
    def visual(self) -> bool:
        return self.profile is not None


@dataclass
class Take:
    """What all versions share. spans: samples [start, end) by word number, on whole milliseconds."""

    original: Original
    sentence: Sentence
    speech: Speech
    offset_s: float
    n_frames: int
    spans: list[tuple[int, int]]
    dry: np.ndarray
    room: audio_edits.Room
    renderer: Renderer
    tracks: Tracks
    clean: list[np.ndarray]
    noise: np.ndarray
    noise_at: np.ndarray
    crf: int
    audio_bit_rate: int


def make_versions(original: Original, out: Path, seed: int, difficulty: Difficulty) -> list[dict]:
    """Write every version's mp4 under out/<split>/; returns their metadata entries."""
    look, voice = draw_speaker(generator(seed, SPEAKER, original.speaker))
    rng = generator(seed, BASE, original.index)
    sentence = draw_sentence(rng, original.short)
    fakes = [
        _draw_fake(
            version, original, sentence, generator(seed, VERSION, original.index, VERSIONS.index(version))
        )
        for version in original.files
    ]
    speeches = _speak(sentence, fakes, voice, rng)
    take = _take(original, sentence, speeches["original"], speeches["retake"], look, rng, difficulty)
    entries = []
    for fake in fakes:
        number = VERSIONS.index(fake.modify_type)
        edits = generator(seed, VERSION, original.index, number, 1)
        frames, visual = _pictures(take, fake, speeches.get((number, "same")), edits, difficulty)
        wave, audio = _sound(take, fake, speeches, edits, difficulty)
        with whole_file(out / original.split / original.files[fake.modify_type]) as partial:
            write_clip(partial, frames, wave, take.crf, take.audio_bit_rate)
        entries.append(_entry(take, fake, audio, visual))
    return entries


@functools.lru_cache(maxsize=2)
def _portrait(seed: int, speaker: int) -> Portrait:
    return paint(draw_speaker(generator(seed, SPEAKER, speaker))[0])


def _draw_fake(version: str, original: Original, sentence: Sentence, rng: np.random.Generator) -> FakePlan:
    if version == "real":
        return FakePlan(version, {}, None, None)
    count = 1 + int(rng.choice(len(SEGMENT_COUNTS), p=SEGMENT_COUNTS))
    slots = rng.permutation(len(sentence.choices))[:count]
    words = dict(sentence.other_word(int(slot), rng) for slot in sorted(slots))
    vocoder, profile = str(rng.choice(TRAIN_VOCODERS)), str(rng.choice(TRAIN_PROFILES))
    if original.split in HELD_BACK and rng.random() < 0.5:
        vocoder, profile = HELD_BACK[original.split]
    return FakePlan(
        version,
        words,
        vocoder if version != "visual_modified" else None,
        profile if version != "audio_modified" else None,
    )


def _speak(sentence: Sentence, fakes: list[FakePlan], voice: Voice, rng: np.random.Generator) -> dict:
    """Speeches "original", "retake", and (version number, "same" or "klatt") of the fakes' texts."""
    rate, pitch = voice.rate + int(rng.integers(-8, 9)), voice.pitch + int(rng.integers(-3, 4))
    asked = {
        "original": Utterance(sentence.text, voice.name, rate, pitch),
        "retake": Utterance(
            sentence.text, voice.name, rate + int(rng.integers(-8, 9)), pitch + int(rng.integers(-2, 3))
        ),
    }
    for fake in fakes:
        if fake.words:
            number, text = VERSIONS.index(fake.modify_type), sentence.with_words(fake.words).text
            asked[number, "same"] = Utterance(text, voice.name, rate, pitch)
            if fake.vocoder == "klatt":
                other = f"{voice.accent}+klatt{rng.integers(2, 5)}"
                asked[number, "klatt"] = Utterance(text, other, rate, pitch)
    return dict(zip(asked, speak(list(asked.values()), int(rng.integers(2**31)))))


def _take(original: Original, sentence: Sentence, speech: Speech, retake: Speech, look: Look,
          rng: np.random.Generator, difficulty: Difficulty) -> Take:  # fmt: skip
    """Everything before the fakes: the recorded sentence, the drawn frames, distractors on both."""
    offset = int(rng.integers(150, 350)) * MILLISECOND
    n_frames = int(np.ceil((speech.duration + offset / SAMPLE_RATE + rng.uniform(0.1, 0.3)) * FPS))
    dry = np.zeros(n_frames * SAMPLE_RATE // FPS, np.float32)
    dry[offset : offset + len(speech.wave)] = speech.wave[: len(dry) - offset]
    spans = [_samples(speech.span(sentence.text, slot), offset) for slot, _ in sentence.choices]
    for (number, _), (start, end) in zip(sentence.choices, spans):
        if rng.random() < difficulty.distractors * 0.75:
            again = _samples(retake.span(sentence.text, number), 0)
            audio_edits.distract(dry, start, end, retake.wave[slice(*again)], rng)
    room = audio_edits.Room(rng, dry)
    tracks = draw_tracks(rng, mouth_curve(speech.phonemes, n_frames, offset / SAMPLE_RATE))
    renderer = Renderer(paint(look))
    clean = [renderer.frame(tracks, k) for k in range(n_frames)]
    for _ in range(rng.poisson(difficulty.distractors * n_frames / FPS)):
        start = int(rng.integers(0, n_frames - 12))
        span = slice(start, start + int(rng.integers(5, 13)))
        fault = visual_edits.draw_distractor(rng)
        for k, (picture, mask) in zip(
            range(span.start, span.stop),
            visual_edits.redraw(renderer, tracks, span, tracks.mouth, fault, rng),
        ):
            clean[k] = (clean[k] + mask * (picture - clean[k])).astype(np.uint8)
    noise = rng.normal(0, rng.uniform(1.5, 3.5), (SIZE + 64, SIZE + 64, 3)).astype(np.float32)
    return Take(
        original, sentence, speech, offset / SAMPLE_RATE, n_frames, spans, dry, room, renderer, tracks, clean,
        noise, rng.integers(0, 64, (n_frames, 2)), int(rng.integers(18, 27)), int(rng.choice([48000, 64000, 96000])),
    )  # fmt: skip


def _samples(span_s: tuple[float, float], offset: int) -> tuple[int, int]:
    start, end = (round(second * 1000) * MILLISECOND + offset for second in span_s)
    return start, end


def _fake_spans(take: Take, fake: FakePlan) -> list[tuple[int, int, int]]:
    """(word number, start, end in samples) of each fake word."""
    numbers = [number for number, _ in take.sentence.choices]
    return [(number, *take.spans[numbers.index(number)]) for number in sorted(fake.words)]


def _sound(take: Take, fake: FakePlan, speeches: dict, rng: np.random.Generator, difficulty: Difficulty
           ) -> tuple[np.ndarray, list[list[float]]]:  # fmt: skip
    """Recorded wave, and the fake segments in seconds."""
    dry, segments = take.dry.copy(), []
    if fake.audio:
        engine = "klatt" if fake.vocoder == "klatt" else "same"
        speech = speeches[VERSIONS.index(fake.modify_type), engine]
        text = take.sentence.with_words(fake.words).text
        for number, start, end in _fake_spans(take, fake):
            word = speech.wave[slice(*_samples(speech.span(text, number), 0))]
            word = audio_edits.fake_word(word, end - start, fake.vocoder, difficulty.strength, rng)
            audio_edits.replace(dry, start, end, word, rng.uniform(-2, 2))
            segments.append([start / SAMPLE_RATE, end / SAMPLE_RATE])
    return take.room.record(dry), merged(segments)


def _pictures(take: Take, fake: FakePlan, speech: Speech | None, rng: np.random.Generator, difficulty: Difficulty
              ) -> tuple[list[np.ndarray], list[list[float]]]:  # fmt: skip
    """Recorded frames, and the fake segments in seconds (whole frames)."""
    frames = [_grain(take, k, picture) for k, picture in enumerate(take.clean)]
    segments = []
    if fake.visual:
        fault = visual_edits.draw_profile(fake.profile, difficulty.strength, difficulty.sharpened, rng)
        mouth = mouth_curve(_mixed_phonemes(take, fake, speech), take.n_frames, 0.0)
        for _, start, end in _fake_spans(take, fake):
            span = slice(start * FPS // SAMPLE_RATE, -(-end * FPS // SAMPLE_RATE))
            redrawn = visual_edits.redraw(take.renderer, take.tracks, span, mouth, fault, rng)
            for k, (picture, mask) in zip(range(span.start, span.stop), redrawn):
                fresh = _grain(take, k, picture, 1 - 0.8 * fault.still)
                frames[k] = frames[k] + mask * (fresh - frames[k])
            segments.append([span.start / FPS, span.stop / FPS])
    return [np.clip(frame, 0, 255).astype(np.uint8) for frame in frames], merged(segments)


def _grain(take: Take, k: int, picture: np.ndarray, share: float = 1.0) -> np.ndarray:
    y, x = take.noise_at[k]
    return picture + share * take.noise[y : y + SIZE, x : x + SIZE]


def _mixed_phonemes(take: Take, fake: FakePlan, speech: Speech) -> list[tuple[str, float]]:
    """Phonemes in clip time, with those of the other words squeezed into the spans they take."""
    phonemes = [(name, start + take.offset_s) for name, start in take.speech.phonemes]
    text = take.sentence.with_words(fake.words).text
    for number, start, end in _fake_spans(take, fake):
        start, end = start / SAMPLE_RATE, end / SAMPLE_RATE
        begin, stop = speech.span(text, number)
        pace = (end - start) / (stop - begin)
        other = [
            (name, start + (at - begin) * pace)
            for name, at in speech.phonemes
            if begin - 0.01 <= at < stop - 0.01
        ]
        phonemes = [p for p in phonemes if p[1] < start] + other + [p for p in phonemes if p[1] >= end]
    return phonemes


def merged(segments: list[list[float]]) -> list[list[float]]:
    """Segments in order, joined where they touch or overlap."""
    joined: list[list[float]] = []
    for start, end in sorted(segments):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(end, joined[-1][1])
        else:
            joined.append([start, end])
    return joined


def _entry(take: Take, fake: FakePlan, audio: list[list[float]], visual: list[list[float]]) -> dict:
    """The clip's metadata in the challenge's schema, and its speaker."""
    original = take.original
    return {
        "file": original.files[fake.modify_type],
        "original": original.files["real"],
        "split": original.split,
        "modify_type": fake.modify_type,
        "audio_model": fake.vocoder,
        "video_model": fake.profile,
        "fake_segments": merged([list(segment) for segment in audio + visual]),
        "audio_fake_segments": audio,
        "visual_fake_segments": visual,
        "video_frames": take.n_frames,
        "audio_frames": len(take.dry),
        "speaker": original.speaker_name,
    }
