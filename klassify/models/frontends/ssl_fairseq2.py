"""fairseq2's wav2vec 2.0 encoders with the module names and methods of transformers'.

fairseq2 pins its own torch and therefore needs a separate environment, which `make test-fairseq2`
builds. It has no WavLM. Equal names allow one state dict for all libraries.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from klassify.errors import KlassifyError
from klassify.models.frontends.ssl_torchaudio import Projection

# names below the encoder: fairseq2's, transformers'
NAMES = (
    (r"pos_conv_embed\.conv\.weight_g$", "pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"pos_conv_embed\.conv\.weight_v$", "pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"^(layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm."),
    (r"^(layers\.\d+)\.self_attn\.([qkv])_proj\.", r"\1.attention.\2_proj."),
    (r"^(layers\.\d+)\.self_attn\.output_proj\.", r"\1.attention.out_proj."),
    (r"^(layers\.\d+)\.ffn_layer_norm\.", r"\1.final_layer_norm."),
    (r"^(layers\.\d+)\.ffn\.inner_proj\.", r"\1.feed_forward.intermediate_dense."),
    (r"^(layers\.\d+)\.ffn\.output_proj\.", r"\1.feed_forward.output_dense."),
)


def _import_fairseq2() -> None:
    """Import fairseq2, with the libsndfile of the soundfile package, which it needs.

    KlassifyError, which says how to install it, if that fails.
    """
    package = importlib.util.find_spec("soundfile")
    if package is not None and package.origin:
        for library in Path(package.origin).parent.glob("_soundfile_data/*.so*"):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    try:
        import fairseq2  # noqa: F401
    except (ImportError, OSError) as error:
        raise KlassifyError(
            f"The library fairseq2 cannot be used here ({error}).",
            fix="pip install 'klassify[fairseq2]' in a separate environment (it pins torch), or"
            " choose library: transformers",
        ) from None


class _Extractor(nn.Module):
    """(B, N) samples -> (B, C, T)."""

    def __init__(self, conv_layers: nn.Sequential):
        super().__init__()
        self.conv_layers = conv_layers

    def forward(self, wave: Tensor) -> Tensor:
        return self.conv_layers(wave[:, None])


class _Encoder(nn.Module):
    """(B, T, D) -> (B, T, D) after the final norm; a layer's first argument is its input."""

    def __init__(self, pos_conv_embed: nn.Module, layers: nn.ModuleList, layer_norm: nn.Module):
        super().__init__()
        self.pos_conv_embed, self.layers, self.layer_norm = pos_conv_embed, layers, layer_norm
        self.checkpointing = False
        self.register_state_dict_post_hook(_theirs_to_ours)
        self.register_load_state_dict_pre_hook(_ours_to_theirs)

    def forward(self, x: Tensor) -> SimpleNamespace:
        from fairseq2.models.transformer import AttentionBiasCache
        from fairseq2.nn import BatchLayout

        layout, cache = BatchLayout.of(x), AttentionBiasCache()
        x = self.pos_conv_embed(x, layout)
        for layer in self.layers:
            if self.checkpointing and self.training:
                x = checkpoint(layer, x, layout, cache, use_reentrant=False)
            else:
                x = layer(x, layout, cache)
        return SimpleNamespace(last_hidden_state=self.layer_norm(x))


class Fairseq2SpeechModel(nn.Module):
    """The encoder that a transformers Wav2Vec2Config describes, built by fairseq2.

    KlassifyError if fairseq2 cannot be used, and for WavLM, which it does not have.
    """

    def __init__(self, config: Any):
        super().__init__()
        norm_first = config.do_stable_layer_norm and config.feat_extract_norm == "layer"
        if config.model_type != "wav2vec2" or not norm_first:
            raise KlassifyError(
                "fairseq2 has only the layer-norm-first wav2vec 2.0 models.",
                fix="choose library: transformers",
            )
        _import_fairseq2()
        frontend, encoder = _built(config)
        self.config = config
        self.feature_extractor = _Extractor(frontend.feature_extractor.layers)
        self.feature_projection = Projection(
            frontend.post_extract_layer_norm, frontend.model_dim_proj
        )
        self.encoder = _Encoder(frontend.pos_encoder, encoder.layers, encoder.layer_norm)

    def activation_checkpointing_enable(self, *_: Any) -> None:
        """Compute the forward pass of each layer twice in training, to save memory."""
        self.encoder.checkpointing = True


def _built(config: Any) -> tuple[nn.Module, nn.Module]:
    from fairseq2.models.transformer import TransformerNormOrder
    from fairseq2.models.wav2vec2.config import Wav2Vec2EncoderConfig
    from fairseq2.models.wav2vec2.factory import Wav2Vec2EncoderFactory

    factory = Wav2Vec2EncoderFactory(
        Wav2Vec2EncoderConfig(
            model_dim=config.hidden_size,
            feature_dim=config.conv_dim[-1],
            first_pass_dropout_p=config.feat_proj_dropout,
            layer_norm_features=False,
            feature_extractor_layer_descs=list(
                zip(config.conv_dim, config.conv_kernel, config.conv_stride)
            ),
            feature_extractor_bias=config.conv_bias,
            feature_extractor_layer_norm_convs=True,
            feature_grad_scale=1.0,
            pos_conv_kernel_size=config.num_conv_pos_embeddings,
            num_pos_conv_groups=config.num_conv_pos_embedding_groups,
            num_encoder_layers=config.num_hidden_layers,
            num_encoder_attn_heads=config.num_attention_heads,
            ffn_inner_dim=config.intermediate_size,
            dropout_p=config.hidden_dropout,
            attn_dropout_p=config.attention_dropout,
            ffn_inner_dropout_p=config.activation_dropout,
            layer_drop_p=config.layerdrop,
            norm_order=TransformerNormOrder.PRE,
        )
    )
    return factory.create_encoder_frontend(), factory.create_encoder()


def _ours(name: str) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _theirs_to_ours(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + _ours(key[len(prefix) :])] = state.pop(key)


def _ours_to_theirs(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    theirs = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    for name in theirs:
        if (key := prefix + _ours(name)) in state and key != prefix + name:
            state[prefix + name] = state.pop(key)
