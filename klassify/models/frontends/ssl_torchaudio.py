"""torchaudio's speech encoders with the module names and methods of transformers'.

Equal names allow one state dict for both: a system trained with one library can be scored with the
other. Only layer-norm-first models are supported (XLSR-53, XLS-R, wav2vec 2.0 large-robust,
WavLM-Large).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from klassify.models.frontends.torchaudio_import import ensure_importable


class _Extractor(nn.Module):
    """(B, N) samples -> (B, C, T)."""

    def __init__(self, conv_layers: nn.ModuleList):
        super().__init__()
        self.conv_layers = conv_layers

    def forward(self, wave: Tensor) -> Tensor:
        x = wave[:, None]
        for layer in self.conv_layers:
            x, _ = layer(x, None)
        return x


class Projection(nn.Module):
    """(B, T, C) -> (B, T, D), and the normed input."""

    def __init__(self, layer_norm: nn.Module, projection: nn.Module):
        super().__init__()
        self.layer_norm, self.projection = layer_norm, projection

    def forward(self, local: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, C) -> (B, T, D) and (B, T, C)."""
        normed = self.layer_norm(local)
        return self.projection(normed), normed


class _Encoder(nn.Module):
    """(B, T, D) -> (B, T, D) after the final norm; a layer's first argument is its input."""

    def __init__(self, transformer: nn.Module):
        super().__init__()
        self.pos_conv_embed, self.layer_norm = transformer.pos_conv_embed, transformer.layer_norm
        self.layers = transformer.layers
        self.checkpointing = False

    def forward(self, x: Tensor) -> SimpleNamespace:
        x, position_bias = x + self.pos_conv_embed(x), None
        for layer in self.layers:
            if self.checkpointing and self.training:
                x, position_bias = checkpoint(layer, x, None, position_bias, use_reentrant=False)
            else:
                x, position_bias = layer(x, None, position_bias)
        return SimpleNamespace(last_hidden_state=self.layer_norm(x))


class TorchaudioSpeechModel(nn.Module):
    """The encoder that a transformers config describes, built by torchaudio.

    config: a Wav2Vec2Config or WavLMConfig. ValueError unless it is layer-norm-first.
    """

    def __init__(self, config: Any):
        super().__init__()
        if not config.do_stable_layer_norm or config.feat_extract_norm != "layer":
            raise ValueError("torchaudio has only the layer-norm-first speech models")
        built = _built(config)
        self.config = config
        self.feature_extractor = _Extractor(built.feature_extractor.conv_layers)
        projection = built.encoder.feature_projection
        self.feature_projection = Projection(projection.layer_norm, projection.projection)
        self.encoder = _Encoder(built.encoder.transformer)
        if config.model_type == "wavlm":
            for layer in self.encoder.layers:
                layer.attention.register_state_dict_post_hook(_split_projections)
                layer.attention.register_load_state_dict_pre_hook(_join_projections)

    def activation_checkpointing_enable(self, *_: Any) -> None:
        """Compute the forward pass of each layer twice in training, to save memory."""
        self.encoder.checkpointing = True


def _built(config: Any) -> nn.Module:
    ensure_importable()
    from torchaudio.models import wav2vec2_model, wavlm_model

    conv_layers = list(zip(config.conv_dim, config.conv_kernel, config.conv_stride))
    settings = {
        "extractor_mode": "layer_norm",
        "extractor_conv_layer_config": conv_layers,
        "extractor_conv_bias": config.conv_bias,
        "encoder_embed_dim": config.hidden_size,
        "encoder_projection_dropout": config.feat_proj_dropout,
        "encoder_pos_conv_kernel": config.num_conv_pos_embeddings,
        "encoder_pos_conv_groups": config.num_conv_pos_embedding_groups,
        "encoder_num_layers": config.num_hidden_layers,
        "encoder_num_heads": config.num_attention_heads,
        "encoder_attention_dropout": config.attention_dropout,
        "encoder_ff_interm_features": config.intermediate_size,
        "encoder_ff_interm_dropout": config.activation_dropout,
        "encoder_dropout": config.hidden_dropout,
        "encoder_layer_norm_first": True,
        "encoder_layer_drop": config.layerdrop,
        "aux_num_out": None,
    }
    if config.model_type == "wavlm":
        return wavlm_model(
            **settings,
            encoder_num_buckets=config.num_buckets,
            encoder_max_distance=config.max_bucket_distance,
        )
    return wav2vec2_model(**settings)


# torchaudio's WavLM keeps one matrix for queries, keys and values inside nn.MultiheadAttention
PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def _split_projections(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    for name in ("weight", "bias"):
        joined = state.pop(f"{prefix}attention.in_proj_{name}")
        for projection, part in zip(PROJECTIONS, joined.chunk(3)):
            state[f"{prefix}{projection}.{name}"] = part
        state[f"{prefix}out_proj.{name}"] = state.pop(f"{prefix}attention.out_proj.{name}")


def _join_projections(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in ("weight", "bias"):
        keys = [f"{prefix}{projection}.{name}" for projection in PROJECTIONS]
        if all(key in state for key in keys):  # load_state_dict reports missing ones
            state[f"{prefix}attention.in_proj_{name}"] = torch.cat([state.pop(key) for key in keys])
        if f"{prefix}out_proj.{name}" in state:
            state[f"{prefix}attention.out_proj.{name}"] = state.pop(f"{prefix}out_proj.{name}")
