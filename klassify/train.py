"""Train one system: the one training loop of the toolkit.

    klassify train recipes/klassify/conf/demo/tcn.yaml --out exp/demo/klassify/tcn \
        --lists data_lists/demo --media media/demo --features features/demo --seed 1 train.epochs=20

The folder ends with model.safetensors (the epoch that was best on validation), system.yaml, config.yaml
(resolved; it can be fed back), env.json, metrics.csv and training.json. Killed at any moment, the same
command goes on from checkpoints/last.pt and ends, on a CPU, with the weights of an uninterrupted run.
A folder that holds another config is refused.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from klassify import lists
from klassify.errors import KlassifyError, some
from klassify.experiment import (
    ENVIRONMENT,
    METRICS,
    STATE,
    WEIGHTS,
    Experiment,
    environment,
    finished_training,
    load_experiment,
    save_config,
    seed_everything,
)  # fmt: skip
from klassify.files import already_done, file_hash, read_json, whole_file, write_json

LOG_EVERY_S = 60.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="the system's YAML")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as train.epochs=3")
    parser.add_argument("--out", type=Path, required=True, metavar="SYSTEM_DIR")
    parser.add_argument("--lists", type=Path, required=True, help="folder of the data lists")
    parser.add_argument("--media", type=Path, required=True, help="folder of the media, one folder a split")
    parser.add_argument("--features", type=Path, required=True, help="folder of the features")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--init", type=Path, metavar="FILE.safetensors", help="start from these weights")
    parser.add_argument("--workers", type=int, default=0, help="processes that read inputs (default 0: none)")
    parser.add_argument("--accelerator", default="auto", help="Fabric's accelerator: auto, cpu, cuda")
    parser.add_argument("--devices", default="1", help="devices a node (default 1)")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--fast-dev-run", action="store_true", help="two batches of one epoch; nothing is kept")
    parser.add_argument("--force", action="store_true", help="throw away what the folder holds and start anew")


def run(args: argparse.Namespace) -> int:
    from klassify.datasets import Sources

    experiment = load_experiment(args.config, args.overrides, seed=args.seed)
    sources = Sources(args.lists, args.media, args.features)
    fabric = _fabric(experiment, args)
    if args.fast_dev_run:
        with tempfile.TemporaryDirectory() as scratch:
            Trainer(experiment, sources, Path(scratch), fabric, args, limit=2).fit()
        print("fast-dev-run: two batches and a validation went through; nothing was kept")
        return 0
    settings = training_settings(experiment, sources, args)
    _check_start(experiment, args)
    if _finished(args.out, settings, args.force):
        print(f"{args.out}: already trained")
        return 0
    trainer = Trainer(experiment, sources, args.out, fabric, args)
    if fabric.is_global_zero:
        save_config(args.out, experiment.resolved)
        write_json(args.out / "settings.json", settings)
        write_json(args.out / ENVIRONMENT, environment())
    fabric.barrier()
    trainer.fit()
    return 0


def training_settings(experiment: Experiment, sources, args: argparse.Namespace) -> dict[str, Any]:
    """Everything the trained weights depend on."""
    data = experiment.data
    start = {} if args.init else {str(path): file_hash(path) for path in _starting_weights(experiment, args)}
    splits = (data.train_split, data.val_split)
    hashes = {split: file_hash(lists.existing_list(sources.lists, split)) for split in splits}
    return {
        "config": experiment.resolved,
        "seed": args.seed,
        "init": file_hash(args.init) if args.init else None,
        **({"starts_from": start} if start else {}),
        "lists": hashes,
        **data.settings(sources, data.train_split),
    }


def _starting_weights(experiment: Experiment, args: argparse.Namespace) -> list[Path]:
    """Files of systems trained before that this training starts from."""
    if args.init:
        return [args.init]
    paths = [Path(path) for path in getattr(experiment.model, "starting_weights", list)()]
    for path in paths:
        if not path.exists():
            raise KlassifyError("The weights that the model starts from are missing.", where=path,
                                mend="train that system first: make stage2 makes all of them in order")  # fmt: skip
    return paths


def _check_start(experiment: Experiment, args: argparse.Namespace) -> None:
    """What learns from clip labels alone must not start from what learned from segments (the rule of Task 1)."""
    from klassify.systems import SYSTEM, load_system

    for path in _starting_weights(experiment, args) if experiment.data.supervision == "clip" else ():
        if (path.parent / SYSTEM).exists() and load_system(path.parent).supervision == "segment":
            raise KlassifyError(
                "These weights learned from segment labels, and what starts from them is not clip-supervised.",
                where=path, mend="start from other weights, or train with data.init_args.supervision=segment",
            )  # fmt: skip


def _finished(out: Path, settings: dict[str, Any], force: bool) -> bool:
    """Whether the folder holds this very training, complete. Another one is refused, or cleared by force."""
    record = out / "settings.json"
    if force:
        for name in (STATE, METRICS, WEIGHTS, "training.json", "settings.json", "system.yaml"):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / "scores", ignore_errors=True)
        return False
    if not record.exists():
        return False
    already_done(record, read_json(record), settings)
    return finished_training(out) is not None


def _fabric(experiment: Experiment, args: argparse.Namespace):
    from lightning_fabric import Fabric

    devices = args.devices if args.devices == "auto" or "," in args.devices else int(args.devices)
    fabric = Fabric(
        accelerator=args.accelerator,
        devices=devices,
        num_nodes=args.nodes,
        precision=experiment.train.precision,
    )
    fabric.launch()
    return fabric


def epoch_order(n: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[int]:
    """The clips of an epoch in the order this rank sees them; every rank gets the same number."""
    import numpy as np

    order = np.random.default_rng([seed, epoch]).permutation(n)
    if n % world:
        order = np.concatenate([order, order[: world - n % world]])
    return order[rank::world].tolist()


class Trainer:
    """Epochs, validation, early stopping, and a state from which all of it resumes."""

    def __init__(self, experiment: Experiment, sources, out: Path, fabric, args, limit: int | None = None):
        from klassify.checkpoints import load_weights
        from klassify.datasets import Examples

        self.experiment, self.sources, self.out, self.fabric, self.limit = (
            experiment,
            sources,
            out,
            fabric,
            limit,
        )
        self.settings, self.data, self.seed, self.workers = (
            experiment.train,
            experiment.data,
            args.seed,
            args.workers,
        )
        if self.settings.monitor == "auc" and self.data.scale == "none":
            raise KlassifyError("A model without scores has no validation AUC.", mend="set train.monitor=loss")
        self.examples = Examples(self.data, sources, self.data.train_split, args.seed)
        if len(self.examples) == 0:
            raise KlassifyError(f"The split {self.data.train_split} holds no clip to train on.", where=sources.lists)
        if args.init:
            load_weights(experiment.model, args.init)
        elif hasattr(experiment.model, "load_pretrained"):
            experiment.model.load_pretrained()
        if not args.init and hasattr(experiment.model, "fit_normalisation"):
            experiment.model.fit_normalisation(self._training_inputs())
        self.bare = experiment.model
        optimizer = self._optimizer()
        self.model, self.optimizer = fabric.setup(self.bare, optimizer)
        self.model.mark_forward_method("loss")
        self.scheduler = self._scheduler()
        self.state: dict[str, Any] = {
            "epoch": 0,
            "batch": 0,
            "best": -math.inf,
            "best_epoch": -1,
            "history": [],
        }
        self.failed: dict[str, str] = {}

    def _training_inputs(self) -> Iterator[tuple[Any, Any]]:
        for index in range(len(self.examples)):
            item = self.examples[(0, index)]
            if isinstance(item, dict):
                yield item["features"], item["valid"]

    def _optimizer(self):
        import torch

        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.settings.optimizer]
        trained = [parameter for parameter in self.bare.parameters() if parameter.requires_grad]
        return kind(trained, lr=self.settings.lr, weight_decay=self.settings.weight_decay)

    def _updates_per_epoch(self) -> int:
        return max(1, math.ceil(len(self._batches(0)) / self.settings.accumulate))

    def _epochs(self) -> int:
        """Epochs of this training: as set, or fewer if they reach `max_updates` before."""
        if self.limit:
            return 1
        most = self.settings.max_updates
        enough = math.ceil(most / self._updates_per_epoch()) if most else self.settings.epochs
        return min(self.settings.epochs, enough)

    def _scheduler(self):
        from torch.optim import lr_scheduler

        updates_per_epoch = self._updates_per_epoch()
        updates = updates_per_epoch * self._epochs()
        if self.settings.schedule == "cosine":
            return lr_scheduler.CosineAnnealingLR(self.optimizer, updates)
        if self.settings.schedule == "one_cycle":
            return lr_scheduler.OneCycleLR(self.optimizer, self.settings.lr, total_steps=updates)
        if self.settings.schedule == "step":
            every = updates_per_epoch * self.settings.step_epochs
            return lr_scheduler.StepLR(self.optimizer, every, self.settings.step_factor)
        return lr_scheduler.ConstantLR(self.optimizer, factor=1.0)

    def _batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        n, repeats = len(self.examples), self.settings.repeats
        order = epoch_order(n * repeats, self.seed, epoch, self.fabric.global_rank, self.fabric.world_size)
        keys = [(epoch * repeats + number // n, number % n) for number in order]
        size = self.settings.batch_size
        return [keys[start : start + size] for start in range(0, len(keys), size)][: self.limit]

    def fit(self) -> None:
        """Train until the last epoch or until validation has not improved for `patience` epochs."""
        if not self._resume():
            seed_everything(self.seed)
        epochs = self._epochs()
        started = time.monotonic()
        while self.state["epoch"] < epochs and not self._out_of_patience():
            loss = self._train_epoch()
            self._end_epoch(loss, time.monotonic() - started)
        if self.fabric.is_global_zero:
            self._finish()

    def _out_of_patience(self) -> bool:
        return self.state["epoch"] - 1 - self.state["best_epoch"] >= self.settings.patience and self.state["epoch"] > 0

    def _train_epoch(self) -> float:
        import torch
        from torch.utils.data import DataLoader

        batches = self._batches(self.state["epoch"])
        loader = DataLoader(
            self.examples, batch_sampler=batches[self.state["batch"] :], collate_fn=self.examples.collate,
            num_workers=self.workers, generator=torch.Generator(),  # else it draws from the model's generator
        )  # fmt: skip
        self.model.train()
        total, count = self.state.get("loss_sum", 0.0), self.state["batch"]
        spoken = time.monotonic()
        for batch, failed in loader:
            self.failed.update(failed)
            count += 1
            total += self._step(batch, last=count == len(batches), number=count)
            self.state |= {"batch": count, "loss_sum": total}
            if self.settings.checkpoint_steps and count % self.settings.checkpoint_steps == 0:
                self._save_state()
            if time.monotonic() - spoken > LOG_EVERY_S:
                spoken = time.monotonic()
                self._say(f"epoch {self.state['epoch'] + 1} batch {count}/{len(batches)} loss {total / count:.4f}")
        return total / max(count, 1)

    def _step(self, batch, *, last: bool, number: int) -> float:
        import torch

        if batch is None:  # not one clip of it could be read
            return 0.0
        update = last or number % self.settings.accumulate == 0
        with self.fabric.no_backward_sync(self.model, enabled=not update):
            loss = self.model.loss(self.fabric.to_device(batch))
            self.fabric.backward(loss / self.settings.accumulate)
        if not torch.isfinite(loss):
            raise KlassifyError(f"The loss is {loss.item()} in epoch {self.state['epoch'] + 1}.", where=self.out,
                                mend="lower train.lr, or set train.clip_norm=1")  # fmt: skip
        if update:
            if self.settings.clip_norm:
                self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.settings.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step()
        return float(loss.detach())

    def _end_epoch(self, loss: float, seconds: float) -> None:
        epoch = self.state["epoch"] + 1
        row = {"epoch": epoch, "train_loss": loss, "lr": self.optimizer.param_groups[0]["lr"]}
        row |= self.data.validate(
            self.bare,
            self.sources,
            batch_size=self.settings.batch_size,
            workers=self.workers,
            device=self.fabric.device,
        )
        value = row["val_auc"] if self.settings.monitor == "auc" else -row["val_loss"]
        self.state["history"].append(row)
        self.state |= {"epoch": epoch, "batch": 0, "loss_sum": 0.0}
        better = value > self.state["best"]
        if better:
            self.state |= {"best": value, "best_epoch": epoch - 1}
        if self.fabric.is_global_zero:
            self._keep(better)
        self._say(
            f"epoch {epoch} train_loss {loss:.4f} {_shown(_validation(row))}{' *' if better else ''} ({seconds:.0f} s)"
        )

    def _keep(self, better: bool) -> None:
        from klassify.checkpoints import save_weights

        if better:
            save_weights(self.bare, self.out / WEIGHTS)
        import pandas as pd

        with whole_file(self.out / METRICS) as partial:
            pd.DataFrame(self.state["history"]).to_csv(partial, index=False)
        self._save_state()

    def _save_state(self) -> None:
        """The state between two batches. Tensors and plain values alone, so that it loads without pickled code."""
        import torch

        if not self.fabric.is_global_zero:
            return
        state = self.state | {
            "model": self.bare.state_dict(), "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(), "rng": torch.get_rng_state(), "failed": self.failed,
        }  # fmt: skip
        with whole_file(self.out / STATE) as partial:
            torch.save(state, partial)

    def _resume(self) -> bool:
        import torch

        path = self.out / STATE
        if not path.exists():
            return False
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise KlassifyError(f"The training state cannot be read ({type(error).__name__}).", where=path,
                                mend="delete it to start this training anew") from None  # fmt: skip
        self.bare.load_state_dict(state.pop("model"))
        self.optimizer.load_state_dict(state.pop("optimizer"))
        self.scheduler.load_state_dict(state.pop("scheduler"))
        torch.set_rng_state(state.pop("rng"))
        self.failed = state.pop("failed")
        self.state = state
        self._say(f"resuming after epoch {state['epoch']}, batch {state['batch']}")
        return True

    def _finish(self) -> None:
        from klassify.systems import System, write_system

        if self.failed:
            names = some(f"{file} ({reason})" for file, reason in sorted(self.failed.items()))
            self._say(f"{len(self.failed)} training clips could not be read: {names}")
            with whole_file(self.out / "failures.tsv") as partial:
                lines = [f"{file}\ttrain\t{reason.splitlines()[0]}\n" for file, reason in sorted(self.failed.items())]
                partial.write_text("file\tstage\treason\n" + "".join(lines), encoding="utf-8")
        write_system(
            self.out,
            System(
                name=self.out.name, kind="model", modality=self.data.modality, supervision=self.data.supervision,
                scale=self.data.scale,
            ),
        )  # fmt: skip
        best = self.state["history"][self.state["best_epoch"]]
        record = {"epochs": self.state["epoch"], "best_epoch": best["epoch"], **_validation(best)}
        write_json(self.out / "training.json", record | {"failed_clips": len(self.failed)})
        self._say(f"best epoch {best['epoch']}: {_shown(_validation(best))}")

    def _say(self, text: str) -> None:
        if self.fabric.is_global_zero:
            print(f"{self.out.name}: {text}", file=sys.stderr, flush=True)


def _validation(row: dict[str, Any]) -> dict[str, float]:
    """What a row of the history says about validation: `val_loss`, and `val_auc` or another measure."""
    return {key: value for key, value in row.items() if key.startswith("val_")}


def _shown(values: dict[str, float]) -> str:
    return " ".join(f"{key} {value:.4f}" for key, value in values.items())
