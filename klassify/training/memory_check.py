"""Before a training: check that one step with the longest clips fits into the memory.

A batch of the longest clips goes forward and backward once, while memory of the size of the
optimizer's state is held. Weights and buffers are restored afterwards; the caller seeds or restores
the random generators. On a GPU the peak is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from klassify.errors import KlassifyError, first_few, first_line
from klassify.training.ranks import Ranks

GIB = 2**30
TRIES = 4  # times the batch size: how many of the longest clips are tried
FIX = (
    "lower train.batch_size (and raise train.accumulate), train.precision=bf16-mixed, or the front"
    " end's gradient_checkpointing=true; train.max_seconds leaves long clips out"
)


def longest_items(examples: Any, size: int) -> list[dict[str, Any]]:
    """`size` examples of the longest readable clips; KlassifyError if all that are tried fail."""
    items: list[dict[str, Any]] = []
    failed = []
    for index in examples.longest(TRIES * max(size, 8)):
        item = examples[(0, index)]
        if isinstance(item, dict):
            items.append(item)
        else:
            file, reason = item
            failed.append(f"{file} ({reason.splitlines()[0]})")
        if len(items) == size:
            break
    if not items:
        raise KlassifyError(
            f"None of the {len(failed)} longest training clips can be read:"
            f" {first_few(failed, 3)}.",
            fix="check --media and --features",
        )
    return (items * size)[:size]


def try_step(
    model: Any,
    batch: dict[str, Any],
    fabric: Any,
    ranks: Ranks,
    *,
    needs_all: bool,
    compute: Callable[[dict[str, Any]], torch.Tensor] | None = None,
) -> int | None:
    """One step of a model with a batch, then undone; returns the peak memory of a GPU in bytes.

    model: not wrapped for several ranks, so that no rank waits for one that fails. needs_all:
    refuse trained parameters without a gradient, for which several ranks would wait. compute: a
    form of the model's loss, None for its own. All ranks call this; if it fails on one, the first
    raises the KlassifyError and all exit. Returns None on CPU.
    """
    before = {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}
    trained = [
        (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
    ]
    on_gpu = fabric.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(fabric.device)
    problem, unused = None, []
    try:
        room = [torch.empty_like(p) for _, p in trained for _ in ("mean", "square")]
        with fabric.autocast():
            loss = (compute or model.loss)(fabric.to_device(batch))
        loss.backward()
        unused = [name for name, parameter in trained if parameter.grad is None]
        del room, loss
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        problem = first_line(error)
    finally:
        for _, parameter in trained:
            parameter.grad = None
        _put_back(model, before)
    peak = torch.cuda.max_memory_allocated(fabric.device) if on_gpu else None
    if on_gpu:
        torch.cuda.empty_cache()
    _agree(ranks, problem, unused if needs_all and ranks.world > 1 else [], _size(batch))
    return peak


def _put_back(model: Any, before: dict[str, Any]) -> None:
    """Overwrite in place: `load_state_dict` has side effects in some models (they note weights)."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(before[name])


def _agree(ranks: Ranks, problem: str | None, unused: Sequence[str], size: str) -> None:
    problems = [found for found in ranks.gather(problem) if found]
    if problems:
        ranks.refuse(
            f"A step with the longest clips does not fit into the memory ({problems[0]}).",
            where=f"a batch of {size}",
            fix=FIX,
        )
    if unused:  # the same on all ranks
        ranks.refuse(
            f"{len(unused)} trained parameters get no gradient, and several ranks would wait"
            f" for it: {first_few(unused)}.",
            fix="train.find_unused_parameters=true",
        )


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return "can't allocate memory" in text or "CUBLAS_STATUS_ALLOC_FAILED" in text


def _size(batch: dict[str, Any]) -> str:
    tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    shapes = {key: tuple(value.shape) for key, value in tensors.items() if value.ndim > 1}
    return ", ".join(f"{key} {shape}" for key, shape in shapes.items())


def in_words(peak: int, batch: dict[str, Any], device: Any) -> str:
    """A sentence on how much of a GPU's memory a step needed."""
    total = torch.cuda.get_device_properties(device).total_memory
    return (
        f"a batch of the longest clips ({_size(batch)}) needs {peak / GIB:.1f} of"
        f" {total / GIB:.1f} GiB"
    )
