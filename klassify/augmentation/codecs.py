"""Audio through a codec and back, without sox: the formats of paper 1 (section 5.2).

A round trip keeps length and alignment: delays and extra samples of a codec are removed. gsm and
amr-nb work at 8 kHz, so their clips lose everything above 4 kHz. `vorbis` and `ogg` are two names
of one format, as in sox. Qualities are sox's defaults (Vorbis quality 3, MP3 at 128 kbit/s); the
bit rate of AMR is one of its eight, drawn at random.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np

from klassify.media.decoder import SAMPLE_RATE

NARROW_BAND = 8_000
AMR_BIT_RATES = (4750, 5150, 5900, 6700, 7400, 7950, 10_200, 12_200)
AMR_DELAY = 40  # samples at 8 kHz: the encoder looks 5 ms ahead

# (encoding, bits) -> libsndfile's name
SUBTYPES = {
    ("PCM_S", 8): "PCM_S8",
    ("PCM_U", 8): "PCM_U8",
    ("PCM_S", 16): "PCM_16",
    ("PCM_S", 32): "PCM_32",
    ("PCM_F", 32): "FLOAT",
    ("ULAW", 8): "ULAW",
    ("ALAW", 8): "ALAW",
}
_LARGE = [("PCM_S", 16), ("PCM_S", 32)]
_TELEPHONE = [("ULAW", 8), ("ALAW", 8)]
_RIFF = [("PCM_U", 8), *_LARGE, ("PCM_F", 32), *_TELEPHONE]  # 8-bit samples are unsigned
_SPHERE = [("PCM_S", 8), *_LARGE, *_TELEPHONE]
# format: (libsndfile's name, encodings it can hold); None: the format's only encoding
FORMATS = {
    "htk": ("HTK", [("PCM_S", 16)]),
    "gsm": ("RAW", [None]),
    "amr-nb": ("", [None]),
    "sph": ("NIST", _SPHERE),
    "vorbis": ("OGG", [None]),
    "ogg": ("OGG", [None]),
    "mp3": ("MP3", [None]),
    "amb": ("WAVEX", _RIFF),
    "wav": ("WAV", _RIFF),
}


@dataclasses.dataclass(frozen=True)
class Codec:
    """A format, and its encoding and bits a sample where it leaves a choice."""

    format: str
    encoding: str | None = None
    bits: int | None = None

    def __str__(self) -> str:
        parts = (self.format, self.encoding, self.bits)
        return "-".join(str(part) for part in parts if part is not None)


def legal(format: str | None = None) -> list[Codec]:
    """The codecs of one format, or of all."""
    formats = FORMATS if format is None else [format]
    return [Codec(name, *(choice or ())) for name in formats for choice in FORMATS[name][1]]


def draw(format: str, rng: np.random.Generator) -> Codec:
    """A random codec of a format."""
    choices = legal(format)
    return choices[rng.integers(len(choices))]


def round_trip(wave: np.ndarray, codec: Codec, rng: np.random.Generator) -> np.ndarray:
    """Encode and decode (n,) float32 at 16 kHz; the result has n samples at the same times.

    Samples outside [-1, 1] are clipped, as in files. ValueError for a codec that does not exist.
    """
    if codec not in legal(codec.format):
        known = ", ".join(map(str, legal(codec.format)))
        raise ValueError(f"unknown codec {codec} (known: {known})")
    if codec.format == "amr-nb":
        decoded = amr(wave, int(rng.choice(AMR_BIT_RATES)))
    elif codec.format == "gsm":  # GSM 06.10 full rate, 13 kbit/s, without delay
        from scipy.signal import resample_poly

        settings = {"samplerate": NARROW_BAND, "format": "RAW", "subtype": "GSM610"}
        decoded = resample_poly(_through_file(resample_poly(wave, 1, 2), **settings), 2, 1)
    else:
        decoded = _through_file(wave, **_file_settings(codec))
    return np.pad(decoded, (0, max(len(wave) - len(decoded), 0)))[: len(wave)].astype(np.float32)


def _file_settings(codec: Codec) -> dict[str, object]:
    """The arguments of soundfile.write for a codec at 16 kHz."""
    if codec.format == "mp3":
        kind = {"subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.2}
    elif codec.encoding is None:
        kind = {"subtype": "VORBIS", "compression_level": 0.7}
    else:
        kind = {"subtype": SUBTYPES[codec.encoding, codec.bits]}
    return {"samplerate": SAMPLE_RATE, "format": FORMATS[codec.format][0], **kind}


def _through_file(wave: np.ndarray, **settings: object) -> np.ndarray:
    """(n,) float32 written with the settings of soundfile.write, and read back."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(wave, -1, 1), **settings)
    file.seek(0)
    raw = {**settings, "channels": 1} if settings["format"] == "RAW" else {}
    return soundfile.read(file, dtype="float32", **raw)[0]


def encoded(
    wave: np.ndarray, encoder: str, container: str, bit_rate: int, *, rate: int, delay: int = 0
) -> np.ndarray:
    """(n,) float32 at `rate` through an encoder of FFmpeg and back: (n,) at the same times.

    container: FFmpeg's name of a format that holds it. delay: samples by which the decoded sound
    is late although the format does not say so.
    """
    import av

    n = len(wave)
    samples = np.pad(np.clip(wave, -1, 1), (0, delay))[None]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        stream = target.add_stream(encoder, rate=rate, layout="mono")
        stream.bit_rate = bit_rate
        if stream.codec_context.format.name.startswith("s16"):
            samples = (samples * 32767).round().astype(np.int16)
        else:
            stream.codec_context.format = "fltp"
        kind = stream.codec_context.format.name
        frame = av.AudioFrame.from_ndarray(samples, format=kind, layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        target.mux(stream.encode(frame))
        target.mux(stream.encode())
    file.seek(0)
    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)  # Opus decodes to 48 kHz
    with av.open(file, format=container) as source:
        frames = [*source.decode(audio=0), None]
        blocks = [block.to_ndarray()[0] for frame in frames for block in resampler.resample(frame)]
    decoded = np.concatenate(blocks)[delay : delay + n]
    return np.pad(decoded, (0, n - len(decoded))).astype(np.float32)


def amr(wave: np.ndarray, bit_rate: int) -> np.ndarray:
    """(n,) at 16 kHz through AMR narrow band, which loses everything above 4 kHz."""
    from scipy.signal import resample_poly

    narrow = resample_poly(wave, 1, 2)
    how = {"rate": NARROW_BAND, "delay": AMR_DELAY}
    decoded = resample_poly(encoded(narrow, "libopencore_amrnb", "amr", bit_rate, **how), 2, 1)
    return decoded[: len(wave)].astype(np.float32)
