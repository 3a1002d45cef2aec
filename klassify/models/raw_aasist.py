"""AASIST on raw audio: the small detector from which Wav2Vec-AASIST took its back end.

Jung et al., ICASSP 2022 (project clovaai/aasist). Fixed band-pass filters replace the pretrained
speech model; the convolution blocks pool over time; the two graphs are maxima of the map, without
attention. Everything else is klassify.models.w2v_aasist.AASIST.

Axes: B windows, N samples at 16 kHz, C channels, H = 23 spectral and W temporal nodes. Output index
1 is fake. Published files have the opposite order; klassify.models.weights.published swaps the
rows.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from klassify.models.devices import full_precision
from klassify.models.frontends.ssl import SAMPLE_RATE
from klassify.models.w2v_aasist import AASIST, register_class_weights

N_FILTERS, FILTER_TAPS = 70, 129
POOL = 3
MIN_SAMPLES = FILTER_TAPS - 1 + POOL**7  # one frame after seven poolings
SIZES = {
    "aasist": {"channels": (32, 64), "graph_dims": (64, 32), "pool_ratios": (0.5, 0.7, 0.5)},
    "aasist-l": {"channels": (32, 24), "graph_dims": (24, 32), "pool_ratios": (0.4, 0.5, 0.7)},
}


def mel_filters(n_filters: int = N_FILTERS, taps: int = FILTER_TAPS) -> Tensor:
    """Adjacent windowed sinc band-passes (n_filters, 1, taps) on the mel scale, 0 to 8 kHz."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges_hz = 700 * (10 ** (np.linspace(0, top, n_filters + 1) / 2595) - 1)
    edges = edges_hz / SAMPLE_RATE  # cycles per sample
    n = np.arange(taps) - taps // 2
    low_passes = 2 * edges[:, None] * np.sinc(2 * edges[:, None] * n)
    filters = np.diff(low_passes, axis=0) * np.hamming(taps)
    return torch.from_numpy(filters.astype(np.float32))[:, None]


class RawAASIST(AASIST):
    """(B, N >= 2,315) samples at 16 kHz -> (B, 2) logits, index 1 = fake.

    The published model has windows of 64,600 samples.

    Args:
        size: `aasist` (297,866 parameters) or `aasist-l` (85,306).
        class_weights: weights of (real, fake) in the loss; None weighs both alike. The published
            training has (0.9, 0.1).
        dropout: factor on the published rates; see AASIST.
    """

    supervision = "clip"

    def __init__(
        self,
        size: Literal["aasist", "aasist-l"] = "aasist",
        class_weights: tuple[float, float] | None = None,
        dropout: float = 1.0,
    ):
        channels, graph_dims, ratios = SIZES[size].values()
        super().__init__(bands=N_FILTERS, channels=channels, graph_dims=graph_dims, dropout=dropout)
        del self.LL, self.first_bn1, self.attention  # only with a speech model
        self.pool_S.ratio, self.pool_T.ratio = ratios[:2]
        for pool in (self.pool_hS1, self.pool_hT1, self.pool_hS2, self.pool_hT2):
            pool.ratio = ratios[2]
        self.register_buffer("filters", mel_filters(), persistent=False)
        register_class_weights(self, class_weights)

    def forward(self, wave: Tensor) -> Tensor:
        """(B, N) -> logits (B, 2); ValueError below 2,315 samples."""
        if wave.shape[1] < MIN_SAMPLES:
            raise ValueError(
                f"RawAASIST needs at least {MIN_SAMPLES} samples per window, not {wave.shape[1]}."
            )
        with full_precision(wave.device):  # for the top-k selection
            return super().forward(wave.float())

    def _graphs(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        bands = F.conv1d(wave[:, None], self.filters).abs()
        x = F.selu(self.first_bn(F.max_pool2d(bands[:, None], POOL)))
        for block in self.encoder:
            x = F.max_pool2d(block(x), (1, POOL))
        x = x.abs()  # (B, C, H, W)
        return x.amax(3).transpose(1, 2) + self.pos_S, x.amax(2).transpose(1, 2)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of batch["label"] (B,), 1 = fake, for batch["wave"] (B, N)."""
        return F.cross_entropy(self(batch["wave"]), batch["label"], self.class_weights)

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-odds of fake (B,) for batch["wave"] (B, N)."""
        logits = self(batch["wave"])
        return logits[:, 1] - logits[:, 0]
