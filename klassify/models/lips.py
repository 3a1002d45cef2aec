"""Mouth crops at 25 a second: a lip encoder and the frame head, for frames or for clips.

LipFrameModel learns from segment labels which frames are fake, and where a fake starts and ends.
LipMIL has the same parts and learns from clip labels alone, by a smooth maximum over time
(multiple-instance learning).

Axes: B clips, T frames of 40 ms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.models.frame_head import FrameHead, FrameOutputs, SmoothMax, frame_losses
from klassify.models.lip_encoder import LipEncoder


class LipDetector(nn.Module):
    """A LipEncoder and a FrameHead: crops (B, T, 88, 88) -> FrameOutputs of T frames.

    Args:
        encoder: see klassify.models.lip_encoder.
        dim: dimensions of the embedding.
    """

    def __init__(self, encoder: LipEncoder, dim: int = 128):
        super().__init__()
        self.encoder = encoder
        self.head = FrameHead(encoder.dim, dim)

    def load_pretrained(self) -> None:
        """Load the encoder's pretrained weights, if any. Call before training, never after."""
        self.encoder.load_pretrained()

    def forward(self, crops: Tensor, valid: Tensor | None = None) -> FrameOutputs:
        """FrameOutputs (B, T, ...) of crops (B, T, 88, 88) uint8; valid: (B, T) bool."""
        return self.head(self.encoder(crops, valid), valid)

    @property
    def embedding_dim(self) -> int:
        """Dimensions of the embedding."""
        return self.head.dim

    def embedding(self, batch: dict[str, Tensor]) -> Tensor:
        """The embedding of each frame, (B, T, dim), of "crops" and "valid"."""
        return self(batch["crops"], batch["valid"]).embedding


class LipFrameModel(LipDetector):
    """Which frames are fake, learned from segments: see LipDetector for the arguments."""

    supervision = "segment"

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """frame_losses of "crops" and "valid" with "target", "start" and "end" (B, T)."""
        outputs = self(batch["crops"], batch["valid"])
        with torch.autocast(outputs.logit.device.type, enabled=False):
            return frame_losses(outputs, batch["target"], batch["start"], batch["end"])

    def frame_scores(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-odds of fake, of a start and of an end, (B, T, 3)."""
        outputs = self(batch["crops"], batch["valid"])
        return torch.cat([outputs.logit[..., None], outputs.edges], dim=-1)


class LipMIL(LipDetector):
    """Is a window fake? Learned from clip labels: see LipDetector for the arguments."""

    supervision = "clip"

    def __init__(self, encoder: LipEncoder, dim: int = 128):
        super().__init__(encoder, dim)
        self.pool = SmoothMax()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Binary cross-entropy of batch["label"] (B,), 1 = fake."""
        return F.binary_cross_entropy_with_logits(self.score(batch), batch["label"].float())

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-odds of fake (B,) for batch["crops"] (B, T, 88, 88) and batch["valid"] (B, T)."""
        return self.pool(self(batch["crops"], batch["valid"]).logit, batch["valid"])
