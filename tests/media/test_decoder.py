"""Decoding: the 25 fps grid by presentation time, 16 kHz mono audio, and files that are no
media.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import types
import weakref
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from videos import SIZE, gray_level, write_audio, write_video

from klassify.corpus.encode import write_clip
from klassify.errors import KlassifyError
from klassify.media import decoder
from klassify.media.container import container_traits
from klassify.media.decoder import MediaError


def write_streams(path: Path, *, video=(), audio=(), rate=25, codec="mpeg4", **changes) -> Path:
    """Tracks: video: pictures (width, height, gray), one track or a list of tracks; audio: a tone
    each (rate, layout, seconds), as tracks. changes: alter(streams) before anything is written.
    """
    tracks = [video] if video and isinstance(video[0], tuple) else list(video)
    with av.open(str(path), "w") as container:
        streams = []
        for pictures in tracks:
            stream = container.add_stream(codec, rate=rate)
            stream.width, stream.height = pictures[0][:2]
            stream.pix_fmt = "yuv420p"
            streams.append(stream)
        for sample_rate, layout, _ in audio:
            streams.append(container.add_stream("ac3", rate=sample_rate, layout=layout))
        changes.get("alter", lambda streams: None)(streams)
        for stream, pictures in zip(streams, tracks):
            for k, (width, height, gray) in enumerate(pictures):
                image = np.full((height, width, 3), gray, np.uint8)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts = k
                container.mux(stream.encode(frame.reformat(format="yuv420p")))
            container.mux(stream.encode())
        for stream, (sample_rate, layout, seconds) in zip(streams[len(tracks) :], audio):
            for frame in tone(sample_rate, layout, seconds):
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def tone(rate: int, layout: str, seconds: float, start: float = 0.0, level: float = 0.5):
    """Blocks of 1536 samples of a 440 Hz tone in all channels."""
    n_channels = av.AudioLayout(layout).nb_channels
    for k in range(round(seconds * rate / 1536)):
        time = start + (k * 1536 + np.arange(1536)) / rate
        wave = (level * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(
            np.stack([wave] * n_channels), format="fltp", layout=layout
        )
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = round(start * rate) + k * 1536
        yield frame


def shown(path: Path) -> list[int]:
    """Which frame each cell of the grid shows."""
    return [round((float(frame.mean()) - 20) / 3) for frame in decoder.iter_frames(path)]


def on_screen(times_s: list[float], end_s: float) -> list[int]:
    """The obvious reference: for the middle of each cell, look for the last frame that has
    begun.
    """
    cells, k = [], 0
    while (middle := 0.04 * k + 0.02) < end_s - 1e-9:
        cells.append(max(i for i, time in enumerate(times_s) if time <= middle + 1e-9))
        k += 1
    return cells


@pytest.mark.parametrize("n", [1, 3, 60])
def test_constant_25_fps_passes_through_every_frame_once(tmp_path, n):
    path = write_video(tmp_path / "a.mp4", [40 * i for i in range(n)])
    assert shown(path) == list(range(n))
    frame = next(decoder.iter_frames(path))
    assert frame.shape == (SIZE, SIZE, 3) and frame.dtype == np.uint8


@pytest.mark.parametrize("fps", [10, 12.5, 15, 24, 29.97, 30, 50, 60])
def test_other_rates_are_sampled_by_time(tmp_path, fps):
    times = [round(1000 * i / fps) for i in range(40)]
    path = write_video(tmp_path / "a.mkv", times, rate=Fraction(fps).limit_denominator(1001))
    expected = on_screen([t / 1000 for t in times], times[-1] / 1000 + 1 / fps)
    assert abs(len(expected) - 40 * 25 / fps) <= 1
    assert shown(path)[: len(expected) - 1] == expected[:-1]
    assert (
        abs(len(shown(path)) - len(expected)) <= 1
    )  # the last frame's duration is the container's guess


def test_variable_rate_is_sampled_by_time(tmp_path):
    times = np.cumsum([0, *np.random.default_rng(0).integers(5, 130, 60)]).tolist()
    path = write_video(tmp_path / "a.mkv", times)
    expected = on_screen([t / 1000 for t in times], times[-1] / 1000)
    assert shown(path)[: len(expected)] == expected


def test_jitter_of_time_stamps_loses_and_repeats_nothing(tmp_path):
    times = [40 * i + int(e) for i, e in enumerate(np.random.default_rng(1).integers(-15, 16, 60))]
    path = write_video(tmp_path / "a.mkv", [t - times[0] for t in times])
    assert shown(path)[:55] == list(range(55))


def test_grid_starts_at_the_first_frame(tmp_path):
    path = write_video(tmp_path / "a.mkv", [3000 + 40 * i for i in range(10)])
    assert shown(path) == list(range(10))


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p"])
def test_frames_are_rgb(tmp_path, pix_fmt):
    path = write_video(tmp_path / "a.mp4", [0, 40], pix_fmt=pix_fmt, colour=(200, 90, 30))
    colour = next(decoder.iter_frames(path)).reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(colour, (200, 90, 30), atol=4)


@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize("colorspace", [1, 2, 5, 6])
def test_yuv444p_is_within_one_grey_level_of_swscale(colorspace, limited):
    noise = np.random.default_rng(0).integers(0, 256, (35, 50, 3)).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format="yuv444p")
    frame.colorspace, frame.color_range = colorspace, 1 if limited else 2
    expected = frame.to_ndarray(format="rgb24").astype(int)
    assert np.abs(decoder._rgb(frame) - expected).max() <= 1


def test_rotated_video_comes_out_upright(tmp_path):
    plain = next(decoder.iter_frames(write_video(tmp_path / "a.mp4", [0, 40], turn=0)))
    turned = next(decoder.iter_frames(write_video(tmp_path / "b.mp4", [0, 40], turn=90)))
    assert plain.std() < 1
    dark = turned.mean(axis=2) < 10
    assert (
        dark[:, : SIZE // 2].all() != dark[:, SIZE // 2 :].all()
    )  # the dark half lies at one side now


@pytest.mark.parametrize(
    "codec, name, rate",
    [("aac", "a.mp4", 16_000), ("aac", "a.mp4", 44_100), ("pcm_s16le", "a.wav", 48_000)],
)
def test_audio_is_the_mean_of_channels_at_16_khz(tmp_path, codec, name, rate):
    time = np.arange(2 * rate) / rate
    tone = 0.5 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
    path = write_audio(tmp_path / name, np.stack([tone, 0 * tone]), rate, codec, "stereo")
    wave = decoder.read_audio(path)
    assert wave.dtype == np.float32 and wave.ndim == 1
    assert 32_000 - 64 <= len(wave) <= 32_000 + 2048
    middle = wave[8000:24_000].astype(float)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.25 / np.sqrt(2), rel=0.02)
    assert np.argmax(np.abs(np.fft.rfft(middle))) == 440


def test_opposite_channels_cancel(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    path = write_audio(tmp_path / "a.wav", np.stack([noise, -noise]), 16_000, "pcm_s16le", "stereo")
    assert np.abs(decoder.read_audio(path)).max() < 1e-4


def test_missing_streams_are_a_normal_state(tmp_path):
    video = write_video(tmp_path / "v.mp4", [40 * i for i in range(5)])
    assert decoder.read_audio(video).shape == (0,)
    info = decoder.probe(video)
    assert (info.has_video, info.has_audio, info.n_frames, info.n_samples) == (True, False, 5, 0)
    assert (info.fps, info.width, info.height) == (25.0, SIZE, SIZE)
    assert info.duration == pytest.approx(0.2, abs=0.041)
    audio = write_audio(
        tmp_path / "a.wav", np.zeros((1, 8000), np.float32), 8000, "pcm_s16le", "mono"
    )
    info = decoder.probe(audio)
    assert (info.has_video, info.has_audio, info.n_frames, info.n_samples) == (
        False,
        True,
        0,
        16_000,
    )
    with pytest.raises(MediaError, match="no video"):
        list(decoder.iter_frames(audio))


@pytest.mark.parametrize("suffix", ["mkv", "webm", "asf", "nut", "ts", "mp4"])
def test_a_clip_that_starts_late_is_not_longer_for_it(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    codec = "libopus" if suffix == "webm" else "aac"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libvpx" if suffix == "webm" else "mpeg4", rate=25)
        video.width = video.height = SIZE
        audio = container.add_stream(codec, rate=48_000, layout="mono")
        for k in range(8):
            frame = av.VideoFrame.from_ndarray(
                np.full((SIZE, SIZE, 3), 9, np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = 90_000 + k, Fraction(1, 25)
            container.mux(video.encode(frame.reformat(format="yuv420p")))
        container.mux(video.encode())
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 48_000), np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate, silence.pts, silence.time_base = (
            48_000,
            3600 * 48_000,
            Fraction(1, 48_000),
        )
        resampler = av.AudioResampler(
            audio.format.name, "mono", 48_000, audio.codec_context.frame_size
        )
        for block in [*resampler.resample(silence), *resampler.resample(None)]:
            container.mux(audio.encode(block))
        container.mux(audio.encode())
    info = decoder.probe(path)
    assert info.duration == pytest.approx(1.0, abs=0.07)
    assert info.n_samples == pytest.approx(len(decoder.read_audio(path)), abs=0.07 * 16_000)


READERS = (decoder.probe, decoder.read_audio, lambda path: list(decoder.iter_frames(path)))


@pytest.mark.parametrize(
    "content",
    [b"", b"this is a text file\n" * 50, bytes(5000), b"#EXTM3U\n#EXTINF:1,\nhttp://h/a.ts\n"],
)
def test_what_is_no_media_is_refused_by_name(tmp_path, content):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    for read in READERS:
        with pytest.raises(MediaError, match="clip.mp4"):
            read(path)


def playlists(folder: Path) -> dict[str, str]:
    """{name: text} of files that would make FFmpeg read `other.ts` of a folder, or listen to a
    port.
    """
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    return {
        "beside.m3u8": hls.format("other.ts"),
        "absolute.m3u8": hls.format(folder / "other.ts"),
        "above.m3u8": hls.format(f"../{folder.name}/other.ts"),
        "concat.mp4": "ffconcat version 1.0\nfile other.ts\n",
        "port.mp4": (
            "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP"
            " 96\n"
        ),
    }


def test_playlists_are_not_followed(tmp_path):
    write_video(tmp_path / "other.ts", [40 * k for k in range(25)])
    for name, text in playlists(tmp_path).items():
        (tmp_path / name).write_text(text)
        for read in READERS:
            with pytest.raises(MediaError, match="format (hls|concat|sdp) is none of those"):
                read(tmp_path / name)


def test_names_are_no_patterns(tmp_path):
    for k, name in enumerate(("img1.png", "img%d.png", "img*.png")):
        image = np.full((SIZE, SIZE, 3), gray_level(k), np.uint8)
        cv2.imwrite(str(tmp_path / name), image)
    assert shown(tmp_path / "img1.png") == [0]
    for name in ("img%d.png", "img*.png"):
        with pytest.raises(MediaError, match="format image2"):
            shown(tmp_path / name)
    write_video(tmp_path / "a.mp4", [0, 40]).rename(tmp_path / "a%d*.mp4")
    assert shown(tmp_path / "a%d*.mp4") == [0, 1]


@pytest.mark.parametrize(
    "suffix", ["mov", "mkv", "avi", "ts", "mpg", "flv", "asf", "nut", "mxf", "m4v", "y4m", "gif"]
)
def test_containers_of_video_are_read(tmp_path, suffix):
    codecs = {
        "mpg": "mpeg2video",
        "mxf": "mpeg2video",
        "y4m": "rawvideo",
        "gif": "gif",
        "flv": "flv",
    }
    with av.open(str(tmp_path / f"a.{suffix}"), "w") as container:
        stream = container.add_stream(codecs.get(suffix, "mpeg4"), rate=25)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "rgb8" if suffix == "gif" else "yuv420p"
        for _ in range(100):
            frame = av.VideoFrame.from_ndarray(
                np.full((SIZE, SIZE, 3), 90, np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    assert decoder.probe(tmp_path / f"a.{suffix}").width == SIZE


@pytest.mark.parametrize(
    "suffix", ["wav", "w64", "aiff", "au", "caf", "flac", "ogg", "mp3", "aac", "ac3", "amr"]
)
def test_containers_of_audio_are_read(tmp_path, suffix):
    path, rate = tmp_path / f"a.{suffix}", 8000 if suffix == "amr" else 48_000
    codecs = {"flac": "flac", "ogg": "libopus", "mp3": "libmp3lame", "aac": "aac", "ac3": "ac3"}
    codecs |= {"amr": "libopencore_amrnb", "aiff": "pcm_s16be", "au": "pcm_s16be"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codecs.get(suffix, "pcm_s16le"), rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, rate), np.int16), format="s16p", layout="mono"
        )
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(
            stream.format.name, "mono", rate, stream.codec_context.frame_size
        )
        for block in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(block))
        container.mux(stream.encode())
    assert len(decoder.read_audio(path)) == pytest.approx(16_000, abs=1300)


def test_missing_files_and_folders_are_refused_by_name(tmp_path):
    for path in (tmp_path, tmp_path / "none.mp4"):
        for read in READERS:
            with pytest.raises(MediaError, match=path.name):
                read(path)


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}])
@pytest.mark.parametrize("share", [0.6, 0.2])
def test_cut_off_files_are_refused(tmp_path, share, options):
    whole = write_video(tmp_path / "whole.mp4", [40 * i for i in range(100)], options=options)
    path = tmp_path / "cut.mp4"
    data = whole.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(MediaError, match="cut.mp4"):
        list(decoder.iter_frames(path))


def test_a_little_damage_is_concealed_and_told(tmp_path, monkeypatch):
    whole = write_video(
        tmp_path / "whole.mp4", [40 * i for i in range(100)], options={"movflags": "faststart"}
    )
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes()[: int(0.97 * whole.stat().st_size)])
    frames = shown(path)
    assert len(frames) in (decoder.count_frames(path), 100) and frames[:70] == list(range(70))
    (note,) = decoder.notes(path)
    lost = int(note.split()[0])
    assert 0 < lost <= 10 and note.startswith(f"{lost} of 100 packets of the picture ({lost}.0 %)")
    monkeypatch.setenv(decoder.DAMAGE_VARIABLE, str((lost - 0.5) / 100))
    with pytest.raises(MediaError, match=f"{lost} of 100 packets.* the limit is"):
        shown(path)
    monkeypatch.setenv(decoder.DAMAGE_VARIABLE, "0")
    with pytest.raises(MediaError, match="damaged or truncated in packet"):
        shown(path)
    monkeypatch.setenv(decoder.DAMAGE_VARIABLE, "many")
    with pytest.raises(KlassifyError, match="KLASSIFY_DAMAGE='many' is not a share from 0 to 1"):
        shown(path)


def test_pictures_that_are_damaged_in_part_are_told(tmp_path):
    path = tmp_path / "a.mp4"
    images = list(np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), np.uint8))
    write_clip(path, images, np.zeros(38_400, np.float32), 30, 48_000)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(container.streams.video[0]) if p.size]
    for packet in packets[30:33]:
        middle = packet.pos + packet.size // 2
        data[middle : packet.pos + packet.size] = bytes(packet.size - packet.size // 2)
    path.write_bytes(data)
    assert len(list(decoder.iter_frames(path))) == 60
    damage = [note for note in decoder.notes(path) if "packets of the picture" in note]
    assert len(damage) == 1 and 1 <= int(damage[0].split()[0]) <= 6


def test_lost_packets_of_a_transport_stream_cost_their_frames(tmp_path):
    path = tmp_path / "a.ts"
    write_streams(path, video=[(64, 48, k) for k in range(75)], audio=[(48_000, "mono", 3.0)])
    data = bytearray(path.read_bytes())
    whole, sound = len(shown(path)), len(decoder.read_audio(path))
    at = len(data) // 188 // 2 * 188
    del data[at : at + 188]
    path.write_bytes(data)
    assert len(list(decoder.iter_frames(path))) == whole
    assert len(decoder.read_audio(path)) == pytest.approx(sound, abs=32)
    assert any("were concealed" in note for note in decoder.notes(path))


def test_file_cut_between_two_frames_is_refused(tmp_path):
    whole = write_video(
        tmp_path / "whole.mp4", [40 * i for i in range(50)], options={"movflags": "faststart"}
    )
    with av.open(str(whole)) as container:
        position = container.streams.video[0].index_entries[30].pos
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes()[:position])
    with pytest.raises(MediaError, match="cut.mp4"):
        list(decoder.iter_frames(path))


def test_damaged_bytes_never_crash(tmp_path):
    data = np.frombuffer(
        write_video(tmp_path / "a.mp4", [40 * i for i in range(30)]).read_bytes(), np.uint8
    )
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = data.copy()
        damaged[rng.integers(0, len(data), 20)] = rng.integers(0, 256, 20)
        (tmp_path / "b.mp4").write_bytes(damaged.tobytes())
        for read in READERS:
            try:
                read(tmp_path / "b.mp4")
            except MediaError as error:
                assert "b.mp4" in str(error)


def test_absurd_sizes_and_times_are_refused(tmp_path, monkeypatch):
    far = write_video(tmp_path / "far.mkv", [0, 40, 36_000_000])
    with pytest.raises(MediaError, match="36000 s"):
        list(decoder.iter_frames(far))
    big = write_video(tmp_path / "big.mp4", [0, 40])
    monkeypatch.setattr(decoder, "MAX_PIXELS", SIZE * SIZE - 1)
    for read in (decoder.probe, READERS[2]):
        with pytest.raises(MediaError, match="64x64"):
            read(big)


@pytest.mark.parametrize(
    "rate, samples, said",
    [
        (4, 65_535, "One block of the audio is 16384 s long"),
        (3, 65_535, "One block"),
        (4, 1000, None),
        (1, 20, "Of 20.0 s of audio only 0.0 s could be resampled"),
    ],
)
def test_blocks_of_sound_are_bounded_before_they_are_resampled(
    tmp_path, monkeypatch, rate, samples, said
):
    path = tmp_path / "slow.mka"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "flac", rate=rate, layout="mono", options={"frame_size": str(samples)}
        )
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, samples), np.int16), format="s16", layout="mono"
        )
        frame.sample_rate, frame.pts = rate, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    resampled = []
    resampler = av.AudioResampler

    class Watched:
        def __init__(self, **options):
            self.resampler = resampler(**options)

        def resample(self, frame):
            resampled.append(frame.samples if frame else 0)
            return self.resampler.resample(frame)

    monkeypatch.setattr(av, "AudioResampler", Watched)
    if said is None:
        assert len(decoder.read_audio(path)) == samples / rate * decoder.SAMPLE_RATE
        return
    with pytest.raises(MediaError, match=said):
        decoder.read_audio(path)
    assert sum(resampled) <= 20


def test_counting_frames_holds_no_packets(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", [40 * k for k in range(50)])
    alive, demux = [], av.container.InputContainer.demux

    class Watched:
        def __init__(self, packet):
            self.packet = packet
            alive.append(weakref.ref(self))

        def __getattr__(self, name):
            return getattr(self.packet, name)

    held = []

    def demuxed(container, stream):
        for packet in demux(container, stream):
            yield Watched(packet)
            held.append(sum(one() is not None for one in alive))

    opened = decoder.opened

    class Opened:
        def __init__(self, container):
            self.container, self.streams = container, container.streams

        def demux(self, stream):
            return demuxed(self.container, stream)

    @contextlib.contextmanager
    def watched(path):
        with opened(path) as container:
            yield Opened(container)

    monkeypatch.setattr(decoder, "opened", watched)
    assert decoder.count_frames(path) == 50 and max(held) <= 2


def test_a_picture_that_stays_for_too_long_is_refused(tmp_path, monkeypatch):
    gap = write_video(tmp_path / "gap.mkv", [0, 40, 3_590_000])
    for read in (decoder.count_frames, READERS[2]):
        with pytest.raises(MediaError, match="stays for 3590 s"):
            read(gap)
    slow = write_video(tmp_path / "slow.mp4", [0], rate=Fraction(1, 1000))
    with pytest.raises(MediaError, match="stays for 1000 s"):
        list(decoder.iter_frames(slow))
    monkeypatch.setattr(decoder, "MAX_STILL_S", 11.0)
    assert (
        len(shown(write_video(tmp_path / "slides.mkv", [0, 10_000, 20_000], rate=Fraction(1, 10))))
        == 750
    )


def test_frames_on_the_grid_are_one_array_while_they_stay(tmp_path):
    path = write_video(tmp_path / "a.mp4", [1000 * k for k in range(3)], rate=1)
    assert (
        len({id(frame) for frame in list(decoder.iter_frames(path))}) == 3
        and len(shown(path)) == 75
    )


def test_frames_are_streamed(tmp_path):
    frames = decoder.iter_frames(write_video(tmp_path / "a.mp4", [40 * i for i in range(100)]))
    assert next(frames).mean() == pytest.approx(gray_level(0), abs=2)
    frames.close()


@pytest.mark.parametrize("name", ["../a.mp4", "/etc/passwd", "x/../../a.mp4", "a\0.mp4"])
def test_names_stay_inside_the_media_folder(tmp_path, name):
    with pytest.raises(MediaError, match="leads out"):
        decoder.inside(tmp_path, name)
    assert decoder.inside(tmp_path, "id1/b..c.mp4") == tmp_path / "id1/b..c.mp4"


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for read in (
        decoder.probe,
        decoder.read_audio,
        decoder.count_frames,
        lambda path: list(decoder.iter_frames(path)),
    ):
        with pytest.raises(MediaError, match="not a regular file"):
            read(tmp_path / "pipe.mp4")


def test_frames_at_indices(tmp_path):
    path = write_video(tmp_path / "a.mp4", [40 * k for k in range(12)])
    whole = list(decoder.iter_frames(path))
    picked = list(decoder.frames_at(path, [0, 5, 11, 40]))
    assert len(picked) == 3 and all(np.array_equal(a, whole[i]) for a, i in zip(picked, (0, 5, 11)))
    assert list(decoder.frames_at(path, [])) == []
    (small,) = decoder.frames_at(path, [3], longest=16, to_end=True)
    assert max(small.shape[:2]) == 16


def test_sound_that_changes_its_rate_and_layout_is_read(tmp_path):
    parts = [(44_100, "stereo"), (48_000, "5.1(side)"), (48_000, "mono")]
    path, data = tmp_path / "a.ac3", b""
    for number, (rate, layout) in enumerate(parts):
        part = write_streams(tmp_path / f"{number}.ac3", audio=[(rate, layout, 1.0)])
        data += part.read_bytes()
    path.write_bytes(data)
    wave = decoder.read_audio(path)
    assert len(wave) == pytest.approx(3 * 16_000, abs=1500)
    for start in (4000, 20_000, 36_000):
        assert wave[start : start + 4000].std() == pytest.approx(0.5 / np.sqrt(2), rel=0.2)
    info = decoder.probe(path)
    assert info.n_samples == len(wave) and info.duration == pytest.approx(len(wave) / 16_000)


def test_pictures_of_other_sizes_are_scaled_to_the_first(tmp_path):
    path, data = tmp_path / "a.h264", b""
    for number, size in enumerate(((64, 48), (128, 96), (32, 64))):
        part = tmp_path / f"{number}.h264"
        pictures = [(*size, 60 + 50 * number)] * 10
        data += write_streams(part, video=pictures, codec="libx264").read_bytes()
    path.write_bytes(data)
    frames = list(decoder.iter_frames(path))
    assert {frame.shape for frame in frames} == {(48, 64, 3)}
    assert {round(float(frame.mean()) / 10) for frame in frames} == {6, 11, 16}


def default_is(number: int):
    """A change of streams: only that one is the default track."""

    def alter(streams):
        for k, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition(int(k == number))

    return alter


def test_the_tracks_of_a_player_are_read_and_told(tmp_path):
    small, large = [(64, 48, 200)] * 25, [(128, 96, 30)] * 25
    path = tmp_path / "a.mkv"
    write_streams(path, video=[small, large], alter=default_is(1))
    assert decoder.probe(path).width == 128 and next(decoder.iter_frames(path)).shape == (
        96,
        128,
        3,
    )
    assert container_traits(path)["width"] == 128
    assert decoder.notes(path) == ["2 tracks of picture: number 2 is used, the default."]
    sounds = [(48_000, "mono", 0.5), (48_000, "mono", 2.0)]
    write_streams(path, video=small, audio=sounds, alter=default_is(2))
    assert len(decoder.read_audio(path)) == pytest.approx(32_000, abs=600)
    assert decoder.notes(path) == ["2 tracks of sound: number 2 is used, the default."]


def test_a_cover_picture_is_no_video(tmp_path):
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("libmp3lame", rate=48_000, layout="mono")
        cover = container.add_stream("png", rate=25)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9, np.uint8), format="rgb24")
        container.mux(cover.encode(picture))
        resampler = av.AudioResampler(sound.format.name, "mono", 48_000, 1152)
        for block in tone(48_000, "mono", 1.0):
            for part in resampler.resample(block):
                container.mux(sound.encode(part))
        container.mux(sound.encode())
    with av.open(str(path)) as container:
        assert container.streams.video[0].disposition & av.stream.Disposition.attached_pic
    info = decoder.probe(path)
    assert info.has_audio and not info.has_video and decoder.notes(path) == []
    with pytest.raises(MediaError, match="no video"):
        list(decoder.iter_frames(path))


def test_digital_silence_is_told(tmp_path):
    path = write_audio(
        tmp_path / "a.wav", np.zeros((1, 8000), np.float32), 8000, "pcm_s16le", "mono"
    )
    assert decoder.notes(path) == ["The sound is digital silence."]


def test_lengths_that_no_header_tells_are_measured(tmp_path):
    path, written = tmp_path / "a.mkv", io.BytesIO()
    pipe = types.SimpleNamespace(write=written.write)
    with av.open(pipe, "w", format="matroska", container_options={"live": "1"}) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("ac3", rate=48_000, layout="mono")
        for k in range(50):
            if k % 5 == 4:
                continue  # of a variable rate
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts = k
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode())
        for block in tone(48_000, "mono", 2.0):
            container.mux(sound.encode(block))
        container.mux(sound.encode())
    path.write_bytes(written.getvalue())
    assert b"DURATION" not in written.getvalue()
    info = decoder.probe(path)
    assert info.duration == pytest.approx(2.0, abs=0.05) and info.fps == 25.0
    assert (info.n_samples, info.n_frames) == (len(decoder.read_audio(path)), 49)


def test_a_header_that_lies_is_corrected_where_files_are_measured(tmp_path, monkeypatch):
    path = write_streams(
        tmp_path / "a.mkv", video=[(64, 48, 9)] * 50, audio=[(48_000, "mono", 2.0)]
    )
    assert decoder.measure(path) == decoder.probe(path)
    data = path.read_bytes()
    path.write_bytes(re.sub(rb"00:00:(0\d\.\d+)", rb"00:09:\1", data))
    assert decoder.probe(path).duration > 500
    info = decoder.measure(path)
    assert info.duration == pytest.approx(2.0, abs=0.05)
    assert info.n_samples == len(decoder.read_audio(path))


CORNERS = np.array([[0, 80], [160, 240]])


@pytest.mark.parametrize(
    "matrix, upright",
    [
        ((1, 0, 0, 1), CORNERS),
        ((-1, 0, 0, 1), CORNERS[:, ::-1]),
        ((1, 0, 0, -1), CORNERS[::-1]),
        ((-1, 0, 0, -1), CORNERS[::-1, ::-1]),
        ((0, 1, -1, 0), np.rot90(CORNERS, -1)),
        ((0, -1, 1, 0), np.rot90(CORNERS)),
        ((0, 1, 1, 0), CORNERS.T),
        ((0, -1, -1, 0), CORNERS[::-1, ::-1].T),
    ],
)
def test_display_matrices_turn_and_mirror(tmp_path, matrix, upright):
    path = tmp_path / "a.mp4"
    picture = np.kron(CORNERS, np.ones((32, 48), int)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "4"})
        stream.height, stream.width = picture.shape
        stream.pix_fmt = "yuv420p"
        for k in range(3):
            frame = av.VideoFrame.from_ndarray(np.stack([picture] * 3, axis=2), format="rgb24")
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = path.read_bytes()
    at = data.index(b"tkhd") + 4 + 40  # behind version, times, layer and volume
    a, b, c, d = (round(value * 65536) for value in matrix)
    plain = np.array([65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30], ">i4").tobytes()
    assert data[at : at + 36] == plain
    turned = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(data[:at] + turned + data[at + 36 :])
    frame = next(decoder.iter_frames(path))[:, :, 1].astype(float)
    height, width = (side // 2 for side in frame.shape)
    halves = [frame[:height, :width], frame[:height, width:]]
    halves += [frame[height:, :width], frame[height:, width:]]
    np.testing.assert_allclose([part.mean() for part in halves], upright.ravel(), atol=6)
    assert frame.shape == ((96, 64) if matrix[0] == 0 else (64, 96))


@pytest.mark.parametrize(
    "aspect, shape",
    [
        (Fraction(2), (48, 128, 3)),
        (Fraction(1, 2), (96, 64, 3)),
        (Fraction(1216, 1215), (48, 64, 3)),
    ],
)
def test_pixels_come_out_square(tmp_path, aspect, shape):
    path = tmp_path / "a.mkv"

    def alter(streams):
        streams[0].codec_context.sample_aspect_ratio = aspect

    write_streams(path, video=[(64, 48, 90)] * 5, alter=alter)
    assert {frame.shape for frame in decoder.iter_frames(path)} == {shape}
    assert decoder.probe(path).width == 64


def test_the_grid_is_black_before_the_first_frame_that_can_be_decoded(tmp_path):
    whole = tmp_path / "whole.ts"
    write_streams(whole, video=[(64, 48, 200)] * 50, codec="libx264", audio=[(48_000, "mono", 2)])
    with av.open(str(whole)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        with av.open(str(tmp_path / "cut.ts"), "w") as out:
            copied = out.add_stream_from_template(stream)
            kept = [*packets[10:], *packets]
            shift = 50 * 3600
            for number, packet in enumerate(kept):
                if number >= len(packets) - 10:
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = copied
                out.mux(packet)
    frames = list(decoder.iter_frames(tmp_path / "cut.ts"))
    lit = [frame.mean() > 100 for frame in frames]
    assert len(frames) == decoder.count_frames(tmp_path / "cut.ts") == 90
    assert lit == [k >= 40 for k in range(90)]


@pytest.mark.parametrize(
    "name, codec, rate",
    [
        ("a.mp4", "aac", 44_100),
        ("a.webm", "libopus", 48_000),
        ("a.mp3", "libmp3lame", 44_100),
        ("a.ogg", "libopus", 48_000),
    ],
)
def test_priming_samples_stay_skipped(tmp_path, name, codec, rate):
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 2 * rate))
    smooth = np.stack([np.convolve(row, np.ones(16) / 4, "same") for row in noise])
    resampler = av.AudioResampler("fltp", "mono", rate, 960 if codec == "libopus" else 1152)
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(smooth.astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(
            stream.format.name, "mono", rate, stream.codec_context.frame_size
        )
        for block in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(block))
        container.mux(stream.encode())
    wave = decoder.read_audio(path)
    with av.open(str(path)) as container:
        decoded = av.AudioResampler("flt", "mono", 16_000)
        frames = [*container.decode(container.streams.audio[0]), None]
        blocks = [block.to_ndarray()[0] for one in frames for block in decoded.resample(one)]
    np.testing.assert_array_equal(wave, np.concatenate(blocks).clip(-1, 1))
    original = smooth[0][:: rate // 4000] if rate == 48_000 else None
    if original is not None:
        n = min(len(original), len(wave) // 4)
        assert np.corrcoef(original[:n], wave[::4][:n])[0, 1] > 0.9


def test_folders_give_their_media_and_name_the_rest(tmp_path):
    for name in (
        "a.MTS",
        "b/c.wav",
        "d.3gp",
        "e.ogv",
        "notes.txt",
        "._a.mp4",
        "__MACOSX/f.mp4",
        ".Trash/g.mp4",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    taken, passed = decoder.media_below(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in taken] == [
        "a.MTS",
        "b/c.wav",
        "d.3gp",
        "e.ogv",
    ]
    assert [path.name for path in passed] == ["notes.txt"]
