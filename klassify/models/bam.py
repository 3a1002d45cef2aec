"""BAM, the boundary-aware attention mechanism: which frames of an utterance are fake.

A speech front end (klassify.models.frontends.ssl) gives one vector per 20 ms. The back end of
Zhong, Li and Yi (Interspeech 2024; project media-sec-lab/BAM), which paper 1 fine-tunes in section
4.2, pools them to output frames, describes each frame both among its neighbours and alone, predicts
where fake speech begins and ends, and lets frames attend to each other only on their side of a
boundary.

What is unusual in the published model, and kept:
- A frame pair across a boundary gets the attention score 0 before the softmax, not minus infinity:
  it keeps the weight exp(0).
- The boundary branch learns only from the boundary loss; the frame loss uses its features detached.
- There is no padding mask: zeros after a clip change the frames before them. Clips of unequal
  length are therefore scored one at a time (klassify.data.audio.AudioFrames); in training the
  losses ignore padded frames.

Axes: B clips, N samples at 16 kHz, T front-end frames of 20 ms, F output frames, D dimensions.
Class 1 is fake. Published files have the opposite order; klassify.models.weights.published swaps
the rows of `out_layer` on import.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.grid.frames import IGNORE
from klassify.models.devices import by_rows, frames_at_once
from klassify.models.frontends.ssl import SAMPLE_RATE
from klassify.models.w2v_aasist import PairAttention
from klassify.settings import check_sizes, check_weights

# appended to each waveform, so that N samples give N / 320 front-end frames, not one fewer
PAD_SAMPLES = 256
# frame pairs: few enough for the processor's cache, enough for threads; see benchmarks/bam.py
PAIRS_AT_ONCE = 4096


class AttentivePooling(nn.Module):
    """Weighted mean of each group of `pool` frames: (B, F * pool, D) -> (B, F, D)."""

    def __init__(self, dim: int, pool: int):
        super().__init__()
        self.mm_weights = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(dim, 1)))
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, F * pool, D) -> (B, F, D); the weights of a group sum to 1."""
        groups = x.unflatten(1, (-1, self.pool))
        weights = torch.tanh(groups @ self.mm_weights).softmax(dim=2)
        return (weights * groups).sum(dim=2)


