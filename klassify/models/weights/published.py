"""The names in published checkpoints and what becomes of them here: KEY_MAPS has one table for each
kind of file.

To add a kind of file, add a table. Class 1 is fake in this package. In published audio models class
1 is bona fide, so their tables say which tensors are reordered on import; nothing else in the
package knows the published order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from klassify.errors import KlassifyError, first_few

if TYPE_CHECKING:
    from torch import Tensor

Rules = tuple[tuple[str, str], ...]
NOTHING = r"(?!)"  # matches no key


@dataclass(frozen=True)
class Order:
    """Along the axis `dim` of a tensor: ours[i] is theirs[places[i]]."""

    dim: int
    places: tuple[int, ...]

    def apply(self, tensor: Tensor, key: str) -> Tensor:
        """The tensor in our order; KlassifyError where it has another size along the axis."""
        if tensor.ndim <= self.dim or tensor.shape[self.dim] != len(self.places):
            raise KlassifyError(
                f"The shape of {key} in the file is {list(tensor.shape)}; axis {self.dim} must have"
                f" {len(self.places)} entries."
            )
        return tensor[(slice(None),) * self.dim + (list(self.places),)]


ROWS = Order(0, (1, 0))  # of an output layer: spoof, bona fide -> real, fake
COLUMNS = Order(1, (1, 0))  # the same for class vectors in columns


@dataclass(frozen=True)
class KeyMap:
    """How one kind of published file names its tensors. All patterns are regular expressions.

    signature: matches where a name begins that only this kind of file has.
    rules: (start of their name, start of ours); the first that matches is applied.
    unused: names of theirs that lie inside a part of the model, which does not use them.
    optional: names of ours that the file may lack.
    reordered: {names of ours: the Order they are put in}.
    shape: of the tensor with the signature, where its name alone says too little.
    licence: of the weights, said when they are imported.
    """

    signature: str
    rules: Rules
    unused: str = NOTHING
    optional: str = NOTHING
    reordered: Mapping[str, Order] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    licence: str = ""

    def wrappers(self, state: Mapping[str, Tensor]) -> list[str]:
        """The prefixes below which the names are those of such a file, such as 'model.'."""
        found = {}
        for key, value in state.items():
            if self.shape is not None and tuple(value.shape) != self.shape:
                continue
            if match := re.search(rf"(^|(?<=\.))(?:{self.signature})", key):
                found[key[: match.start()]] = None
        return list(found)

    def rename(self, key: str) -> str:
        """Our name for theirs."""
        for pattern, ours in self.rules:
            if match := re.match(pattern, key):
                return match.expand(ours) + key[match.end() :]
        return key

    def order_of(self, key: str) -> Order | None:
        """How our tensor `key` is reordered; None where it is not."""
        orders = (order for pattern, order in self.reordered.items() if re.fullmatch(pattern, key))
        return next(orders, None)

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
        """{our name: (their name, the tensor with class 1 = fake)}, without the unused ones."""
        ours = {}
        for key, value in state.items():
            if re.match(self.unused, key):
                continue
            name = self.rename(key)
            if name in ours:
                raise KlassifyError(f"{ours[name][0]} and {key} of this file are both {name} here.")
            order = self.order_of(name)
            ours[name] = key, order.apply(value, key) if order else value
        return ours


def below(rules: Rules, theirs: str, ours: str) -> Rules:
    """The same rules for names below a prefix."""
    return tuple(
        (re.escape(theirs) + pattern, ours + replacement) for pattern, replacement in rules
    )


# towards transformers' names, as klassify.models.frontends.ssl.SSLFrontEnd.model has them
WEIGHT_NORM: Rules = (
    (r"(encoder\.pos_conv_embed\.conv)\.weight_g", r"\1.parametrizations.weight.original0"),
    (r"(encoder\.pos_conv_embed\.conv)\.weight_v", r"\1.parametrizations.weight.original1"),
)
FAIRSEQ_ENCODER: Rules = (
    (
        r"encoder\.pos_conv\.0\.weight_g",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
    ),
    (
        r"encoder\.pos_conv\.0\.weight_v",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
    ),
    (r"encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm."),
    (
        r"(encoder\.layers\.\d+)\.self_attn\.relative_attention_bias\.",
        r"\1.attention.rel_attn_embed.",
    ),
    (r"(encoder\.layers\.\d+)\.self_attn\.grep_linear\.", r"\1.attention.gru_rel_pos_linear."),
    (r"(encoder\.layers\.\d+)\.self_attn\.grep_a", r"\1.attention.gru_rel_pos_const"),
    (r"(encoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
    (r"(encoder\.layers\.\d+)\.fc1\.", r"\1.feed_forward.intermediate_dense."),
    (r"(encoder\.layers\.\d+)\.fc2\.", r"\1.feed_forward.output_dense."),
    ("", ""),
)
FAIRSEQ: Rules = (
    (r"(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"(feature_extractor\.conv_layers\.\d+)\.2\.1\.", r"\1.layer_norm."),
    (r"layer_norm\.", "feature_projection.layer_norm."),
    (r"post_extract_proj\.", "feature_projection.projection."),
    *FAIRSEQ_ENCODER,
)

SPEECH_MODELS = {
    # Microsoft's WavLM-Large.pt; before fairseq, whose names it shares
    "wavlm": KeyMap(signature=r"encoder\.layers\.\d+\.self_attn\.grep_a", rules=FAIRSEQ),
    # fairseq's xlsr_53_56k.pt, xlsr2_300m.pt, w2v_large_lv_fsh_swbd_cv.pt
    "fairseq": KeyMap(signature=r"post_extract_proj\.", rules=FAIRSEQ),
    # pytorch_model.bin or model.safetensors of the same models in transformers' own naming
    "transformers": KeyMap(signature=r"feature_projection\.", rules=WEIGHT_NORM),
}

COUNTERS = r".*\.num_batches_tracked"  # of batch norms, which older files lack

AUDIO = {
    # SSL_Anti-spoofing, LA_model.pth and Best_LA_model_for_DF.pth ->
    # klassify.models.w2v_aasist.W2VAASIST
    "ssl-anti-spoofing": KeyMap(
        signature=r"ssl_model\.model\.",
        rules=(*below(FAIRSEQ, "ssl_model.model.", "frontend.model."), ("", "backend.")),
        # older files have the first block's normalisation, which no version of the model uses
        unused=r"encoder\.0\.0\.bn1\b",
        optional=rf"{COUNTERS}|backend\.encoder\.[1-5]\.0\.bn1\..*",
        reordered={r"backend\.out_layer\.(weight|bias)": ROWS},
    ),
    # clovaai's AASIST.pth and AASIST-L.pth -> klassify.models.raw_aasist.RawAASIST
    "aasist": KeyMap(
        signature=r"GAT_layer_S\.",
        rules=(),
        unused=r"encoder\.0\.0\.bn1\b",
        optional=rf"{COUNTERS}|encoder\.[1-5]\.0\.bn1\..*",
        reordered={r"out_layer\.(weight|bias)": ROWS},
    ),
    # BAM's model.ckpt -> klassify.models.bam.BAM
    "bam": KeyMap(
        signature=r"ssl_layer\.model\.",
        rules=(*below(FAIRSEQ, "ssl_layer.model.", "frontend.model."), ("", "backend.")),
        optional=COUNTERS,
        reordered={r"backend\.out_layer\.(weight|bias)": ROWS},
    ),
    # PartialSpoof's trained_network.pt, and the Purdue audio branch's ->
    # klassify.models.partialspoof.PartialSpoof
    "partialspoof": KeyMap(
        signature=r"m_angle_scales\.",
        rules=(
            *below(FAIRSEQ, "extracter.model.", "frontend.model."),
            (r"m_transform\.0\.", "backend."),
        ),
        reordered={r"m_angle_scales\.\d+\.weight": COLUMNS},
    ),
    # CFPRF's 1FDN_*.pth and 2PRN_*.pth, whose names differ -> klassify.models.cfprf.CFPRF
    "cfprf": KeyMap(
        signature=r"b_amlp\.",
        rules=(
            *below(FAIRSEQ, "asr.model.", "frontend.model."),
            (r"(?=cnn\d\.|headers\.|encoder\.fc\d\.)", "prn."),
            ("", "fdn."),
        ),
        optional=COUNTERS,
        reordered={r"fdn\.seg_fc\.(weight|bias)": ROWS},
        licence="MIT, that of the published code",
    ),
}

VISUAL = {
    # the Purdue system's visual.ckpt and MM-Det's current_model.pth ->
    # klassify.models.visual.Visual. The frozen LMM inside MM-Det (mm_encoder) is left out: its
    # states are features here (extract --kind lmm).
    "visual": KeyMap(
        signature=r"final_fusion\.channel_attn\.",
        rules=((r"backbone\.temporal_token$", "backbone.fc_token"),),
    ),
    # vqvae.pt of both -> klassify.models.vqvae.VQVAE
    "vqvae": KeyMap(signature=r"codebook\.embedding\.", rules=()),
}

# encoders of lips -> klassify.models.lip_encoder.LipEncoder
LIPS = {
    # AV-HuBERT's files: base_lrs3_iter4.pt, and fine-tuned ones such as self_large_vox_433h.pt
    "av-hubert": KeyMap(
        signature=r"feature_extractor_video\.resnet\.",
        rules=(
            (r"feature_extractor_video\.resnet\.frontend3D\.", "trunk.stem."),
            (r"feature_extractor_video\.resnet\.trunk\.", "trunk."),
            (r"feature_extractor_(video|audio)\.proj\.", r"context.\1_proj."),
            (r"layer_norm\.", "context.both_norm."),
            (r"post_extract_proj\.", "context.both_proj."),
            *below(FAIRSEQ_ENCODER, "", "context."),
        ),
        optional=COUNTERS,
        licence=(
            "the AV-HuBERT licence of Meta: non-commercial research only, not for surveillance, and"
            " it covers what is made with the weights"
        ),
    ),
    # RAVEn's and BRAVEn's visual encoders, bare or in a fine-tuned vsr_*.pth
    "raven": KeyMap(
        signature=r"frontend\.frontend3D\.",
        rules=(
            (r"frontend\.frontend3D\.", "trunk.stem."),
            (r"frontend\.trunk\.", "trunk."),
            (r"(?:embed|input_layer)\.0\.", "context.embed."),
            (r"(?:after_norm|norm)\.", "context.after_norm."),
            (r"encoders\.(\d+)\.feed_forward\.", r"context.layers.\1."),
            (r"encoders\.", "context.layers."),
        ),
        optional=COUNTERS,
        licence="MIT, that of the published code; the weights learned from LRS3 and VoxCeleb2",
    ),
}

# AuViRe's files for AV-Deepfake1M and LAV-DF -> klassify.models.auvire.AuViRe
AUVIRE = KeyMap(
    signature=r"reconstruction_model\.model\.",
    rules=(
        (
            r"reconstruction_model\.model\.projection_(pre|post)\.projection\.",
            r"reconstruction.\1.",
        ),
        (r"reconstruction_model\.model\.encoder\.", "reconstruction.down."),
        (r"reconstruction_model\.model\.decoder\.(\d+)\.deconv\.", r"reconstruction.up.\1.conv."),
        (r"reconstruction_model\.model\.decoder\.", "reconstruction.up."),
        (r"encoder_model\.model\.model\.", "encoder."),
        (r"encoder_model\.model\.pyramid\.inner_blocks\.(\d+)\.0\.", r"lateral.\1."),
        (r"encoder_model\.model\.pyramid\.layer_blocks\.(\d+)\.0\.", r"smooth.\1."),
        (r"classification\.model\.", "classify."),  # `module.` within the names is gone already
        (r"regression\.model\.", "regress."),
    ),
    licence=(
        "Apache-2.0, that of the published code; its features come from AV-HuBERT, whose licence"
        " allows non-commercial research only"
    ),
)

# the Purdue system's fusion.ckpt -> klassify.models.linear_fusion.LinearFusion. Its inputs are
# visual real and fake, then spoof and bona fide at 160, 320 and 640 ms; ours are real and fake
# throughout.
FUSION = KeyMap(
    signature=r"weight$",
    shape=(2, 8),
    rules=(),
    reordered={r"weight": Order(1, (0, 1, 3, 2, 5, 4, 7, 6))},
)

# a detector holds a speech model, so detectors are recognised first
KEY_MAPS: dict[str, KeyMap] = {
    **AUDIO,
    **VISUAL,
    **LIPS,
    "auvire": AUVIRE,
    **SPEECH_MODELS,
    "fusion": FUSION,
}


def detect_source(state: Mapping[str, Tensor], where: object = None) -> str:
    """The name in KEY_MAPS of the kind of file that has these names."""
    for source, key_map in KEY_MAPS.items():
        if key_map.wrappers(state):
            return source
    what = f"No known kind of checkpoint has such names: {first_few(state)}."
    raise KlassifyError(what, where=where, fix=f"known kinds are {', '.join(KEY_MAPS)}")


# Settings of a speech model under transformers' names. Most of them change no tensor's shape, so a
# file loads under another value without complaint, and the model gives other numbers.
SETTINGS = (
    *("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("hidden_act", "layer_norm_eps", "do_stable_layer_norm", "feat_extract_norm"),
    *("feat_extract_activation", "conv_dim", "conv_kernel", "conv_stride", "conv_bias"),
    *("num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "num_buckets"),
    "max_bucket_distance",
)
FAIRSEQ_SETTINGS = {
    "encoder_embed_dim": "hidden_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_ffn_embed_dim": "intermediate_size",
    "activation_fn": "hidden_act",
    "layer_norm_first": "do_stable_layer_norm",
    "conv_bias": "conv_bias",
    "conv_pos": "num_conv_pos_embeddings",
    "conv_pos_groups": "num_conv_pos_embedding_groups",
    "num_buckets": "num_buckets",
    "max_distance": "max_bucket_distance",
}
EXTRACTOR_MODES = {"layer_norm": "layer", "default": "group"}


def settings_from_fairseq(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What fairseq's or WavLM's `cfg` says of SETTINGS, under transformers' names."""
    settings = {ours: cfg[theirs] for theirs, ours in FAIRSEQ_SETTINGS.items() if theirs in cfg}
    if cfg.get("extractor_mode") in EXTRACTOR_MODES:
        settings["feat_extract_norm"] = EXTRACTOR_MODES[cfg["extractor_mode"]]
    if layers := _convolutions(str(cfg.get("conv_feature_layers"))):
        names = ("conv_dim", "conv_kernel", "conv_stride")
        settings |= {name: list(column) for name, column in zip(names, zip(*layers))}
    return settings


def _convolutions(text: str) -> list[tuple[int, int, int]]:
    """(dim, kernel, stride) of each layer in '[(512, 10, 5)] + [(512, 3, 2)] * 4'; [] for others.

    fairseq evaluates this text as Python, which a file from elsewhere must not ask for.
    """
    layer = r"\(\d+,\d+,\d+\),?"
    group = rf"\[(?:{layer})+\](?:\*\d{{1,2}})?"
    text = text.replace(" ", "")
    if not re.fullmatch(rf"{group}(?:\+{group})*", text):
        return []
    layers = []
    for part in text.split("+"):
        inside, _, times = part.partition("]")
        found = re.findall(r"\((\d+),(\d+),(\d+)\)", inside)
        layers += [tuple(map(int, one)) for one in found] * int(times.removeprefix("*") or 1)
    return layers
