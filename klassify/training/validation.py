"""How good a model is on its validation clips, from the scores that `klassify score` would give.

Each rank does its share, and all get the same result.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from klassify.data.base import ClipData, Examples, Sources
from klassify.data.loading import Loader, to_device
from klassify.errors import KlassifyError
from klassify.grid.frames import encode_labels
from klassify.grid.ragged import pooled
from klassify.metrics.clips import log_loss, roc_auc
from klassify.models.vqvae import decibels, mean_square
from klassify.scores.inference import clip_table, score_clips, score_frames
from klassify.training.ranks import ALONE, Ranks


def validate(
    model: nn.Module, data: ClipData, sources: Sources, *, ranks: Ranks = ALONE, **how: Any
) -> dict[str, float]:
    """`val_loss` and, of a model with scores, `val_auc` of the clips of data.val_split; of a model
    that reconstructs images `val_psnr` in dB.

    how: batch_size, workers and device. Raises KlassifyError unless both classes are there.
    """
    by_unit = {"clip": _of_clips, "frame": _of_frames, "image": _of_images}
    return by_unit[data.unit](model, data.for_validation(), sources, ranks, how)


def _of_clips(
    model: nn.Module, data: ClipData, sources: Sources, ranks: Ranks, how: dict[str, Any]
) -> dict[str, float]:
    from scipy.special import expit

    table = sources.table(data.val_split)
    files = ranks.share(table["file"].tolist())
    parts = ranks.gather(
        score_clips(model, data, sources, data.val_split, files=files, progress=False, **how)
    )
    reasons = {file: reason for _, found in parts for file, reason in found.items()}
    scored = pd.concat([scored for scored, _ in parts])
    clips = clip_table(scored, table, reasons, data.aggregate)
    answered = clips["score"].notna().to_numpy()
    labels = data.labels(table)[answered]
    scores = clips["score"].to_numpy(float)[answered]
    _check_two_classes(labels, "clips", data.val_split, sources)
    return {"val_loss": log_loss(labels, expit(scores)), "val_auc": roc_auc(labels, scores)}


def _of_frames(
    model: nn.Module, data: ClipData, sources: Sources, ranks: Ranks, how: dict[str, Any]
) -> dict[str, float]:
    """`val_auc` over all frames, or without segments over clips, and `val_loss`, the training
    loss of one fixed example per clip.

    A clip's score is the mean of its highest tenth of frames, which models of clip labels learn to
    rank.
    """
    scores = _frame_scores(model, data, sources, ranks, how)
    table = sources.table(data.val_split, segments=data.segment_columns)
    table = table[table["file"].isin(scores)]
    rows = [scores[file] for file in table["file"]]
    if data.supervision == "segment":
        unit = "frames"
        fakes = data.segments_of(table)
        labels = [encode_labels(fake, len(r), **data.score_grid) for fake, r in zip(fakes, rows)]
        labels = np.concatenate(labels or [[]])
    else:
        unit = "clips"
        labels = data.labels(table)
        rows = [pooled(r, np.array([0, len(r)]), "top") for r in rows]
    _check_two_classes(labels, unit, data.val_split, sources)
    loss = _mean_over_examples(
        data, sources, ranks, how, lambda batch: (float(model.loss(batch)), len(batch["label"]))
    )
    return {"val_loss": loss, "val_auc": roc_auc(labels, np.concatenate(rows))}


def _frame_scores(
    model: nn.Module, data: ClipData, sources: Sources, ranks: Ranks, how: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The frame scores (F,) of each validation clip with an answer, from all ranks."""
    files = ranks.share(sources.table(data.val_split)["file"].tolist())
    frames, _ = score_frames(
        model, data, sources, data.val_split, files=files, progress=False, **how
    )
    by_clip = frames.groupby("file", sort=False, observed=True)["score"]
    parts = ranks.gather({file: rows.to_numpy(float) for file, rows in by_clip})
    return {file: rows for part in parts for file, rows in part.items()}


@torch.inference_mode()
def _mean_over_examples(
    data: ClipData,
    sources: Sources,
    ranks: Ranks,
    how: dict[str, Any],
    measure: Callable[[dict[str, Tensor]], tuple[float, int]],
) -> float:
    """The mean of a measure over one fixed example per clip, from all ranks.

    measure: batch on the device -> (value, weight).
    """
    examples = Examples(data, sources, data.val_split, seed=0)
    keys = [(0, index) for index in range(len(examples))]
    size = how["batch_size"]
    loader = Loader(examples, examples.collate, workers=how["workers"], device=how["device"])
    sums = []
    for batch, _ in loader(ranks.share([keys[i : i + size] for i in range(0, len(keys), size)])):
        if batch is None:
            sums.append((0.0, 0))
            continue
        value, weight = measure(to_device(batch, how["device"]))
        sums.append((value * weight, weight))
    # in the order of the list, so that the number of ranks makes no difference
    rounds = itertools.zip_longest(*ranks.gather(sums), fillvalue=(0.0, 0))
    total, weight = (sum(part) for part in zip((0.0, 0), *itertools.chain.from_iterable(rounds)))
    if not weight:
        raise KlassifyError(
            f"No clip of {data.val_split} can be read to validate on.", where=sources.media
        )
    return total / weight


def _of_images(
    model: nn.Module, data: ClipData, sources: Sources, ranks: Ranks, how: dict[str, Any]
) -> dict[str, float]:
    """How well frames are reconstructed, on the same whole frames of each clip every time.

    `val_loss`: the mean squared error alone, in units of [-1, 1] as in the training loss, whose
    other parts may rise while the picture gets better. `val_psnr`: the same in dB.
    """

    def measure(batch: dict[str, Tensor]) -> tuple[float, int]:
        images = batch["frames"]
        return mean_square(images, model.reconstruct(images)), len(images)

    error = _mean_over_examples(data, sources, ranks, how, measure)
    return {"val_loss": error / 127.5**2, "val_psnr": decibels(error)}


def check_training_labels(data: ClipData, examples: Examples, sources: Sources) -> None:
    """KlassifyError where the training examples are of one class; fakes have real frames."""
    if data.unit == "image":
        return
    if data.supervision == "segment":
        if not any(len(target[0]) for target in examples.targets):
            raise KlassifyError(
                f"Training needs fake segments; none of the {len(examples)} clips of"
                f" {data.train_split} has any.",
                where=sources.lists,
                fix="write fake_segments into the metadata, or train a model of clip labels",
            )
        return
    if data.supervision == "self":
        return  # the examples are real clips, and fakes are made of some of them
    labels = [target[1] if isinstance(target, tuple) else target for target in examples.targets]
    if len(np.unique(labels)) < 2:
        raise KlassifyError(
            f"Training needs real and fake clips; {data.train_split} has {len(labels)},"
            f" {sum(labels)} of them fake.",
            where=sources.lists,
            fix="make the list from real and fake clips",
        )


def _check_two_classes(labels: np.ndarray, unit: str, split: str, sources: Sources) -> None:
    if len(np.unique(labels)) < 2:
        raise KlassifyError(
            f"Validation needs real and fake {unit}; {split} has {len(labels)} that can be scored, "
            f"{int(np.sum(labels))} of them fake.",
            where=sources.lists,
            fix="validate on a larger list",
        )
