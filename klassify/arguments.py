"""For argparse: types of numbers in their range, and options that several commands have.

argparse names the option in its message.
"""

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


def rates(text: str) -> tuple[float, ...]:
    """Several shares between 0 and 1, neither of them included: `0.01,0.05`."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (0.0,)
    if not all(0 < value < 1 for value in values) or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"different shares, such as 0.01,0.05, not {text!r}")
    return values


def cost_of_errors(text: str) -> tuple[float, float, float]:
    """Prior of fake, cost of a miss and of a false alarm: `0.05,10,1`."""
    try:
        prior, miss, false_alarm = (float(part) for part in text.split(","))
    except ValueError:
        prior = miss = false_alarm = 0.0
    if not (0 < prior < 1 and 0 < miss < 1e9 and 0 < false_alarm < 1e9):
        raise argparse.ArgumentTypeError(
            f"the prior of fake, the cost of a miss and that of a false alarm, such as 0.05,10,1,"
            f" not {text!r}"
        )
    return prior, miss, false_alarm


def add_thresholds(
    parser: argparse.ArgumentParser, false_alarms: tuple[float, ...], cost: tuple[float, ...]
) -> None:
    """Add --false-alarms and --cost with their defaults, as klassify.systems.operating has them."""
    parser.add_argument(
        "--false-alarms",
        type=rates,
        default=false_alarms,
        metavar="RATE,...",
        help="false-alarm rates of the thresholds (default 0.01,0.05)",
    )
    parser.add_argument(
        "--cost",
        type=cost_of_errors,
        default=cost,
        metavar="PRIOR,MISS,ALARM",
        help="prior of fake, cost of a miss and of a false alarm (default 0.05,10,1)",
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add --precision, as klassify.models.devices.computing takes it."""
    parser.add_argument(
        "--precision",
        choices=("32", "tf32", "bf16"),
        help="precision of models (default: tf32 on a CUDA GPU, 32 elsewhere); recorded if given",
    )


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not least <= value <= LARGEST:
        raise argparse.ArgumentTypeError(f"a whole number, {least} or more, not {text!r}")
    return value
