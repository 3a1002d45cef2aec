"""Mouth crops at 25 a second: a lip encoder and the frame head, for frames or for clips.

LipFrameModel learns from segment labels which frames are fake, and where a fake starts and ends.
LipMIL has the same parts and learns from clip labels alone, by a smooth maximum over time
(multiple-instance learning).

Axes: B clips, T frames of 40 ms.
"""

from __future__ import annotations

from torch import Tensor

from klassify.models.frame_head import (
    FrameEncoder,
    FrameHead,
    FrameOutputs,
    FromClips,
    FromSegments,
)
from klassify.models.lip_encoder import LipEncoder


class LipDetector(FrameEncoder):
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

    def outputs(self, batch: dict[str, Tensor]) -> FrameOutputs:
        """Of "crops" (B, T, 88, 88) and "valid" (B, T)."""
        return self(batch["crops"], batch["valid"])


class LipFrameModel(FromSegments, LipDetector):
    """Which frames are fake: see LipDetector for the arguments."""


class LipMIL(FromClips, LipDetector):
    """Is a window fake? See LipDetector for the arguments."""
