"""PartialSpoof: fake speech in spans of 20, 40, 80, 160, 320 and 640 ms and in the whole utterance.

A speech front end gives one vector per 20 ms. The back end of Zhang et al. (TASLP 2023; project
nii-yamagishilab/PartialSpoof, 03multireso), which paper 2 uses as its audio branch (section 2.1),
halves the sequence five times and puts a head of gated MLPs on each of the six lengths. Scores are
cosines between an embedding and two class vectors, learned with the P2SGrad loss.

What is unusual in the published model, and kept:
- The pooling between scales halves the features together with the time.
- The spatial gates have one weight for each pair of positions, most of the 33,055,038 parameters,
  which limits the length: 16 to 1,983 frames (39.7 s). 1,983 rather than the published 2,001, since
  the last head reaches its end first. `frame_scores` takes any length.
- The last pooling starts half a cell early: output i of the 640 ms head covers [640 i - 320,
  640 i + 320) ms, and there is one output more than a grid of 640 ms has cells. See
  klassify.data.partialspoof.
- The utterance head uses the class vectors of the 640 ms head.

Axes: B clips, N samples at 16 kHz, T front-end frames of 20 ms, T_r outputs of resolution r, D
dimensions. Column 0 of scores and class vectors is real, 1 is fake; published files have the
opposite order.

State dict: `frontend.*`; `weight_hidd` (30,) if the front end has `hidden_states`; `backend.*` for
the published `m_transform.0.*`; `m_angle_scales.{2,4,8,16,32,64}.weight` (D / 2, 2), as published.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.grid import windows
from klassify.grid.frames import IGNORE
from klassify.models.devices import by_rows, rows_at_once
from klassify.models.frontends.ssl import SAMPLE_RATE
from klassify.settings import check_shares, check_sizes

SHIFTS = (2, 4, 8, 16, 32, 64)  # of the heads, in 10 ms: the published names
RESOLUTIONS_MS = tuple(10 * shift for shift in SHIFTS)
MIN_FRAMES = 16  # with fewer, the 320 ms head has no output
CELL_FRAMES = 32  # of 20 ms in 640 ms: sequences cut at multiples of it stay on every grid
CELL_SAMPLES = 640 * SAMPLE_RATE // 1000
# front-end frames are 400 samples, 320 apart, so that N + 80 samples give N / 320 frames
LOOKAHEAD = 80
LAYERS = 30  # length of the published layer weights, of which the front end's layers use the first
EPS = 1e-8  # least norm of an embedding, so that zeros have the cosines 0


def output_lengths(n_frames: int | Tensor) -> list[int | Tensor]:
    """Outputs of the six heads for `n_frames` front-end frames."""
    return [*(n_frames >> k for k in range(5)), (n_frames >> 5) + 1]


def piece_starts(n_cells: int, size: int) -> np.ndarray:
    """The first cells (640 ms) of pieces of `size` cells that cover a longer sequence.

    Neighbours share two cells (the last piece more), since the first and last outputs of a piece
    cover only half of their span.
    """
    return windows.cut(n_cells, size, size - 2)


def in_range(lengths: Tensor, size: int) -> Tensor:
    """(B, size) bool: the positions before each clip's length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class SpatialGate(nn.Module):
    """Half of the features, times the other half mixed over time: (B, T, 2 d) -> (B, T, d)."""

    def __init__(self, dim: int, positions: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.weight = nn.Parameter(torch.empty(positions, positions).uniform_(-0.01, 0.01))
        self.bias = nn.Parameter(torch.ones(positions))

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(B, T, 2 d) -> (B, T, d). valid: (B, T) bool, positions mixed into others; None: all."""
        kept, mixed = x.chunk(2, dim=-1)
        mixed = self.norm(mixed)
        if valid is not None:
            mixed = mixed * valid[..., None]
        size = x.shape[1]
        return kept * (self.weight[:size, :size] @ mixed + self.bias[:size, None])


class GatedMLP(nn.Module):
    """A gMLP block (Liu et al. 2021) around a residual: (B, T, D) -> (B, T, D)."""

    def __init__(self, dim: int, positions: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj1 = nn.Linear(dim, dim // 2)
        self.sgu = SpatialGate(dim // 4, positions)
        self.proj2 = nn.Linear(dim // 4, dim)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D). valid: as in SpatialGate."""
        return x + self.proj2(self.sgu(F.gelu(self.proj1(self.norm(x))), valid))


class Head(nn.Module):
    """gMLP blocks and a projection to the embedding: (B, T, D) -> (B, T, D / 2)."""

    def __init__(self, dim: int, positions: int, blocks: int):
        super().__init__()
        self.layers = nn.ModuleList(GatedMLP(dim, positions) for _ in range(blocks))
        self.fc = nn.Linear(dim, dim // 2, bias=False)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D / 2). valid: as in SpatialGate."""
        for layer in self.layers:
            x = layer(x, valid)
        return self.fc(x)


class MultiResolution(nn.Module):
    """The back end: features (B, T, dim) -> embeddings of the six resolutions and of the utterance.

    Args:
        dim: size of a front-end frame, a multiple of 128. Head k has dim / 2^k.
        blocks: gMLP blocks per head.
        max_frames: longest sequence of the first head; head k has max_frames // 2^k. See `limit`.
        dropout: rate before the utterance head.

    The published model has 1,024 dimensions and the defaults: 33,055,038 parameters.
    """

    def __init__(self, dim: int, blocks: int = 5, max_frames: int = 2001, dropout: float = 0.7):
        super().__init__()
        check_sizes(0, blocks=blocks)
        check_shares(dropout=dropout)
        if dim % 128 or max_frames < 4 * CELL_FRAMES:
            raise ValueError(
                f"dim must be a multiple of 128 and max_frames at least 128, not {dim} and"
                f" {max_frames}"
            )
        dims, positions = [dim >> k for k in range(6)], [max_frames >> k for k in range(6)]
        # the last head has one output more than whole cells
        self.limit = CELL_FRAMES * positions[-1] - 1
        self.blocks = nn.ModuleList([nn.Identity()])
        for k, size in enumerate(dims[1:], 1):
            pool = nn.MaxPool2d(2, padding=(1, 0) if k == 5 else 0)
            self.blocks.append(nn.Sequential(pool, nn.Linear(size, size)))
        heads = {f"disc_{k}": Head(dims[k], positions[k], blocks) for k in range(6)}
        self.post_nets_seg = nn.ModuleDict(heads)
        self.post_nets_utt = Head(dims[-1], positions[-1], blocks)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, n_frames: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Embeddings (B, T_r, dim / 2^(k + 1)) of the six heads, and (B, dim / 64) of utterances.

        n_frames: (B,) frames of each clip, at least 16, if clips are padded; padding then changes
        no score. ValueError for fewer than 16 frames or more than `limit`.
        """
        size = x.shape[1]
        if not MIN_FRAMES <= size <= self.limit:
            raise ValueError(f"{size} frames are not within {MIN_FRAMES} to {self.limit}")
        lengths = output_lengths(n_frames) if n_frames is not None else [None] * 6
        embeddings = []
        for k, (block, length) in enumerate(zip(self.blocks, lengths)):
            if k:
                x = block[1](self._pooled(x, block[0], lengths[k - 1], length))
            valid = None if length is None else in_range(length, x.shape[1])
            embeddings.append(self.post_nets_seg[f"disc_{k}"](x, valid))
        utterance = self.post_nets_utt(self.dropout(x), valid)
        if valid is None:
            return embeddings, utterance.mean(dim=1)
        return embeddings, (utterance * valid[..., None]).sum(dim=1) / lengths[-1][:, None]

    @staticmethod
    def _pooled(
        x: Tensor, pool: nn.MaxPool2d, before: Tensor | None, after: Tensor | None
    ) -> Tensor:
        if before is None:
            return pool(x)
        pooled = pool(x.masked_fill(~in_range(before, x.shape[1])[..., None], -torch.inf))
        return pooled.masked_fill(~in_range(after, pooled.shape[1])[..., None], 0)


class ClassVectors(nn.Module):
    """P2SGrad's layer: cosines of embeddings (..., D) with the class vectors, real and fake."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.empty(dim, 2).uniform_(-1, 1), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., 2) in [-1, 1], float32."""
        with torch.autocast(x.device.type, enabled=False):
            weight = F.normalize(self.weight.float(), dim=0, eps=EPS)
            return F.normalize(x.float(), dim=-1, eps=EPS) @ weight


def p2sgrad_loss(cosines: Tensor, label: Tensor) -> Tensor:
    """Mean squared error of cosines (..., 2) and the one-hot label (...), without IGNORE.

    The mean is over samples and classes, as published; the formula of paper 2, which sums over
    classes, gives twice this value.
    """
    kept = label != IGNORE
    target = torch.stack([label == 0, label == 1], dim=-1).to(cosines.dtype)
    error = (cosines - target).square().mean(dim=-1)
    return (error * kept).sum() / kept.sum().clamp(min=1)


def top_mean(scores: Tensor, lengths: Tensor, share: float = 0.1) -> Tensor:
    """(B,) mean of the highest `share` of each clip's scores, at least one.

    scores: (B, T). lengths: (B,) how many of T count.
    """
    count = (lengths * share).ceil().clamp(min=1).long()
    scores = scores.masked_fill(~in_range(lengths, scores.shape[1]), -torch.inf)
    ranked = scores.sort(dim=1, descending=True).values
    return ranked.masked_fill(~in_range(count, scores.shape[1]), 0).sum(dim=1) / count


class PartialSpoof(nn.Module):
    """A front end and the six-resolution back end.

    Args:
        frontend: (B, N) -> (B, T, frontend.dim); see klassify.models.frontends.ssl. If it has
            `hidden_states`, a learned mean of them replaces its output, as published. The published
            models normalise each waveform in it.
        blocks, max_frames, dropout: size of the back end; see MultiResolution.
        clip_scale: with clip labels, log-odds of fake per unit of cos(fake) - cos(real).
        top_share: with clip labels, the share of a clip's outputs, the highest, that decide.
    """

    def __init__(
        self,
        frontend: nn.Module,
        blocks: int = 5,
        max_frames: int = 2001,
        dropout: float = 0.7,
        clip_scale: float = 5.0,
        top_share: float = 0.1,
    ):
        super().__init__()
        check_shares(top_share=top_share)
        self.frontend = frontend
        self.backend = MultiResolution(frontend.dim, blocks, max_frames, dropout)
        self.m_angle_scales = nn.ModuleDict(
            {str(shift): ClassVectors(frontend.dim >> (k + 1)) for k, shift in enumerate(SHIFTS)}
        )
        self.layered = hasattr(frontend, "hidden_states")
        if self.layered:
            self.weight_hidd = nn.Parameter(torch.zeros(LAYERS))
        self.clip_scale, self.top_share = clip_scale, top_share

    def load_pretrained(self) -> None:
        """Load the front end's pretrained weights, if any. Call before training, never after."""
        self.frontend.load_pretrained()

    def features(self, wave: Tensor) -> Tensor:
        """(B, N) -> (B, T, dim): the front end's weighted layers, or its output.

        Waves of less than MIN_FRAMES are padded with zeros.
        """
        frontend = self.frontend
        least = (MIN_FRAMES - 1) * frontend.hop_samples + frontend.receptive_field_samples
        wave = F.pad(wave, (0, max(least - wave.shape[1], 0)))
        if not self.layered:
            return frontend(wave)
        rows = rows_at_once(wave.device, frontend.n_frames(wave.shape[1]))
        return by_rows(self._weighted, wave, rows)

    def _weighted(self, wave: Tensor) -> Tensor:
        layers = self.frontend.hidden_states(wave)
        weights = self.weight_hidd[: len(layers)].softmax(dim=0)
        return sum(weight * layer for weight, layer in zip(weights, layers))

    def embeddings(self, features: Tensor, n_frames: Tensor | None = None) -> dict[str, Tensor]:
        """Embeddings by name, `ps20` (B, T, dim / 2) to `ps640` and `utterance` (B, dim / 64)."""
        by_scale, utterance = self.backend(features, n_frames)
        return {f"ps{ms}": x for ms, x in zip(RESOLUTIONS_MS, by_scale)} | {"utterance": utterance}

    def cosines(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scores (B, T_r, 2) by name, and those of the utterance (B, 2)."""
        scores = {
            f"ps{10 * shift}": self.m_angle_scales[str(shift)](embeddings[f"ps{10 * shift}"])
            for shift in SHIFTS
        }
        return scores | {"utterance": self.m_angle_scales["64"](embeddings["utterance"])}

    def forward(self, wave: Tensor, n_frames: Tensor | None = None) -> dict[str, Tensor]:
        """Cosines by name, for waves of at most `backend.limit` front-end frames."""
        return self.cosines(self.embeddings(self.features(wave), n_frames))

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of a batch by name: of the utterance and of each resolution.

        batch: "wave" (B, N); "n_frames" (B,), front-end frames of each clip; "label" (B,), 1 =
        fake; and with segment labels "label_20" to "label_640" (B, T_r), IGNORE where unknown. The
        longer of label and score is cut. Segment labels and the utterance have the P2SGrad loss.
        Without segment labels, a resolution's log-odds of the clip label are clip_scale times the
        mean of its highest differences of cosines, for a binary cross-entropy; scores then rank
        clips, but need not be high at the time of the fake.
        """
        scores = self(batch["wave"], batch["n_frames"])
        losses = {"utterance": p2sgrad_loss(scores.pop("utterance"), batch["label"])}
        for (name, cosines), lengths in zip(scores.items(), output_lengths(batch["n_frames"])):
            label = batch.get(f"label_{name[2:]}")
            if label is None:
                difference = cosines[..., 1] - cosines[..., 0]
                log_odds = self.clip_scale * top_mean(difference, lengths, self.top_share)
                losses[name] = F.binary_cross_entropy_with_logits(log_odds, batch["label"].float())
            else:
                size = min(label.shape[1], cosines.shape[1])
                losses[name] = p2sgrad_loss(cosines[:, :size], label[:, :size])
        return losses

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The sum of `losses`, as published."""
        return sum(self.losses(batch).values())

    def frame_scores(self, wave: Tensor) -> dict[str, Tensor]:
        """Cosines `ps20` (B, T, 2) to `ps640` of waves (B, N) of any length.

        Waves of more than `backend.limit` frames are cut at multiples of 640 ms; see piece_starts.
        """
        n_frames = self.frontend.n_frames(wave.shape[1])
        if n_frames <= self.backend.limit:
            scores = self(wave)
            scores.pop("utterance")
            return scores
        n_cells, size = -(-n_frames // CELL_FRAMES), self.backend.limit // CELL_FRAMES
        wave = F.pad(wave, (0, max(n_cells * CELL_SAMPLES + LOOKAHEAD - wave.shape[1], 0)))
        starts = piece_starts(n_cells, size)
        edges = windows.seams(starts, size).tolist()
        pieces: dict[str, list[Tensor]] = {f"ps{ms}": [] for ms in RESOLUTIONS_MS}
        for first, begin, end in zip(starts.tolist(), edges, edges[1:]):
            start, stop = first * CELL_SAMPLES, (first + size) * CELL_SAMPLES + LOOKAHEAD
            scores = self.frame_scores(wave[:, start:stop])
            for ms, (name, x) in zip(RESOLUTIONS_MS, scores.items()):
                per_cell = 640 // ms
                # to the end of the last piece, since the 640 ms head has one output more
                stop = (end - first) * per_cell if end < n_cells else None
                pieces[name].append(x[:, (begin - first) * per_cell : stop])
        lengths = output_lengths(n_frames)
        return {
            name: torch.cat(parts, dim=1)[:, :length]
            for (name, parts), length in zip(pieces.items(), lengths)
        }
