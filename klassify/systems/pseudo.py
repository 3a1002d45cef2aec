"""Choose pseudo-labels: the clips of an unlabelled list that a system is most confident about."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError
from klassify.lists.pseudo import FAKE_OF, Record
from klassify.lists.subsets import existing_list, load_split, own_split
from klassify.systems.base import System
from klassify.systems.scores import answered, as_probability, scores_of


def choose(
    system: System,
    split: str,
    lists: str | os.PathLike,
    *,
    fake_from: float,
    real_to: float,
    most: int,
    transductive: bool = False,
) -> tuple[pd.DataFrame, Record]:
    """Equal numbers of clips with a probability of at least `fake_from` and of at most `real_to`,
    the most confident ones, `most` in all, in the order of the list.

    transductive: whether the clips may be those of a test split. KlassifyError for a list with
    labels, a test split that was not allowed, and where either class has no clip.
    """
    if not 0 <= real_to < fake_from <= 1:
        raise KlassifyError(
            f"Probabilities of {real_to:g} and below cannot be real and {fake_from:g} and above"
            " fake: the first must be lower, and both lie within 0 to 1."
        )
    if own_split(split).startswith("test") and not transductive:
        raise KlassifyError(
            f"{split} is a test split: training on its clips, even without their labels, makes its"
            " results those of a system that has seen it.",
            fix="choose clips of another unlabelled split, or pass --transductive",
        )
    table = load_split(lists, split)
    if labelled := int((table["modify_type"] != "").sum()):
        raise KlassifyError(
            f"{labelled} of {len(table)} clips of {split} have labels; pseudo-labels are for clips"
            " without.",
            where=existing_list(lists, split),
        )
    scores = scores_of(system, split, table["file"].tolist())
    fake = np.where(answered(scores), as_probability(scores), np.nan)
    sure_fake, sure_real = np.flatnonzero(fake >= fake_from), np.flatnonzero(fake <= real_to)
    n = min(len(sure_fake), len(sure_real), max(most // 2, 1))
    if not n:
        raise KlassifyError(
            f"{system.name} gives {len(sure_fake)} of {len(table)} clips of {split} a probability"
            f" of {fake_from:g} or more and {len(sure_real)} one of {real_to:g} or less; both"
            " classes need a clip.",
            fix="pass a lower --fake-from or a higher --real-to",
        )
    chosen_fake = sure_fake[np.argsort(-fake[sure_fake], kind="stable")[:n]]
    chosen_real = sure_real[np.argsort(fake[sure_real], kind="stable")[:n]]
    table.loc[chosen_fake, "modify_type"] = FAKE_OF[system.modality]
    table.loc[chosen_real, "modify_type"] = "real"
    chosen = table.loc[np.sort(np.concatenate([chosen_fake, chosen_real]))].reset_index(drop=True)
    record = Record(
        split=split,
        system=str(Path(system.folder)),
        system_hash=system.hash,
        modality=system.modality,
        supervision=system.supervision,
        fake_from=fake_from,
        real_to=real_to,
        n_clips=len(table),
    )
    return chosen, record
