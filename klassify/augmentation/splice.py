"""Fakes made in genuine clips: some spans of a wave or of mouth crops are replaced, drawn anew each
time, with their segments.

Training on these needs clips that are labelled real and no other label (supervision `self`). Where
a clip stays real its spans are disturbed instead (another level, a codec, a soft or re-encoded
mouth), so that an edit alone does not give the label away; such disturbances are in fakes too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator

from klassify.augmentation import mouth_edits, sound_edits
from klassify.augmentation.sound_edits import MILLISECOND, Span
from klassify.media.decoder import GRID_FPS, SAMPLE_RATE

COUNTS = (0.4, 0.3, 0.2, 0.1)  # share of clips with 1, 2, ... edited spans
MEDIAN_S, SPREAD, SHORTEST_S, LONGEST_S = 0.32, 0.55, 0.1, 1.2  # log-normal lengths
GAP_S = 0.12  # at least between two spans, and from the clip's ends
MOST = 0.5  # of a clip that is edited
TRIES = 30
CODED = 0.25  # share of fake sounds that also went through a codec
LEAST_CHANGE = 2.0  # grey levels: a mouth that hardly moves cannot be faked by moving it
SOUND = ("elsewhere", "pace", "pitch", "griffin_lim", "linear_prediction")
MOUTH = ("other_time", "shift", "warp")


def splice_wave(
    wave: np.ndarray, rng: Generator, share: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """A copy of (n,) float32 speech at 16 kHz with 1 to 4 edited spans, and its fake segments.

    share: probability that some of the spans are fake. Segments: (k, 2) float64 seconds on whole
    milliseconds, in order, none if the clip stayed real or has no speech; samples outside the
    edited spans are unchanged.
    """
    edited = wave.copy()
    spans = sound_spans(wave, rng)
    fakes = _drawn_fakes(spans, rng, share)
    segments = [span for span in spans if span in fakes and fake_sound(edited, span, wave, rng)]
    for span in spans:
        if span not in segments:
            disturb_sound(edited, span, rng)
    return edited, _in_seconds(segments, SAMPLE_RATE)


def splice_crops(
    crops: np.ndarray, rng: Generator, share: float = 1.0, valid: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A copy of mouth crops at 25 fps with 1 to 4 edited spans, and its fake segments.

    crops: (T, H, W) or (T, H, W, 3) uint8. share: probability that some of the spans are fake.
    valid: (T,) bool, frames with a mouth; only these are edited. Segments: (k, 2) float64 seconds
    on whole frames, in order.
    """
    edited = crops.copy()
    usable = np.ones(len(crops), bool) if valid is None else valid
    spans = mouth_spans(usable, rng)
    fakes = _drawn_fakes(spans, rng, share)
    segments = [
        span for span in spans if span in fakes and fake_mouth(edited, span, crops, usable, rng)
    ]
    for span in spans:
        if span not in segments:
            disturb_mouth(edited, span, rng)
    return edited, _in_seconds(segments, GRID_FPS)


def _drawn_fakes(spans: list[Span], rng: Generator, share: float) -> list[Span]:
    """With probability `share` at least one of the spans, else none."""
    if not spans or rng.random() >= share:
        return []
    count = int(rng.integers(1, len(spans) + 1))
    return [spans[i] for i in rng.permutation(len(spans))[:count]]


def _in_seconds(segments: list[Span], rate: float) -> np.ndarray:
    return np.asarray(segments, float).reshape(-1, 2) / rate


