"""The audio cache as a kind of features: every clip decoded once, in worker processes."""

from __future__ import annotations

import functools
from pathlib import Path

from klassify.features import audio_cache
from klassify.features.audio_cache import AudioRow
from klassify.features.base import Extraction, Kind, attempt, in_workers, media_only
from klassify.media import decoder


def extraction(*, jobs: int | None = None) -> Extraction:
    """The audio of every clip. At most one part (500 clips, 150 MB) is in memory."""
    rows = functools.partial(in_workers, AudioRow, extract_audio, Path, jobs)
    return Extraction("audio", dict(audio_cache.FORMAT), media_only, rows, audio_cache.write_part)


def extract_audio(root: Path, file: str) -> AudioRow:
    """The audio of one clip; a clip that cannot be decoded is a row with the reason."""

    def decoded(path: Path) -> AudioRow:
        sound = decoder.decode_audio(path)
        samples = audio_cache.to_int16(sound.wave)
        reason = audio_cache.no_sound(samples)
        if reason:
            return AudioRow.failed(file, "audio", reason)
        return AudioRow(file, samples, gaps=sound.gaps, notes=sound.notes)

    return attempt(AudioRow, root, file, decoded)


KIND = Kind("audio", AudioRow, clips_per_file=500, extraction=extraction)
