"""Do sound and mouth fit together? Learned from real clips alone, after AVH-Align (Smeu et al.,
CVPR 2025).

Of each frame of the mouth, the model guesses which of the frames of sound around it belongs to it.
It learns that from real clips; where sound or picture was replaced, it guesses badly. No fake clip
takes part in the training: the loss leaves them out.

Axes: B clips, T frames of 40 ms, W = 2 * reach + 1 offsets.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from klassify.models.frame_head import pooled
from klassify.settings import check_shares, check_sizes


class Sync(nn.Module):
    """Embeddings of sound and mouth on one grid -> how badly they fit.

    Both are projected and normalised; a small network scores each frame of the mouth with each
    frame of sound at most `reach` frames away. Its first layer is linear in both, so it is computed
    once a frame, not once a pair.

    Args:
        audio_dim, visual_dim: dimensions of the embeddings.
        dim: of the projections. hidden, hidden_2: of the network over pairs.
        reach: frames on either side.
        dropout: of the projections in training.

    231,425 parameters with the defaults.
    """

    supervision = "clip"

    def __init__(
        self,
        audio_dim: int = 128,
        visual_dim: int = 128,
        dim: int = 256,
        hidden: int = 256,
        hidden_2: int = 128,
        reach: int = 15,
        dropout: float = 0.0,
    ):
        super().__init__()
        check_sizes(audio_dim=audio_dim, visual_dim=visual_dim, dim=dim)
        check_sizes(hidden=hidden, hidden_2=hidden_2, reach=reach)
        check_shares(dropout=dropout)
        self.reach = reach
        self.project = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(size, dim), nn.LayerNorm(dim), nn.Dropout(dropout))
                for name, size in (("audio", audio_dim), ("visual", visual_dim))
            }
        )
        self.first = nn.ModuleDict(
            {"audio": nn.Linear(dim, hidden, bias=False), "visual": nn.Linear(dim, hidden)}
        )
        self.rest = nn.Sequential(
            nn.ReLU(), nn.Linear(hidden, hidden_2), nn.ReLU(), nn.Linear(hidden_2, 1)
        )

    def misfit(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """How badly each frame fits: -log of the probability of its own frame of sound, minus that
        of a guess, (B, T); and which frames count (B, T), those with both sound and a face.

        batch: "audio" (B, T, audio_dim), "visual" (B, T, visual_dim), "audio_valid" and
        "visual_valid" (B, T) bool.
        """
        sound, mouth = (
            self.first[name](self.project[name](batch[name])) for name in ("audio", "visual")
        )
        heard = batch["audio_valid"]
        around = _around(sound, self.reach)  # (B, T, W, hidden)
        there = _around(heard[..., None].to(sound.dtype), self.reach)[..., 0] > 0
        score = self.rest(mouth[:, :, None] + around)[..., 0].float()
        counts = heard & batch["visual_valid"]
        # frames that do not count keep all their offsets: a row of -inf alone has no gradient
        open_ = there | ~counts[..., None]
        score = score.masked_fill(~open_, -torch.inf)
        loss = score.logsumexp(dim=-1) - score[..., self.reach]
        loss = torch.where(counts, loss, 0.0)
        return loss - torch.where(counts, open_.sum(dim=-1).log(), 0.0), counts

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean misfit of the frames of real clips (label 0); fake clips take no part."""
        misfit, counts = self.misfit(batch)
        real = counts & (batch["label"] == 0)[:, None]
        return (misfit * real).sum() / real.sum().clamp(min=1)

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """(B,) smooth maximum over frames of the misfit; 0 is as bad as a guess."""
        misfit, counts = self.misfit(batch)
        return pooled(misfit, counts, 1.0)


def _around(values: Tensor, reach: int) -> Tensor:
    """(B, T, D) -> (B, T, 2 * reach + 1, D): the frames around each, zeros beyond the ends."""
    padded = nn.functional.pad(values, (0, 0, reach, reach))
    return padded.unfold(1, 2 * reach + 1, 1).transpose(2, 3)
