"""The VQ-VAE whose reconstructions the spatio-temporal branch compares with the frames.

Paper 2, section 2.2, after MM-Det. A reconstruction lacks what the codebook, learned from many
frames, cannot represent; its difference from the frame shows traces of synthesis. Each frame is
reconstructed alone, once, at its full size.

Shapes: B frames of H x W pixels, D = `dim` channels, K = `codes` vectors of the codebook; latents
(B, D, H/4, W/4) and codes (B, H/4, W/4), both rounded down. Pixels are uint8 RGB (B, H, W, 3)
outside, floats (B, 3, H, W) in [-1, 1] inside.

The architecture and the names of the tensors are those of the published checkpoint (4,882,179
parameters at the default size). What is unusual:
- The first ReLU of a residual block works in place there, so that the skip carries relu(x), not x.
- The conversion back to uint8 truncates.
- No published project has a training loss for it. The one here is the usual one (van den Oord et
  al., 2017), and it moves unused codes to random latents.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.models.devices import full_precision
from klassify.settings import check_shares, check_sizes, check_weights


class VQVAE(nn.Module):
    """An encoder, the nearest code of each latent, and a decoder.

    Args:
        dim: D, channels of every layer and of the codes.
        codes: K, size of the codebook.
        beta: weight of the commitment of latents to their codes in the loss.
        reseed: in training, the probability with which a code that no latent of the batch chose
            moves to a random one of these latents.
    """

    def __init__(self, dim: int = 256, codes: int = 512, beta: float = 0.25, reseed: float = 0.1):
        super().__init__()
        check_sizes(dim=dim, codes=codes)
        check_shares(reseed=reseed)
        check_weights(beta=beta)
        self.beta, self.reseed = beta, reseed
        self.encoder = nn.Sequential(
            nn.Conv2d(3, dim, 4, stride=2, padding=1),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 4, stride=2, padding=1),
            ResidualBlock(dim),
            ResidualBlock(dim),
        )
        self.codebook = Codebook(codes, dim)
        self.decoder = nn.Sequential(
            ResidualBlock(dim),
            ResidualBlock(dim),
            nn.ReLU(),
            nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.ConvTranspose2d(dim, 3, 4, stride=2, padding=1),
            nn.Tanh(),
        )

    def encode(self, x: Tensor) -> Tensor:
        """Codes (B, H/4, W/4) int64 of images (B, 3, H, W) in [-1, 1]; see latents."""
        return self.codebook.nearest(self.latents(x))

    def decode(self, codes: Tensor) -> Tensor:
        """Images (B, 3, 4h, 4w) in [-1, 1] of codes (B, h, w)."""
        return self.decoder(self.codebook(codes))

    def latents(self, x: Tensor) -> Tensor:
        """(B, D, H/4, W/4) of images (B, 3, H, W) in [-1, 1]."""
        return self.encoder(x)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructed images (B, 3, H, W) in [-1, 1], sides rounded down to multiples of 4."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def reconstruct(self, frames: Tensor, batch_size: int = 16) -> Tensor:
        """Reconstructed uint8 frames (N, H, W, 3), in evaluation mode.

        If a side is not a multiple of 4, the reconstruction is scaled back by nearest neighbour.
        Memory beyond the result depends only on `batch_size`: 0.45 GiB for 16 frames of 224 x 224
        at the default size. The published batches of 64 are no faster.
        """
        training, dtype = self.training, self.codebook.embedding.weight.dtype
        self.eval()
        result = torch.empty_like(frames)
        for start in range(0, len(frames), batch_size):
            part = frames[start : start + batch_size]
            images = self(to_unit(part).to(dtype))
            result[start : start + batch_size] = from_unit(images, part.shape[1:3])
        self.train(training)
        return result

    def frames_of(self, codes: Tensor) -> Tensor:
        """The frames (n, 4h, 4w, 3) uint8 of codes (n, h, w), on the model's device.

        In evaluation mode they equal `reconstruct` of the frames that were encoded.
        """
        images = self.decode(codes.to(self.codebook.embedding.weight.device, torch.int64))
        return from_unit(images, images.shape[-2:])

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean squares: reconstruction, codes to latents, and beta times latents to codes.

        batch: "frames" (B, H, W, 3) uint8, sides multiples of 4. The gradient of the reconstruction
        passes straight through the choice of codes.
        """
        x = to_unit(batch["frames"])
        latents = self.latents(x)
        codes = self.codebook.nearest(latents)
        if self.training and self.reseed:
            self.codebook.move_unused(codes, latents, self.reseed)
        chosen = self.codebook(codes)
        straight = latents + (chosen - latents).detach()
        reconstruction = F.mse_loss(self.decoder(straight), x)
        learning = F.mse_loss(chosen, latents.detach())
        commitment = F.mse_loss(latents, chosen.detach())
        return reconstruction + learning + self.beta * commitment


