"""The processes (ranks) of one training: how they start, share work and agree.

    klassify train CONFIG --devices 4 ...                         # starts the other three itself
    torchrun --nproc-per-node 4 -m klassify train CONFIG ...      # on each of several nodes
    srun --nodes 2 --ntasks-per-node 4 klassify train CONFIG ...  # inside a Slurm job

GPUs communicate through NCCL, CPU processes through gloo. Data that all ranks share (lists, indexes
of feature shards) is read by the first rank and sent to the others. If a rank fails, the others
end: gloo notices at once, the launcher (Fabric's for --devices) within seconds, and any wait ends
after TIMEOUT.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import torch

from klassify.errors import Interrupted, KlassifyError, first_line
from klassify.models.devices import allow_tf32

TIMEOUT = datetime.timedelta(minutes=30)  # longer than the others ever wait for the first rank
ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps")
T = TypeVar("T")


class Ranks:
    """Process number `rank` of `world`. A single process communicates with nobody.

    Methods that communicate must be called by all ranks in the same order.
    """

    def __init__(self, rank: int = 0, world: int = 1, device: Any = None):
        self.rank, self.world, self.device = rank, world, device

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files and prints for all."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part of a list: every `world`-th item."""
        return list(items[self.rank :: self.world])

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in order of rank, on each of them."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values

    @property
    def number(self) -> torch.dtype:
        """The type of sums on the device: float64 if it has that."""
        on_mps = self.device is not None and self.device.type == "mps"
        return torch.float32 if on_mps else torch.float64

    def total(self, value: torch.Tensor) -> float:
        """The sum of a scalar on the device over all ranks, which waits for the device."""
        if self.world > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
        return value.item()

    def weight(self, n_clips: int) -> torch.Tensor | float:
        """What to multiply a rank's loss by, so that all clips of a step have the same weight in
        the mean of the ranks' gradients: on the device, nothing is read.
        """
        if self.world == 1:
            return float(n_clips > 0)
        counted = torch.full((), float(n_clips), device=self.device)
        torch.distributed.all_reduce(counted)
        return n_clips * self.world / counted.clamp(min=1)

    def first(self, make: Callable[[], T]) -> T:
        """The result of `make` on the first rank, for all. If it fails there, the others exit."""
        if self.world == 1:
            return make()
        if self.is_first:
            try:
                message = [make()]
            except BaseException:
                torch.distributed.broadcast_object_list([None, "failed"], 0)
                raise
            torch.distributed.broadcast_object_list([message, ""], 0)
            return message[0]
        received: list[Any] = [None, ""]
        torch.distributed.broadcast_object_list(received, 0)
        if received[1]:
            raise SystemExit(2)
        return received[0][0]

    def refuse(self, what: str, **more: Any) -> NoReturn:
        """Raise a KlassifyError that all ranks have found; only the first prints it."""
        if not self.is_first:
            raise SystemExit(2)
        raise KlassifyError(what, **more)

    def copy_of_first(self, tensors: Sequence[Any]) -> None:
        """Overwrite these tensors with those of the first rank."""
        if self.world == 1:
            return
        for tensor in tensors:
            torch.distributed.broadcast(tensor, 0)


ALONE = Ranks()


def launch(
    accelerator: str,
    devices: str | None,
    nodes: int | None,
    *,
    precision: str,
    find_unused: bool = False,
) -> tuple[Any, Ranks]:
    """Start the processes of a training, unless torchrun or Slurm did, and connect them.

    devices: their number on each node, `auto` (all), or numbers of GPUs such as `0,2`; None: as
    many as the launcher started on this node, or one. nodes: None: as the launcher says, or one.
    precision: see TrainSettings. find_unused: search each step for parameters without a gradient.
    Returns (Fabric, Ranks). KlassifyError for devices that do not exist.
    """
    devices, nodes = _asked(accelerator, devices, nodes)
    import lightning_fabric
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    several = nodes > 1 or (len(devices) if isinstance(devices, list) else devices) > 1
    started = _started()
    ddp = DDPStrategy(
        # in a Slurm job without srun, Fabric would wait for processes that are never started
        cluster_environment=None if started else LightningEnvironment(),
        timeout=TIMEOUT,
        find_unused_parameters=find_unused,
        gradient_as_bucket_view=True,
    )
    started_by = os.getppid() if several and "LOCAL_RANK" in os.environ and not started else None
    try:
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*`srun` command is available")
            fabric = lightning_fabric.Fabric(
                accelerator=accelerator,
                devices=devices,
                num_nodes=nodes,
                precision="32-true" if precision == "tf32" else precision,
                strategy=ddp if several else "auto",
            )
        fabric.launch()
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise KlassifyError(
            f"These processes cannot be started: {first_line(error)}",
            where=f"--accelerator {accelerator} --devices {devices} --nodes {nodes}",
            fix="name devices and nodes that this machine and the launcher (torchrun, srun) have",
        ) from None
    if started_by is not None:
        threading.Thread(target=_leave_with, args=(started_by,), daemon=True).start()
    allow_tf32(precision != "32-true")
    return fabric, Ranks(fabric.global_rank, fabric.world_size, fabric.device)


