"""Windows of frames: spatio-temporal tokens and what a language model says of them (paper 2).

Paper 2 (sections 2.1 to 2.3) adopts MM-Det. A window of W frames and its VQ-VAE reconstruction
become W frame-centric (FC) tokens (klassify.models.spatiotemporal). The sampled frame next to the
window adds one CLIP token and 64 tokens of the LMM's answer (klassify.features.lmm.model),
projected to the same width. Self-attention gives each token a scalar weight; the head gets the
weighted mean.

- Windows without LMM features (`lmm_valid` false) are normal: their LMM tokens are neither attended
  to nor counted in the mean, exactly as if the sequence had only the FC tokens.
- The VQ-VAE is frozen: always in evaluation mode, never trained. Its weights are part of
  model.safetensors, so that a system folder is complete.

Axes: B windows, W frames per window, P patches per frame, D dimensions, L = 65 LMM tokens, S
pixels. Class 0 is real, 1 fake, as in the published files.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.augmentation.frames import DRAWS, apply, centre
from klassify.errors import KlassifyError
from klassify.grid.ragged import TOP_SHARE
from klassify.models.spatiotemporal import SpatioTemporal
from klassify.models.vqvae import VQVAE
from klassify.models.weights.checkpoint import weights_path
from klassify.models.weights.load import load_weights
from klassify.settings import check_sizes

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TokenAttention(nn.Module):
    """One weight per token from multi-head self-attention: (B, N, D) -> (B, N, 1), unbounded."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, 1)
        nn.init.ones_(self.proj.bias)  # training starts from about the plain mean of the tokens
        self.heads = heads

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, 1). valid: (B, N) bool, tokens to attend to; None: all."""
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if valid is None else valid[:, None, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(attended.transpose(1, 2).flatten(2))


class DynamicFusion(nn.Module):
    """The mean of the tokens times their weights: (B, N, D) -> (B, D) and weights (B, N, 1)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.channel_attn = TokenAttention(dim, heads)

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, N, D) -> (B, D), weights (B, N, 1). valid: (B, N), tokens to count; None: all."""
        weights = self.channel_attn(tokens, valid)
        if valid is None:
            return (weights * tokens).mean(dim=1), weights
        weights = weights * valid[..., None]
        return (weights * tokens).sum(dim=1) / valid.sum(dim=1, keepdim=True), weights


def pool_top(log_odds: Tensor, share: float = TOP_SHARE) -> Tensor:
    """The mean of the highest `share` of a clip's log-odds, at least one: (B, K) -> (B,)."""
    return log_odds.topk(max(math.floor(share * log_odds.shape[1]), 1), dim=1).values.mean(dim=1)


