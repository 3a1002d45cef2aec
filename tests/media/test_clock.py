"""One clock for sound and picture: a flash and a click are found where they were put, in the wave,
on the grid and in the marked copy, whatever the streams' offsets, gaps and drift.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from answers import prediction

from klassify.media import decoder
from klassify.prediction import picture

WITHIN_S = 0.02
CODECS = {
    "mp4": ("libx264", "aac", 16_000),
    "mov": ("mpeg4", "pcm_s16le", 44_100),
    "mkv": ("libx264", "aac", 16_000),
    "ts": ("mpeg2video", "aac", 16_000),
    "flv": ("flv", "aac", 44_100),
    "webm": ("libvpx", "libopus", 48_000),
}
# what an encoder adds in front of the sound is heard, in players too, and the clip starts with it
UNSKIPPED = ("ts", "flv")


@dataclasses.dataclass(frozen=True)
class Clip:
    """Streams with a flash and a click, at seconds of presentation; lost: of the sound."""

    video_start: float = 0.0
    audio_start: float = 0.0
    lost: tuple[float, float] = (0.0, 0.0)
    drift: float = 0.0
    flash: float = 1.0
    click: float = 1.0
    seconds: float = 3.0

    def write(self, path: Path) -> Path:
        video_codec, audio_codec, rate = CODECS[path.suffix[1:]]
        with av.open(str(path), "w") as container:
            video = container.add_stream(video_codec, rate=25)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            audio = container.add_stream(audio_codec, rate=rate, layout="mono")
            sounds = [*self._sounds(audio.codec_context.frame_size or 1024, rate)]
            frames = [(video, *pair) for pair in self._pictures()]
            frames += [(audio, *pair) for pair in sounds]
            for stream, _, frame in sorted(frames, key=lambda item: item[1]):
                if stream is audio:
                    frame = self._of_format(frame, audio.format.name)
                container.mux(stream.encode(frame))
            for stream in (video, audio):
                container.mux(stream.encode())
        return path

    def _pictures(self):
        for k in range(round((self.seconds - self.video_start) * 25)):
            time = self.video_start + k / 25
            lit = self.flash <= time + 1e-9 < self.flash + 0.04
            image = np.full((48, 64, 3), 235 if lit else 20, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            yield time, frame

    def _sounds(self, size: int, rate: int):
        n_blocks = int((self.seconds - self.audio_start) * rate / size / (1 + self.drift))
        for k in range(n_blocks):
            time = self.audio_start + k * size / rate * (1 + self.drift)
            if self.lost[0] <= time < self.lost[1]:
                continue
            seconds = time + np.arange(size) / rate
            heard = (seconds >= self.click) & (seconds < self.click + 0.03)
            wave = np.where(heard, 0.9 * np.sin(6283 * (seconds - self.click)), 0)
            frame = av.AudioFrame.from_ndarray(
                wave[None].astype(np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = round(time * rate)
            yield time, frame

    @staticmethod
    def _of_format(frame: av.AudioFrame, name: str) -> av.AudioFrame:
        values = frame.to_ndarray()
        if name.startswith("s16"):
            values = (values * 32767).round().astype(np.int16)
        made = av.AudioFrame.from_ndarray(values, format=name, layout="mono")
        made.sample_rate, made.time_base, made.pts = frame.sample_rate, frame.time_base, frame.pts
        return made


def flash_and_click(path: Path) -> tuple[float, float]:
    """Seconds at which the grid is brightest and the wave first loud."""
    brightness = [float(frame.mean()) for frame in decoder.iter_frames(path)]
    assert len(brightness) == decoder.count_frames(path)
    loud = np.flatnonzero(np.abs(decoder.read_audio(path)) > 0.3)
    return int(np.argmax(brightness)) / 25, loud[0] / decoder.SAMPLE_RATE


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize(
    "clip",
    [
        Clip(),
        Clip(audio_start=0.5, click=1.2),
        Clip(video_start=0.52, flash=1.32),
        Clip(video_start=0.8, audio_start=0.12, flash=1.0, click=0.6),
        Clip(lost=(0.3, 0.8), click=1.3),
        Clip(click=2.6, drift=0.03),
        Clip(click=2.6, drift=-0.03),
    ],
)
def test_flash_and_click_are_where_they_were_put(tmp_path, suffix, clip):
    if suffix == "mov" and (clip.lost[1] or clip.drift):
        pytest.skip("this codec's samples have no time stamps of their own")
    path = clip.write(tmp_path / f"a.{suffix}")
    marked = tmp_path / "marked.mp4"
    picture.mark(path, prediction(path.name), marked, min_score=0.5)
    flash, click = flash_and_click(path)
    if suffix in UNSKIPPED or (suffix == "mp4" and clip.video_start and clip.audio_start):
        assert flash - click == pytest.approx(clip.flash - clip.click, abs=2 * WITHIN_S)
    else:
        zero = min(clip.video_start, clip.audio_start)
        put = clip.flash - zero, clip.click - zero
        assert (flash, click) == pytest.approx(put, abs=WITHIN_S)
    if not clip.drift:
        sound = decoder.decode_audio(path)
        heard = len(sound.wave) - sum(stop - start for start, stop in sound.gaps)
        there = clip.seconds - clip.audio_start - (clip.lost[1] - clip.lost[0])
        assert heard / decoder.SAMPLE_RATE == pytest.approx(there, abs=0.12)
    in_copy = flash_and_click(marked)
    assert in_copy == pytest.approx((flash, click), abs=WITHIN_S)
