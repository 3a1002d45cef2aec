"""Decoding: the 25 fps grid by presentation time, 16 kHz mono sound, and damage."""

from __future__ import annotations

import contextlib
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from videos import SIZE, gray, gray_level, noise, picture, sound, tone, write_media, write_video

from klassify.corpus.encode import write_clip
from klassify.errors import KlassifyError
from klassify.media import container as opening
from klassify.media import decoder, flow, info
from klassify.media import picture as picture_file
from klassify.media.container import MediaError


def cells(path: Path) -> list[np.ndarray]:
    return list(decoder.iter_frames(path))


READERS = (info.probe, decoder.read_audio, cells)


def shown(path: Path) -> list[int]:
    """Which frame each cell of the grid shows."""
    return [round((float(frame.mean()) - 20) / 3) for frame in decoder.iter_frames(path)]


def on_screen(times_s: list[float], end_s: float) -> list[int]:
    """The obvious reference: for the middle of each cell, the last frame that has begun."""
    found, k = [], 0
    while (middle := 0.04 * k + 0.02) < end_s - 1e-9:
        found.append(max(i for i, time in enumerate(times_s) if time <= middle + 1e-9))
        k += 1
    return found


def video_packets(path: Path) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [p for p in container.demux(container.streams.video[0]) if p.size]


JITTER = np.random.default_rng(1).integers(-15, 16, 60)


@pytest.mark.parametrize(
    "times",
    [
        [0],
        [0, 40, 80],
        [40 * i for i in range(60)],
        [3000 + 40 * i for i in range(10)],
        [40 * i + int(e - JITTER[0]) for i, e in enumerate(JITTER)],
    ],
    ids=["1", "3", "60", "late start", "jitter"],
)
def test_25_fps_pass_through_every_frame_once(tmp_path, times):
    path = write_video(tmp_path / "a.mkv", times)
    assert shown(path)[:55] == list(range(min(len(times), 55)))
    frame = next(decoder.iter_frames(path))
    assert frame.shape == (SIZE, SIZE, 3) and frame.dtype == np.uint8


@pytest.mark.parametrize("fps", [10, 12.5, 15, 24, 29.97, 30, 50, 60])
def test_other_rates_are_sampled_by_time(tmp_path, fps):
    times = [round(1000 * i / fps) for i in range(40)]
    path = write_video(tmp_path / "a.mkv", times, rate=Fraction(fps).limit_denominator(1001))
    expected = on_screen([t / 1000 for t in times], times[-1] / 1000 + 1 / fps)
    assert abs(len(expected) - 40 * 25 / fps) <= 1
    assert shown(path)[: len(expected) - 1] == expected[:-1]
    # the last frame's duration is the container's guess
    assert abs(len(shown(path)) - len(expected)) <= 1


def test_variable_rate_is_sampled_by_time(tmp_path):
    times = np.cumsum([0, *np.random.default_rng(0).integers(5, 130, 60)]).tolist()
    path = write_video(tmp_path / "a.mkv", times)
    expected = on_screen([t / 1000 for t in times], times[-1] / 1000)
    assert shown(path)[: len(expected)] == expected
    assert decoder.count_frames(path) == len(shown(path))


def test_frames_are_streamed_and_one_array_while_they_stay(tmp_path):
    path = write_video(tmp_path / "a.mp4", [1000 * k for k in range(3)], rate=1)
    assert len({id(frame) for frame in cells(path)}) == 3 and len(shown(path)) == 75
    frames = decoder.iter_frames(write_video(tmp_path / "b.mp4", [40 * i for i in range(100)]))
    assert next(frames).mean() == pytest.approx(gray_level(0), abs=2)
    frames.close()


def test_frames_at_indices(tmp_path):
    path = write_video(tmp_path / "a.mp4", [40 * k for k in range(12)])
    whole = cells(path)
    picked = list(decoder.frames_at(path, [0, 5, 11, 40]))
    assert len(picked) == 3 and all(np.array_equal(a, whole[i]) for a, i in zip(picked, (0, 5, 11)))
    assert list(decoder.frames_at(path, [])) == []