def _asked(accelerator: str, devices: str | None, nodes: int | None) -> tuple[int | list[int], int]:
    """Devices per node (a number, or numbers of GPUs) and nodes; KlassifyError if impossible."""
    n_gpus = torch.cuda.device_count()
    on_gpu = accelerator in ("cuda", "gpu") or (accelerator == "auto" and n_gpus > 0)
    if on_gpu and not n_gpus:
        raise KlassifyError(
            "torch finds no CUDA GPU.",
            fix="use --accelerator cpu, or install a torch built for CUDA",
        )
    started = _started()
    if started is None and (nodes or 1) > 1 and "NODE_RANK" not in os.environ:
        raise KlassifyError(
            "Nothing starts the processes on the other nodes.",
            where=f"--nodes {nodes}",
            fix="start with torchrun --nnodes ... -m klassify train ..., or srun in a Slurm job",
        )
    per_node, n_nodes = started or (1, 1)
    text = devices or str(per_node)
    if text == "auto":
        text = str(n_gpus if on_gpu else 1)
    if not re.fullmatch(r"\d+(,\d*)*", text):
        raise KlassifyError(
            f"--devices must be a number, `auto` or GPU numbers such as 0,2; not {text!r}."
        )
    by_number = "," in text
    numbers = [int(part) for part in text.split(",") if part] if by_number else range(int(text))
    if not numbers:
        raise KlassifyError("A training needs at least one device.", where=f"--devices {text}")
    if by_number and not on_gpu:
        raise KlassifyError(
            "Only GPUs have numbers; for the CPU, give the number of processes.",
            where=f"--devices {text}",
        )
    if on_gpu and max(numbers) >= n_gpus:
        missing = min(number for number in numbers if number >= n_gpus)
        what = f"There are {n_gpus} GPUs here, but no number {missing} (they count from 0)."
        raise KlassifyError(what, where=f"--devices {text}", fix="--devices auto takes all GPUs")
    return numbers if by_number else len(numbers), n_nodes if nodes is None else nodes


def _started() -> tuple[int, int] | None:
    """(processes per node, nodes) started by torchrun or an srun of several tasks, or None."""
    known = os.environ
    if "TORCHELASTIC_RUN_ID" in known:
        return int(known["LOCAL_WORLD_SIZE"]), int(known["GROUP_WORLD_SIZE"])
    tasks, nodes = (int(known.get(f"SLURM_STEP_NUM_{name}", 1)) for name in ("TASKS", "NODES"))
    return (tasks // nodes, nodes) if tasks > 1 else None


def _leave_with(parent: int) -> None:
    """End this process once its parent is gone, for which it might otherwise wait with its GPU."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def explained(error: RuntimeError) -> KlassifyError | None:
    """The error of a connection or of the gradients' reduction in plain words; None for others."""
    text = str(error)
    if "finished reduction in the prior iteration" in text:
        return KlassifyError(
            "Some parameters were not used in a step; the ranks would wait for their gradients.",
            fix="train.find_unused_parameters=true",
        )
    reason = re.sub(r"^\[\S+\] ", "", first_line(error)).partition(". ")[0]
    signs = ("gloo", "nccl", "connection closed", "connection reset", "tcpstore")
    if any(sign in text.lower() for sign in signs):
        return Interrupted(
            f"Another process of this training failed, was killed or cannot be reached ({reason}).",
            fix="look for its message; the same command continues from the last checkpoint",
        )
    return None