class Visual(nn.Module):
    """Windows of frames, with or without LMM features, -> logits (B, 2): real, fake.

    Args:
        spatiotemporal: see klassify.models.spatiotemporal.SpatioTemporal.
        vqvae: see klassify.models.vqvae.VQVAE; frozen here.
        lmm_dims: sizes of the CLIP vector and of the LMM's states; None: no LMM branch (Variant 0
            of Table 3).
        heads: of the attention that weighs the tokens.
        vqvae_weights: a trained VQ-VAE, as system folder or safetensors file. `load_pretrained`
            reads it when a training starts; until then, or until trained weights are loaded, the
            model refuses to run. None: the weights come from --init or `stems`, or stay random.
        stems: a trained model of this class, as system folder or safetensors file.
            `load_pretrained` takes its stems, and its VQ-VAE unless vqvae_weights is given. Without
            the ImageNet weights of the spatio-temporal part, train such a model on single frames
            (window 1) first: ten neighbouring frames are hardly more than one example, too little
            for stems from random weights.
        freeze_stems: do not train the stems; they stay in evaluation mode.
        gabor: start the first filters of both stems as random Gabor filters, like those of trained
            image models, instead of noise: for short trainings without pretrained stems.

    The published size is 203,617,539 parameters without the VQ-VAE. Published names are kept.
    """

    supervision = "segment"

    def __init__(
        self,
        spatiotemporal: SpatioTemporal,
        vqvae: VQVAE,
        lmm_dims: tuple[int, int] | None = (1024, 4096),
        heads: int = 8,
        vqvae_weights: str | None = None,
        stems: str | None = None,
        freeze_stems: bool = False,
        gabor: bool = False,
    ):
        super().__init__()
        dim = spatiotemporal.dim
        check_sizes(heads=heads, lmm_dims=lmm_dims or (1,))
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide {dim} dimensions")
        self.size, self.window = spatiotemporal.size, spatiotemporal.window
        self.lmm_dims, self.vqvae_weights = lmm_dims, vqvae_weights
        self.backbone = spatiotemporal
        if gabor:
            patch_embed = self.backbone.patch_embed
            for stem in (patch_embed.rgb_backbone, patch_embed.recons_backbone):
                gabor_filters_(stem.stem.conv.weight)
                stem.freq_stem.load_state_dict(stem.stem.state_dict())
        self.vqvae = vqvae.requires_grad_(False).eval()
        self.stems, self.freeze_stems = stems, freeze_stems
        if freeze_stems:
            self.backbone.patch_embed.requires_grad_(False)
        self._has_vqvae = vqvae_weights is None and stems is None
        self._kept: dict[int, Tensor] = {}  # reconstructed training frames by number
        self.vqvae.register_load_state_dict_post_hook(lambda *_: setattr(self, "_has_vqvae", True))
        if lmm_dims is not None:
            self.clip_proj, self.mm_proj = (_projection(size, dim) for size in lmm_dims)
        self.final_fusion = DynamicFusion(dim, heads)
        self.head = nn.Linear(dim, 2)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> Visual:
        """As in torch, but frozen parts (VQ-VAE, perhaps the stems) stay in evaluation mode."""
        super().train(mode)
        self.vqvae.eval()
        if self.freeze_stems:
            self.backbone.patch_embed.eval()
        return self

    def starting_weights(self) -> list[Path]:
        """The files of trained systems that `load_pretrained` reads."""
        return [weights_path(Path(source)) for source in (self.stems, self.vqvae_weights) if source]

    def load_pretrained(self) -> None:
        """Load the weights that the arguments name. Call before training, never after."""
        self.backbone.load_pretrained()
        if self.stems:
            path = weights_path(Path(self.stems))
            load_weights(self.backbone.patch_embed, path, below="backbone.patch_embed.")
            if not self.vqvae_weights:
                load_weights(self.vqvae, path, below="vqvae.")
        if self.vqvae_weights:
            load_weights(self.vqvae, weights_path(Path(self.vqvae_weights)))

    def reconstruct(self, frames: Tensor) -> Tensor:
        """The VQ-VAE's reconstruction of frames (N, S, S, 3) uint8, in the same form."""
        if not self._has_vqvae:
            raise KlassifyError(
                "The VQ-VAE still has random weights, though the settings name trained ones.",
                where=self.vqvae_weights,
                fix="call load_pretrained() before a training, or load the trained weights",
            )
        return self.vqvae.reconstruct(frames)

    def pixels(self, frames: Tensor) -> Tensor:
        """(..., H, W, 3) uint8 -> (..., 3, H, W), normalised as for ImageNet."""
        return (frames.movedim(-1, -3).to(self.mean.dtype) / 255 - self.mean) / self.std

    def scored_pair(self, frames: Tensor, codes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frames (N, S, S, 3) uint8 -> their centres and those of their reconstruction.

        Both are (N, 3, size, size). codes: (N, S / 4, S / 4) of the frames, if already encoded.
        """
        reconstructed = self.reconstruct(frames) if codes is None else self.vqvae.frames_of(codes)
        frames = centre(frames, self.size)
        reconstructed = centre(reconstructed, self.size)
        return self.pixels(frames), self.pixels(reconstructed)

    def lmm_tokens(self, visual: Tensor, textual: Tensor) -> Tensor:
        """Projected features of n frames: (n, 1, 1024) and (n, 64, 4096) -> (n, 65, D)."""
        dtype = self.clip_proj.weight.dtype
        return torch.cat([self.clip_proj(visual.to(dtype)), self.mm_proj(textual.to(dtype))], dim=1)

    def fuse(
        self, st_tokens: Tensor, lmm_tokens: Tensor | None, lmm_valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, 2) and token weights (B, N, 1).

        FC tokens are (B, W, D), LMM tokens (B, L, D) or None, their validity (B,).
        """
        tokens, valid = st_tokens, None
        if lmm_tokens is not None:
            tokens = torch.cat([st_tokens, lmm_tokens], dim=1)
            if lmm_valid is not None:
                seen = lmm_valid[:, None].expand(-1, lmm_tokens.shape[1])
                valid = torch.cat([seen.new_ones(st_tokens.shape[:2]), seen], dim=1)
        fused, weights = self.final_fusion(tokens, valid)
        return self.head(fused), weights

    def forward(
        self,
        st_tokens: Tensor,
        visual: Tensor | None,
        textual: Tensor | None,
        lmm_valid: Tensor | None = None,
    ) -> Tensor:
        """FC tokens (B, W, D), (B, 1, 1024), (B, 64, 4096), validity (B,) bool -> logits (B, 2)."""
        lmm_tokens = None
        if self.lmm_dims is not None and visual is not None:
            lmm_tokens = self.lmm_tokens(visual, textual)
        return self.fuse(st_tokens, lmm_tokens, lmm_valid)[0]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of the windows, or of the clip if the batch has only clip labels.

        batch, of B clips with T frames and K windows each: "frames" (B, T, S, S, 3) uint8; "starts"
        (B, K) long, where the windows begin; the draws of visual_augment, one per clip; with LMM
        features "visual" (B, K, 1, V), "textual" (B, K, 64, L) and, unless all clips have them,
        "lmm_valid" (B,) bool; "label"
        (B, K) long of the windows, or (B,) of the clips, whose log-odds are then pooled over the
        windows. See `_reconstructed` for more keys.
        """
        n_windows = batch["starts"].shape[1]
        visual = textual = valid = None
        if "visual" in batch:
            visual, textual = batch["visual"].flatten(0, 1), batch["textual"].flatten(0, 1)
            if "lmm_valid" in batch:
                valid = batch["lmm_valid"].repeat_interleave(n_windows)
        st_tokens = self.backbone.windows(self._window_tokens(batch))
        logits = self(st_tokens, visual, textual, valid).float()
        label = batch["label"]
        if label.ndim == 2:
            return F.cross_entropy(logits, label.flatten())
        log_odds = (logits[:, 1] - logits[:, 0]).unflatten(0, (-1, n_windows))
        return F.binary_cross_entropy_with_logits(pool_top(log_odds), label.float())

    def _window_tokens(self, batch: dict[str, Tensor]) -> Tensor:
        """(B * K, W, P, D); a frame in several windows passes the stems once, as in scoring."""
        draws = {name: batch[name] for name in DRAWS}
        pair = (
            apply(part, draws, self.size) for part in (batch["frames"], self._reconstructed(batch))
        )
        tokens = self.backbone.frame_tokens(*(self.pixels(part.flatten(0, 1)) for part in pair))
        tokens = tokens.unflatten(0, batch["frames"].shape[:2])
        frames = batch["starts"][:, :, None] + torch.arange(self.window, device=tokens.device)
        clips = torch.arange(len(tokens), device=tokens.device)[:, None, None]
        return tokens[clips, frames].flatten(0, 1)

    def _reconstructed(self, batch: dict[str, Tensor]) -> Tensor:
        """The reconstructions of the frames without augmentation, (B, T, S, S, 3).

        If the batch has "codes" (B, T, S / 4, S / 4), these are decoded. If it has "frame_id", B
        lists of T numbers, each frame is reconstructed once and kept, S * S * 3 bytes.
        """
        frames = batch["frames"]
        if "codes" in batch:
            return self.vqvae.frames_of(batch["codes"].flatten(0, 1)).view_as(frames)
        if "frame_id" not in batch:
            return self.reconstruct(frames.flatten(0, 1)).view_as(frames)
        flat, ids = frames.flatten(0, 1), [number for row in batch["frame_id"] for number in row]
        new = [i for i, number in enumerate(ids) if number not in self._kept]
        if new:
            unseen = torch.stack([flat[i] for i in new])
            self._kept |= zip((ids[i] for i in new), self.reconstruct(unseen))
        return torch.stack([self._kept[number] for number in ids]).view_as(frames)


@torch.no_grad()
def gabor_filters_(weight: Tensor) -> None:
    """Fill (C, 3, k, k) with random Gabor filters.

    Their waves are 2 to 12 pixels long, of any direction and phase. Three of four filters weigh all
    colours nearly equally, the fourth at random.
    """
    n, colours, side, _ = weight.shape
    place = torch.arange(side) - side // 2
    scales = torch.tensor([math.log(6), math.pi, 2 * math.pi])
    length, angle, phase = torch.rand(3, n, 1, 1) * scales[:, None, None, None]
    along = place * angle.cos() + place[:, None] * angle.sin()
    window = torch.exp(-(place**2 + place[:, None] ** 2) / (2 * (side / 3.5) ** 2))
    waves = torch.cos(2 * math.pi * along / (2 * length.exp()) + phase) * window
    mix = 1 + 0.3 * torch.randn(n, colours, 1, 1)
    mix[::4] = torch.randn(len(mix[::4]), colours, 1, 1)
    weight.copy_(mix * (waves - waves.mean(dim=(1, 2), keepdim=True))[:, None])


def _projection(in_dim: int, dim: int) -> nn.Linear:
    layer = nn.Linear(in_dim, dim)
    nn.init.normal_(layer.weight, std=0.01)
    return layer
