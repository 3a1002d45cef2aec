"""Why the answers are what they are, for the first clips that the page shows."""

from __future__ import annotations

import base64
import collections
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from klassify.data.base import Sources
from klassify.errors import KlassifyError
from klassify.explanation import picture
from klassify.explanation.explain import Explainer
from klassify.media.container import inside
from klassify.report.clips import Chosen
from klassify.report.comparison import Comparison

DOTS = 75  # an inch of the picture


@dataclasses.dataclass(frozen=True)
class _Compared(Sources):
    """Media and features of the compared clips, whose list is that of the comparison."""

    frame: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame, compare=False)

    def table(self, split: str, *, segments: bool = False) -> pd.DataFrame:
        """The clips of the comparison, of whatever split or subset."""
        return self.frame


def first_of_each(chosen: Sequence[Chosen], n: int) -> set[int]:
    """The rows of the first n mistakes and the first n disagreements."""
    count: collections.Counter[str] = collections.Counter()
    rows = set()
    for one in chosen:
        if any(count[why] < n for why in one.why):
            rows.add(one.row)
        count.update(one.why)
    return rows


class Explanations:
    """Explains clips by the answers to Task 1; models are loaded once."""

    def __init__(self, result: Comparison, media: Path, features: Path):
        self.result = result
        sources = _Compared(Path(), media, features, frame=result.frame)
        self.media = sources.media_folder(result.split)
        self.explainers = {
            one.name: Explainer(one.system, result.split, sources) for one in result.answers1
        }

    def of(self, row: int) -> list[dict[str, str]]:
        """Of each answer its name, the sentence, and the picture as a data URL, "" if there is
        none.
        """
        file = str(self.result.frame["file"].iloc[row])
        found = []
        for name, explainer in self.explainers.items():
            image = io.BytesIO()
            try:
                why = explainer.explain(file)
                picture.draw(why, image, video=inside(self.media, file), dots=DOTS)
                url = "data:image/png;base64," + base64.b64encode(image.getvalue()).decode()
                found.append({"name": name, "text": why.sentence, "image": url})
            except KlassifyError as error:
                found.append({"name": name, "text": error.what, "image": ""})
        return found
