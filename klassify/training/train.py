"""Train one experiment: the part of `klassify train` that each rank runs."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from klassify.files import write_json
from klassify.systems.experiment import ENVIRONMENT, Experiment, environment, save_config
from klassify.training.ranks import Ranks
from klassify.training.settings import SETTINGS, check_start, finished, training_settings


def _train(experiment: Experiment, fabric: Any, ranks: Ranks, args: argparse.Namespace) -> None:
    from klassify.data.base import Sources
    from klassify.training.trainer import Trainer

    sources = Sources(args.lists, args.media, args.features)
    if args.fast_dev_run:
        with tempfile.TemporaryDirectory() as scratch:
            Trainer(experiment, sources, Path(scratch), fabric, ranks, args, limit=2).fit()
        if ranks.is_first:
            print("fast-dev-run: two batches and a validation went through; nothing was kept")
        return

    def start() -> tuple[dict, bool]:
        settings = training_settings(experiment, sources, args, ranks.world)
        check_start(experiment, args)
        return settings, finished(args.out, settings, args.force)

    settings, done = ranks.first(start)
    if done:
        if ranks.is_first:
            print(f"{args.out}: already trained")
        return
    trainer = Trainer(experiment, sources, args.out, fabric, ranks, args)
    if ranks.is_first:
        save_config(args.out, experiment.resolved)
        write_json(args.out / SETTINGS, settings)
        write_json(args.out / ENVIRONMENT, environment())
    trainer.fit()
