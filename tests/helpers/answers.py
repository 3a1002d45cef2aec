"""Answers about videos without any system."""

from __future__ import annotations

from typing import Any

import pandas as pd

from klassify.prediction.answer import Prediction


def prediction(file: str = "a.mp4", **changed: Any) -> Prediction:
    """An answer of 0.5 that rests on evidence, without segments."""
    nothing = pd.DataFrame(columns=["start", "end", "score", "modality", "method"])
    fields = {"probability": 0.5, "answered": True, "reasons": {}, "segments": nothing}
    return Prediction(file, **(fields | {"frames": {}, "detector": "d", "notice": ""} | changed))