@pytest.mark.parametrize(
    "suffix, codec, options",
    [
        ("mp4", "libx264", {"bf": "3"}),
        ("mov", "libx264", {"bf": "5"}),
        ("mkv", "libx264", {"x264-params": "open-gop=1"}),
        ("webm", "libvpx", {}),
        ("avi", "mpeg4", {}),
        ("ts", "libx264", {"bf": "2"}),
    ],
)
def test_thumbnails_are_frames_of_the_grid(tmp_path, monkeypatch, suffix, codec, options):
    """With jumps, where the container has an index."""
    images = np.cumsum(noise(200, 16, 16, seed=1) // 64, axis=0, dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    times = [7000 + 40 * k for k in range(200)]
    write_media(path, picture(images, codec=codec, times_ms=times, g="20", **options))
    whole, indices = cells(path), [0, 3, 4, 90, 150, 151, 199]
    decoded, rgb = [], picture_file._rgb
    monkeypatch.setattr(picture_file, "_rgb", lambda frame: decoded.append(frame.pts) or rgb(frame))
    got = list(decoder.thumbnails_at(path, indices, longest=16))
    np.testing.assert_array_equal(got, [whole[index] for index in indices])
    assert len(decoded) <= len(indices)  # nothing else is converted
    (small,) = decoder.thumbnails_at(path, [90], longest=8)
    assert small.shape == (8, 8, 3)


def test_thumbnails_jump_over_what_is_not_shown(tmp_path):
    path = tmp_path / "a.mp4"
    write_media(path, picture(list(noise(200, 16, 16)), codec="libx264", g="20"))
    whole, data = cells(path), bytearray(path.read_bytes())
    for packet in video_packets(path)[20:60]:
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    got = list(decoder.thumbnails_at(path, [0, 150], longest=16))
    np.testing.assert_array_equal(got, [whole[0], whole[150]])
    with pytest.raises(MediaError, match="damaged"):
        list(decoder.frames_at(path, [0, 150]))


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p"])
def test_frames_are_rgb(tmp_path, pixels):
    image = np.full((SIZE, SIZE, 3), (200, 90, 30), np.uint8)
    write_media(tmp_path / "a.mp4", picture([image] * 2, codec="libx264", pixels=pixels))
    colour = next(decoder.iter_frames(tmp_path / "a.mp4")).reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(colour, (200, 90, 30), atol=4)


@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize("colorspace", [1, 2, 5, 6])
def test_yuv444p_is_within_one_grey_level_of_swscale(colorspace, limited):
    frame = av.VideoFrame.from_ndarray(noise(1, 35, 50)[0], format="rgb24")
    frame = frame.reformat(format="yuv444p")
    frame.colorspace, frame.color_range = colorspace, 1 if limited else 2
    expected = frame.to_ndarray(format="rgb24").astype(int)
    assert np.abs(picture_file._rgb(frame) - expected).max() <= 1


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
    image = np.kron(CORNERS, np.ones((32, 48), int)).astype(np.uint8)[..., None].repeat(3, axis=2)
    write_media(path, picture([image] * 3, codec="libx264", qp="4"))
    data = path.read_bytes()
    at = data.index(b"tkhd") + 4 + 40  # after version, times, layer and volume
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
    def alter(streams):
        streams[0].codec_context.sample_aspect_ratio = aspect

    path = write_media(tmp_path / "a.mkv", picture(gray([90] * 5)), alter=alter)
    assert {frame.shape for frame in decoder.iter_frames(path)} == {shape}
    assert info.probe(path).width == 64


def test_pictures_of_other_sizes_are_scaled_to_the_first(tmp_path):
    path, data = tmp_path / "a.h264", b""
    for number, (width, height) in enumerate(((64, 48), (128, 96), (32, 64))):
        images = gray([60 + 50 * number] * 10, height, width)
        data += write_media(path, picture(images, codec="libx264")).read_bytes()
    path.write_bytes(data)
    frames = cells(path)
    assert {frame.shape for frame in frames} == {(48, 64, 3)}
    assert {round(float(frame.mean()) / 10) for frame in frames} == {6, 11, 16}


def test_the_grid_is_black_before_the_first_decodable_frame(tmp_path):
    audio = sound(tone(48_000, 2.0), rate=48_000, codec="ac3")
    write_media(tmp_path / "whole.ts", picture(gray([200] * 50), codec="libx264"), audio)
    with av.open(str(tmp_path / "whole.ts")) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        with av.open(str(tmp_path / "cut.ts"), "w") as out:
            copied = out.add_stream_from_template(stream)
            for number, packet in enumerate([*packets[10:], *packets]):
                if number >= len(packets) - 10:
                    packet.pts, packet.dts = packet.pts + 50 * 3600, packet.dts + 50 * 3600
                packet.stream = copied
                out.mux(packet)
    lit = [frame.mean() > 100 for frame in decoder.iter_frames(tmp_path / "cut.ts")]
    assert lit == [k >= 40 for k in range(90)]
    assert decoder.count_frames(tmp_path / "cut.ts") == 90
    got = list(decoder.thumbnails_at(tmp_path / "cut.ts", [0, 60], longest=8))
    assert [image.mean() > 100 for image in got] == [False, True]


@pytest.mark.parametrize(
    "codec, name, rate",
    [("aac", "a.mp4", 16_000), ("aac", "a.mp4", 44_100), ("pcm_s16le", "a.wav", 48_000)],
)
def test_audio_is_the_mean_of_channels_at_16_khz(tmp_path, codec, name, rate):
    one = tone(rate, 2.0)
    track = sound(np.concatenate([one, 0 * one]), rate=rate, codec=codec, layout="stereo")
    wave = decoder.read_audio(write_media(tmp_path / name, track))
    assert wave.dtype == np.float32 and wave.ndim == 1
    assert 32_000 - 64 <= len(wave) <= 32_000 + 2048
    middle = wave[8000:24_000].astype(float)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.25 / np.sqrt(2), rel=0.02)
    assert np.argmax(np.abs(np.fft.rfft(middle))) == 440


