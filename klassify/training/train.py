"""Train one experiment: the part of `klassify train` that each rank runs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from klassify.data.base import Sources
from klassify.files import write_json
from klassify.systems.experiment import ENVIRONMENT, Experiment, environment, save_config
from klassify.training.ranks import Ranks
from klassify.training.settings import SETTINGS, clear, is_finished, training_settings


def train(
    experiment: Experiment,
    sources: Sources,
    out: Path,
    fabric: Any,
    ranks: Ranks,
    *,
    seed: int,
    init: Path | None = None,
    workers: int = 0,
    force: bool = False,
) -> None:
    """Train into a folder, from its last state if it has one; a finished training is kept.

    init: weights to start from. workers: processes that read inputs. KlassifyError for a folder
    that holds something else, unless `force`, which clears it.
    """
    from klassify.training.trainer import Trainer

    def start() -> tuple[dict, bool]:
        settings = training_settings(experiment, sources, seed=seed, init=init, ranks=ranks.world)
        if force:
            clear(out)
        return settings, is_finished(out, settings)

    settings, done = ranks.first(start)
    if done:
        if ranks.is_first:
            print(f"{out}: already trained")
        return
    trainer = Trainer(
        experiment, sources, out, fabric, ranks, seed=seed, init=init, workers=workers
    )
    if ranks.is_first:
        save_config(out, experiment.resolved)
        write_json(out / SETTINGS, settings)
        write_json(out / ENVIRONMENT, environment())
    trainer.fit()


def try_out(
    experiment: Experiment, sources: Sources, fabric: Any, ranks: Ranks, **how: Any
) -> None:
    """Two batches and a validation; nothing is kept. how: seed, init, workers, as for `train`."""
    from klassify.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as scratch:
        Trainer(experiment, sources, Path(scratch), fabric, ranks, limit=2, **how).fit()
    if ranks.is_first:
        print("fast-dev-run: two batches and a validation succeeded; nothing was kept")