def sound_spans(wave: np.ndarray, rng: Generator) -> list[Span]:
    """Spans of speech to edit, in samples on whole milliseconds; half of them end at pauses."""
    loud = sound_edits.QUIET * sound_edits.level(wave)

    def placed(start: int, size: int) -> Span:
        span = (start * MILLISECOND, (start + size) * MILLISECOND)
        return sound_edits.at_pauses(wave, span) if rng.random() < 0.5 else span

    def is_speech(span: Span) -> bool:
        return sound_edits.level(wave[slice(*span)]) > loud

    return draw_spans(len(wave) // MILLISECOND, 1000, rng, placed, is_speech, MILLISECOND)


def mouth_spans(usable: np.ndarray, rng: Generator) -> list[Span]:
    """Spans of frames to edit. usable: (T,) bool, frames with a mouth."""
    return draw_spans(
        len(usable),
        GRID_FPS,
        rng,
        lambda start, size: (start, start + size),
        lambda span: bool(usable[slice(*span)].all()),
        1,
    )


def draw_spans(
    length: int,
    rate: float,
    rng: Generator,
    placed: Callable[[int, int], Span],
    fits: Callable[[Span], bool],
    scale: int,
) -> list[Span]:
    """1 to 4 random spans of a clip of `length` steps, `rate` a second, in order and apart.

    placed: (start, size) in steps -> the span, in samples or frames, `scale` a step. fits: whether
    a span may be edited; where too few fit, there are fewer or none.
    """
    spans: list[Span] = []
    gap = round(GAP_S * rate)
    wanted = 1 + int(rng.choice(len(COUNTS), p=COUNTS))
    left = int(MOST * length)
    for _ in range(TRIES):
        seconds = np.clip(MEDIAN_S * np.exp(SPREAD * rng.standard_normal()), SHORTEST_S, LONGEST_S)
        size = min(max(round(seconds * rate), 2), left)
        if len(spans) == wanted or length <= size + 2 * gap:
            break
        start, end = placed(int(rng.integers(gap, length - size - gap)), size)
        long_enough = end - start >= SHORTEST_S * rate * scale
        apart = all(end + gap * scale <= a or b + gap * scale <= start for a, b in spans)
        if long_enough and apart and fits((start, end)):
            spans.append((start, end))
            left -= (end - start) // scale
    return sorted(spans)


def fake_sound(
    wave: np.ndarray, span: Span, voice: np.ndarray, rng: Generator, kinds: Sequence[str] = SOUND
) -> str:
    """Replace a span, in place, by one of the kinds of fakes; returns its name.

    voice: genuine speech of the same person, such as the clip before any edit. '' where nothing
    was changed.
    """
    for kind in rng.permutation(kinds):
        sound = sound_edits.FAKES[kind](wave, span, voice, rng)
        if sound is None:
            continue
        if rng.random() < CODED:
            sound = sound_edits.coded(sound, rng)
        sound_edits.paste(wave, *span, sound, rng.uniform(-2, 2), _fade(rng))
        return str(kind)
    return ""


def disturb_sound(wave: np.ndarray, span: Span, rng: Generator) -> str:
    """Change how a span sounds, in place, and not what is said; returns the name."""
    kind = str(rng.choice(sorted(sound_edits.DISTURBANCES)))
    sound = sound_edits.DISTURBANCES[kind](wave[slice(*span)], rng)
    sound_edits.paste(wave, *span, sound, rng.uniform(-3, 3), _fade(rng))
    return kind


def _fade(rng: Generator) -> int:
    """5 to 20 ms, in samples."""
    return int(rng.integers(5, 21)) * MILLISECOND


def fake_mouth(
    crops: np.ndarray,
    span: Span,
    genuine: np.ndarray,
    usable: np.ndarray,
    rng: Generator,
    kinds: Sequence[str] = MOUTH,
) -> str:
    """Replace the mouth of a span, in place, by one of the kinds of fakes; returns its name.

    genuine: the crops before any edit. '' where nothing would look other than it was.
    """
    mask = mouth_edits.mouth_mask(crops.shape[1:3], rng)
    for kind in rng.permutation(kinds):
        mouth = mouth_edits.FAKES[kind](genuine, span, usable, rng)
        if mouth is None or mouth_edits.difference(genuine, span, mouth, mask) < LEAST_CHANGE:
            continue
        mouth = mouth_edits.degraded(mouth, mouth_edits.draw_finish(rng))
        mouth_edits.blend(crops, span, mouth, mask)
        return str(kind)
    return ""


def disturb_mouth(crops: np.ndarray, span: Span, rng: Generator) -> str:
    """Soften, re-encode, sharpen or tint the mouth of a span, in place, and not how it moves."""
    mask = mouth_edits.mouth_mask(crops.shape[1:3], rng)
    mouth = mouth_edits.degraded(crops[slice(*span)], mouth_edits.draw_finish(rng))
    mouth_edits.blend(crops, span, mouth, mask)
    return "finish"
