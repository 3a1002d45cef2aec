"""The audio cache as a kind of features: every clip decoded once, by a crew of workers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from klassify import workers
from klassify.features import audio_cache
from klassify.features.audio_cache import AudioRow
from klassify.features.base import (
    CLIP_LIMIT_S,
    Extraction,
    Kind,
    Numbered,
    attempt,
    media_only,
    n_cpus,
)
from klassify.media import decoder


def extraction(*, jobs: int | None = None) -> Extraction:
    """The audio of every clip, for the cache. No more than one part of it (500 clips, 150 MB) is
    in memory.
    """

    def rows(root: Path, parts: Sequence[Sequence[str]]) -> Numbered:
        files = (file for part in parts for file in part)
        setup = functools.partial(Path, root)
        yield from workers.each(
            extract_audio, files, setup, jobs=jobs or n_cpus(), limit_s=CLIP_LIMIT_S
        )

    return Extraction(
        "audio", dict(audio_cache.FORMAT), media_only, rows, AudioRow, audio_cache.write_part
    )


def extract_audio(root: Path, file: str) -> AudioRow:
    """The audio of one clip; whatever is wrong with it is said in the row and raises nothing."""

    def decoded(path: Path) -> AudioRow:
        samples = audio_cache.to_int16(decoder.read_audio(path))
        return (
            AudioRow(file, samples)
            if len(samples)
            else AudioRow.failed(file, "audio", audio_cache.NO_AUDIO)
        )

    return attempt(AudioRow, root, file, decoded)


KIND = Kind("audio", AudioRow, clips_per_file=500, extraction=extraction)
