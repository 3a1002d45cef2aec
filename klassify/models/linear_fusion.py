"""Linear fusion of the branches: eight numbers per 40 ms frame -> real and fake logits (paper 2).

Inputs (section 2.2), real before fake in every pair: the visual branch's two logits, and
PartialSpoof's two cosines at 160, 320 and 640 ms. 18 parameters; fewer columns are the paper's
ablations (Table 3). The published file has the cosines in the opposite order (spoof = 0, bona fide
= 1): klassify.models.weights.published swaps the columns of each pair on import.

All solvers minimise the cross entropy with an L2 penalty of 1e-6, the weight decay of Adam:
- `exact` finds the minimum. On frame labels the problem is convex: Newton's method, without seed or
  schedule.
- `one_cycle` is the published training: Adam, 16 frames per update, a learning rate that rises to
  1e-4 and falls to zero.
- `constant` is the same without the schedule (Table 3, OneCycleLR off).

On clip labels a clip's log-odds are the mean of the highest tenth of its frames' log-odds, and no
frame has a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit, logit
from torch import Tensor, nn

from klassify.grid.ragged import is_top, n_top, row_numbers, row_offsets, top_rows
from klassify.progress import Count

RESOLUTIONS_MS = (160, 320, 640)
COLUMNS = (
    "real",
    "fake",
    *(f"ps{ms}_{side}" for ms in RESOLUTIONS_MS for side in ("real", "fake")),
)
SOLVERS = ("exact", "one_cycle", "constant")
WEIGHT_DECAY = 1e-6
MAX_LR = 1e-4
BATCH = 16  # frames, or clips, per update: the published batch of 1 accumulated 16 times
ROWS_AT_ONCE = 1 << 20
MAX_NEWTON_STEPS = 100
MAX_STEPS = 500  # of L-BFGS


class LinearFusion(nn.Linear):
    """(..., len(columns)) -> logits (..., 2), real and fake."""

    def __init__(self, columns: Sequence[str] = COLUMNS):
        super().__init__(len(columns), 2)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross entropy of frames, {"frames": (N, C), "label": (N,)}.

        With "offsets" (B + 1,) the frames belong to B clips, one after the other, and "label" is
        (B,): binary cross entropy of the mean of each clip's highest tenth of log-odds.
        """
        logits = self(batch["frames"])
        if "offsets" not in batch:
            return F.cross_entropy(logits, batch["label"])
        log_odds = logits[:, 1] - logits[:, 0]
        rows, kept = top_rows(log_odds.detach().numpy(), batch["offsets"].numpy())
        top = torch.from_numpy(rows).tensor_split(torch.from_numpy(kept[1:-1]))
        clips = torch.stack([log_odds[one].mean() for one in top])
        return F.binary_cross_entropy_with_logits(clips, batch["label"].to(clips.dtype))


class Fitted(NamedTuple):
    """weight (2, C), bias (2,), the final loss in nats, and the number of steps."""

    weight: np.ndarray
    bias: np.ndarray
    loss: float
    steps: int


def fit(
    frames: np.ndarray,
    label: np.ndarray,
    offsets: np.ndarray | None = None,
    *,
    solver: str = "exact",
    epochs: int = 50,
    seed: int = 0,
    weight_decay: float = WEIGHT_DECAY,
) -> Fitted:
    """Fit the fusion.

    frames: (N, C), finite. label: (N,) of frames, 1 = fake; or, with offsets (B + 1,), (B,) of
    clips whose frames follow each other, at least one each. epochs, seed: of one_cycle and
    constant. ValueError unless both classes occur.
    """
    label = np.asarray(label)
    if solver not in SOLVERS or set(np.unique(label)) != {0, 1}:
        raise ValueError(f"needs a solver of {', '.join(SOLVERS)} and labels of both classes")
    if solver != "exact":
        return _fit_in_steps(frames, label, offsets, solver, epochs, seed, weight_decay)
    if offsets is None:
        # the penalty of both rows is least with opposite rows: half of the squared difference
        theta, loss, steps = _newton(frames, label, weight_decay / 2)
    else:
        theta, loss, steps = _fit_clips(frames, label, offsets)
    half = theta / 2
    return Fitted(np.stack([-half[:-1], half[:-1]]), np.array([-half[-1], half[-1]]), loss, steps)


