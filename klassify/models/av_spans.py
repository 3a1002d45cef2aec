"""Which spans of a clip are fake: a temporal pyramid over the embeddings of sound and mouth.

The head of the third recipe. Each point of the pyramid proposes one segment with a score; distances
to the edges are distributions over bins that are shared with maps of starts and ends (TriDet). What
one modality predicts of the other, and each of itself, is compared with what is there (AuViRe). A
clip without sound or without a face is scored by the other modality.

Axes: B windows, T frames of 20 ms of sound, T / 2 frames of 40 ms of video, P points of all levels.
Time is in frames of sound, from the beginning of the window's first one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.models.frame_head import balanced_cross_entropy, pooled
from klassify.models.pyramid import ChannelNorm, SGPBlock, Tower, bin_logits, expected_bin
from klassify.models.span_loss import Points, assign, distance_loss, focal, overlaps
from klassify.settings import check_shares, check_sizes

RESIDUAL_DIM = 96
ANY, AUDIO, VISUAL = range(3)  # what is fake


class SpanOutputs(NamedTuple):
    """Of B windows: logit (B, P, 3) of "any", "audio" and "visual" fake; quality (B, P), log-odds
    of a good overlap; start and end (B, P), log-odds of an edge; left and right (B, P, bins + 1),
    logits of distances in strides; mask (B, P); residual (B, T) or None.
    """

    logit: Tensor
    quality: Tensor
    start: Tensor
    end: Tensor
    left: Tensor
    right: Tensor
    mask: Tensor
    residual: Tensor | None

    @property
    def distances(self) -> Tensor:
        """Expected distances to both edges in strides, (B, P, 2)."""
        return torch.stack([expected_bin(self.left), expected_bin(self.right)], dim=-1)


class Predictor(nn.Module):
    """One stream from another over a few frames around: (B, in_dim, T) -> (B, out_dim, T)."""

    def __init__(self, in_dim: int, out_dim: int, dim: int = RESIDUAL_DIM):
        super().__init__()
        self.before = nn.Conv1d(in_dim, dim, 3, padding=1)
        self.down = nn.Conv1d(dim, dim, 9, stride=2, padding=4)
        self.up = nn.ConvTranspose1d(dim, dim, 4, stride=2, padding=1)
        self.after = nn.Conv1d(dim, out_dim, 3, padding=1)
        self.norms = nn.ModuleList([ChannelNorm(dim), ChannelNorm(dim)])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, in_dim, T) -> (B, out_dim, T); mask (B, 1, T) is False in padding. T is even."""
        x = F.gelu(self.norms[0](self.before(x))) * mask
        x = F.gelu(self.norms[1](self.down(x))) * mask[..., ::2]
        x = F.gelu(self.up(x)) * mask
        return self.after(x)


