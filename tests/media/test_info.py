"""Lengths from headers, and measured where headers do not tell them or are wrong."""

from __future__ import annotations

import io
import re
import types

import numpy as np
import pytest
from videos import gray, picture, sound, tone, write_media

from klassify.media import decoder, info


@pytest.mark.parametrize("suffix", ["mkv", "webm", "asf", "nut", "ts", "mp4"])
def test_a_late_start_does_not_add_to_the_length(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    codecs = ("libvpx", "libopus") if suffix == "webm" else ("mpeg4", "aac")
    late = picture(gray([9] * 8), codec=codecs[0], times_ms=[3_600_000 + 40 * k for k in range(8)])
    silence = np.zeros((1, 48_000))
    write_media(path, late, sound(silence, rate=48_000, codec=codecs[1], start_s=3600))
    told = info.probe(path)
    assert told.duration == pytest.approx(1.0, abs=0.07)
    assert told.n_samples == pytest.approx(len(decoder.read_audio(path)), abs=0.07 * 16_000)


def test_lengths_that_no_header_tells_are_measured(tmp_path):
    path, written = tmp_path / "a.mkv", io.BytesIO()
    variable = picture(gray([0] * 40), times_ms=[40 * k for k in range(50) if k % 5 < 4])
    write_media(
        path,
        variable,
        sound(tone(48_000, 2.0), rate=48_000, codec="ac3"),
        file=types.SimpleNamespace(write=written.write),
        format="matroska",
        container_options={"live": "1"},
    )
    path.write_bytes(written.getvalue())
    assert b"DURATION" not in written.getvalue()
    told = info.probe(path)
    assert told.duration == pytest.approx(2.0, abs=0.05) and told.fps == 25.0
    assert (told.n_samples, told.n_frames) == (len(decoder.read_audio(path)), 49)


def test_wrong_headers_are_corrected_where_files_are_measured(tmp_path):
    path = tmp_path / "a.mkv"
    audio = sound(tone(48_000, 2.0), rate=48_000, codec="ac3")
    write_media(path, picture(gray([9] * 50)), audio)
    assert info.measure(path) == info.probe(path)
    path.write_bytes(re.sub(rb"00:00:(0\d\.\d+)", rb"00:09:\1", path.read_bytes()))
    assert info.probe(path).duration > 500
    told = info.measure(path)
    assert told.duration == pytest.approx(2.0, abs=0.05)
    assert told.n_samples == len(decoder.read_audio(path))