def test_opposite_channels_cancel(tmp_path):
    one = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000)
    track = sound(np.stack([one, -one]), codec="pcm_s16le", layout="stereo")
    assert np.abs(decoder.read_audio(write_media(tmp_path / "a.wav", track))).max() < 1e-4


def test_sound_that_changes_its_rate_and_layout_is_read(tmp_path):
    path, data = tmp_path / "a.ac3", b""
    for rate, layout, channels in (
        (44_100, "stereo", 2),
        (48_000, "5.1(side)", 6),
        (48_000, "mono", 1),
    ):
        track = sound(tone(rate, 1.0, channels), rate=rate, codec="ac3", layout=layout)
        data += write_media(path, track).read_bytes()
    path.write_bytes(data)
    wave = decoder.read_audio(path)
    assert len(wave) == pytest.approx(3 * 16_000, abs=1500)
    for start in (4000, 20_000, 36_000):
        assert wave[start : start + 4000].std() == pytest.approx(0.5 / np.sqrt(2), rel=0.2)
    told = info.probe(path)
    assert told.n_samples == len(wave) and told.duration == pytest.approx(len(wave) / 16_000)


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
    smooth = np.convolve(np.random.default_rng(0).normal(0, 0.1, 2 * rate), np.ones(16) / 4, "same")
    path = write_media(tmp_path / name, sound(smooth[None], rate=rate, codec=codec))
    wave = decoder.read_audio(path)
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("flt", "mono", 16_000)
        frames = [*container.decode(container.streams.audio[0]), None]
        blocks = [block.to_ndarray()[0] for one in frames for block in resampler.resample(one)]
    np.testing.assert_array_equal(wave, np.concatenate(blocks).clip(-1, 1))
    if rate == 48_000:
        original = smooth[::12]
        n = min(len(original), len(wave) // 4)
        assert np.corrcoef(original[:n], wave[::4][:n])[0, 1] > 0.9


@pytest.mark.parametrize(
    "rate, samples, reason",
    [
        (4, 65_535, "One block of the audio is 16384 s long"),
        (3, 65_535, "One block"),
        (4, 1000, None),
        (1, 20, "Of 20.0 s of audio only 0.0 s could be resampled"),
    ],
)
def test_blocks_of_sound_are_bounded_before_resampling(
    tmp_path, monkeypatch, rate, samples, reason
):
    path = tmp_path / "slow.mka"
    with av.open(str(path), "w") as container:
        options = {"frame_size": str(samples)}
        stream = container.add_stream("flac", rate=rate, layout="mono", options=options)
        silence = np.zeros((1, samples), np.int16)
        frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    resampled, resampler = [], av.AudioResampler

    class Watched:
        def __init__(self, **options):
            self.resampler = resampler(**options)

        def resample(self, frame):
            resampled.append(frame.samples if frame else 0)
            return self.resampler.resample(frame)

    monkeypatch.setattr(av, "AudioResampler", Watched)
    if reason is None:
        assert len(decoder.read_audio(path)) == samples / rate * decoder.SAMPLE_RATE
        return
    with pytest.raises(MediaError, match=reason):
        decoder.read_audio(path)
    assert sum(resampled) <= 20


@pytest.mark.parametrize("faststart", [True, False])
@pytest.mark.parametrize("share", [0.6, 0.2])
def test_truncated_files_are_refused(tmp_path, share, faststart):
    options = {"movflags": "faststart"} if faststart else {}
    whole = write_video(tmp_path / "whole.mp4", [40 * i for i in range(100)], options=options)
    stops = [int(share * whole.stat().st_size)]
    if faststart:  # exactly between two frames, too
        stops.append(video_packets(whole)[30].pos)
    for stop in stops:
        (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:stop])
        with pytest.raises(MediaError, match="cut.mp4"):
            cells(tmp_path / "cut.mp4")


