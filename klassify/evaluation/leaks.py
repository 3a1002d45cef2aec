"""Does the container tell real from fake? Duration, sizes, bit rates and tags alone should not.

Where they do, a detector may have learned how a data set was made instead of what a fake looks
like, and its numbers will not hold elsewhere. `audit` measures each trait alone and all together on
one labelled split.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from klassify.errors import KlassifyError
from klassify.lists import subsets
from klassify.media import isolated
from klassify.media.container import MediaError, container_traits, inside
from klassify.metrics import clips
from klassify.progress import Count

WARN_ABOVE = 0.6
REPEATS = 5
LISTED = ("duration", "n_frames", "n_samples", "fps")  # what a data list already holds
MOST_OPENED = 2000  # clips whose files are opened
MOST_JOINT = 20_000  # clips that the joint model learns from
SEED = 0
Row = tuple[str, float, float, float, int]  # trait, AUC with both ends of its interval, clips


def leak_auc(
    traits: pd.DataFrame, is_fake: np.ndarray, original: np.ndarray, repeats: int = REPEATS
) -> float:
    """AUC of a random forest on container traits, each original scored by trees that never saw it;
    the mean over several ways to fold the originals. About 0.5 when nothing leaks.
    """
    scores = forest_scores(traits, is_fake, original, repeats)
    return float(np.mean([clips.roc_auc(is_fake, one) for one in scores]))


def forest_scores(
    traits: pd.DataFrame, is_fake: np.ndarray, original: np.ndarray, repeats: int = REPEATS
) -> list[np.ndarray]:
    """The scores (n,) of `leak_auc`, one array for each way to fold the originals.

    traits: one row per clip, texts count as categories; is_fake: (n,) 0 or 1; original: (n,) ids.
    KlassifyError for fewer than two originals or one class.
    """
    from sklearn.base import clone
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GroupKFold

    n_originals = len(set(original))
    if n_originals < 2 or len(set(is_fake)) < 2:
        raise KlassifyError(
            f"A leak test needs two originals, real and fake; there are {n_originals}."
        )
    numbers = traits.apply(
        lambda column: column if column.dtype.kind in "fiub" else pd.factorize(column)[0]
    )
    forest = RandomForestClassifier(
        100, min_samples_leaf=3, class_weight="balanced", random_state=SEED
    )
    folds = GroupKFold(min(5, n_originals))
    groups = np.unique(original, return_inverse=True)[1]
    scores = []
    with Count("fit forests", repeats * folds.get_n_splits(), unit="forest") as count:
        for repeat in range(repeats):
            shuffled = np.random.default_rng(repeat).permutation(n_originals)[groups]
            score = np.empty(len(numbers))
            for seen, unseen in count(folds.split(numbers, groups=shuffled)):
                fitted = clone(forest).fit(numbers.iloc[seen], is_fake[seen])
                # clips of one class alone make a forest that knows that class alone
                probability = fitted.predict_proba(numbers.iloc[unseen])
                score[unseen] = probability @ fitted.classes_
            scores.append(score)
    return scores


def audit(
    frame: pd.DataFrame,
    is_fake: np.ndarray,
    source: np.ndarray,
    root: Path | None,
    *,
    n_bootstrap: int = 200,
) -> pd.DataFrame:
    """How well each trait alone, and all together (the last row), tell the label of a split.

    frame: the list; root: its media folder, or None to use only what the list holds. Columns:
    trait, auc (either direction, so never below 0.5), auc_low, auc_high, n, leaks (above
    WARN_ABOVE). The media of at most MOST_OPENED clips, whole sources of them, are opened. Traits
    that never vary are left out.
    """
    listed = frame[[name for name in LISTED if name in frame]].astype(float)
    tables = [(np.arange(len(frame)), listed)]
    if root is not None:
        rows = subsets.sample_of_sources(source, MOST_OPENED)
        opened = _opened(frame["file"].iloc[rows], root)
        known = opened.notna().all(axis=1).to_numpy()
        if known.any():
            tables.append((rows[known], opened[known].infer_objects()))
    result = []
    for which, table in tables:
        for name in table:
            result += alone(name, table[name], is_fake[which], source[which], n_bootstrap)
    result += _together(tables, is_fake, source)
    audited = pd.DataFrame(result, columns=["trait", "auc", "auc_low", "auc_high", "n"])
    return audited.assign(leaks=audited["auc"] > WARN_ABOVE)


def _opened(files: Sequence[str], root: Path) -> pd.DataFrame:
    """Traits of media files, NaN for one that cannot be opened."""
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            rows.append(isolated.call(container_traits, inside(root, file)))
        except MediaError:
            rows.append({})
    return pd.DataFrame(rows)


def alone(
    name: str, values: pd.Series, is_fake: np.ndarray, source: np.ndarray, n_bootstrap: int
) -> list[Row]:
    """The row of one trait, texts as categories; [] for one that never varies."""
    known = values.notna().to_numpy()
    values, is_fake, source = values[known], is_fake[known], source[known]
    if values.nunique() < 2 or len(set(is_fake)) < 2:
        return []
    if values.dtype.kind not in "fiub":
        score = share_of_fakes(values.to_numpy(object), is_fake, source)
    else:
        score = values.to_numpy(float)
    ranking = clips.Ranking(is_fake, score)
    auc, drawn = clips.resampled(lambda w: ranking.auc_and_eer(w)[0], source, n=n_bootstrap)
    if auc < 0.5:
        auc, drawn = 1 - auc, 1 - drawn
    return [(name, float(auc), *clips.interval(drawn), len(values))]


def share_of_fakes(values: np.ndarray, is_fake: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Of each clip: the share of fakes with its category in other sources, smoothed."""
    table = pd.DataFrame({"value": values, "source": source, "fake": is_fake, "one": 1})
    of_value = table.groupby("value")[["fake", "one"]].transform("sum")
    of_both = table.groupby(["value", "source"])[["fake", "one"]].transform("sum")
    rest, base = of_value - of_both, is_fake.mean()
    return ((rest["fake"] + base) / (rest["one"] + 1)).to_numpy(float)


def _together(
    tables: Sequence[tuple[np.ndarray, pd.DataFrame]], is_fake: np.ndarray, source: np.ndarray
) -> list[Row]:
    """One model on all traits of the clips that have all of them."""
    rows, last = tables[-1]
    listed = tables[0][1].iloc[rows]
    traits = pd.concat([listed.reset_index(drop=True), last.reset_index(drop=True)], axis=1)
    traits = traits.loc[:, ~traits.columns.duplicated()].fillna(-1)
    chosen = subsets.sample_of_sources(source[rows], MOST_JOINT)
    repeats = REPEATS if len(chosen) <= 500 else 1
    try:
        auc = leak_auc(traits.iloc[chosen], is_fake[rows][chosen], source[rows][chosen], repeats)
    except KlassifyError:
        return []
    return [("all together (random forest, folds by source)", auc, np.nan, np.nan, len(chosen))]
