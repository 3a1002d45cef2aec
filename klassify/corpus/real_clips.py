"""Versions of a piece of a genuine clip: real, disturbed, and with fake sound, picture or both.

All versions of a piece have the same edited spans and go through the same encoder. In a real
version the spans are edited without effect: their mouths are cut out, aligned and put back, and
nothing else. In a hard negative, which is real too, they are disturbed: another level, a codec, a
soft mouth. In a fake they are replaced, but for some that are only disturbed.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator

from klassify.augmentation import splice
from klassify.augmentation.sound_edits import Span
from klassify.corpus.clips import merged
from klassify.corpus.encode import write_clip
from klassify.corpus.footage import FRAME_SAMPLES, Piece
from klassify.corpus.motion import FPS
from klassify.corpus.people import Source
from klassify.corpus.plan import FILE_NAMES, HELD_BACK_SHARE, TEST_SPLITS, generator
from klassify.corpus.render import SIZE
from klassify.corpus.speech import SAMPLE_RATE
from klassify.features import lips
from klassify.files import whole_file

NULL, DISTURB, FAKE = "none", "disturb", "fake"  # what is done to a modality's spans
HARD_NEGATIVE = "real_disturbed.mp4"
HELD_BACK = {"testA": ("harmonic", "held"), "testB": ("channel", "smooth")}  # sound, picture
KEPT_REAL = 0.25  # of the further spans of a fake: disturbed instead of replaced
LEAST_FRAMES = 3
RAMP = 10  # pixels over which a crop fades into the frame around it


@dataclass(frozen=True)
class Version:
    """One clip to make. draw: number of the spans' draw, 0 but for a second or third fake."""

    file: str
    modify_type: str
    sound: str
    picture: str
    draw: int = 0


@dataclass
class Spans:
    """The spans of one draw: of the sound in samples, of the picture in frames."""

    sound: list[Span] = field(default_factory=list)
    picture: list[Span] = field(default_factory=list)


def versions_of(has_sound: bool, has_face: bool) -> list[Version]:
    """Two real and three fake versions, whatever the piece has, so that this tells no label."""
    versions = [
        Version(FILE_NAMES["real"], "real", NULL, NULL),
        Version(HARD_NEGATIVE, "real", DISTURB, DISTURB),
    ]
    if has_sound and has_face:
        fakes = {"audio": (FAKE, NULL), "visual": (NULL, FAKE), "both": (FAKE, FAKE)}
        kinds = [(f"{name}_modified", how) for name, how in fakes.items()]
        return versions + [Version(FILE_NAMES[kind], kind, *how) for kind, how in kinds]
    kind, how = ("audio_modified", (FAKE, NULL)) if has_sound else ("visual_modified", (NULL, FAKE))
    name = FILE_NAMES[kind].removesuffix(".mp4")
    return versions + [Version(f"{name}_{n}.mp4", kind, *how, draw=n) for n in range(3)]


def make_versions(piece: Piece, source: Source, split: str, out: Path, seed: int) -> list[dict]:
    """Write each version's MP4 under out/<split>/; returns their metadata entries.

    Empty for a piece with nothing to edit: neither speech nor a face.
    """
    stream = (zlib.crc32(source.file.encode()), piece.number)
    draws = [_draw(piece, generator(seed, *stream, draw)) for draw in range(3)]
    has_sound, has_face = bool(draws[0].sound), bool(draws[0].picture)
    if not (has_sound or has_face):
        return []
    rng = generator(seed, *stream, len(draws))
    coding = {
        "crf": int(rng.integers(18, 27)),
        "audio_bit_rate": int(rng.choice([48, 64, 96])) * 1000,
    }
    kinds = _kinds(split, rng)
    crops, places = _mouths(piece) if piece.points is not None else (None, None)
    entries = []
    for number, version in enumerate(versions_of(has_sound, has_face)):
        rng = generator(seed, *stream, len(draws) + 1 + number)
        spans = draws[version.draw]
        wave, sound_edits = _sound(piece, spans.sound, version.sound, kinds[0], rng)
        frames, mouth_edits = _picture(
            piece, spans.picture, version.picture, kinds[1], rng, crops, places
        )
        entry = _entry(version, piece, source, split, sound_edits, mouth_edits)
        if version.modify_type != "real" and not entry["fake_segments"]:
            continue
        with whole_file(out / split / entry["file"]) as partial:
            write_clip(partial, frames, wave, **coding)
        entries.append(entry)
    return entries


