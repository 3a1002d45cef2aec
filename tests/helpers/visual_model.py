"""The smallest visual model."""

from __future__ import annotations

from klassify.models.spatiotemporal import SpatioTemporal
from klassify.models.visual import Visual
from klassify.models.vqvae import VQVAE

SMALL = {
    "size": 32,
    "window": 3,
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "mlp_ratio": 2,
    "stem_width": 4,
    "channels": (8, 16, 16),
    "layers": (1, 1, 1),
}


def small(lmm_dims: tuple[int, int] | None = (5, 7), **arguments) -> Visual:
    return Visual(
        SpatioTemporal(**SMALL), VQVAE(dim=4, codes=8), lmm_dims=lmm_dims, heads=2, **arguments
    )
