"""Train one system.

    klassify train recipes/klassify/conf/demo/tcn.yaml --out exp/demo/klassify/tcn \\
        --lists data_lists/demo --media media/demo --features features/demo \\
        --seed 1 train.epochs=20

The finished folder has model.safetensors (the epoch with the best validation), system.yaml,
config.yaml (resolved; it can be passed again), env.json, metrics.csv and training.json. If the
training is killed, the same command resumes from checkpoints/last.pt and, on a CPU with the same
number of threads, ends with the weights of an uninterrupted run. A folder that holds another config
is refused.

With several devices or nodes (--devices, --nodes, torchrun, srun), each process takes
train.batch_size clips per step, and every clip has the same weight in an update: two processes with
8 clips learn the same as one with 16. Losses that are means over frames, and batch normalisation,
are computed within a process's own batch, as with accumulated gradients.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from klassify.arguments import at_least_0, at_least_1
from klassify.cluster.options import Options, add_launcher_arguments, launch_from, without
from klassify.cluster.record import Record
from klassify.cluster.submit import record_of, submitted
from klassify.cluster.work import TrainWork
from klassify.data.base import Sources
from klassify.errors import KlassifyError
from klassify.files import check_output
from klassify.systems.experiment import load_experiment
from klassify.training.ranks import ACCELERATORS, explained, launch
from klassify.training.settings import is_finished, training_settings
from klassify.training.trainer import Training, train, try_out


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", type=Path, help="the system's YAML")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="such as train.epochs=3")
    add("--out", type=Path, required=True, metavar="SYSTEM_DIR", help="folder of the system")
    add("--lists", type=Path, required=True, help="folder of the data lists")
    add("--media", type=Path, required=True, help="media, one folder per split")
    add("--features", type=Path, required=True, help="folder of the features")
    add(
        "--seed", type=at_least_0, default=1, help="random seed of weights and examples (default 1)"
    )
    add("--init", type=Path, metavar="FILE.safetensors", help="start from these weights")
    add("--workers", type=at_least_0, default=0, help="processes that read inputs (default 0)")
    add(
        "--accelerator",
        default="auto",
        choices=ACCELERATORS,
        help="kind of device (default auto: a GPU if there is one)",
    )
    add(
        "--devices",
        help=(
            "devices per node: a number, `auto` (all) or numbers of GPUs such as 0,2"
            " (default: 1; under torchrun, as many as it started)"
        ),
    )
    add("--nodes", type=at_least_1, help="nodes (default: 1, or as started by torchrun)")
    add(
        "--fast-dev-run",
        action="store_true",
        help="run two batches and a validation, and write nothing",
    )
    add("--force", action="store_true", help="discard the folder's contents")
    add_launcher_arguments(parser, training=True)


def run(args: argparse.Namespace) -> int:
    if submitted(launch_from(args), functools.partial(_on_cluster, args)):
        return 0
    experiment = load_experiment(args.config, args.overrides, seed=args.seed)
    check_output(args.out)
    fabric, ranks = launch(
        args.accelerator,
        args.devices,
        args.nodes,
        precision=experiment.train.precision,
        find_unused=experiment.train.find_unused_parameters,
    )
    sources = Sources(args.lists, args.media, args.features)
    training = Training(experiment, sources, fabric, ranks, args.seed, args.init, args.workers)
    try:
        if args.fast_dev_run:
            try_out(training)
        else:
            train(training, args.out, force=args.force)
    except RuntimeError as error:
        known = explained(error) if ranks.world > 1 else None
        if known is None:
            raise
        raise known from None
    return 0


def _on_cluster(args: argparse.Namespace, argv: list[str], options: Options) -> list[Record]:
    """The training as one job over nodes, checked before it is queued."""
    if args.fast_dev_run:
        raise KlassifyError("--fast-dev-run cannot be combined with --launcher slurm.")
    per_node = options.gpus or 1
    if args.devices not in (None, str(per_node)):
        raise KlassifyError(
            f"--devices {args.devices} contradicts --gpus {options.gpus}.",
            fix="leave out --devices (make: devices=): a process is started for each GPU",
        )
    import torch

    with torch.device("meta"):
        experiment = load_experiment(args.config, args.overrides, seed=args.seed)
    if not args.force:
        sources = Sources(args.lists, args.media, args.features)
        n_ranks = options.nodes * per_node
        settings = training_settings(
            experiment, sources, seed=args.seed, init=args.init, ranks=n_ranks
        )
        is_finished(args.out, settings)
    devices = ["--nodes", str(options.nodes), "--devices", str(per_node)]
    command = ["train", *without(argv, "--devices"), *devices]
    return [record_of(TrainWork(args.out, 1), command, options)]
