"""Broken versions of an intact file: damaged bytes, and hostile words in text."""

from __future__ import annotations

import random

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 100_000)
TYPED = "NaN -Infinity 1e999 -1 1e-320 99999999999999999999 0x10 null true [] {} <script> %s%n"
SIGNS = ['"', "'", "\\", "\t", "\n", "\r\n", ";", ",", ":", "\0", "\ufeff", "\u202e", "\u0661", "é"]
PATHS = "../../outside /etc/passwd a/../../b C:\\x ~ ${HOME} $(id)"
LONG = ["a" * 70_000, "[" * 5_000, "{" * 5_000, "- " * 5_000]
YAML = ["&a [*a, *a]", "!!python/object:os.system"]
WORDS = [*TYPED.split(), *SIGNS, "\U0001f600", *PATHS.split(), *LONG, *YAML]


def broken_bytes(content: bytes, rng: random.Random) -> bytes:
    """One to four damages: flipped bits, numbers in headers, cut or random stretches."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        reach = len(data) if rng.random() < 0.5 else min(len(data), 512)
        at = rng.randrange(reach + 1)
        length = rng.choice((1, 4, 16, 256, 4096))
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 4] = rng.choice(NUMBERS).to_bytes(4, rng.choice(("big", "little")))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            del data[at : at + length]
        elif kind == 5:
            data[at : at + length] = bytes(min(length, len(data) - at))
        else:
            data[at : at + length] = rng.randbytes(length)
    return bytes(data)


def broken_text(content: bytes, rng: random.Random) -> bytes:
    """Hostile words for words, lines doubled, swapped or lost; sometimes damaged bytes."""
    text = content.decode("utf-8")
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:at] + rng.choice(WORDS) + text[at:]
        elif kind == 1:
            text = text[:at] + rng.choice(WORDS) + text[at + rng.randint(1, 12) :]
        elif kind == 2:
            lines = text.split("\n")
            line = rng.randrange(len(lines))
            old = lines[line]
            lines[line : line + 1] = rng.choice(
                ([], [old, old], [rng.choice(WORDS)], [old[: at % 9]])
            )
            text = "\n".join(lines)
        else:
            text = text[:at]
    data = text.encode("utf-8")
    return broken_bytes(data, rng) if rng.random() < 0.2 else data