def _draw(piece: Piece, rng: Generator) -> Spans:
    """Spans to edit; those of the mouth are the frames of the replaced sound, where they can be."""
    spans = Spans()
    if piece.wave is not None:
        spans.sound = splice.sound_spans(piece.wave, rng)
    if piece.points is not None:
        frames = [(a // FRAME_SAMPLES, -(-b // FRAME_SAMPLES)) for a, b in spans.sound]
        usable = [(a, b) for a, b in frames if b - a >= LEAST_FRAMES and piece.seen[a:b].all()]
        spans.picture = usable or splice.mouth_spans(piece.seen, rng)
    return spans


def _kinds(split: str, rng: Generator) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The kinds of fakes of a piece's sound and picture: half of the test pieces have others."""
    if split in HELD_BACK and rng.random() < HELD_BACK_SHARE:
        sound, picture = HELD_BACK[split]
        return (sound,), (picture,)
    return splice.SOUND, splice.MOUTH


def _edited(
    spans: list[Span], how: str, rng: Generator, fake: Callable[[Span], str], disturb: Callable
) -> list[tuple[Span, str, bool]]:
    """Edit each span; returns it with the name of the edit and whether it is fake."""
    done = []
    for number, span in enumerate(spans):
        replaced = how == FAKE and (number == 0 or rng.random() >= KEPT_REAL)
        name = fake(span) if replaced else ""
        is_fake = bool(name)
        if not name and how != NULL:
            name = disturb(span)
        done.append((span, name or NULL, is_fake))
    return done


def _sound(
    piece: Piece, spans: list[Span], how: str, kinds: tuple[str, ...], rng: Generator
) -> tuple[np.ndarray | None, list]:
    if piece.wave is None:
        return None, []
    wave = piece.wave.copy()
    voice = piece.wave if len(piece.voice) < 2 * SAMPLE_RATE or rng.random() < 0.5 else piece.voice
    done = _edited(
        spans,
        how,
        rng,
        lambda span: splice.fake_sound(wave, span, voice, rng, kinds),
        lambda span: splice.disturb_sound(wave, span, rng),
    )
    return np.clip(wave, -1, 1), [
        (a / SAMPLE_RATE, b / SAMPLE_RATE, name, is_fake) for (a, b), name, is_fake in done
    ]


def _picture(
    piece: Piece,
    spans: list[Span],
    how: str,
    kinds: tuple[str, ...],
    rng: Generator,
    crops: np.ndarray | None,
    places: list[np.ndarray] | None,
) -> tuple[list[np.ndarray], list]:
    if crops is None:
        return list(piece.frames), []
    mouths = crops.copy()

    def fake(span: Span, kinds: tuple[str, ...]) -> str:
        return splice.fake_mouth(mouths, span, crops, piece.seen, rng, kinds)

    done = _edited(
        spans,
        how,
        rng,
        lambda span: fake(span, kinds) or fake(span, splice.MOUTH),
        lambda span: splice.disturb_mouth(mouths, span, rng),
    )
    frames = list(piece.frames)
    for a, b in spans:
        for k in range(a, b):
            frames[k] = _put_back(frames[k], mouths[k], places[k])
    return frames, [(a / FPS, b / FPS, name, is_fake) for (a, b), name, is_fake in done]


def _mouths(piece: Piece) -> tuple[np.ndarray, list[np.ndarray]]:
    """Aligned mouth crops (T, 96, 96, 3) of all frames, and the (2, 3) matrices that place them."""
    n = len(lips.STABLE)
    crops, places = [], []
    for frame, points in zip(piece.frames, piece.points):
        turn, corner = lips.aligned(points[:n], points[n:].mean(axis=0))
        place = np.column_stack([turn, corner])
        how = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        size = (lips.SIZE, lips.SIZE)
        crops.append(cv2.warpAffine(frame, place, size, flags=how, borderMode=cv2.BORDER_REPLICATE))
        places.append(place)
    return np.stack(crops), places


def _put_back(frame: np.ndarray, mouth: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The frame with a mouth crop in its place, faded at the crop's border."""
    edge = np.minimum(np.arange(lips.SIZE), np.arange(lips.SIZE)[::-1]) / RAMP
    share = np.minimum(np.outer(np.minimum(edge, 1), np.minimum(edge, 1)), 1).astype(np.float32)
    share = cv2.warpAffine(share, place, (SIZE, SIZE), flags=cv2.INTER_LINEAR)[..., None]
    there = cv2.warpAffine(
        mouth, place, (SIZE, SIZE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return (frame + share * (there.astype(np.float32) - frame) + 0.5).astype(np.uint8)


def _entry(
    version: Version, piece: Piece, source: Source, split: str, sound: list, picture: list
) -> dict:
    """The clip's metadata in the challenge's schema, plus where it comes from."""
    segments = [
        merged([[a, b] for a, b, _, is_fake in edits if is_fake]) for edits in (sound, picture)
    ]
    kinds = [
        "+".join(sorted({name for *_, name, is_fake in edits if is_fake})) or None
        for edits in (sound, picture)
    ]
    return {
        "file": _name(version.file, piece, source, split),
        "original": _name(FILE_NAMES["real"], piece, source, split),
        "split": split,
        "modify_type": version.modify_type,
        "audio_model": kinds[0],
        "video_model": kinds[1],
        "fake_segments": merged(segments[0] + segments[1]),
        "audio_fake_segments": segments[0],
        "visual_fake_segments": segments[1],
        "video_frames": len(piece.frames),
        "audio_frames": 0 if piece.wave is None else len(piece.wave),
        "speaker": source.person,
        "source": source.file,
        "origin": source.origin or source.file,
        "origin_start": piece.start / FPS,
        "licence": source.licence,
        "audio_edits": [list(edit[:3]) for edit in sound],
        "visual_edits": [list(edit[:3]) for edit in picture],
    }


def _name(file: str, piece: Piece, source: Source, split: str) -> str:
    """A clip's name in its split; those of test splits reveal nothing."""
    name = f"{source.person}/{Path(source.file).stem}-{zlib.crc32(source.file.encode()):08x}"
    name = f"{name}-{piece.number:03d}/{file}"
    if split in TEST_SPLITS:
        return f"{hashlib.sha256(name.encode()).hexdigest()[:12]}.mp4"
    return name
