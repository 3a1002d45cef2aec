"""Types for argparse: numbers in their range. argparse names the option in its message."""

from __future__ import annotations

import argparse

LARGEST = 2**63 - 1  # the largest seed of torch


def at_least_0(text: str) -> int:
    """A whole number, 0 or more."""
    return _whole(text, 0)


def at_least_1(text: str) -> int:
    """A whole number, 1 or more."""
    return _whole(text, 1)


def between_0_and_1(text: str) -> float:
    """A number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a probability, 0 to 1, not {text!r}")
    return value


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not least <= value <= LARGEST:
        raise argparse.ArgumentTypeError(f"a whole number, {least} or more, not {text!r}")
    return value
