"""Wav2Vec-AASIST: does an audio window contain fake speech?

A speech front end (klassify.models.frontends.ssl) gives one vector per 20 ms. The AASIST back end
of SSL_Anti-spoofing (Tak et al., Odyssey 2022; graph attention of Jung et al., ICASSP 2022) turns
the (time, feature) map into two graphs, one of spectral and one of temporal nodes, lets them attend
to each other in two parallel stacks, and classifies the pooled nodes. Paper 1, section 4.2, trains
both parts jointly with the negative log-likelihood of a log-softmax.

Axes: B windows, N samples at 16 kHz, T front-end frames of 20 ms, C channels, H spectral and W
temporal nodes, D node dimensions. Output index 1 is fake. Published files have the opposite order;
klassify.models.weights.published swaps the rows on import.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.models.devices import by_rows, full_precision, rows_at_once
from klassify.settings import check_shares, check_sizes, check_weights

MIN_FRAMES = 3  # the first pooling needs them: 1,040 samples


class ResidualBlock(nn.Module):
    """Two 2x3 convolutions of the same size, plus the input (1x3-projected if C changes).

    The published block computes a leading normalisation `bn1` and then ignores it. Its tensors
    exist here in all but the first block, so that released files load, but they are not used.
    """

    def __init__(self, in_channels: int, out_channels: int, first: bool = False):
        super().__init__()
        if not first:
            self.bn1 = nn.BatchNorm2d(in_channels).requires_grad_(False)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=(2, 3), padding=(1, 1))
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=(2, 3), padding=(0, 1))
        if in_channels != out_channels:
            self.conv_downsample = nn.Conv2d(
                in_channels, out_channels, kernel_size=(1, 3), padding=(0, 1)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        shortcut = self.conv_downsample(x) if hasattr(self, "conv_downsample") else x
        return self.conv2(F.selu(self.bn2(self.conv1(x)))) + shortcut


def _attention_vector(dim: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_normal_(torch.empty(dim, 1)))


def _normalise_nodes(x: Tensor, bn: nn.BatchNorm1d) -> Tensor:
    """SELU of a batch normalisation over all nodes of the batch; x is (B, nodes, D)."""
    return F.selu(bn(x.flatten(0, 1)).view_as(x))


class PairAttention(nn.Module):
    """The layers of an attention among (B, nodes, in_dim) by the products of their pairs."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.att_proj = nn.Linear(in_dim, out_dim)
        self.att_weight = _attention_vector(out_dim)
        self.proj_with_att = nn.Linear(in_dim, out_dim)
        self.proj_without_att = nn.Linear(in_dim, out_dim)
        self.bn = nn.BatchNorm1d(out_dim)

    def attended(self, x: Tensor, scores: Tensor) -> Tensor:
        """x (B, nodes, in_dim) and scores of its pairs (B, nodes, nodes) -> (B, nodes, out_dim)."""
        x = self.proj_with_att(scores.softmax(-1) @ x) + self.proj_without_att(x)
        return _normalise_nodes(x, self.bn)


class GraphAttention(PairAttention):
    """Attention among the nodes of one graph: (B, nodes, in_dim) -> (B, nodes, out_dim)."""

    def __init__(self, in_dim: int, out_dim: int, temperature: float):
        super().__init__(in_dim, out_dim)
        self.input_drop = nn.Dropout(0.2)
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """(B, nodes, in_dim) -> (B, nodes, out_dim)."""
        x = self.input_drop(x)
        # (B, nodes, nodes, out_dim)
        pairs = torch.tanh(self.att_proj(x.unsqueeze(2) * x.unsqueeze(1)))
        return self.attended(x, (pairs @ self.att_weight).squeeze(-1).div(self.temperature))


