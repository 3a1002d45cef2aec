"""Hyper-parameters that no model can be built with are a ValueError by name, not torch's error
in some layer.
"""

from __future__ import annotations

from collections.abc import Sequence


def check_sizes(least: int = 1, **sizes: int | Sequence[int]) -> None:
    """ValueError unless each size, or each one of a list, is at least so large; a list needs
    one.
    """
    for name, value in sizes.items():
        each = [value] if isinstance(value, int) else list(value)
        if not each or min(each) < least:
            raise ValueError(
                f"{name} is {'' if isinstance(value, int) else 'one or more of '}at least {least}, "
                f"not {value}"
            )


def check_shares(**shares: float) -> None:
    """ValueError unless each is a share or a probability."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} lies between 0 and 1, not at {value}")


def check_weights(**weights: float | Sequence[float]) -> None:
    """ValueError unless each weight, or each one of a list, is 0 or more and finite."""
    for name, value in weights.items():
        each = [value] if isinstance(value, (int, float)) else list(value)
        if not all(0 <= one < float("inf") for one in each):
            raise ValueError(f"{name} is 0 or more, not {value}")
