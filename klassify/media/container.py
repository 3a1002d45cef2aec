"""What can be known of a clip without looking at a frame: sizes, times, rates, codecs and tags
of its container.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import av

from klassify.media import decoder


def container_traits(path: str | os.PathLike) -> dict[str, float | str]:
    """The traits of a media file by name; a stream that is missing, or of an unknown codec, has
    zeros.

    Raises MediaError for what is not a media file.
    """
    path = Path(path)
    with decoder.opened(path) as container:
        video, audio = decoder.streams_of(container)
        parts = [part for part in (container, video, audio) if part is not None]
        tags = sorted(f"{key}={value}" for part in parts for key, value in part.metadata.items())
        return {
            "bytes": path.stat().st_size,
            "duration_s": container.duration / av.time_base if container.duration else 0.0,
            "bit_rate": container.bit_rate or 0,
            "video_bit_rate": _number(video, "bit_rate"),
            "audio_bit_rate": _number(audio, "bit_rate"),
            "video_frames": video.frames if video else 0,
            "audio_packets": audio.frames if audio else 0,
            "width": _number(video, "width"),
            "height": _number(video, "height"),
            "audio_rate": _number(audio, "rate"),
            "codecs": " ".join(_codec(part) for part in (video, audio) if part is not None),
            "tags": "; ".join(tags),
        }


def _number(stream: Any, name: str) -> int:
    """What the codec of a stream knows; 0 without a stream or a codec."""
    return (
        getattr(stream.codec_context, name) or 0
        if stream is not None and stream.codec_context is not None
        else 0
    )


def _codec(stream: Any) -> str:
    context = stream.codec_context
    return f"{context.name}/{context.profile}" if context is not None else "unknown"