class Codebook(nn.Module):
    """K vectors of D numbers; starts uniform in [-1/K, 1/K]."""

    def __init__(self, codes: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def forward(self, codes: Tensor) -> Tensor:
        """Vectors (B, D, h, w) of codes (B, h, w)."""
        return self.embedding(codes).permute(0, 3, 1, 2)

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """The code (B, h, w) nearest to each latent (B, D, h, w); of equals, the first."""
        dtype = torch.promote_types(latents.dtype, torch.float32)
        flat, weight = _rows(latents).to(dtype), self.embedding.weight.to(dtype)
        with full_precision(flat.device):
            squares = weight.square().sum(dim=1) + flat.square().sum(dim=1, keepdim=True)
            distances = torch.addmm(squares, flat, weight.t(), alpha=-2.0)
        return distances.argmin(dim=1).view(latents.shape[0], *latents.shape[2:])

    @torch.no_grad()
    def move_unused(self, codes: Tensor, latents: Tensor, probability: float) -> None:
        """Move each code that does not occur in `codes` to a random latent, with this probability.

        A code that no latent chooses gets no gradient and would never be used again. Of several
        training processes, all take the first one's codebook.
        """
        weight = self.embedding.weight
        n, device = len(weight), weight.device
        flat = _rows(latents)
        unused = torch.ones(n, dtype=torch.bool, device=device)
        unused.index_fill_(0, codes.flatten(), False)
        moved = unused & (torch.rand(n, device=device) < probability)
        # how many move is known on a CPU, and a GPU would be waited for: it draws for all
        n_drawn = int(moved.sum()) if device.type == "cpu" else n
        drawn = torch.randint(len(flat), (n_drawn,), device=device)
        number = (moved.cumsum(0) - 1).clamp(min=0)  # of each code among those that move
        drawn = F.pad(drawn, (0, n - n_drawn))[number]
        weight.copy_(torch.where(moved[:, None], flat[drawn].to(weight.dtype), weight))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(weight, 0)


class ResidualBlock(nn.Module):
    """y = relu(x) + f(relu(x)), f: 3x3 convolution, norm, ReLU, 1x1 convolution, norm."""

    def __init__(self, dim: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 1),
            nn.BatchNorm2d(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D, h, w)."""
        x = self.block[0](x)
        return x + self.block[1:](x)


def to_unit(frames: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    return (frames.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def from_unit(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Floats (B, 3, h, w) in [-1, 1] -> uint8 (B, H, W, 3), truncated; `size` is H and W."""
    if tuple(x.shape[-2:]) != tuple(size):
        x = F.interpolate(x, size=tuple(size))
    return ((x * 0.5 + 0.5) * 255).to(torch.uint8).permute(0, 2, 3, 1)


def mean_square(frames: Tensor, others: Tensor) -> float:
    """Mean squared difference of uint8 frames, in squared levels."""
    return float((frames.int() - others.int()).square().float().mean())


def decibels(error: float) -> float:
    """PSNR of a mean squared difference: 20 log10(255 / its root)."""
    return 10 * math.log10(255.0**2 / error) if error > 0 else math.inf


def _rows(latents: Tensor) -> Tensor:
    """(B, D, h, w) -> (B * h * w, D)."""
    return latents.permute(0, 2, 3, 1).flatten(0, 2)