class HeterogeneousGraphAttention(nn.Module):
    """Attention among two kinds of nodes (type 1 temporal, type 2 spectral) and a master node.

    Each kind of pair has its own attention vector; both cross directions share one.
    """

    def __init__(self, in_dim: int, out_dim: int, temperature: float = 100.0):
        super().__init__()
        self.proj_type1 = nn.Linear(in_dim, in_dim)
        self.proj_type2 = nn.Linear(in_dim, in_dim)
        self.att_proj = nn.Linear(in_dim, out_dim)
        self.att_projM = nn.Linear(in_dim, out_dim)
        self.att_weight11 = _attention_vector(out_dim)
        self.att_weight22 = _attention_vector(out_dim)
        self.att_weight12 = _attention_vector(out_dim)
        self.att_weightM = _attention_vector(out_dim)
        self.proj_with_att = nn.Linear(in_dim, out_dim)
        self.proj_without_att = nn.Linear(in_dim, out_dim)
        self.proj_with_attM = nn.Linear(in_dim, out_dim)
        self.proj_without_attM = nn.Linear(in_dim, out_dim)
        self.bn = nn.BatchNorm1d(out_dim)
        self.input_drop = nn.Dropout(0.2)
        self.temperature = temperature

    def forward(self, x1: Tensor, x2: Tensor, master: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x1 (B, n1, in_dim), x2 (B, n2, in_dim), master (B, 1, in_dim) -> all with out_dim."""
        n1 = x1.shape[1]
        x = self.input_drop(torch.cat([self.proj_type1(x1), self.proj_type2(x2)], dim=1))
        master = self._update_master(x, master)
        attention = self._pair_scores(x, n1).div(self.temperature).softmax(-1)
        x = _normalise_nodes(self.proj_with_att(attention @ x) + self.proj_without_att(x), self.bn)
        return x[:, :n1], x[:, n1:], master

    def _pair_scores(self, x: Tensor, n1: int) -> Tensor:
        # (B, n1 + n2, n1 + n2, out_dim)
        pairs = torch.tanh(self.att_proj(x.unsqueeze(2) * x.unsqueeze(1)))
        within1 = pairs[:, :n1, :n1] @ self.att_weight11
        within2 = pairs[:, n1:, n1:] @ self.att_weight22
        above = torch.cat([within1, pairs[:, :n1, n1:] @ self.att_weight12], dim=2)
        below = torch.cat([pairs[:, n1:, :n1] @ self.att_weight12, within2], dim=2)
        return torch.cat([above, below], dim=1).squeeze(-1)

    def _update_master(self, x: Tensor, master: Tensor) -> Tensor:
        pairs = torch.tanh(self.att_projM(x * master))
        attention = (pairs @ self.att_weightM).div(self.temperature).softmax(dim=1)  # (B, nodes, 1)
        return self.proj_with_attM(attention.transpose(1, 2) @ x) + self.proj_without_attM(master)


class GraphPool(nn.Module):
    """Keep the share `ratio` of nodes with the best scores, in that order, times their scores."""

    def __init__(self, dim: int, ratio: float = 0.5):
        super().__init__()
        self.proj = nn.Linear(dim, 1)
        self.drop = nn.Dropout(0.3)
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        """(B, nodes, dim) -> (B, nodes * ratio, dim), rounded down, but at least one node."""
        scores = torch.sigmoid(self.proj(self.drop(x)))  # (B, nodes, 1)
        kept = scores.topk(max(int(x.shape[1] * self.ratio), 1), dim=1).indices
        return (x * scores).gather(1, kept.expand(-1, -1, x.shape[2]))


class AASIST(nn.Module):
    """The back end: (B, T >= 3, feature_dim) front-end frames -> (B, 2) logits, index 1 = fake.

    Args:
        feature_dim: size of a front-end frame.
        bands: size to which frames are projected; there are a third as many spectral nodes.
        channels: of the first two and of the last four convolution blocks.
        graph_dims: node dimensions of the first graph layers and of the heterogeneous ones.
        dropout: factor on the published rates (0.2 at graph inputs and between the two branches,
            0.3 before pooling, 0.5 before the output). The full rates are too high for a training
            on a few hundred clips.

    The defaults are the published 447,242 parameters for 1024-d frames. Submodules have the
    published names, so that a state dict has the published 245 keys.
    """

    def __init__(
        self,
        feature_dim: int = 1024,
        bands: int = 128,
        channels: Sequence[int] = (32, 64),
        graph_dims: Sequence[int] = (64, 32),
        dropout: float = 1.0,
    ):
        super().__init__()
        check_shares(dropout=dropout)
        check_sizes(3, bands=bands)
        check_sizes(feature_dim=feature_dim, channels=channels, graph_dims=graph_dims)
        (low, high), (wide, narrow) = channels, graph_dims
        self.pos_S = nn.Parameter(torch.randn(1, bands // 3, high))
        self.master1 = nn.Parameter(torch.randn(1, 1, wide))
        self.master2 = nn.Parameter(torch.randn(1, 1, wide))
        self.LL = nn.Linear(feature_dim, bands)
        self.first_bn = nn.BatchNorm2d(1)
        self.first_bn1 = nn.BatchNorm2d(high)
        plan = [(1, low), (low, low), (low, high), (high, high), (high, high), (high, high)]
        blocks = [ResidualBlock(*pair, first=i == 0) for i, pair in enumerate(plan)]
        # each block is alone in a Sequential, since the published keys have that level
        self.encoder = nn.Sequential(*(nn.Sequential(block) for block in blocks))
        self.attention = nn.Sequential(
            nn.Conv2d(high, 2 * high, 1),
            nn.SELU(),
            nn.BatchNorm2d(2 * high),
            nn.Conv2d(2 * high, high, 1),
        )
        self.GAT_layer_S = GraphAttention(high, wide, temperature=2.0)
        self.GAT_layer_T = GraphAttention(high, wide, temperature=2.0)
        self.pool_S, self.pool_T = GraphPool(wide), GraphPool(wide)
        self.HtrgGAT_layer_ST11 = HeterogeneousGraphAttention(wide, narrow)
        self.HtrgGAT_layer_ST12 = HeterogeneousGraphAttention(narrow, narrow)
        self.HtrgGAT_layer_ST21 = HeterogeneousGraphAttention(wide, narrow)
        self.HtrgGAT_layer_ST22 = HeterogeneousGraphAttention(narrow, narrow)
        self.pool_hS1, self.pool_hT1 = GraphPool(narrow), GraphPool(narrow)
        self.pool_hS2, self.pool_hT2 = GraphPool(narrow), GraphPool(narrow)
        self.drop_way, self.drop = nn.Dropout(0.2), nn.Dropout(0.5)
        self.out_layer = nn.Linear(5 * narrow, 2)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p *= dropout

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, feature_dim) -> logits (B, 2); ValueError below 3 frames."""
        if features.shape[1] < MIN_FRAMES:
            raise ValueError(
                f"AASIST needs windows of at least {MIN_FRAMES} frames, not {features.shape[1]}."
            )
        spectral, temporal = self._graphs(features)
        spectral = self.pool_S(self.GAT_layer_S(spectral))
        temporal = self.pool_T(self.GAT_layer_T(temporal))
        branches = (self._branch(temporal, spectral, number) for number in (1, 2))
        temporal, spectral, master = (
            torch.maximum(self.drop_way(one), self.drop_way(other)) for one, other in zip(*branches)
        )
        readout = [temporal.abs().amax(1), temporal.mean(1)]
        readout += [spectral.abs().amax(1), spectral.mean(1)]
        return self.out_layer(self.drop(torch.cat([*readout, master.squeeze(1)], dim=1)))

    def _graphs(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Spectral nodes (B, bands // 3, C) and temporal nodes (B, T // 3, C)."""
        x = self.LL(features).transpose(1, 2).unsqueeze(1)
        x = F.selu(self.first_bn(F.max_pool2d(x, 3)))
        x = F.selu(self.first_bn1(self.encoder(x)))  # (B, C, H, W)
        w = self.attention(x)
        spectral = (x * w.softmax(dim=3)).sum(3).transpose(1, 2) + self.pos_S
        temporal = (x * w.softmax(dim=2)).sum(2).transpose(1, 2)
        return spectral, temporal

    def _branch(
        self, temporal: Tensor, spectral: Tensor, number: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One of the two stacks of heterogeneous layers: temporal, spectral and master nodes."""
        first, second = (getattr(self, f"HtrgGAT_layer_ST{number}{depth}") for depth in (1, 2))
        pool_t, pool_s = getattr(self, f"pool_hT{number}"), getattr(self, f"pool_hS{number}")
        master = getattr(self, f"master{number}").expand(len(temporal), -1, -1)
        temporal, spectral, master = first(temporal, spectral, master)
        temporal, spectral = pool_t(temporal), pool_s(spectral)
        more_temporal, more_spectral, more_master = second(temporal, spectral, master)
        return temporal + more_temporal, spectral + more_spectral, master + more_master


def register_class_weights(module: nn.Module, weights: tuple[float, float] | None) -> None:
    """Keep the weights of (real, fake) in a loss as a buffer, which is not saved with the model."""
    check_weights(class_weights=weights or ())
    weights = None if weights is None else torch.tensor(weights, dtype=torch.float32)
    module.register_buffer("class_weights", weights, persistent=False)


class W2VAASIST(nn.Module):
    """A front end and AASIST on top: (B, N) samples at 16 kHz -> (B, 2) logits, index 1 = fake.

    Args:
        frontend: (B, N) -> (B, T, frontend.dim); see klassify.models.frontends.ssl.
        class_weights: weights of (real, fake) in the loss; None weighs both alike. The published
            training has (0.9, 0.1), for nine fakes per real clip.
        bands, channels, graph_dims, dropout: of the back end; see AASIST.
    """

    supervision = "clip"

    def __init__(
        self,
        frontend: nn.Module,
        class_weights: tuple[float, float] | None = None,
        bands: int = 128,
        channels: tuple[int, int] = (32, 64),
        graph_dims: tuple[int, int] = (64, 32),
        dropout: float = 1.0,
    ):
        super().__init__()
        self.frontend = frontend
        self.backend = AASIST(frontend.dim, bands, channels, graph_dims, dropout)
        register_class_weights(self, class_weights)

    def load_pretrained(self) -> None:
        """Load the front end's pretrained weights, if any. Call before training, never after."""
        self.frontend.load_pretrained()

    def heard(self, wave: Tensor) -> Tensor:
        """Windows (B, N) as the front end gets them: unchanged."""
        return wave

    def forward(self, wave: Tensor) -> Tensor:
        """(B, N) -> logits (B, 2)."""
        return self._classify(self.frontend(self.heard(wave)))

    def _classify(self, features: Tensor) -> Tensor:
        rows = 4 * rows_at_once(features.device, features.shape[1])
        with full_precision(features.device):  # for the top-k selection
            return by_rows(self.backend, features.float(), rows)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Negative log-likelihood of batch["label"] (B,), 1 = fake, for batch["wave"] (B, N)."""
        return F.nll_loss(self(batch["wave"]).log_softmax(1), batch["label"], self.class_weights)

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-odds of fake (B,) for batch["wave"] (B, N), or for "features" (B, T, D) of it."""
        logits = self._classify(batch["features"]) if "features" in batch else self(batch["wave"])
        return logits[:, 1] - logits[:, 0]
