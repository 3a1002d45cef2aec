"""Integrated gradients of models that read mouth features (Sundararajan, Taly and Yan, 2017).

The clip's features move on a straight line from the baseline, the means over the training clips, to
their values. A feature of a frame contributes its distance times the mean gradient on the way.
Completeness: the contributions add up to the score of the clip minus that of the baseline. The
integral is a sum over steps, which are refined until the difference is below the tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.data.base import Window
from klassify.data.mouth import UNSEEN, MouthFeatures
from klassify.explanation.axes import baseline
from klassify.grid.frames import O
from klassify.grid.ragged import TOP_SHARE

STEPS = (64, 256, 1024)
TOLERANCE = 0.01  # log-odds, or of the difference to the baseline if that is larger than 1
WINDOWS = 64  # at a time
LOWEST = 1e-9  # of a tag's probability, as MouthTags.join has it


class Integrated(NamedTuple):
    """values: (T, C) contributions of the channels of each frame to the log-odds. baseline: the
    log-odds of the baseline. error: their sum plus the baseline's log-odds minus the clip's.
    """

    values: np.ndarray
    baseline: float
    error: float


def integrated_gradients(
    model: nn.Module, data: MouthFeatures, clip: dict[str, Tensor], aggregate: str
) -> Integrated:
    """The contributions of mouth features to the clip's score.

    aggregate: of windows or frames to that score. The error is within TOLERANCE, or what
    STEPS[-1] steps leave.
    """
    device = next(model.parameters()).device
    features, valid = clip["features"].to(device), clip["valid"].to(device)
    start = baseline(model, features)
    distance = torch.where(valid[:, None], features - start, 0.0)

    def moved(shares: Tensor) -> Tensor:
        """(S, T, C) on the way: the baseline at 0, the clip at 1."""
        return features - (1 - shares[:, None, None]) * distance

    def log_odds(clips: Tensor) -> Tensor:
        cuts = [data.cut({"features": one, "valid": valid}) for one in clips]
        return _log_odds(model, data, cuts, aggregate)

    with torch.no_grad():
        first, last = log_odds(moved(torch.tensor([0.0, 1.0], device=device))).tolist()
    at_once = max(WINDOWS // len(data.cut(clip)), 1)
    for steps in STEPS:
        gradient = torch.zeros_like(features, dtype=torch.float64)
        for shares in ((torch.arange(steps, device=device) + 0.5) / steps).split(at_once):
            clips = moved(shares).requires_grad_()
            gradient += torch.autograd.grad(log_odds(clips).sum(), clips)[0].sum(dim=0)
        values = (gradient / steps * distance).cpu().numpy()
        error = float(values.sum()) + first - last
        if abs(error) <= TOLERANCE * max(abs(last - first), 1.0):
            break
    return Integrated(values, first, error)


def _log_odds(
    model: nn.Module, data: MouthFeatures, cuts: Sequence[Sequence[Window]], aggregate: str
) -> Tensor:
    """(S,) scores of clips that are cut alike, as `klassify score` has them, with gradients."""
    batch = data.collate([window.inputs for cut in cuts for window in cut])
    if data.unit == "clip":
        return aggregated(model.score(batch).unflatten(0, (len(cuts), -1)), aggregate)
    starts = [round(window.start_s / data.hop_s) for window in cuts[0]]
    tags = model.tag_log_probs(batch).exp()
    unseen = torch.as_tensor(UNSEEN, dtype=tags.dtype, device=tags.device)
    tags = torch.where(batch["valid"][..., None], tags, unseen).unflatten(0, (len(cuts), -1))
    size = tags.shape[2]
    total = tags.new_zeros((len(cuts), starts[-1] + size, tags.shape[3]))
    for number, begin in enumerate(starts):
        total[:, begin : begin + size] += tags[:, number]
    mean = (total / total.sum(dim=2, keepdim=True)).clamp(min=LOWEST)
    log = (mean / mean.sum(dim=2, keepdim=True)).log()
    frames = log[..., O + 1 :].logsumexp(dim=2) - log[..., O]
    count = 1 if aggregate == "max" else max(int(TOP_SHARE * frames.shape[1] + 1e-9), 1)
    return frames.topk(count, dim=1).values.mean(dim=1)


def aggregated(log_odds: Tensor, how: str, k: int = 3) -> Tensor:
    """(S, W) log-odds of windows -> (S,), as klassify.grid.windows.aggregate_by_clip."""
    if how == "logit-mean":
        return log_odds.mean(dim=1)
    if how == "noisy-or":
        all_real = F.logsigmoid(-log_odds).sum(dim=1)
        return torch.maximum(torch.log(-torch.expm1(all_real)) - all_real, log_odds.amax(dim=1))
    count = {"max": 1, "topk": min(k, log_odds.shape[1])}.get(how, log_odds.shape[1])
    kept = log_odds.topk(count, dim=1).values
    return F.logsigmoid(kept).logsumexp(dim=1) - F.logsigmoid(-kept).logsumexp(dim=1)