def notes_on(path):
    """What decoding the picture tells."""
    about = decoder.About()
    for _ in decoder.pictures(path, about):
        pass
    return about.notes


def test_a_little_damage_is_concealed_and_told(tmp_path, monkeypatch):
    times = [40 * i for i in range(100)]
    whole = write_video(tmp_path / "whole.mp4", times, options={"movflags": "faststart"})
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes()[: int(0.97 * whole.stat().st_size)])
    frames = shown(path)
    assert len(frames) in (decoder.count_frames(path), 100) and frames[:70] == list(range(70))
    (note,) = notes_on(path)
    lost = int(note.split()[0])
    assert 0 < lost <= 10 and note.startswith(f"{lost} of 100 packets of the picture ({lost}.0 %)")
    for limit, error, message in (
        (str((lost - 0.5) / 100), MediaError, f"{lost} of 100 packets.* the limit is"),
        ("0", MediaError, "damaged or truncated in packet"),
        ("many", KlassifyError, "KLASSIFY_DAMAGE='many' is not a share from 0 to 1"),
    ):
        monkeypatch.setenv(flow.DAMAGE_VARIABLE, limit)
        with pytest.raises(error, match=message):
            shown(path)


def test_pictures_that_are_damaged_in_part_are_told(tmp_path):
    path = tmp_path / "a.mp4"
    write_clip(path, list(noise(60, 64, 64)), np.zeros(38_400, np.float32), 30, 48_000)
    data = bytearray(path.read_bytes())
    for packet in video_packets(path)[30:33]:
        half = packet.size // 2
        data[packet.pos + half : packet.pos + packet.size] = bytes(packet.size - half)
    path.write_bytes(data)
    assert len(cells(path)) == 60
    (damage,) = notes_on(path)
    assert "packets of the picture" in damage and 1 <= int(damage.split()[0]) <= 6


