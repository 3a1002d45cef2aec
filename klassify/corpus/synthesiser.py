"""Stand-alone program: speaks utterances from stdin with espeak-ng, writes samples to stdout.

speech.py starts it as a script in a new interpreter and never imports it: espeak-ng keeps hidden
random state, so only a new process gives the same samples every time, and its GPL-3 library stays
out of the toolkit's process. It uses only the standard library.

stdin: {"library": path, "data": path, "seed": int, "utterances": [...]},
    each utterance {"text", "voice", "rate", "pitch"}
stdout: one line of JSON (per utterance: n_samples, sample_rate, words [[text_position, sample]],
        phonemes [[mnemonic, sample]]), then the samples of all utterances, int16, in order.
"""

from __future__ import annotations

import array
import ctypes
import json
import sys
from typing import Any

SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS
PHONEME_EVENTS = 1  # espeakINITIALIZE_PHONEME_EVENTS
CHARS_UTF8 = 1
PARAMETER_RATE, PARAMETER_PITCH = 1, 3
EVENT_END_OF_LIST, EVENT_WORD, EVENT_PHONEME = 0, 1, 7
# text, size, position, its type, end position, flags, unique identifier, user data
SYNTH_ARGUMENTS = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int]
SYNTH_ARGUMENTS += [ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p]


class EventId(ctypes.Union):
    """The subject of an event; for a phoneme, `string` is its mnemonic."""

    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", EventId),
    ]


CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event)
)


class Recorder:
    """Collects the samples and events of one utterance."""

    def __init__(self):
        self.callback = CALLBACK(self.receive)
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        self.samples, self.words, self.phonemes = array.array("h"), [], []

    def receive(self, wave: Any, n_samples: int, events: Any) -> int:
        """The callback: take a block of samples and its events; 0 tells espeak-ng to go on."""
        if wave and n_samples > 0:
            self.samples.frombytes(ctypes.string_at(wave, 2 * n_samples))
        index = 0
        while events[index].type != EVENT_END_OF_LIST:
            event = events[index]
            if event.type == EVENT_WORD:
                self.words.append([event.text_position - 1, event.sample])
            elif event.type == EVENT_PHONEME:
                self.phonemes.append([event.id.string.decode("utf-8", "replace"), event.sample])
            index += 1
        return 0


def speak(
    library: ctypes.CDLL, recorder: Recorder, utterance: dict[str, Any], sample_rate: int
) -> dict[str, Any]:
    """Speak one utterance: returns its answer for stdout, leaves its samples in `recorder`."""
    voice = utterance["voice"].encode()
    if library.espeak_SetVoiceByName(voice) != 0:
        raise SystemExit(f"espeak-ng has no voice {utterance['voice']!r}")
    library.espeak_SetParameter(PARAMETER_RATE, utterance["rate"], 0)
    library.espeak_SetParameter(PARAMETER_PITCH, utterance["pitch"], 0)
    recorder.clear()
    text = utterance["text"].encode() + b"\0"
    library.espeak_Synth(text, len(text), 0, 1, 0, CHARS_UTF8, None, None)
    library.espeak_Synchronize()
    return {
        "n_samples": len(recorder.samples),
        "sample_rate": sample_rate,
        "words": recorder.words,
        "phonemes": recorder.phonemes,
    }


def main() -> None:
    """Read the request, speak all its utterances, write answers and samples."""
    request = json.load(sys.stdin)
    library = ctypes.CDLL(request["library"])
    library.espeak_Synth.argtypes = SYNTH_ARGUMENTS
    data = request["data"].encode()
    sample_rate = library.espeak_Initialize(SYNCHRONOUS, 0, data, PHONEME_EVENTS)
    if sample_rate <= 0:
        raise SystemExit("espeak-ng did not start")
    recorder = Recorder()
    library.espeak_SetSynthCallback(recorder.callback)
    library.espeak_ng_SetRandSeed(ctypes.c_long(request["seed"]))
    answers, samples = [], []
    for utterance in request["utterances"]:
        answers.append(speak(library, recorder, utterance, sample_rate))
        samples.append(recorder.samples.tobytes())
    sys.stdout.buffer.write(json.dumps(answers).encode() + b"\n")
    sys.stdout.buffer.write(b"".join(samples))


if __name__ == "__main__":
    main()