def pair_scores(x: Tensor, proj: nn.Linear, weight: Tensor, at_once: int = PAIRS_AT_ONCE) -> Tensor:
    """Attention scores tanh(proj(x_i * x_j)) . weight of all frame pairs: (B, F, D) -> (B, F, F).

    The product commutes, so half of the pairs are enough: each frame is paired with itself and the
    F // 2 frames that follow it in a circle. They are computed in blocks of rows of about `at_once`
    pairs, which stay in the processor's cache; the plain form does twice the work and holds
    (B, F, F, D).
    """
    if torch.compiler.is_exporting():  # into a graph, which has no loop over blocks
        return (torch.tanh(proj(x[:, :, None] * x[:, None])) @ weight).squeeze(3)
    n_clips, n_frames, _ = x.shape
    reach = n_frames // 2 + 1
    circle = torch.cat([x, x[:, : reach - 1]], dim=1)
    followers = circle.unfold(1, reach, 1).transpose(2, 3)  # (B, F, reach, D)
    rows = max(at_once // (n_clips * reach), 1)
    blocks = []
    for frame, others in zip(x.split(rows, dim=1), followers.split(rows, dim=1)):
        blocks.append(torch.tanh_(proj(frame.unsqueeze(2) * others)) @ weight)
    # (B, F, reach): the score of frames i and (i + step) % F
    half = torch.cat(blocks, dim=1).squeeze(3)
    i = torch.arange(n_frames, device=x.device)[:, None]
    step = (i.T - i) % n_frames
    near = step < reach
    return half[:, torch.where(near, i, i.T), torch.where(near, step, n_frames - step)]


def same_side_mask(boundary: Tensor) -> Tensor:
    """(B, F) bool boundaries -> (B, F, F), true where no frame from j to k is a boundary.

    j and k count themselves; each frame is on one side with itself.
    """
    through = boundary.long().cumsum(dim=1)  # boundaries up to and including each frame
    before = through - boundary.long()
    # both never fall, so the maximum is that of the later frame and the minimum of the earlier
    up_to_later = torch.maximum(through[:, :, None], through[:, None])
    before_earlier = torch.minimum(before[:, :, None], before[:, None])
    itself = torch.eye(boundary.shape[1], dtype=torch.bool, device=boundary.device)
    return (up_to_later == before_earlier) | itself


class FrameAttention(PairAttention):
    """Attention among frames by their element-wise products: (B, F, in_dim) -> (B, F, out_dim)."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, F, in_dim) -> (B, F, out_dim).

        mask: (B, F, F) bool; scores of pairs outside it become 0, which still leaves them a weight.
        """
        scores = pair_scores(x, self.att_proj, self.att_weight)
        return self.attended(x, scores if mask is None else scores * mask)


class Bottleneck(nn.Module):
    """Convolutions of 1, 3 and 1 taps beside a shortcut; a ReLU before and after the sum."""

    def __init__(self, in_channels: int, width: int, stride: int = 1):
        super().__init__()
        out_channels = 2 * width
        self.conv1 = nn.Conv1d(in_channels, width, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm1d(width)
        self.conv2 = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm1d(width)
        self.conv3 = nn.Conv1d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm1d(out_channels)
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Conv1d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(frames, in_channels, L) -> (frames, 2 * width, L / stride), rounded up."""
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(F.relu(self.bn3(self.conv3(x))) + shortcut)


class ResNet1d(nn.Module):
    """A vector as a one-channel signal: (frames, D) -> (frames, 32 * channels, out_length(D))."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv1d(1, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm1d(channels)
        self.maxpool = nn.MaxPool1d(3, stride=2, ceil_mode=True)
        self.layer1 = self._stage(channels, 2 * channels, stride=1)
        self.layer2 = self._stage(4 * channels, 4 * channels, stride=2)
        self.layer3 = self._stage(8 * channels, 8 * channels, stride=2)
        self.layer4 = self._stage(16 * channels, 16 * channels, stride=2)

    @staticmethod
    def _stage(in_channels: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(Bottleneck(in_channels, width, stride), Bottleneck(2 * width, width))

    @staticmethod
    def out_length(dim: int) -> int:
        """About D / 32: the pooling rounds down when it halves, the convolutions round up."""
        pooled = (dim + 1) // 2 // 2
        return -(-pooled // 8)

    def forward(self, x: Tensor) -> Tensor:
        """(frames, D) -> (frames, 32 * channels, out_length(D))."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x[:, None]))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class IntraFrame(nn.Module):
    """Each frame alone through a ResNet: (B, F, D) -> (B, F, D)."""

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.resnet = ResNet1d(channels)
        self.proj_layer = nn.Linear(32 * channels * ResNet1d.out_length(dim), dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, D) -> (B, F, D)."""
        rows = frames_at_once(x.device)
        return by_rows(self._describe, x.flatten(0, 1), rows).view_as(x)

    def _describe(self, frames: Tensor) -> Tensor:
        return self.proj_layer(self.resnet(frames).flatten(1))


class BoundaryAwareAttention(nn.Module):
    """The back end: (B, F * pool, dim) -> frame logits (B, F, 2) and boundary probabilities (B, F).

    Args:
        dim: size of a front-end frame and of every frame inside.
        pool: front-end frames per output frame.
        gap_layers: attention layers under the boundary mask.
        local_channels: channels of the first convolution of the intra-frame ResNet.

    The published model has 1024 dimensions and the defaults: 50,348,323 parameters. No shape
    depends on `pool`. Submodules have the published names, without the second name of layer4's
    shortcut.
    """

    def __init__(self, dim: int, pool: int, gap_layers: int = 2, local_channels: int = 32):
        super().__init__()
        self.att_pool = AttentivePooling(dim, pool)
        self.inter_layer = FrameAttention(dim, dim)
        self.intra_layer = IntraFrame(dim, local_channels)
        self.b_output_layer = nn.Sequential(nn.Linear(2 * dim, 1))
        self.gap_layers = nn.ModuleList(FrameAttention(dim, dim) for _ in range(gap_layers))
        self.boundary_proj = nn.Linear(2 * dim, dim)
        self.out_layer = nn.Linear(2 * dim, 2)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F * pool, dim) -> logits (B, F, 2) and boundary probabilities (B, F), float32."""
        frames = self.att_pool(features)
        inner = torch.cat([self.inter_layer(frames), self.intra_layer(frames)], dim=2)
        boundary = torch.sigmoid(self.b_output_layer(inner).squeeze(2).float())
        mask = same_side_mask(boundary > 0.5)
        for layer in self.gap_layers:
            frames = layer(frames, mask)
        hint = F.selu(self.boundary_proj(inner.detach()))
        return self.out_layer(torch.cat([frames, hint], dim=2)).float(), boundary


def frame_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, F, 2) over frames whose label (B, F) is not IGNORE.

    label: long, or float shares of the frame that are fake, NaN to ignore one.
    """
    known = label >= 0  # neither IGNORE nor NaN
    if label.is_floating_point():
        share = torch.where(known, label, 0.0)
        target = torch.stack([1 - share, share], dim=-1) * known[..., None]
        total = F.cross_entropy(logits.flatten(0, 1), target.flatten(0, 1), reduction="sum")
    else:
        total = F.cross_entropy(
            logits.flatten(0, 1), label.flatten(), ignore_index=IGNORE, reduction="sum"
        )
    return total / known.sum().clamp(min=1)


def boundary_loss(
    boundary: Tensor, label: Tensor, valid: Tensor, negative_ratio: float = 5.0
) -> Tensor:
    """Binary cross-entropy over the boundaries and the hardest other frames of a batch.

    boundary: (B, F) probabilities; label: (B, F), 1 = boundary; valid: (B, F) bool. For each
    boundary, up to `negative_ratio` other frames count, those with the highest loss. An invalid
    frame has the loss 0 but still counts as its label says. Without a boundary the loss is 0.
    """
    positive = label > 0.5
    loss = F.binary_cross_entropy(boundary, positive.float(), reduction="none") * valid
    n_positive = positive.sum()
    wanted = (n_positive * negative_ratio).floor()
    n_negative = torch.minimum(positive.numel() - n_positive, wanted)
    # boundaries come last, behind the losses of the others, which are not negative
    ranked = loss.masked_fill(positive, -1).flatten().sort(descending=True).values
    hardest = ranked * (torch.arange(len(ranked), device=ranked.device) < n_negative)
    return ((loss * positive).sum() + hardest.sum()) / (n_positive + n_negative).clamp(min=1)


class BAM(nn.Module):
    """A front end and the boundary-aware back end: (B, N) at 16 kHz -> logits and boundaries.

    Args:
        frontend: (B, N) -> (B, T, frontend.dim); see klassify.models.frontends.ssl. The published
            models normalise each waveform in it, padding included.
        resolution_s: seconds per output frame, a multiple of the front end's 20 ms. Weights fit
            every resolution.
        gap_layers, local_channels: size of the back end; see BoundaryAwareAttention.
        boundary_weight: weight of the boundary loss; the frame loss has weight 1.
        negative_ratio: see boundary_loss.
    """

    supervision = "segment"

    def __init__(
        self,
        frontend: nn.Module,
        resolution_s: float = 0.04,
        gap_layers: int = 2,
        local_channels: int = 32,
        boundary_weight: float = 0.5,
        negative_ratio: float = 5.0,
    ):
        super().__init__()
        check_sizes(local_channels=local_channels)
        check_sizes(0, gap_layers=gap_layers)
        check_weights(
            resolution_s=resolution_s,
            boundary_weight=boundary_weight,
            negative_ratio=negative_ratio,
        )
        self.frame_samples = round(resolution_s * SAMPLE_RATE)
        pool, rest = divmod(self.frame_samples, frontend.hop_samples)
        if not pool or rest:
            hop_s = frontend.hop_samples / SAMPLE_RATE
            raise ValueError(
                f"resolution_s must be a multiple of {hop_s:g} s, not {resolution_s:g}"
            )
        self.frontend = frontend
        self.backend = BoundaryAwareAttention(frontend.dim, pool, gap_layers, local_channels)
        self.resolution_s = resolution_s
        self.boundary_weight, self.negative_ratio = boundary_weight, negative_ratio

    def load_pretrained(self) -> None:
        """Load the front end's pretrained weights, if any. Call before training, never after."""
        self.frontend.load_pretrained()

    def n_frames(self, n_samples: int) -> int:
        """Output frames of a waveform; the last one may extend beyond its end."""
        return -(-n_samples // self.frame_samples)

    def heard(self, wave: Tensor) -> Tensor:
        """Windows (B, N) for the front end: padded to whole frames and by PAD_SAMPLES more."""
        n_samples = wave.shape[1]
        rest = self.n_frames(n_samples) * self.frame_samples - n_samples
        return F.pad(wave, (0, rest + PAD_SAMPLES))

    def forward(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Frame logits (B, F, 2) and boundary probabilities (B, F) of (B, N)."""
        # padded before the front end, so that its normalisation of the waveform includes the zeros
        return self.backend(self.frontend(self.heard(wave)))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Frame loss plus the weighted boundary loss.

        batch: "wave" (B, N); "frame_label" (B, F) as frame_loss takes it; "boundary_label" (B, F),
        1 = boundary, 0 in the padding (see segments.boundary_labels).
        """
        logits, boundary = self(batch["wave"])
        label = batch["frame_label"]
        valid = label >= 0
        with torch.autocast(logits.device.type, enabled=False):  # which refuses this cross-entropy
            edges = boundary_loss(boundary, batch["boundary_label"], valid, self.negative_ratio)
        return frame_loss(logits, label) + self.boundary_weight * edges

    def frame_scores(
        self, wave: Tensor | None = None, features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """For waveforms (B, N): "score", log-odds of fake, and "boundary", probabilities (B, F).

        features: (B, F * pool, D) of the front end for `heard(wave)`, instead of the waveforms.
        """
        logits, boundary = self(wave) if features is None else self.backend(features)
        return {"score": logits[..., 1] - logits[..., 0], "boundary": boundary}

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-odds of fake (B,) of batch["wave"] (B, N): the highest of its frames."""
        return self.frame_scores(batch["wave"])["score"].amax(dim=1)