def test_lost_packets_of_a_transport_stream_cost_their_frames(tmp_path):
    audio = sound(tone(48_000, 3.0), rate=48_000, codec="ac3")
    path = write_media(tmp_path / "a.ts", picture(gray(range(75))), audio)
    data = bytearray(path.read_bytes())
    whole, n_samples = len(shown(path)), len(decoder.read_audio(path))
    at = len(data) // 188 // 2 * 188
    del data[at : at + 188]
    path.write_bytes(data)
    assert len(cells(path)) == whole
    assert len(decoder.read_audio(path)) == pytest.approx(n_samples, abs=32)
    told = [*notes_on(path), *decoder.decode_audio(path).notes]
    assert any("were concealed" in note for note in told)


@pytest.mark.parametrize("suffix", ["flv", "avi", "mkv", "mp4", "ts"])
def test_whole_files_have_no_damage(tmp_path, monkeypatch, suffix):
    monkeypatch.setenv(flow.DAMAGE_VARIABLE, "0")
    coded = {"rate": 44_100, "codec": "mp3" if suffix == "avi" else "aac"}
    audio = sound(tone(44_100, 1.0), start_s=0.2, **coded)
    codec = "flv" if suffix == "flv" else "mpeg4"
    path = write_media(tmp_path / f"a.{suffix}", picture(gray(range(25)), codec=codec), audio)
    assert len(cells(path)) in (25, 26) and len(decoder.read_audio(path)) > 15_000


def test_damaged_bytes_never_crash(tmp_path):
    whole = write_video(tmp_path / "a.mp4", [40 * i for i in range(30)]).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(0, len(whole), 20)] = rng.integers(0, 256, 20)
        (tmp_path / "b.mp4").write_bytes(damaged.tobytes())
        for read in READERS:
            with contextlib.suppress(MediaError):
                read(tmp_path / "b.mp4")


def test_absurd_sizes_and_times_are_refused(tmp_path, monkeypatch):
    far = write_video(tmp_path / "far.mkv", [0, 40, 36_000_000])
    with pytest.raises(MediaError, match="36000 s"):
        cells(far)
    gap = write_video(tmp_path / "gap.mkv", [0, 40, 3_590_000])
    for read in (decoder.count_frames, cells):
        with pytest.raises(MediaError, match="stays for 3590 s"):
            read(gap)
    with pytest.raises(MediaError, match="stays for 1000 s"):
        cells(write_video(tmp_path / "slow.mp4", [0], rate=Fraction(1, 1000)))
    monkeypatch.setattr(decoder, "MAX_STILL_S", 11.0)
    slides = write_video(tmp_path / "slides.mkv", [0, 10_000, 20_000], rate=Fraction(1, 10))
    assert len(shown(slides)) == 750
    big = write_video(tmp_path / "big.mp4", [0, 40])
    monkeypatch.setattr(opening, "MAX_PIXELS", SIZE * SIZE - 1)
    for read in (info.probe, cells):
        with pytest.raises(MediaError, match="64x64"):
            read(big)


def test_counting_frames_holds_no_packets(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", [40 * k for k in range(50)])
    alive, held, opened = [], [], decoder.opened

    class Watched:
        def __init__(self, packet):
            self.packet = packet
            alive.append(weakref.ref(self))

        def __getattr__(self, name):
            return getattr(self.packet, name)

    class Opened:
        def __init__(self, container):
            self.container, self.streams = container, container.streams

        def demux(self, stream):
            for packet in self.container.demux(stream):
                yield Watched(packet)
                held.append(sum(one() is not None for one in alive))

    @contextlib.contextmanager
    def watched(path):
        with opened(path) as container:
            yield Opened(container)

    monkeypatch.setattr(decoder, "opened", watched)
    assert decoder.count_frames(path) == 50 and max(held) <= 2
