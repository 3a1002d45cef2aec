"""Types of numbers on the command line: argparse names the option and says what it takes."""

from __future__ import annotations

import argparse

LARGEST = 2**63 - 1  # torch takes no larger seed, and nothing has so many of anything


def at_least_0(text: str) -> int:
    """A seed, or a number of things of which there may be none."""
    return _whole(text, 0)


def at_least_1(text: str) -> int:
    """A number of things of which there is one or more."""
    return _whole(text, 1)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not least <= value <= LARGEST:
        raise argparse.ArgumentTypeError(f"a whole number, {least} or more, not {text!r}")
    return value
