"""Sound encoders at 20 ms: a front end and the frame head, for frames or for clips.

AudioFrameModel learns from segment labels which frames are fake, and where fake speech starts and
ends. AudioMIL has the same parts and learns from clip labels alone, by a smooth maximum over time
(multiple-instance learning).

Axes: B clips, N samples at 16 kHz, T front-end frames; frame t covers the samples [320 t + 40,
320 t + 360), the middle of the 400 that the front end reads for it.
"""

from __future__ import annotations

from torch import Tensor, nn

from klassify.models.frame_head import (
    FrameEncoder,
    FrameHead,
    FrameOutputs,
    FromClips,
    FromSegments,
)


class AudioEncoder(FrameEncoder):
    """A front end and a FrameHead: (B, N) samples -> FrameOutputs of T frames.

    Args:
        frontend: (B, N) -> (B, T, frontend.dim); see klassify.models.frontends.ssl.
        dim: dimensions of the embedding.
    """

    def __init__(self, frontend: nn.Module, dim: int = 128):
        super().__init__()
        self.frontend = frontend
        self.head = FrameHead(frontend.dim, dim)

    def load_pretrained(self) -> None:
        """Load the front end's pretrained weights, if any. Call before training, never after."""
        self.frontend.load_pretrained()

    def encoder_layers(self) -> list[list[nn.Parameter]]:
        """The front end's parameters by depth, for learning rates of their own."""
        return self.frontend.layers()

    def heard(self, wave: Tensor) -> Tensor:
        """Windows (B, N) as the front end gets them: unchanged."""
        return wave

    def forward(self, wave: Tensor) -> FrameOutputs:
        """FrameOutputs (B, T, ...) of waveforms (B, N)."""
        return self.head(self.frontend(wave))

    def outputs(self, batch: dict[str, Tensor]) -> FrameOutputs:
        """Of "wave" (B, N), or of the front end's "features" (B, T, D) of it."""
        return self.head(batch["features"]) if "features" in batch else self(batch["wave"])


class AudioFrameModel(FromSegments, AudioEncoder):
    """Which frames are fake: see AudioEncoder for the arguments."""


class AudioMIL(FromClips, AudioEncoder):
    """Is a window fake? See AudioEncoder for the arguments."""
