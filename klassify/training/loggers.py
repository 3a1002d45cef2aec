"""The metrics of a training, epoch by epoch, in TensorBoard or Weights & Biases.

metrics.csv has them in any case. A training that was interrupted continues the same run.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError
from klassify.systems.experiment import dump_config

TENSORBOARD = "tensorboard"  # the folder of its files, in that of the system
RUN = "wandb_run"  # the key of the id of a run in the state of the training


class Logger:
    """Logs nothing."""

    def log(self, row: dict[str, Any]) -> None:
        """Log a row of metrics.csv."""

    def close(self) -> None:
        """Write what is left. Called when the training is complete."""


class TensorboardLogger(Logger):
    """Event files in the folder `tensorboard` of the system, of all epochs so far."""

    def __init__(self, out: Path, settings: dict[str, Any], history: list[dict[str, Any]]):
        from lightning_fabric.loggers import TensorBoardLogger

        shutil.rmtree(out / TENSORBOARD, ignore_errors=True)
        self.logger = TensorBoardLogger(out, name=TENSORBOARD, version="")
        self.logger.experiment.add_text("settings", f"```\n{dump_config(settings)}```")
        for row in history:
            self.log(row)

    def log(self, row: dict[str, Any]) -> None:
        """Each metric as a scalar at the step of its epoch."""
        metrics = {name: value for name, value in row.items() if name != "epoch"}
        self.logger.log_metrics(metrics, step=row["epoch"])
        self.logger.save()

    def close(self) -> None:
        """Close the event file."""
        self.logger.finalize("success")


class WandbLogger(Logger):
    """A run of Weights & Biases, whose id is in the state of the training."""

    def __init__(self, out: Path, settings: dict[str, Any], state: dict[str, Any]):
        import wandb

        is_new = RUN not in state
        state.setdefault(RUN, uuid.uuid4().hex)
        out.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "klassify"),
            id=state[RUN],
            name=out.name,
            group="/".join(out.absolute().parts[-3:-1]),
            dir=os.fspath(out),
            config=settings,
            resume="allow",
        )
        for row in state["history"] if is_new else ():
            self.log(row)

    def log(self, row: dict[str, Any]) -> None:
        """The metrics at the step of their epoch."""
        self.run.log(row, step=row["epoch"])

    def close(self) -> None:
        """Mark the run as finished."""
        self.run.finish()


def check_logger(name: str) -> None:
    """KlassifyError where the package of a logger, as train.logger names it, is not installed."""
    try:
        if name == "tensorboard":
            from lightning_fabric.loggers import TensorBoardLogger

            TensorBoardLogger("")
        if name == "wandb":
            import wandb  # noqa: F401
    except ImportError:
        raise KlassifyError(
            f"train.logger={name} needs the package {name}, which is not installed.",
            fix=f"pip install 'klassify[{name}]'; or leave out train.logger, since metrics.csv has"
            " the same",
        ) from None


def logger_of(name: str, out: Path, settings: dict[str, Any], state: dict[str, Any]) -> Logger:
    """The logger that train.logger names, of the training into `out`.

    state: of the training, with its `history`; a run of Weights & Biases puts its id there.
    """
    if name == "tensorboard":
        return TensorboardLogger(out, settings, state["history"])
    if name == "wandb":
        return WandbLogger(out, settings, state)
    return Logger()
