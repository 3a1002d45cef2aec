"""Opening: what is read, what is refused by name, and which streams a player takes."""

from __future__ import annotations

import os

import av
import cv2
import numpy as np
import pytest
from videos import SIZE, gray, gray_level, picture, sound, tone, write_media, write_video

from klassify.media import decoder, info
from klassify.media.container import MediaError, container_traits, inside, media_below

READERS = (
    info.probe,
    decoder.read_audio,
    decoder.count_frames,
    lambda path: list(decoder.iter_frames(path)),
)


@pytest.mark.parametrize(
    "suffix", ["mov", "mkv", "avi", "ts", "mpg", "flv", "asf", "nut", "mxf", "m4v", "y4m", "gif"]
)
def test_containers_of_video_are_read(tmp_path, suffix):
    codecs = {"mpg": "mpeg2video", "mxf": "mpeg2video", "y4m": "rawvideo", "gif": "gif"}
    codec = {**codecs, "flv": "flv"}.get(suffix, "mpeg4")
    pixels = "rgb8" if suffix == "gif" else "yuv420p"
    path = tmp_path / f"a.{suffix}"
    write_media(path, picture(gray([90] * 100), codec=codec, pixels=pixels))
    assert info.probe(path).width == 64


@pytest.mark.parametrize(
    "suffix", ["wav", "w64", "aiff", "au", "caf", "flac", "ogg", "mp3", "aac", "ac3", "amr"]
)
def test_containers_of_audio_are_read(tmp_path, suffix):
    rate = 8000 if suffix == "amr" else 48_000
    codecs = {"flac": "flac", "ogg": "libopus", "mp3": "libmp3lame", "aac": "aac", "ac3": "ac3"}
    codecs |= {"amr": "libopencore_amrnb", "aiff": "pcm_s16be", "au": "pcm_s16be"}
    track = sound(tone(rate, 1.0), rate=rate, codec=codecs.get(suffix, "pcm_s16le"))
    path = write_media(tmp_path / f"a.{suffix}", track)
    assert len(decoder.read_audio(path)) == pytest.approx(16_000, abs=1300)


@pytest.mark.parametrize(
    "content",
    [b"", b"this is a text file\n" * 50, bytes(5000), b"#EXTM3U\n#EXTINF:1,\nhttp://h/a.ts\n"],
)
def test_other_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    for read in READERS:
        with pytest.raises(MediaError, match="clip.mp4"):
            read(path)


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"


@pytest.mark.parametrize(
    "name, text",
    [
        ("beside.m3u8", HLS.format("other.ts")),
        ("absolute.m3u8", HLS.format("{folder}/other.ts")),
        ("concat.mp4", "ffconcat version 1.0\nfile other.ts\n"),
        ("port.mp4", SDP),
    ],
)
def test_playlists_are_not_followed(tmp_path, name, text):
    write_video(tmp_path / "other.ts", [40 * k for k in range(25)])
    (tmp_path / name).write_text(text.format(folder=tmp_path))
    for read in READERS:
        with pytest.raises(MediaError, match="format (hls|concat|sdp) is not read"):
            read(tmp_path / name)


def test_names_are_not_patterns(tmp_path):
    for k, name in enumerate(("img1.png", "img%d.png", "img*.png")):
        cv2.imwrite(str(tmp_path / name), gray([gray_level(k)])[0])
    assert len(list(decoder.iter_frames(tmp_path / "img1.png"))) == 1
    for name in ("img%d.png", "img*.png"):
        with pytest.raises(MediaError, match="format image2"):
            list(decoder.iter_frames(tmp_path / name))
    write_video(tmp_path / "a.mp4", [0, 40]).rename(tmp_path / "a%d*.mp4")
    assert len(list(decoder.iter_frames(tmp_path / "a%d*.mp4"))) == 2


def test_pipes_folders_and_missing_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path, reason in (
        (tmp_path / "pipe.mp4", "not a regular file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "none.mp4", "none.mp4"),
    ):
        for read in READERS:
            with pytest.raises(MediaError, match=reason):
                read(path)


@pytest.mark.parametrize("name", ["../a.mp4", "/etc/passwd", "x/../../a.mp4", "a\0.mp4"])
def test_names_stay_inside_the_media_folder(tmp_path, name):
    with pytest.raises(MediaError, match="leads out"):
        inside(tmp_path, name)
    assert inside(tmp_path, "id1/b..c.mp4") == tmp_path / "id1/b..c.mp4"


def test_folders_give_their_media_and_name_the_rest(tmp_path):
    media = ["a.MTS", "b/c.wav", "d.3gp", "e.ogv"]
    for name in (*media, "notes.txt", "._a.mp4", "__MACOSX/f.mp4", ".Trash/g.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    taken, passed = media_below(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in taken] == media
    assert [path.name for path in passed] == ["notes.txt"]


def default_is(number: int):
    """A change of streams: only that one is the default track."""

    def alter(streams):
        for k, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition(int(k == number))

    return alter


def test_the_tracks_of_a_player_are_read_and_told(tmp_path):
    path, small = tmp_path / "a.mkv", picture(gray([200] * 25))
    write_media(path, small, picture(gray([30] * 25, 96, 128)), alter=default_is(1))
    assert info.probe(path).width == container_traits(path)["width"] == 128
    assert next(decoder.iter_frames(path)).shape == (96, 128, 3)
    assert info.notes(path) == ["2 tracks of picture: number 2 is used, the default."]
    sounds = [sound(tone(16_000, seconds)) for seconds in (0.5, 2.0)]
    write_media(path, small, *sounds, alter=default_is(2))
    assert len(decoder.read_audio(path)) == pytest.approx(32_000, abs=1100)
    assert info.notes(path) == ["2 tracks of sound: number 2 is used, the default."]


def test_a_cover_picture_is_not_a_video(tmp_path):
    def as_cover(streams):
        streams[1].disposition = av.stream.Disposition.attached_pic

    path = tmp_path / "a.mp3"
    cover = picture(gray([9]), codec="png", pixels="rgb24")
    write_media(
        path, sound(tone(48_000, 1.0), rate=48_000, codec="libmp3lame"), cover, alter=as_cover
    )
    with av.open(str(path)) as container:
        assert container.streams.video[0].disposition & av.stream.Disposition.attached_pic
    told = info.probe(path)
    assert told.has_audio and not told.has_video and info.notes(path) == []
    with pytest.raises(MediaError, match="no video"):
        list(decoder.iter_frames(path))


def test_missing_streams_are_a_normal_state(tmp_path):
    video = write_video(tmp_path / "v.mp4", [40 * i for i in range(5)])
    assert decoder.read_audio(video).shape == (0,)
    told = info.probe(video)
    assert (told.has_video, told.has_audio, told.n_frames, told.n_samples) == (True, False, 5, 0)
    assert (told.fps, told.width, told.height) == (25.0, SIZE, SIZE)
    assert told.duration == pytest.approx(0.2, abs=0.041)
    silence = sound(np.zeros((1, 8000)), rate=8000, codec="pcm_s16le")
    audio = write_media(tmp_path / "a.wav", silence)
    told = info.probe(audio)
    assert (told.has_video, told.has_audio) == (False, True)
    assert (told.n_frames, told.n_samples) == (0, 16_000)
    heard = decoder.decode_audio(audio)
    assert len(heard.wave) == 16_000 and not heard.wave.any() and not heard.gaps
    with pytest.raises(MediaError, match="no video"):
        list(decoder.iter_frames(audio))
