"""Sound encoders at 20 ms: a front end and the frame head, for frames or for clips.

AudioFrameModel learns from segment labels which frames are fake, and where fake speech starts and
ends. AudioMIL has the same parts and learns from clip labels alone, by a smooth maximum over time
(multiple-instance learning).

Axes: B clips, N samples at 16 kHz, T front-end frames; frame t covers the samples [320 t + 40,
320 t + 360), the middle of the 400 that the front end reads for it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.models.frame_head import FrameHead, FrameOutputs, SmoothMax, frame_losses


class AudioEncoder(nn.Module):
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

    @property
    def embedding_dim(self) -> int:
        """Dimensions of the embedding."""
        return self.head.dim

    def embedding(self, batch: dict[str, Tensor]) -> Tensor:
        """The embedding of each frame, (B, T, dim), of a batch as `_outputs` takes it."""
        return self._outputs(batch).embedding

    def _outputs(self, batch: dict[str, Tensor]) -> FrameOutputs:
        """Of "wave" (B, N), or of the front end's "features" (B, T, D) of it."""
        return self.head(batch["features"]) if "features" in batch else self(batch["wave"])


class AudioFrameModel(AudioEncoder):
    """Which frames are fake, learned from segments: see AudioEncoder for the arguments."""

    supervision = "segment"

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """frame_losses of "wave" (B, N) with "target", "start" and "end" (B, T)."""
        outputs = self(batch["wave"])
        with torch.autocast(outputs.logit.device.type, enabled=False):
            return frame_losses(outputs, batch["target"], batch["start"], batch["end"])

    def frame_scores(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-odds of fake, of a start and of an end, (B, T, 3)."""
        outputs = self._outputs(batch)
        return torch.cat([outputs.logit[..., None], outputs.edges], dim=-1)


class AudioMIL(AudioEncoder):
    """Is a window fake? Learned from clip labels: see AudioEncoder for the arguments."""

    supervision = "clip"

    def __init__(self, frontend: nn.Module, dim: int = 128):
        super().__init__(frontend, dim)
        self.pool = SmoothMax()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Binary cross-entropy of batch["label"] (B,), 1 = fake, for batch["wave"] (B, N)."""
        return F.binary_cross_entropy_with_logits(self.score(batch), batch["label"].float())

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-odds of fake (B,) for batch["wave"] (B, N), or for "features" (B, T, D) of it."""
        return self.pool(self._outputs(batch).logit)
