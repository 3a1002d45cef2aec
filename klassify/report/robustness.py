"""The section of the page with the table of `klassify perturb SYSTEM...`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from klassify.errors import KlassifyError
from klassify.evaluation.robustness import CLEAN
from klassify.perturbation.families import LEVELS

COLUMNS = {"system", "metric", "family", "level", "value", "change", "change_low", "change_high"}


def read(path: Path) -> pd.DataFrame:
    """A table that `klassify perturb` wrote; KlassifyError for another file."""
    try:
        table = pd.read_csv(path, sep="\t")
    except (OSError, ValueError) as error:
        raise KlassifyError(f"This table cannot be read: {error}.", where=path) from None
    if not set(table.columns) >= COLUMNS:
        raise KlassifyError("This is not a table of klassify perturb.", where=path)
    return table


def by_family(measured: pd.DataFrame) -> pd.DataFrame:
    """One row per system, metric and family: the clean value, that of each level, and the largest
    loss with its interval.
    """
    rows: list[dict[str, Any]] = []
    for (system, metric), own in measured.groupby(["system", "metric"], sort=False):
        values = {
            family: of_family.set_index("level")
            for family, of_family in own.groupby("family", sort=False)
        }
        clean = values.pop(CLEAN)["value"].iloc[0]
        for family, levels in values.items():
            row = {"system": system, "metric": metric, "family": family, "clean": clean}
            row |= {f"level {n}": levels["value"].get(n, float("nan")) for n in LEVELS}
            worst = levels.loc[levels["change"].fillna(0).idxmin()]
            rows.append(row | {name: worst[name] for name in COLUMNS if name.startswith("change")})
    return pd.DataFrame(rows)