class AVSpans(nn.Module):
    """Embeddings of sound (20 ms) and mouth (40 ms) -> proposed segments with scores.

    Args:
        audio_dim, visual_dim: dimensions of the embeddings.
        dim: channels of the pyramid, a multiple of 16.
        levels: of the pyramid, each half as fine as the one before.
        stem: blocks on the finest level.
        bins: the furthest edge that a point can propose, in strides of its level.
        hidden: channels inside a block's last layers, in multiples of dim.
        residuals: whether streams are predicted from each other.
        drop_path: share of clips that leave out a branch of a block in training.
        modality_dropout: share of training clips that lose their sound, and as many their face.
        noise: of the embeddings in training, in standard deviations.

    The defaults have 6,655,784 parameters.
    """

    supervision = "segment"

    def __init__(
        self,
        audio_dim: int = 128,
        visual_dim: int = 128,
        dim: int = 256,
        levels: int = 5,
        stem: int = 4,
        bins: int = 16,
        hidden: int = 4,
        residuals: bool = True,
        drop_path: float = 0.1,
        modality_dropout: float = 0.15,
        noise: float = 0.05,
    ):
        super().__init__()
        check_sizes(audio_dim=audio_dim, visual_dim=visual_dim, levels=levels, bins=bins)
        check_sizes(hidden=hidden)
        check_sizes(0, stem=stem)
        check_shares(drop_path=drop_path, modality_dropout=modality_dropout)
        if dim < 16 or dim % 16:
            raise ValueError(f"dim is a multiple of 16, not {dim}")
        self.levels, self.modality_dropout, self.noise = levels, modality_dropout, noise
        self.upsample = nn.ConvTranspose1d(
            visual_dim, visual_dim, 4, stride=2, padding=1, groups=visual_dim
        )
        width = audio_dim + visual_dim
        if residuals:
            pairs = {"av": (audio_dim, visual_dim), "va": (visual_dim, audio_dim)}
            pairs |= {"aa": (audio_dim, audio_dim), "vv": (visual_dim, visual_dim)}
            self.predictors = nn.ModuleDict({name: Predictor(*of) for name, of in pairs.items()})
            width *= 3
        self.fuse = nn.Sequential(
            nn.Conv1d(width, dim, 1, bias=False),
            ChannelNorm(dim),
            nn.GELU(),
            nn.Conv1d(dim, dim, 3, padding=1, bias=False),
            ChannelNorm(dim),
            nn.GELU(),
        )
        how = {"hidden": hidden * dim, "drop_path": drop_path, "start": 0.1}
        self.blocks = nn.ModuleList(
            [SGPBlock(dim, **how) for _ in range(stem)]
            + [SGPBlock(dim, stride=2, **how) for _ in range(levels - 1)]
        )
        self.stem = stem
        self.classes = Tower(dim, dim, 4)  # the classes and the quality
        self.edges = Tower(dim, dim, 2)
        self.offsets = Tower(dim, dim, 2 * (bins + 1))
        nn.init.constant_(self.classes.out.bias[:3].data, -4.595)  # 1 % of the points at first
        self.register_buffer("positives", torch.tensor(100.0))  # running mean of a batch

    def points(self, n_frames: int, device: torch.device | None = None) -> Points:
        """The points of windows of n_frames frames; each level covers more than the one before."""
        columns = []
        for level in range(self.levels):
            stride = 2**level
            time = torch.arange(0, n_frames, stride, device=device) + 0.5
            low = 0.0 if level == 0 else 2.0 * stride
            high = 8.0 * stride if level < self.levels - 1 else torch.inf
            columns.append([time, *(torch.full_like(time, v) for v in (stride, low, high))])
        return Points(*(torch.cat(column) for column in zip(*columns)))

    def forward(self, batch: dict[str, Tensor]) -> SpanOutputs:
        """SpanOutputs of "audio" (B, T, audio_dim), "visual" (B, T / 2, visual_dim), their masks
        "audio_valid" and "visual_valid", and "valid" (B, T), the frames that exist. T is even.
        """
        seen = batch["visual_valid"]
        audio = self._noisy(batch["audio"]).mT * batch["audio_valid"][:, None]
        visual = self.upsample(self._noisy(batch["visual"]).mT * seen[:, None])
        both = batch["audio_valid"] & seen.repeat_interleave(2, dim=1)
        visual = visual * seen.repeat_interleave(2, dim=1)[:, None]
        mask = batch["valid"][:, None]
        x, residual = [audio, visual], None
        if hasattr(self, "predictors"):
            of = {"a": audio, "v": visual}
            gaps = [
                (of[to] - predictor(of[source], mask)).abs() * both[:, None]
                for (source, to), predictor in self.predictors.items()
            ]
            residual = torch.stack([gap.mean(dim=1) for gap in gaps]).mean(dim=0)
            x += gaps
        x = self.fuse(torch.cat(x, dim=1) * mask) * mask
        levels = []
        for number, block in enumerate(self.blocks):
            if number >= self.stem:
                levels.append((x, mask))
            x, mask = block(x, mask)
        levels.append((x, mask))
        return SpanOutputs(*self._heads(levels), residual)

    def _noisy(self, x: Tensor) -> Tensor:
        if not (self.training and self.noise):
            return x
        return x + self.noise * x.std() * torch.randn_like(x)

    def _heads(self, levels: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """The fields of SpanOutputs up to the mask, all levels in one axis."""
        parts = []
        for x, mask in levels:
            with torch.autocast(x.device.type, enabled=False):
                x = x.float()
                classes, edges = self.classes(x, mask).mT, self.edges(x, mask)
                left, right = self.offsets(x, mask).mT.chunk(2, dim=-1)
            start, end = edges.unbind(dim=1)
            left, right = bin_logits(start, end, left, right)
            parts.append([classes[..., :3], classes[..., 3], start, end, left, right, mask[:, 0]])
        return [torch.cat(part, dim=1) for part in zip(*parts)]

    def spans(self, batch: dict[str, Tensor]) -> Tensor:
        """What each point proposes: start and end in frames, score, and the log-odds of fake sound
        and of a fake mouth, (B, P, 5). The score is 0 where there is no frame.
        """
        outputs = self(batch)
        points = self.points(batch["valid"].shape[1], outputs.logit.device)
        reach = outputs.distances * points.stride[:, None]
        score = (outputs.logit[..., ANY].sigmoid() * outputs.quality.sigmoid()).sqrt()
        columns = [points.time - reach[..., 0], points.time + reach[..., 1], score * outputs.mask]
        return torch.cat([torch.stack(columns, dim=-1), outputs.logit[..., AUDIO:]], dim=-1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The weighted sum of `loss_terms`; see `forward`, and there."""
        weight = {
            "classes": 1.0,
            "overlap": 1.0,
            "distances": 0.25,
            "quality": 0.5,
            "edges": 0.5,
            "residual": 0.2,
            "clip": 0.2,
        }
        if self.training:
            batch = self._without_modalities(batch)
        terms = self.loss_terms(self(batch), batch)
        return sum(weight[name] * term for name, term in terms.items())

    def _without_modalities(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with sound or face taken from some clips, never both."""
        draw = torch.rand(len(batch["valid"]), 1, device=batch["valid"].device)
        share = self.modality_dropout
        batch = dict(batch)
        batch["audio_valid"] = batch["audio_valid"] & (draw >= share)
        batch["visual_valid"] = batch["visual_valid"] & (draw < 1 - share)
        return batch

    def loss_terms(self, outputs: SpanOutputs, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms of the loss by name.

        batch: "segments", "audio_segments" and "visual_segments" (B, S, 2) in frames, padded with
        NaN. The number of positive points that terms are divided by is a running mean in training.
        """
        mask, segments = outputs.mask, batch["segments"]
        points = self.points(batch["valid"].shape[1], mask.device)
        owner = assign(points, segments, mask)
        positive = owner >= 0
        if self.training:
            self.positives.lerp_(positive.sum().clamp(min=1).float(), 0.1)
        norm = self.positives if self.training else positive.sum().clamp(min=1)
        iou, overlap, distances = self._on_positives(outputs, points, owner, segments)
        quality = F.binary_cross_entropy_with_logits(outputs.quality, iou, reduction="none")
        return {
            "classes": self._classes(outputs, points, positive, iou, batch) / norm,
            "overlap": (overlap * positive).sum() / norm,
            "distances": (distances * positive).sum() / norm,
            "quality": (quality * positive).sum() / positive.sum().clamp(min=1),
            "edges": self._edges(outputs, points, segments),
            "residual": self._residual(outputs, batch),
            "clip": F.binary_cross_entropy_with_logits(
                pooled(outputs.logit[..., ANY], mask, 1.0),
                (~segments[..., 0].isnan()).any(dim=1).float(),
            ),
        }

    @staticmethod
    def _on_positives(
        outputs: SpanOutputs, points: Points, owner: Tensor, segments: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """IoU (detached), overlap loss and loss of the distances of each point, (B, P), of which
        only those of positive points have a meaning; the others are finite.
        """
        if not segments.shape[1]:
            segments = segments.new_zeros(len(segments), 1, 2)
        of_points = owner.clamp(min=0)[..., None].expand(-1, -1, 2)
        start, end = segments.gather(1, of_points).unbind(dim=-1)
        wanted = torch.stack([points.time - start, end - points.time], dim=-1)
        wanted = wanted / points.stride[:, None]
        wanted = torch.where((owner >= 0)[..., None], wanted, 1.0)
        logits = outputs.left, outputs.right
        found = torch.stack([expected_bin(one) for one in logits], dim=-1)
        iou, overlap = overlaps(found, wanted)
        distances = sum(distance_loss(one, wanted[..., i]) for i, one in enumerate(logits))
        return iou.detach(), overlap, distances

    @staticmethod
    def _classes(
        outputs: SpanOutputs,
        points: Points,
        positive: Tensor,
        iou: Tensor,
        batch: dict[str, Tensor],
    ) -> Tensor:
        """Focal losses of all points; those of positive ones grow with their overlap."""
        inside = [positive]
        for name in ("audio_segments", "visual_segments"):
            start, end = batch[name][:, None].unbind(dim=-1)
            time = points.time[:, None]
            inside.append(positive & ((start < time) & (time < end)).any(dim=2))
        target = torch.stack(inside, dim=-1).float()
        each = focal(outputs.logit, target) * outputs.mask[..., None]
        weight = torch.where(positive, iou.clamp(min=1e-3) ** 0.2, 1.0)
        each = each * weight[..., None]
        return each[..., ANY].sum() + 0.3 * each[..., AUDIO:].sum()

    @staticmethod
    def _edges(outputs: SpanOutputs, points: Points, segments: Tensor) -> Tensor:
        """Balanced cross-entropy of the maps of starts and ends with Gaussians of half a stride."""
        total = outputs.start.new_zeros(())
        for i, logit in enumerate((outputs.start, outputs.end)):
            away = (points.time[:, None] - segments[:, None, :, i]).abs().nan_to_num(torch.inf)
            nearest = away.amin(dim=2) if away.shape[2] else torch.full_like(logit, torch.inf)
            target = torch.exp(-0.5 * (nearest / (points.stride / 2)) ** 2)
            total = total + balanced_cross_entropy(logit, target, outputs.mask)
        return total

    @staticmethod
    def _residual(outputs: SpanOutputs, batch: dict[str, Tensor]) -> Tensor:
        """The mean residual where nothing is fake, and both sound and face are there."""
        if outputs.residual is None:
            return outputs.logit.new_zeros(())
        start, end = batch["segments"][:, None].unbind(dim=-1)
        time = torch.arange(outputs.residual.shape[1], device=start.device)[:, None] + 0.5
        fake = ((start < time + 0.5) & (end > time - 0.5)).any(dim=2)
        there = batch["audio_valid"] & batch["visual_valid"].repeat_interleave(2, dim=1) & ~fake
        return (outputs.residual * there).sum() / there.sum().clamp(min=1)
