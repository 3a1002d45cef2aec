"""Do systems treat groups of clips alike? AUC and error rates by race, gender, language and
generator, and the largest gap of each.

The largest of several gaps is above zero by chance, so each comes with the size that 95 % of random
groups of the same sizes stay below. Sources change groups as a whole where all their clips are in
one, and else fakes do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from klassify.evaluation import conditions
from klassify.evaluation.clips import Scored
from klassify.evaluation.tables import aligned, number, with_ends, with_interval
from klassify.lists import subsets
from klassify.metrics import clips
from klassify.metrics.decisions import rate_with_interval
from klassify.progress import progress
from klassify.systems.operating import EQUAL, FAKE, REAL, OperatingPoints, Point

RATES = ("false_alarms", "misses")
RESAMPLES = 50  # at least
FEWEST, MOST = 20, 200  # random groups
CLIPS_DRAWN = 4_000_000  # random groups times clips, but at least FEWEST
LEFT_OUT = ("speaker", "clip length")  # kinds of groups without a table here


class Measured(NamedTuple):
    """One row per group and system, and one row per kind of groups, metric and system."""

    groups: pd.DataFrame
    gaps: pd.DataFrame


def measure_groups(
    scored: Mapping[str, Scored],
    frame: pd.DataFrame,
    points: Mapping[str, OperatingPoints],
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Measured:
    """AUC, false-alarm and miss rate by group of clips, and the largest gap between two groups.

    points: the thresholds of each system; the rates are those of the first false-alarm rate that
    val_fit has thresholds for, else of the equal error rate, and NaN without thresholds. Groups of
    fakes hold all real clips, so that they have one false-alarm rate, which is left out.
    """
    found = conditions.clip_groups(frame)
    kinds = {kind: groups for kind, groups in found.items() if kind not in LEFT_OUT}
    rows, gaps = [], []
    affordable = int(np.clip(CLIPS_DRAWN // max(len(frame), 1), FEWEST, MOST))
    for name, one in progress(scored.items(), len(scored), "gaps of groups", unit="system"):
        system = _System(one, _point(points.get(name)), frame)
        for kind, groups in kinds.items():
            key = {"system": name, "kind": kind, "point": system.point_name}
            masks, of_fakes = np.stack(list(groups.values())), kind in conditions.FAKE_KINDS
            values, samples = clips.resampled(
                lambda weights, masks=masks, system=system: system.metrics(weights, masks),
                system.source,
                n=min(n_bootstrap, max(RESAMPLES, affordable)),
                seed=seed,
            )
            for at, (group, mask) in enumerate(groups.items()):
                row = key | {"group": group, **system.counts(mask)}
                row |= with_ends("auc", values[0, at], samples[0, at])
                rows.append(row | system.rates(mask, RATES[1:] if of_fakes else RATES))
            chance = system.by_chance(masks, of_fakes, affordable, seed)
            names = list(groups)
            for m, metric in enumerate(("auc", *RATES)):
                if metric == RATES[0] and of_fakes:
                    continue
                if (gap := _gap(values[m], samples[m], names)) is not None:
                    limit = float(np.nanquantile(chance[m], 0.95))
                    reading = "more than chance" if gap["gap"] > limit else "within chance"
                    gaps.append(
                        key | {"metric": metric, **gap, "by_chance": limit, "reading": reading}
                    )
    return Measured(pd.DataFrame(rows), pd.DataFrame(gaps))


def _point(points: OperatingPoints | None) -> Point | None:
    """The point whose error rates are compared."""
    usable = [one for one in points.points if not one.why_not] if points else []
    by_rate = [one for one in usable if one.rate is not None]
    return next(iter([*by_rate, *(one for one in usable if one.name == EQUAL)]), None)


def _gap(values: np.ndarray, samples: np.ndarray, names: list[str]) -> dict[str, Any] | None:
    """The largest difference between two groups, with the interval of these two; None if no two
    differ.
    """
    if not np.isfinite(values).any() or np.nanmax(values) == np.nanmin(values):
        return None
    high, low = int(np.nanargmax(values)), int(np.nanargmin(values))
    row = with_ends("gap", values[high] - values[low], samples[high] - samples[low])
    ends = {"highest": names[high], "highest_value": float(values[high])}
    return ends | {"lowest": names[low], "lowest_value": float(values[low])} | row


class _System:
    """One system on the clips of a list. Clips without an answer count for the AUC alone."""

    def __init__(self, one: Scored, point: Point | None, frame: pd.DataFrame):
        self.label = subsets.label(frame, "video")
        self.source = subsets.sources_of(frame)
        self.score = one.score
        self.point_name = point.name if point else ""
        known = one.answered & (point is not None)
        verdict = point.verdicts(one.score) if point else np.full(len(self.label), "", object)
        self.of_class = {
            "false_alarms": known & (self.label == 0),
            "misses": known & (self.label == 1),
        }
        self.is_error = {"false_alarms": verdict == FAKE, "misses": verdict == REAL}

    def metrics(self, weights: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """AUC and RATES (3, groups, B) of weights (B, n) in masks (groups, n) or (groups, B, n)."""
        found = []
        for mask in masks:
            rows = np.arange(len(self.label)) if mask.ndim > 1 else np.flatnonzero(mask)
            ranking = clips.Ranking(self.label[rows], self.score[rows])
            within = weights * mask if mask.ndim > 1 else weights[:, rows]
            values = [ranking.auc_and_eer(within)[0]]
            for name in RATES:
                counted = within * self.of_class[name][rows]
                is_error = self.is_error[name][rows].astype(float)
                with np.errstate(invalid="ignore"):
                    values.append(counted @ is_error / counted.sum(axis=1))
            found.append(values)
        return np.stack(found, axis=1)

    def counts(self, mask: np.ndarray) -> dict[str, int]:
        """Clips, fakes and sources of a group."""
        n_sources = len(set(self.source[mask]))
        return {"n": int(mask.sum()), "n_fake": int(self.label[mask].sum()), "n_sources": n_sources}

    def rates(self, mask: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
        """The named error rates of a group with their intervals, NaN for the others."""
        row = {f"{name}{end}": np.nan for name in RATES for end in ("", "_low", "_high")}
        for name in names:
            rows = np.flatnonzero(mask & self.of_class[name])
            value, ends = rate_with_interval(self.is_error[name][rows], self.source[rows])
            row |= {name: value, f"{name}_low": ends.low, f"{name}_high": ends.high}
        return row

    def by_chance(self, masks: np.ndarray, of_fakes: bool, n: int, seed: int) -> np.ndarray:
        """(3, n) the largest gap of AUC and RATES between random groups of the same sizes."""
        rng = np.random.default_rng(seed)
        group = np.where(masks.any(axis=0), masks.argmax(axis=0), -1)
        moves = self.label == 1 if of_fakes else np.ones(len(group), bool)
        place, first = np.arange(len(group)), np.arange(len(group))
        _, at, source = np.unique(self.source, return_index=True, return_inverse=True)
        if not of_fakes and (group == group[at][source]).all():
            place, first = source, at  # a source changes its group as a whole
        units = np.unique(place[moves])
        drawn = np.tile(group, (n, 1))
        for each in drawn:
            of_unit = np.full(len(first), -1)
            of_unit[units] = group[first[rng.permutation(units)]]
            each[moves] = of_unit[place[moves]]
        random = np.stack([drawn == number for number in range(len(masks))])
        if of_fakes:
            random |= self.label == 0
        values = self.metrics(np.ones(drawn.shape), random)
        with np.errstate(invalid="ignore"):
            spread = np.fmax.reduce(values, axis=1) - np.fmin.reduce(values, axis=1)
        return spread


def gaps_text(table: pd.DataFrame) -> str:
    """The largest gaps as text; `table` as measure_groups returns it."""
    rows = [["largest gaps", "groups by", "of", "highest", "lowest", "gap", "by chance", "reading"]]
    for _, row in table.iterrows():
        form = ".4f" if row["metric"] == "auc" else ".1%"
        ends = [f"{row[end]} {row[f'{end}_value']:{form}}" for end in ("highest", "lowest")]
        of = "AUC" if row["metric"] == "auc" else f"{row['metric'].replace('_', ' ')}"
        of = of if row["metric"] == "auc" else f"{of}, {row['point']}"
        gap = [with_interval(row, "gap", form), number(row["by_chance"], form), row["reading"]]
        rows.append([row["system"], row["kind"], of, *ends, *gap])
    return aligned(rows)


def groups_text(table: pd.DataFrame) -> str:
    """All groups as text; `table` as measure_groups returns it."""
    rows = [["groups", "group", "clips", "fake", "sources", "AUC", "false alarms", "misses", "at"]]
    for _, row in table.iterrows():
        cells = [row["system"], f"{row['kind']}: {row['group']}"]
        cells += [str(row[name]) for name in ("n", "n_fake", "n_sources")]
        cells += [with_interval(row, "auc"), *(with_interval(row, name, ".1%") for name in RATES)]
        rows.append([*cells, row["point"]])
    return aligned(rows)
