"""One clip, decoded once, and its perturbed versions as MP4 files.

A stream that the family leaves alone is copied packet by packet where the file is an MP4 with
COPIED codecs, otherwise it is stored as it was decoded. A changed stream is stored without loss:
H.264 with quantiser 0 of its 4:2:0 planes on the 25 fps grid, FLAC with 24 bits at 16 kHz. So
nothing but the perturbation acts. The random numbers of a family depend on the clip's name and a
seed: all levels of a clip have the same ones, and neither order nor other clips matter.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from klassify.corpus.encode import write_streams
from klassify.files import whole_file
from klassify.media import decoder, info
from klassify.media.container import opened, streams_of
from klassify.perturbation.families import family_of

COPIED = ("h264", "hevc", "av1", "vp9", "mpeg4", "aac", "mp3", "opus", "flac", "alac")
MOST_HELD = 1 << 30  # bytes of frames that are kept; longer clips are decoded for each version


@dataclasses.dataclass(frozen=True)
class Change:
    """What a perturbation did to a clip's time: a moment t is at (t - start_s) / speed.

    written: the lengths of the new file.
    """

    start_s: float
    speed: float
    written: info.MediaInfo


class Clip:
    """A clip whose streams are decoded when they are first needed, and kept.

    name: the seed of its random numbers, as the data list writes it.
    """

    def __init__(self, path: str | os.PathLike, name: str, seed: int = 0):
        self.path, self.name, self.seed = Path(path), name, seed

    @functools.cached_property
    def info(self) -> info.MediaInfo:
        """Its streams and lengths."""
        return info.probe(self.path)

    @functools.cached_property
    def wave(self) -> np.ndarray:
        """Its sound, (n,) float32 at 16 kHz."""
        return decoder.read_audio(self.path)

    @functools.cached_property
    def can_be_copied(self) -> bool:
        """Whether an MP4 may take its packets."""
        with opened(self.path) as container:
            streams = [stream for stream in streams_of(container) if stream is not None]
            known = all(s.codec_context and s.codec_context.name in COPIED for s in streams)
            return known and "mp4" in container.format.name

    @functools.cached_property
    def _held(self) -> list[np.ndarray] | None:
        height, width = self.info.height + 1, self.info.width + 1
        cells = self.info.duration * decoder.GRID_FPS
        if 3 * height * width * cells > MOST_HELD:
            return None
        return list(map(_even, decoder.iter_frames(self.path)))

    def frames(self) -> Iterable[np.ndarray]:
        """Its RGB frames on the 25 fps grid, of even height and width."""
        if self._held is not None:
            return self._held
        return map(_even, decoder.iter_frames(self.path))

    def generator(self, family: str) -> np.random.Generator:
        """The random numbers of a family."""
        return np.random.default_rng(
            [self.seed, zlib.crc32(self.name.encode()), zlib.crc32(family.encode())]
        )


def perturb(clip: Clip, family: str, level: int, target: str | os.PathLike) -> Change:
    """Write a clip as a family changes it at a level, 1 to 5, as an MP4, whole or not at all.

    Raises MediaError for a clip that cannot be decoded.
    """
    chosen = family_of(family)
    value = chosen.value(level)
    copies = clip.can_be_copied
    sounds = clip.info.n_samples > 0 and (chosen.sound is not None or not copies)
    shows = clip.info.has_video and (chosen.picture is not None or not copies)
    frames, wave = clip.frames() if shows else None, clip.wave if sounds else None
    start_s = 0.0
    if chosen.cut_s is not None:
        start_s = chosen.cut_s(value, clip.info.duration)
        frames, wave = _cut(frames, wave, start_s, clip.info.duration - start_s)
    rng = clip.generator(family)
    if wave is not None and chosen.sound is not None:
        wave = np.clip(chosen.sound(wave, value, rng), -1, 1).astype(np.float32)
    if frames is not None and chosen.picture is not None:
        frames = chosen.picture(frames, value, rng)
    coding = {"video": chosen.video(value), "audio": chosen.audio(value)}
    with whole_file(target) as partial:
        write_streams(partial, frames, wave, **coding, copied=clip.path if copies else None)
        written = info.probe(partial)
    return Change(start_s, chosen.speed(value), written)


def _cut(
    frames: Iterable[np.ndarray] | None, wave: np.ndarray | None, start_s: float, end_s: float
) -> tuple[Iterable[np.ndarray] | None, np.ndarray | None]:
    """Both from a time to another."""
    if frames is not None:
        frames = itertools.islice(frames, *_steps(start_s, end_s, decoder.GRID_FPS))
    if wave is not None:
        wave = wave[slice(*_steps(start_s, end_s, decoder.SAMPLE_RATE))]
    return frames, wave


def _steps(start_s: float, end_s: float, rate: int) -> tuple[int, int]:
    return round(start_s * rate), round(end_s * rate)


def _even(frame: np.ndarray) -> np.ndarray:
    """A frame with its last row and column repeated where their number is odd."""
    height, width = frame.shape[:2]
    if height % 2 == width % 2 == 0:
        return frame
    return cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
