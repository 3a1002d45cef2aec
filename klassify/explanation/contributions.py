"""What an explanation consists of: contributions, of a system, and of all systems of a detector."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from klassify.systems.scores import to_probability

MODALITIES = {"audio": "sound", "visual": "picture", "both": "sound and picture"}
FRAME_SCORES = "frame scores"  # a method
MOST = 0.5  # of the positive contributions: what "mostly" means
BROAD = 0.4  # of the clip: equal contributions have half of them in half of it
DIGITS = 5  # in JSON


@dataclasses.dataclass(frozen=True)
class Contribution:
    """How much each part of what a system was given raises its score.

    over: `time`, `frequency`, `features`, `features over time`, `picture`, `modalities` or
    `systems`. method: how it was computed. unit: of the values.
    values: (n,); (T, n) for features over time; (rows, columns) for a picture, from its top left.
    edges: (n + 1,) of the parts, in seconds or Hz. names: (n,) of the parts.
    rest: what the score has beside the sum of the values; NaN where they do not add up to it.
    frame_s, image: of a picture, the time of the frame that counts most, and that frame.
    """

    over: str
    method: str
    unit: str
    values: np.ndarray
    edges: np.ndarray | None = None
    names: tuple[str, ...] = ()
    rest: float = np.nan
    frame_s: float = np.nan
    image: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)

    def as_json(self) -> dict[str, Any]:
        """Plain values, None where there is none."""
        found = {"over": self.over, "method": self.method, "unit": self.unit}
        if self.names:
            found["names"] = list(self.names)
        if self.edges is not None:
            found["edges"] = _plain(self.edges)
        for name in ("rest", "frame_s"):
            if not np.isnan(getattr(self, name)):
                found[name] = round(float(getattr(self, name)), DIGITS)
        return found | {"values": _plain(self.values)}

    def weights(self) -> np.ndarray:
        """Values as evidence of a fake, at least 0: probabilities of frame scores, else their
        positive parts; 0 where there is none.
        """
        if self.method == FRAME_SCORES:
            return np.nan_to_num(to_probability(self.values, self.unit))
        return np.maximum(self.values, 0)

    def mostly(self) -> tuple[float, float] | None:
        """The shortest interval (s) with at least half of the weights, None if it is a large part
        of the clip. Of contributions over time.
        """
        weights, edges = self.weights(), self.edges
        summed = np.concatenate([[0.0], np.cumsum(weights)])
        if not summed[-1] > 0:
            return None
        stops = np.searchsorted(summed, summed[:-1] + MOST * summed[-1] * (1 - 1e-9))
        there = stops < len(summed)
        lengths = edges[stops[there]] - edges[:-1][there]
        first = int(np.argmin(lengths))
        if lengths[first] > BROAD * (edges[-1] - edges[0]):
            return None
        return float(edges[first]), float(edges[stops[first]])


def span(start_s: float, end_s: float) -> str:
    """An interval such as `0.7-1.0 s`; of at most 0.1 s with two decimals."""
    digits = 1 if end_s - start_s > 0.1 else 2
    return f"{start_s:.{digits}f}-{end_s:.{digits}f} s"


def _plain(values: np.ndarray) -> list[Any]:
    rounded = np.round(np.asarray(values, float), DIGITS)
    return np.where(np.isnan(rounded), None, rounded.astype(object)).tolist()


@dataclasses.dataclass(frozen=True)
class SystemExplanation:
    """Why one system gives a clip its score.

    score: on the system's scale, NaN without an answer; probability: of fake. note: why there
    are no contributions, or which input decided; "" if neither.
    """

    name: str
    kind: str
    modality: str
    scale: str
    score: float
    probability: float
    contributions: tuple[Contribution, ...] = ()
    note: str = ""

    def over(self, name: str) -> Contribution | None:
        """The contributions over time, frequency, ...; None if there are none."""
        return next((one for one in self.contributions if one.over == name), None)

    def as_json(self) -> dict[str, Any]:
        """Plain values, None where there is none."""
        names = ("kind", "modality", "scale", "note")
        numbers = {
            name: None if np.isnan(value) else round(float(value), DIGITS)
            for name, value in (("score", self.score), ("probability", self.probability))
        }
        contributions = [one.as_json() for one in self.contributions]
        fields = {name: getattr(self, name) for name in names}
        return fields | numbers | {"contributions": contributions}


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why the systems of a detector give a clip their scores. systems: by name, those of the Task 1
    answer first, inputs before what is computed from them.

    sentence: the Task 1 answer in a few words, such as "picture 0.98, mostly 0.7-1.0 s; sound
    0.05".
    """

    file: str
    sentence: str
    systems: Mapping[str, SystemExplanation]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        systems = {name: one.as_json() for name, one in self.systems.items()}
        return {"file": self.file, "sentence": self.sentence, "systems": systems}
