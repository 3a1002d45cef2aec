"""Makes all versions of one original: it is recorded once, then only the fake spans are remade."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from klassify.augmentation.faults import draw_profile
from klassify.augmentation.sound_edits import paste
from klassify.corpus import audio_edits, visual_edits
from klassify.corpus.encode import write_clip
from klassify.corpus.motion import FPS, mouth_curve
from klassify.corpus.plan import EDITS, Difficulty, Fake, Original, generator
from klassify.corpus.speech import SAMPLE_RATE
from klassify.corpus.take import Take, in_bytes, in_samples, record
from klassify.files import whole_file

Segments = list[list[float]]


def make_versions(original: Original, out: Path, seed: int, difficulty: Difficulty) -> list[dict]:
    """Write each version's mp4 under out/<split>/; returns their metadata entries."""
    take = record(original, seed, difficulty)
    entries, genuine = [], {}
    for number, fake in enumerate(take.fakes):
        rng = generator(seed, EDITS, original.index, number)
        wave, audio_segments = sound(take, fake, difficulty, rng)
        frames, visual_segments = pictures(take, fake, difficulty, rng)
        edited = {"video": fake.profile, "audio": fake.vocoder}
        again = {kind: packets for kind, packets in genuine.items() if not edited[kind]}
        with whole_file(out / original.split / original.files[fake.modify_type]) as partial:
            written = write_clip(partial, frames, wave, take.crf, take.audio_bit_rate, again)
        genuine = genuine or written  # the real version comes first
        entries.append(_entry(take, fake, audio_segments, visual_segments))
    return entries


def sound(
    take: Take, fake: Fake, difficulty: Difficulty, rng: np.random.Generator
) -> tuple[np.ndarray, Segments]:
    """Recorded wave, and the fake segments in seconds."""
    dry, segments = take.dry.copy(), []
    if fake.vocoder:
        speech = take.klatt.get(fake.modify_type, take.speeches[fake.modify_type])
        for number in fake.replaced:
            start, end = take.spans[number]
            word = speech.wave[slice(*in_samples(speech.span(fake.sentence.text, number)))]
            word = audio_edits.fake_word(word, end - start, fake.vocoder, difficulty.strength, rng)
            paste(dry, start, end, word, rng.uniform(-2, 2))
            segments.append([start / SAMPLE_RATE, end / SAMPLE_RATE])
    return take.room.record(dry), merged(segments)


def pictures(
    take: Take, fake: Fake, difficulty: Difficulty, rng: np.random.Generator
) -> tuple[list[np.ndarray], Segments]:
    """Recorded frames, and the fake segments in seconds, on whole frames."""
    edited, segments = {}, []
    if fake.profile:
        fault = draw_profile(fake.profile, difficulty.strength, difficulty.sharpened, rng)
        mouth = mouth_curve(_phonemes(take, fake), len(take.frames), 0.0)
        for number in fake.replaced:
            start, end = take.spans[number]
            span = range(start * FPS // SAMPLE_RATE, -(-end * FPS // SAMPLE_RATE))
            redrawn = visual_edits.redraw(take.renderer, take.tracks, span, mouth, fault, rng)
            for k, (picture, mask) in zip(span, redrawn):
                picture = take.grain.on(picture, k, share=1 - 0.8 * fault.still)
                # words that follow one another share a frame
                before = edited[k] if k in edited else take.grain.on(take.frames[k], k)
                edited[k] = before + mask * (picture - before)
            segments.append([span.start / FPS, span.stop / FPS])
    frames = list(take.recorded)
    for k, picture in edited.items():
        frames[k] = in_bytes(picture)
    return frames, merged(segments)


def _phonemes(take: Take, fake: Fake) -> list[tuple[str, float]]:
    """The genuine phonemes in clip time; in the fake spans, those of the other words."""
    offset_s = take.offset / SAMPLE_RATE
    phonemes = [(name, at + offset_s) for name, at in take.speeches["real"].phonemes]
    speech = take.speeches[fake.modify_type]
    for number in fake.replaced:
        start, end = (sample / SAMPLE_RATE for sample in take.spans[number])
        begin, stop = speech.span(fake.sentence.text, number)
        pace = (end - start) / (stop - begin)
        other = [
            (name, start + (at - begin) * pace)
            for name, at in speech.phonemes
            if begin <= at < stop
        ]
        before = [phoneme for phoneme in phonemes if phoneme[1] < start]
        after = [phoneme for phoneme in phonemes if phoneme[1] >= end]
        phonemes = before + other + after
    return phonemes


def merged(segments: Segments) -> Segments:
    """Segments in order, merged where they touch or overlap."""
    joined: Segments = []
    for start, end in sorted(segments):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(end, joined[-1][1])
        else:
            joined.append([start, end])
    return joined


def _entry(take: Take, fake: Fake, audio_segments: Segments, visual_segments: Segments) -> dict:
    """The clip's metadata in the challenge's schema, plus its speaker."""
    original = take.original
    return {
        "file": original.files[fake.modify_type],
        "original": original.files["real"],
        "split": original.split,
        "modify_type": fake.modify_type,
        "audio_model": fake.vocoder,
        "video_model": fake.profile,
        "fake_segments": merged(audio_segments + visual_segments),
        "audio_fake_segments": audio_segments,
        "visual_fake_segments": visual_segments,
        "video_frames": len(take.frames),
        "audio_frames": len(take.dry),
        "speaker": original.speaker_name,
    }