def _newton(x: np.ndarray, label: np.ndarray, penalty: float) -> tuple[np.ndarray, float, int]:
    """Minimise mean(log(1 + exp(z)) - label z) + penalty / 2 |theta|^2 for z = [x, 1] theta."""
    centre, spread = x.mean(axis=0, dtype=float), x.std(axis=0, dtype=float)
    spread[spread == 0] = 1.0
    # theta of standardised columns = scale @ theta of the columns themselves
    scale = np.diag(np.append(spread, 1.0))
    scale[-1, :-1] = centre
    back = np.linalg.inv(scale)

    def evaluate(theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        value, gradient, hessian = 0.0, np.zeros(len(theta)), np.zeros((len(theta), len(theta)))
        for first in range(0, len(x), ROWS_AT_ONCE):
            design = np.ones((min(ROWS_AT_ONCE, len(x) - first), len(theta)))
            design[:, :-1] = (x[first : first + ROWS_AT_ONCE] - centre) / spread
            y, z = label[first : first + ROWS_AT_ONCE], design @ theta
            p = expit(z)
            value += float(np.sum(np.logaddexp(0, z) - y * z))
            gradient += design.T @ (p - y)
            hessian += (design * (p * (1 - p))[:, None]).T @ design
        plain = back @ theta
        value = value / len(x) + penalty / 2 * plain @ plain
        gradient = gradient / len(x) + penalty * back.T @ plain
        hessian = hessian / len(x) + penalty * back.T @ back
        return value, gradient, hessian

    theta = np.zeros(x.shape[1] + 1)
    theta[-1] = logit(label.mean())
    value, gradient, hessian = evaluate(theta)
    steps = 0
    with _counted(MAX_NEWTON_STEPS) as count:
        while steps < MAX_NEWTON_STEPS:
            steps += 1
            # the minimum-norm step if columns are linearly dependent
            step = np.linalg.lstsq(hessian, gradient, rcond=1e-14)[0]
            while True:
                tried = evaluate(theta - step)
                if tried[0] <= value + 1e-13 or np.abs(step).max() < 1e-12:
                    break
                step = step / 2
            theta, (value, gradient, hessian) = theta - step, tried
            count.add(1)
            if np.abs(step).max() < 1e-9:
                break
    return back @ theta, value, steps


def _counted(most: int) -> Count:
    """The progress of a fit that ends when the loss no longer falls, mostly long before `most`."""
    return Count(f"fit the fusion, at most {most} steps", None, unit="step")


def _fit_clips(
    x: np.ndarray, label: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, float, int]:
    """L-BFGS over the columns divided by their spread, from the mean of fake minus real columns.

    Clips are few and often separable: a standard normal prior keeps the weights finite, and matters
    less the more clips there are. The highest tenth is chosen again at every step, so the loss has
    kinks and may have several minima; the fixed start makes the result reproducible.
    """
    from scipy.optimize import minimize  # takes a second, so only where it is needed

    spread = x.std(axis=0, dtype=float)
    spread[spread == 0] = 1.0
    scaled = x / spread
    start = np.append(np.where(np.arange(x.shape[1]) % 2, 1.0, -1.0) / x.shape[1], 0.0)
    start[-1] = -float(np.mean(_top_means(scaled, start, offsets) @ start))

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        clips = _top_means(scaled, theta, offsets)
        z = clips @ theta
        prior = np.append(theta[:-1], 0.0) / len(z)
        value = float(np.mean(np.logaddexp(0, z) - label * z) + prior @ theta / 2)
        return value, clips.T @ (expit(z) - label) / len(z) + prior

    options = {"maxiter": MAX_STEPS, "gtol": 1e-8, "ftol": 1e-12}
    with _counted(MAX_STEPS) as count:
        found = minimize(
            loss,
            start,
            jac=True,
            method="L-BFGS-B",
            options=options,
            callback=lambda _: count.add(1),
        )
    return found.x / np.append(spread, 1.0), float(found.fun), int(found.nit)


def _top_means(x: np.ndarray, theta: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(B, C + 1): the mean of each clip's tenth of frames with the highest log-odds, and a 1."""
    kept = n_top(np.diff(offsets))
    rows = np.flatnonzero(is_top(x @ theta[:-1], offsets))
    first = row_offsets(kept)[:-1]
    means = np.add.reduceat(x[rows].astype(float), first, axis=0) / kept[:, None]
    return np.column_stack([means, np.ones(len(means))])


def _fit_in_steps(
    frames: np.ndarray,
    label: np.ndarray,
    offsets: np.ndarray | None,
    solver: str,
    epochs: int,
    seed: int,
    weight_decay: float,
) -> Fitted:
    generator = torch.Generator().manual_seed(seed)
    model = LinearFusion(range(frames.shape[1]))
    bound = frames.shape[1] ** -0.5  # the initialisation of nn.Linear, but drawn from the seed
    for parameter in model.parameters():
        parameter.data.uniform_(-bound, bound, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=MAX_LR, weight_decay=weight_decay)
    n_steps = epochs * -(-len(label) // BATCH)
    schedule = None
    if solver == "one_cycle":
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, total_steps=n_steps)
    x = torch.from_numpy(np.asarray(frames, np.float32))
    y = torch.from_numpy(label.astype(np.int64))
    for _ in range(epochs):
        for chosen in torch.randperm(len(y), generator=generator).split(BATCH):
            optimizer.zero_grad()
            model.loss(_batch(x, y, offsets, chosen)).backward()
            optimizer.step()
            if schedule:
                schedule.step()
    with torch.no_grad():
        loss = float(model.loss(_batch(x, y, offsets, torch.arange(len(y)))))
        return Fitted(model.weight.double().numpy(), model.bias.double().numpy(), loss, n_steps)


def _batch(x: Tensor, y: Tensor, offsets: np.ndarray | None, chosen: Tensor) -> dict[str, Tensor]:
    """The chosen frames, or with offsets all frames of the chosen clips."""
    if offsets is None:
        return {"frames": x[chosen], "label": y[chosen]}
    counts = np.diff(offsets)[chosen.numpy()]
    rows = torch.from_numpy(row_numbers(offsets, chosen.numpy()))
    return {"frames": x[rows], "label": y[chosen], "offsets": torch.from_numpy(row_offsets(counts))}
