"""Detect and localise partially faked talking-head videos.

from klassify import load_detector

answer = load_detector("exp/demo/klassify").predict("clip.mp4")
answer.probability, answer.segments  # see klassify.prediction.answer.Prediction
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # `klassify --help` need not wait for pandas
    if name == "load_detector":
        from klassify.prediction.predict import load_detector

        return load_detector
    raise AttributeError(f"module 'klassify' has no attribute {name!r}")
