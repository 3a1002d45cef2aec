"""Speech of the generated corpus: espeak-ng through `espeakng-loader`, with word and phoneme times.

One new process (synthesiser.py) speaks all utterances of an original, in a fixed order, so that the
same request gives the same samples.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from klassify.errors import KlassifyError

SAMPLE_RATE = 16000
ESPEAK_RATE = 22050


@dataclass(frozen=True)
class Utterance:
    """Text to speak. voice: an espeak-ng name such as "en-us+m3"; rate: words per minute."""

    text: str
    voice: str
    rate: int
    pitch: int  # 0-99


@dataclass(frozen=True)
class Speech:
    """Spoken text.

    wave: (n,) float32 at 16 kHz. words: start in seconds by text position. phonemes: (mnemonic,
    start in seconds), in order.
    """

    wave: np.ndarray
    words: dict[int, float]
    phonemes: list[tuple[str, float]]

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.wave) / SAMPLE_RATE

    def span(self, text: str, word_number: int) -> tuple[float, float]:
        """Seconds [start, end) of one word of `text` (words counted from 0).

        The end is the next word event; espeak-ng reports a pair such as "of the" as one event.
        """
        position = len(" ".join(text.split(" ")[:word_number])) + (word_number > 0)
        if position not in self.words:
            raise KlassifyError(f"espeak-ng gave no time for word {word_number} of {text!r}.")
        start = self.words[position]
        end = min((time for time in self.words.values() if time > start), default=self.duration)
        return start, end


def require_espeak() -> tuple[str, str]:
    """(library, data folder) of espeak-ng; KlassifyError if it is not installed."""
    if importlib.util.find_spec("espeakng_loader") is None:
        raise KlassifyError(
            "The generated corpus needs espeak-ng, but espeakng-loader is not installed.",
            fix="pip install 'klassify[corpus]'",
        )
    import espeakng_loader

    return str(espeakng_loader.get_library_path()), str(espeakng_loader.get_data_path())


def speak(utterances: list[Utterance], seed: int) -> list[Speech]:
    """Speak all utterances in one new process. KlassifyError for an unknown voice."""
    library, data = require_espeak()
    for utterance in utterances:
        _require_variant(utterance.voice, data)
    request = {
        "library": library,
        "data": data,
        "seed": seed,
        "utterances": [vars(utterance) for utterance in utterances],
    }
    program = Path(__file__).with_name("synthesiser.py")
    answer = subprocess.run(
        [sys.executable, "-I", "-S", str(program)],
        input=json.dumps(request).encode(),
        capture_output=True,
    )
    if answer.returncode != 0:
        said = answer.stderr.decode(errors="replace").strip()
        reason = said or f"exit status {answer.returncode}"
        raise KlassifyError(f"espeak-ng failed: {reason}.", where=utterances[0].text)
    header, samples = answer.stdout.split(b"\n", 1)
    samples = np.frombuffer(samples, dtype=np.int16)
    speeches, begin = [], 0
    for spoken in json.loads(header):
        end = begin + spoken["n_samples"]
        speeches.append(_speech(samples[begin:end], spoken))
        begin = end
    return speeches


def _require_variant(voice: str, data: str) -> None:
    """KlassifyError for an unknown voice variant, which espeak-ng would silently replace."""
    variant = voice.partition("+")[2]
    if variant and not (Path(data) / "voices" / "!v" / variant).is_file():
        raise KlassifyError(f"espeak-ng has no voice variant {variant!r} ({voice}).", where=data)


def _speech(samples: np.ndarray, spoken: dict) -> Speech:
    if spoken["sample_rate"] != ESPEAK_RATE or not spoken["n_samples"]:
        raise KlassifyError(f"espeak-ng gave {len(samples)} samples at {spoken['sample_rate']} Hz.")
    # 22050 / 16000 = 441 / 320
    wave = resample_poly(samples.astype(np.float32) / 32768, 320, 441).astype(np.float32)
    words = {position: sample / ESPEAK_RATE for position, sample in spoken["words"]}
    phonemes = [(name, sample / ESPEAK_RATE) for name, sample in spoken["phonemes"]]
    return Speech(wave, words, phonemes)
