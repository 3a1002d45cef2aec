"""CFPRF: which 20 ms frames of a clip's sound are fake, and where the fake stretches begin and end.

Wu et al., "Coarse-to-Fine Proposal Refinement Framework for Audio Temporal Forgery Detection and
Localization" (ACM MM 2024; project ItzJuny/CFPRF). A frame-level detection network (FDN) on top of
a speech model scores frames; each run of fake frames is a coarse proposal. A proposal refinement
network (PRN) reads the FDN's last hidden vectors of the run, says how likely it is fake, and
corrects its ends.

What is unusual in the published model, and kept:
- One layer norm serves twice: over the bins of the convolutional map, and after the feed-forward.
- The cross attention's values are computed from its projected keys.
- The gating unit has a weight a pair of frames, so that a clip has at most `seq_len` frames.

What is not kept: the published gating unit attends among the clips of a batch, so that a clip's
scores depend on its neighbours. Here each clip is computed on its own, which is the published
computation for batches of one, as its evaluation has them.

Axes: B clips, N samples at 16 kHz, T frames of 20 ms, D = 128 dimensions, P proposals.
Class 1 is fake. Published files have the opposite order; klassify.models.weights.published swaps
the rows of `seg_fc` on import.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.grid.frames import IGNORE
from klassify.models.w2v_aasist import ResidualBlock
from klassify.settings import check_sizes, check_weights

DIM = 128
GATE = 64  # dimensions of a gMLP block inside
REGRESSION_SCALE = 100.0  # of both corrections, as the network gives them


class PerFrameAttention(nn.Module):
    """A softmax over time of each frame's q . k, times its v: (B, T, 64) -> (B, T, 32)."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(GATE, 3 * GATE)
        self.proj = nn.Linear(GATE, GATE // 2)

    def forward(self, z: Tensor) -> Tensor:
        """(B, T, 64) -> (B, T, 32); no clip knows of another."""
        q, k, v = self.qkv(z).chunk(3, dim=2)
        weights = (q * k).sum(dim=2, keepdim=True).div(math.sqrt(GATE)).softmax(dim=1)
        return self.proj(weights * v)


class SpatialGate(nn.Module):
    """One half of the dimensions times the other half mixed over time: (B, T, 64) -> (B, T, 32)."""

    def __init__(self, seq_len: int):
        super().__init__()
        self.norm = nn.LayerNorm(GATE // 2)
        self.weight = nn.Parameter(torch.zeros(seq_len, seq_len))
        self.bias = nn.Parameter(torch.ones(seq_len))
        self.tn = PerFrameAttention()

    def forward(self, z: Tensor) -> Tensor:
        """(B, T, 64) -> (B, T, 32), T up to seq_len."""
        n_frames = z.shape[1]
        kept, mixed = z.chunk(2, dim=2)
        mixed = self.weight[:n_frames, :n_frames] @ self.norm(mixed)
        return kept * (mixed + self.bias[:n_frames, None] + self.tn(z))


class GatedBlock(nn.Module):
    """A gMLP block: (B, T, 128) -> (B, T, 128)."""

    def __init__(self, seq_len: int):
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.proj1 = nn.Linear(DIM, GATE)
        self.sgu = SpatialGate(seq_len)
        self.proj2 = nn.Linear(GATE // 2, DIM)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 128) -> (B, T, 128)."""
        return x + self.proj2(self.sgu(F.gelu(self.proj1(self.norm(x)))))


class CrossAttention(nn.Module):
    """Attention of (B, T, 128) to other frames (B, T, 128); the values are made of the keys."""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(DIM, DIM, bias=False)
        self.key = nn.Linear(DIM, DIM, bias=False)
        self.value = nn.Linear(DIM, DIM, bias=False)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """(B, T, 128), (B, T, 128) -> (B, T, 128)."""
        key = self.key(other)
        scores = self.query(x) @ key.transpose(1, 2) / math.sqrt(DIM)
        return scores.softmax(dim=2) @ self.value(key)


class FeedForward(nn.Module):
    """Two linear layers and a ReLU: (B, T, 128) -> (B, T, 128)."""

    def __init__(self):
        super().__init__()
        self.w_1, self.w_2 = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 128) -> (B, T, 128)."""
        return self.w_2(F.relu(self.w_1(x)))


def positions(n_frames: int, device: torch.device) -> Tensor:
    """Sinusoidal positions (T, 128): sines in the even columns, cosines in the odd ones."""
    rate = 10_000 ** (-torch.arange(0, DIM, 2, device=device) / DIM)
    angle = torch.arange(n_frames, device=device)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


class FrameOutputs(NamedTuple):
    """Of the FDN: logit (B, T, 2), real and fake; boundary (B, T, 2), column 1 = boundary;
    embedding (B, T, 128), which the contrastive loss compares; hidden (B, T, 128), which the PRN
    reads.
    """

    logit: Tensor
    boundary: Tensor
    embedding: Tensor
    hidden: Tensor


class FrameDetection(nn.Module):
    """The FDN after the speech model: (B, T, in_dim) -> FrameOutputs, T up to seq_len.

    Submodules have the published names, without normalisations that the published model has and
    does not use.
    """

    def __init__(self, in_dim: int = 1024, seq_len: int = 1070):
        super().__init__()
        self.LL = nn.Linear(in_dim, DIM)
        self.first_bn = nn.BatchNorm2d(1)
        channels = (1, 32, 32, 64, 64, 128, 128)
        self.encoder = nn.ModuleList(
            nn.Sequential(ResidualBlock(*pair, first=True)) for pair in zip(channels, channels[1:])
        )
        self.attention = nn.Sequential(
            nn.Conv2d(DIM, GATE, 1), nn.SELU(), nn.BatchNorm2d(GATE), nn.Conv2d(GATE, DIM, 1)
        )
        self.norm = nn.LayerNorm(DIM)
        self.b_amlp = nn.ModuleDict({"layers": nn.ModuleList([GatedBlock(seq_len)])})
        self.seg_amlp = nn.ModuleDict({"layers": nn.ModuleList([GatedBlock(seq_len)])})
        self.b_fc, self.seg_fc = nn.Linear(DIM, 2), nn.Linear(DIM, 2)
        self.ca, self.FFN = CrossAttention(), FeedForward()
        self.seq_len = seq_len

    def encode(self, features: Tensor) -> Tensor:
        """(B, T, in_dim) -> the convolutional map (B, 128 channels, T, 128 bins)."""
        x = F.selu(self.first_bn(self.LL(features)[:, None]))
        for block in self.encoder:
            x = block(x)
        return F.selu(self.norm(x))

    def forward(self, features: Tensor) -> FrameOutputs:
        """(B, T, in_dim) -> FrameOutputs."""
        x = self.encode(features)
        weight = self.attention(x)
        by_channel = (x * weight.softmax(dim=3)).sum(dim=3).transpose(1, 2)
        by_bin = (x * weight.softmax(dim=1)).sum(dim=1)
        embedding = by_channel + by_bin
        x = embedding + positions(x.shape[2], x.device)
        near_boundary = self.b_amlp["layers"][0](x)
        hidden = self.norm(self.FFN(self.ca(x, near_boundary)) + x)
        hidden = self.seg_amlp["layers"][0](hidden)
        return FrameOutputs(self.seg_fc(hidden), self.b_fc(near_boundary), embedding, hidden)


class ProposalRefinement(nn.Module):
    """The PRN: the hidden vectors of proposals -> how likely each is fake, and corrections."""

    def __init__(self):
        super().__init__()
        self.cnn1 = ResidualBlock(1, 32, first=True)
        self.cnn2 = ResidualBlock(32, 64, first=True)
        self.encoder = nn.ModuleDict({"fc6": nn.Linear(49, 256), "fc7": nn.Linear(256, 256)})
        self.headers = nn.ModuleDict(
            {"cls_score": nn.Linear(256, 1), "bbox_pred": nn.Linear(256, 2)}
        )

    def forward(self, regions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """P regions (L_p, 128) -> logits of "fake" (P,), and shift and log of duration (P, 2),
        both times 100.

        The regions are padded to the longest; what lies behind a region is zero in front of each
        convolution over time, as if the region ended there.
        """
        lengths = torch.tensor([len(region) for region in regions])
        x = nn.utils.rnn.pad_sequence(list(regions), batch_first=True)[:, None]
        there = (torch.arange(x.shape[2]) < lengths[:, None]).to(x.device)[:, None, :, None]
        x = F.max_pool2d(self.cnn1(x), (1, 3)) * there
        x = F.max_pool2d(self.cnn2(x), (1, 3)) * there  # (P, 64, L, 14)
        pooled = F.adaptive_max_pool2d(x.transpose(1, 2), 7)  # (P, L, 7, 7)
        x = F.relu(self.encoder["fc6"](pooled.sum(dim=1).flatten(1)))
        x = F.relu(self.encoder["fc7"](x))
        return self.headers["cls_score"](x).squeeze(1), self.headers["bbox_pred"](x)


def refined(spans: Tensor, correction: Tensor) -> Tensor:
    """Spans (P, 2), [start, end), with their corrections (P, 2) applied: (P, 2) float64. A start
    before 0 becomes 0; a span that would end there stays as it was.
    """
    spans = spans.double()
    shift, stretch = (correction.double() / REGRESSION_SCALE).unbind(1)
    duration = spans[:, 1] - spans[:, 0]
    start = spans[:, 0] + shift * duration
    moved = torch.stack([start, start + stretch.exp() * duration], dim=1).clamp(min=0)
    return torch.where(moved[:, 1:] > 0, moved, spans)


def fake_runs(fake: Tensor) -> Tensor:
    """Runs (P, 2), [first, stop), of the true values of (T,) bool."""
    edges = F.pad(fake.to(torch.int8), (1, 1)).diff()
    return torch.stack([(edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]], dim=1)


def boundary_marks(fake: Tensor) -> Tensor:
    """(T,) bool -> (T,) bool: the first and the last frame of each run of fake and of real frames.

    A real run at the beginning of a clip has no mark on its first frame, one at the end none on its
    last, unless it is that frame alone.
    """
    change = fake[1:] != fake[:-1]
    edge = torch.ones(1, dtype=torch.bool, device=fake.device)
    begins, ends = torch.cat([edge, change]), torch.cat([change, edge])
    marks = begins | ends
    marks[-1] &= fake[-1] | begins[-1]
    marks[0] &= fake[0]
    return marks


def frame_mse(scores: Tensor, label: Tensor) -> Tensor:
    """Mean squared distance of scores (n, 2) to the one-hot classes of labels (n,)."""
    return F.mse_loss(scores, F.one_hot(label, 2).to(scores.dtype))


def contrastive_loss(embedding: Tensor, label: Tensor) -> Tensor:
    """Pulls frames of a class together and the classes apart, in each clip alone.

    embedding: (B, T, D); label: (B, T) long, IGNORE = padding. For each class, the mean over its
    frames of how far their lowest cosine within the class is below 0.9, and of how far their
    highest cosine with the other class is above 0.1. Mean over the clips; a clip of one class has
    the loss 0.
    """
    total = embedding.new_zeros(())
    for vectors, classes in zip(F.normalize(embedding, dim=2), label):
        real, fake = vectors[classes == 0], vectors[classes == 1]
        if not len(real) or not len(fake):
            continue
        across = real @ fake.T
        total = total + sum(
            F.relu(0.9 - (own @ own.T).amin(dim=1)).mean() + F.relu(other - 0.1).mean()
            for own, other in ((real, across.amax(dim=1)), (fake, across.amax(dim=0)))
        )
    return total / len(embedding)


def matches(spans: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Which true span (P,) each of the spans (P, 2) overlaps best, and whether (P,) their IoU is at
    least 0.5; the others get the first. truth: (M, 2), at least one.
    """
    start, end = spans.T[..., None]
    shared = (torch.minimum(end, truth[:, 1]) - torch.maximum(start, truth[:, 0])).clamp(min=0)
    iou = shared / (end - start + truth[:, 1] - truth[:, 0] - shared)
    best, hit = iou.argmax(dim=1), iou.amax(dim=1) >= 0.5
    return torch.where(hit, best, 0), hit


def corrections(spans: Tensor, truth: Tensor) -> Tensor:
    """What the PRN should answer for spans (P, 2) whose true ones are `truth` (P, 2): (P, 2)."""
    duration, wanted = spans[:, 1] - spans[:, 0], truth[:, 1] - truth[:, 0]
    shift = (truth[:, 0] - spans[:, 0]) / duration
    return torch.stack([shift, (wanted / duration).log()], dim=1) * REGRESSION_SCALE


class CFPRF(nn.Module):
    """A front end, the FDN and the PRN: (B, N) at 16 kHz -> frames and proposals.

    Args:
        frontend: (B, N) -> (B, T, frontend.dim); see klassify.models.frontends.ssl. The published
            models hear the samples as they are (normalize_input: false).
        seq_len: the most frames of a clip.
        contrastive_weight, boundary_weight: of the FDN's losses, beside the frames' with weight 1;
            the defaults are those of the published LAV-DF model.
        refine_from: frames from which on a proposal is corrected; shorter ones stay as they are.
    """

    supervision = "segment"

    def __init__(
        self,
        frontend: nn.Module,
        seq_len: int = 1070,
        contrastive_weight: float = 0.3,
        boundary_weight: float = 0.15,
        refine_from: int = 2,
    ):
        super().__init__()
        check_sizes(seq_len=seq_len, refine_from=refine_from)
        check_weights(contrastive_weight=contrastive_weight, boundary_weight=boundary_weight)
        self.frontend = frontend
        self.fdn = FrameDetection(frontend.dim, seq_len)
        self.prn = ProposalRefinement()
        self.contrastive_weight, self.boundary_weight = contrastive_weight, boundary_weight
        self.refine_from = refine_from

    def load_pretrained(self) -> None:
        """Load the front end's pretrained weights, if any. Call before training, never after."""
        self.frontend.load_pretrained()

    def forward(self, wave: Tensor) -> FrameOutputs:
        """FrameOutputs of (B, N)."""
        return FrameOutputs(*(values.float() for values in self.fdn(self.frontend(wave))))

    def proposals(self, fake: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The coarse proposals (P, 2) of a clip, in frames [first, stop), and what the PRN makes of
        them: (P, 3) float64, probability of fake, start and end in frames.

        fake: (T,) bool; hidden: (T, 128).
        """
        spans = fake_runs(fake)
        if not len(spans):
            return spans, torch.zeros(0, 3, dtype=torch.double, device=hidden.device)
        logit, correction = self.prn([hidden[first:stop] for first, stop in spans.tolist()])
        long = (spans[:, 1] - spans[:, 0] >= self.refine_from)[:, None]
        ends = torch.where(long, refined(spans, correction), spans.double())
        return spans, torch.cat([logit.sigmoid().double()[:, None], ends], dim=1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The FDN's three losses, and the PRN's of the FDN's proposals.

        batch: "wave" (B, N); "frame_label" (B, T) long, 1 = fake, IGNORE = padding. The published
        training has the PRN learn after the FDN; here it learns beside it, and its loss does not
        reach the FDN. It takes the true spans as proposals too, not random ones.
        """
        outputs, label = self(batch["wave"]), batch["frame_label"]
        there = label != IGNORE
        marks = torch.cat([boundary_marks(row[row != IGNORE] == 1) for row in label]).long()
        return (
            frame_mse(outputs.logit[there], label[there])
            + self.contrastive_weight * contrastive_loss(outputs.embedding, label)
            + self.boundary_weight * frame_mse(outputs.boundary[there], marks)
            + self._refinement_loss(outputs, label)
        )

    def _refinement_loss(self, outputs: FrameOutputs, label: Tensor) -> Tensor:
        """Cross-entropy of "overlaps a fake by half", and 0.2 times the smooth L1 distance of the
        corrections of those that do.
        """
        hit, logits, wrong = [], [], []
        for logit, hidden, row in zip(outputs.logit, outputs.hidden.detach(), label):
            there = row != IGNORE
            truth = fake_runs(row[there] == 1)
            spans = torch.cat([fake_runs(logit[there, 1] >= logit[there, 0]), truth])
            if not len(spans):
                continue
            scores, correction = self.prn([hidden[first:stop] for first, stop in spans.tolist()])
            logits.append(scores)
            if not len(truth):
                hit.append(torch.zeros_like(scores))
                continue
            best, found = matches(spans, truth)
            hit.append(found.to(scores.dtype))
            lasting = found & (truth[best].diff(dim=1)[:, 0] >= self.refine_from)
            target = corrections(spans, truth[best]).to(correction.dtype)
            wrong.append((correction - target)[lasting])
        if not logits:
            return outputs.logit.sum() * 0
        hit, distance = torch.cat(hit), torch.cat([*wrong, outputs.logit.new_zeros(0, 2)])
        smooth = F.smooth_l1_loss(distance, torch.zeros_like(distance), reduction="sum")
        verified = F.binary_cross_entropy_with_logits(torch.cat(logits), hit)
        return verified + 0.2 * smooth / hit.sum().clamp(min=1)
