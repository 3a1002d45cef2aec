"""Audio through a codec and back, in this process: the formats of paper 1 (section 5.2), without
sox.

A round trip keeps length and alignment: what a codec delays is cut off, what it adds is dropped.
gsm and amr-nb work at 8 kHz, so their clips lose what lies above 4 kHz. `vorbis` and `ogg` are two
names of one format, as in sox; qualities are sox's defaults (Vorbis quality 3, MP3 at 128 kbit/s),
but AMR, whose eight bit rates are drawn.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np

from klassify.media.decoder import SAMPLE_RATE

NARROW_BAND = 8_000
AMR_BIT_RATES = (4750, 5150, 5900, 6700, 7400, 7950, 10_200, 12_200)
AMR_DELAY = 40  # samples at 8 kHz: the encoder looks 5 ms ahead

# (encoding, bits) -> libsndfile's name of it
SUBTYPES = {
    ("PCM_S", 8): "PCM_S8",
    ("PCM_U", 8): "PCM_U8",
    ("PCM_S", 16): "PCM_16",
    ("PCM_S", 32): "PCM_32",
    ("PCM_F", 32): "FLOAT",
    ("ULAW", 8): "ULAW",
    ("ALAW", 8): "ALAW",
}
_RIFF = [
    ("PCM_U", 8),
    ("PCM_S", 16),
    ("PCM_S", 32),
    ("PCM_F", 32),
    ("ULAW", 8),
    ("ALAW", 8),
]  # 8-bit is unsigned
_SPHERE = [("PCM_S", 8), ("PCM_S", 16), ("PCM_S", 32), ("ULAW", 8), ("ALAW", 8)]
# format: (libsndfile's name of it, what it can hold); None: the format has an encoding of its own
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
        return "-".join(
            str(part) for part in (self.format, self.encoding, self.bits) if part is not None
        )


def legal(format: str | None = None) -> list[Codec]:
    """The combinations that exist, of one format or of all."""
    formats = FORMATS if format is None else [format]
    return [Codec(name, *(choice or ())) for name in formats for choice in FORMATS[name][1]]


def draw(format: str, rng: np.random.Generator) -> Codec:
    """One of a format's legal combinations."""
    choices = legal(format)
    return choices[rng.integers(len(choices))]


def round_trip(wave: np.ndarray, codec: Codec, rng: np.random.Generator) -> np.ndarray:
    """Encode and decode (n,) float32 at 16 kHz; the result has n samples, each where it was.

    What lies outside [-1, 1] is clipped, as files do. ValueError for a combination that does not
    exist.
    """
    if codec not in legal(codec.format):
        raise ValueError(
            f"no codec {codec}; {codec.format} has {', '.join(map(str, legal(codec.format)))}"
        )
    if codec.format in ("gsm", "amr-nb"):
        from scipy.signal import resample_poly

        narrow = resample_poly(wave, 1, 2)
        narrow = (
            _gsm(narrow) if codec.format == "gsm" else _amr(narrow, int(rng.choice(AMR_BIT_RATES)))
        )
        decoded = resample_poly(narrow, 2, 1)
    elif codec.encoding is None:
        mp3 = {"subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.2}
        vorbis = {"subtype": "VORBIS", "compression_level": 0.7}
        decoded = _through_file(
            wave, FORMATS[codec.format][0], **(mp3 if codec.format == "mp3" else vorbis)
        )
    else:
        decoded = _through_file(
            wave, FORMATS[codec.format][0], subtype=SUBTYPES[codec.encoding, codec.bits]
        )
    return _fitted(decoded, len(wave))


def _fitted(wave: np.ndarray, n: int) -> np.ndarray:
    return np.pad(wave[:n], (0, max(n - len(wave), 0))).astype(np.float32)


def _through_file(wave: np.ndarray, format: str, **how: object) -> np.ndarray:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(wave, -1, 1), SAMPLE_RATE, format=format, **how)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def _gsm(wave: np.ndarray) -> np.ndarray:
    """GSM 06.10 full rate, 13 kbit/s; wave at 8 kHz. It delays nothing."""
    import soundfile

    file = io.BytesIO()
    raw = {"samplerate": NARROW_BAND, "format": "RAW", "subtype": "GSM610"}
    soundfile.write(file, np.clip(wave, -1, 1), **raw)
    file.seek(0)
    return soundfile.read(file, dtype="float32", channels=1, **raw)[0]


def _amr(wave: np.ndarray, bit_rate: int) -> np.ndarray:
    """AMR narrow band; wave at 8 kHz."""
    import av

    n = len(wave)
    samples = np.pad(np.clip(wave, -1, 1), (0, AMR_DELAY))[None] * 32767
    file = io.BytesIO()
    with av.open(file, "w", format="amr") as container:
        stream = container.add_stream("libopencore_amrnb", rate=NARROW_BAND, layout="mono")
        stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(
            samples.round().astype(np.int16), format="s16", layout="mono"
        )
        frame.sample_rate, frame.pts = NARROW_BAND, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file, format="amr") as container:
        decoded = np.concatenate([block.to_ndarray()[0] for block in container.decode(audio=0)])
    return decoded[AMR_DELAY : AMR_DELAY + n]
