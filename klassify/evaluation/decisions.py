"""Systems as deciders on labelled clips: what their errors cost, and whether thresholds of val_fit
hold on another split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logit

from klassify.errors import KlassifyError
from klassify.evaluation.clips import Scored, load_scored
from klassify.evaluation.tables import aligned, number, with_ends, with_interval
from klassify.lists import subsets
from klassify.metrics import clips, decisions
from klassify.metrics.decisions import ASVSPOOF_5, Cost, rate_with_interval
from klassify.progress import progress
from klassify.systems import operating
from klassify.systems.base import System
from klassify.systems.operating import CANNOT_TELL, FAKE, REAL, OperatingPoints, Point, percent

COSTS = ("min_dcf", "act_dcf", "cllr")
TANDEM_RESAMPLES = 200  # at most: each one counts a grid of thresholds
FEWEST_RESAMPLES = 100
CLIPS_DRAWN = 50_000_000  # resamples times clips, but at least FEWEST_RESAMPLES
VERDICTS = {FAKE: "fake", CANNOT_TELL: "unsure", REAL: "real"}
POINT_COLUMNS = ("fake_above", "real_below", "val_false_alarms", "val_misses")
MORE = "more "  # how the reading of a broken rate begins
Named = Mapping[str, Scored]  # by the name that the tables show


def measure_costs(
    scored: Named,
    frame: pd.DataFrame,
    split: str,
    *,
    cost: Cost = ASVSPOOF_5,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per system: min DCF, actual DCF, Cllr, min Cllr and tandem EER against the video's
    label, with intervals but for min Cllr; NaN for what a system does not have.

    LLRs are the log-odds of its probabilities without the prior that they hold (System.prior).
    The tandem EER is that of a fusion of one system for the sound and one for the picture. Long
    lists get fewer resamples than n_bootstrap.
    """
    label, source = subsets.label(frame, "video"), subsets.sources_of(frame)
    affordable = max(FEWEST_RESAMPLES, CLIPS_DRAWN // max(len(label), 1))
    n_bootstrap = min(n_bootstrap, affordable)
    rows = []
    for name, one in progress(scored.items(), len(scored), "cost of errors", unit="system"):
        llr = clips.log_odds(one.probability) - logit(one.system.prior)
        values, samples = clips.resampled(
            _costs(clips.Ranking(label, one.score), label, llr, cost),
            source,
            n=n_bootstrap,
            seed=seed,
        )
        row: dict[str, Any] = {"system": name, "n": len(label), "n_fake": int(label.sum())}
        row |= {"prior": cost.prior, "cost_miss": cost.miss, "cost_false_alarm": cost.false_alarm}
        for metric, value, drawn in zip(COSTS, values, samples):
            row |= with_ends(metric, value, drawn)
        row["min_cllr"] = decisions.min_cllr(label, one.score)
        n = min(n_bootstrap, TANDEM_RESAMPLES)
        rows.append(row | _tandem(one.system, frame, split, source, n, seed))
    return pd.DataFrame(rows)


def _costs(
    ranking: clips.Ranking, label: np.ndarray, llr: np.ndarray, cost: Cost
) -> Callable[[np.ndarray], np.ndarray]:
    """Clip weights (B, n) -> COSTS as (3, B)."""

    def costs(weights: np.ndarray) -> np.ndarray:
        lowest, _ = decisions.min_cost(ranking, cost, weights)
        if np.isnan(llr).any():
            undefined = np.full(lowest.shape, np.nan)  # the scale has no probabilities
            return np.stack([lowest, undefined, undefined])
        actual = decisions.actual_cost(label, llr, cost, weights)
        return np.stack([lowest, actual, decisions.cllr(label, llr, weights)])

    return costs


def _tandem(
    system: System, frame: pd.DataFrame, split: str, source: np.ndarray, n: int, seed: int
) -> dict[str, float]:
    """t_eer with its interval; NaN if it is not a fusion of sound and picture with scores."""
    parts = {one.modality: one for one in system.input_systems}
    undefined = dict.fromkeys(("t_eer", "t_eer_low", "t_eer_high"), np.nan)
    if len(system.input_systems) != 2 or set(parts) != {"audio", "visual"}:
        return undefined
    try:
        files = frame["file"].tolist()
        score = {name: load_scored(one, split, files).score for name, one in parts.items()}
    except KlassifyError:  # a system from elsewhere may come without its inputs' scores
        return undefined
    tandem = decisions.Tandem(frame["modify_type"].to_numpy(str), score["audio"], score["visual"])
    value, drawn = clips.resampled(
        lambda weights: np.array([tandem.eer(each) for each in weights]), source, n=n, seed=seed
    )
    return with_ends("t_eer", value, drawn)


def fit_points(
    systems: Mapping[str, System], val_fit: pd.DataFrame | None, **options: Any
) -> tuple[dict[str, OperatingPoints], list[str]]:
    """The operating points of each system, and a note for each one that has none.

    options: of klassify.systems.operating.fit.
    """
    if val_fit is None:
        return {}, []
    found, notes = {}, []
    for name, system in progress(systems.items(), len(systems), "fit thresholds", unit="system"):
        try:
            found[name] = operating.fit(system, val_fit, **options)
        except KlassifyError as error:
            notes.append(f"No thresholds of {name}: {error.what}")
    return found, notes


def apply_points(
    scored: Named, frame: pd.DataFrame, points: Mapping[str, OperatingPoints]
) -> pd.DataFrame:
    """One row per system and operating point: thresholds and rates of val_fit, and of these clips.

    false_alarms: share of real clips called fake; misses: of fakes called real; unsure: of all,
    without verdict; n_<kind>_<verdict>: counts, and <kind>_as all three as text. Clips without an
    answer are in none of them. reading: whether the rates of val_fit hold here.
    """
    label, source = subsets.label(frame, "video"), subsets.sources_of(frame)
    rows = []
    for name, fitted in points.items():
        known = scored[name].answered
        score, is_fake = scored[name].score[known], label[known] == 1
        for point in fitted.points:
            row = {"system": name, "point": point.name, "rate": point.rate}
            row |= _fitted(point)
            if not point.why_not:
                row |= _realised(point, point.verdicts(score), is_fake, source[known])
            rows.append(row | {"n_no_answer": int((~known).sum())})
    table = pd.DataFrame(rows)
    if len(table):
        table["reading"] = [_reading(row) for _, row in table.iterrows()]
    return table


def _fitted(point: Point) -> dict[str, Any]:
    row: dict[str, Any] = {"why_not": point.why_not}
    for name in POINT_COLUMNS:
        value = getattr(point, name.removeprefix("val_"))
        ends = getattr(point, f"{name.removeprefix('val_')}_interval")
        values = zip(("", "_low", "_high"), (value, *ends))
        row |= {f"{name}{end}": np.nan if x is None else x for end, x in values}
    return row


def _realised(
    point: Point, verdict: np.ndarray, is_fake: np.ndarray, source: np.ndarray
) -> dict[str, Any]:
    row: dict[str, Any] = {"unsure": float((verdict == CANNOT_TELL).mean())}
    for kind, chosen, wrong, rate in (
        ("real", ~is_fake, FAKE, "false_alarms"),
        ("fake", is_fake, REAL, "misses"),
    ):
        value, ends = rate_with_interval(verdict[chosen] == wrong, source[chosen])
        row |= {rate: value, f"{rate}_low": ends.low, f"{rate}_high": ends.high}
        counts = {word: int((verdict[chosen] == answer).sum()) for answer, word in VERDICTS.items()}
        row |= {f"n_{kind}_{word}": n for word, n in counts.items()}
        row[f"{kind}_as"] = " / ".join(map(str, counts.values()))
    return row


def _reading(row: pd.Series) -> str:
    """Whether the rates of val_fit hold on these clips, in words."""
    if row["why_not"]:
        return row["why_not"]
    has_rate = not pd.isna(row["rate"])
    broken, highest = [], 0.0
    for name, word in (("false_alarms", "false alarms"), ("misses", "misses")):
        low, on_val = row[f"{name}_low"], row[f"val_{name}_high"]
        if low > on_val:
            broken.append(f"{MORE}{word} than the {percent(on_val)} that val_fit allows")
        elif has_rate and low > row["rate"]:
            broken.append(f"{MORE}{word} than {percent(row['rate'])}, which val_fit left open")
        highest = np.fmax(highest, row[f"{name}_high"])
    if broken:
        return "; ".join(broken)
    if not has_rate:
        return "no sign of a change"
    return "holds" if highest <= row["rate"] else f"may hold: up to {percent(highest)} are possible"


def costs_text(table: pd.DataFrame) -> str:
    """Costs of errors as text; `table` as measure_costs returns it."""
    rows = [["costs", "min DCF", "actual DCF", "Cllr, bits", "min Cllr", "t-EER"]]
    for _, row in table.iterrows():
        ends = [with_interval(row, name, ".3f") for name in COSTS]
        tandem = with_interval(row, "t_eer", ".3f")
        rows.append([row["system"], *ends, number(row["min_cllr"], ".3f"), tandem])
    return f"{aligned(rows)}\n{cost_note(table)}"


def cost_note(table: pd.DataFrame) -> str:
    """Which costs were assumed; `table` as measure_costs returns it."""
    first = table.iloc[0]
    return (
        f"DCF: prior of fake {first['prior']:g}, a miss costs {first['cost_miss']:g}, a false alarm"
        f" {first['cost_false_alarm']:g}; 1 is what one answer for all clips costs."
    )


def points_text(table: pd.DataFrame) -> str:
    """Thresholds of val_fit on these clips as text; `table` as apply_points returns it."""
    head = ["thresholds", "at", "fake above", "real below", "false alarms", "misses"]
    rows = [[*head, "cannot tell", "real as F/?/R", "fakes as F/?/R", "reading"]]
    for _, row in table.iterrows():
        cells = [row["system"], row["point"]]
        if row["why_not"]:
            rows.append([*cells, *["-"] * 7, row["reading"]])
            continue
        cells += [number(row[name], ".4g") for name in ("fake_above", "real_below")]
        cells += [with_interval(row, name, ".1%") for name in ("false_alarms", "misses")]
        cells += [number(row["unsure"], ".1%"), row["real_as"], row["fake_as"], row["reading"]]
        rows.append(cells)
    return aligned(rows)


def by_system(costs: pd.DataFrame, points: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Both tables as plain values for each system's metrics file, without what is undefined."""
    found = {}
    for _, row in costs.iterrows():
        name = row["system"]
        names = (*COSTS, "min_cllr", "t_eer", "prior", "cost_miss", "cost_false_alarm")
        found[name] = {"costs": row[list(names)].dropna().to_dict()}
        own = points[points["system"] == name] if len(points) else points
        found[name]["thresholds"] = [
            each.drop(["system", "split", "subset"]).dropna().to_dict()
            for _, each in own.iterrows()
        ]
    return found
