"""The names in published checkpoints, and what becomes of them here: KEY_MAPS, one table a kind of
file.

Adding a kind of file is adding a table. Class 1 is fake in this package. Published audio models
have class 1 = bona fide, hence their tables say which tensors are put in another order on the way
in; nothing else in the package knows of the published order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
        """The tensor in our order; KlassifyError where it has another shape than its kind of
        file gives it.
        """
        if tensor.ndim <= self.dim or tensor.shape[self.dim] != len(self.places):
            raise KlassifyError(
                f"{key} is {list(tensor.shape)} there; its axis {self.dim} should have"
                f" {len(self.places)} entries."
            )
        return tensor[(slice(None),) * self.dim + (list(self.places),)]


ROWS = Order(0, (1, 0))  # of an output layer: spoof, bona fide -> real, fake
COLUMNS = Order(1, (1, 0))  # the same for class vectors that stand in columns


@dataclass(frozen=True)
class KeyMap:
    """How one kind of published file names its tensors. All patterns are regular expressions.

    signature: matches at the start of a key that only this kind of file has.
    rules: (start of their key, start of ours); the first that matches is applied.
    unused: keys of theirs that are left out on purpose.
    optional: keys of ours that the file may lack.
    reordered: {keys of ours: the Order they are put in}.
    """

    signature: str
    rules: Rules
    unused: str = NOTHING
    optional: str = NOTHING
    reordered: Mapping[str, Order] = field(default_factory=dict)

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """Whether these are the keys of such a file."""
        return any(re.match(self.signature, key) for key in state)

    def rename(self, key: str) -> str:
        """Our name for their key."""
        for pattern, ours in self.rules:
            if match := re.match(pattern, key):
                return match.expand(ours) + key[match.end() :]
        return key

    def order_of(self, key: str) -> Order | None:
        """How the tensor that is `key` here is put in order, if it is."""
        return next(
            (order for pattern, order in self.reordered.items() if re.fullmatch(pattern, key)), None
        )

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under our names, without the unused ones, class 1 = fake."""
        ours = {}
        for key, value in state.items():
            if re.match(self.unused, key):
                continue
            name = self.rename(key)
            if name in ours:
                raise KlassifyError(f"Two tensors of this file are {name} here, one of them {key}.")
            order = self.order_of(name)
            ours[name] = order.apply(value, key) if order else value
        return ours


def below(rules: Rules, theirs: str, ours: str) -> Rules:
    """The same rules for tensors that lie under a prefix."""
    return tuple(
        (re.escape(theirs) + pattern, ours + replacement) for pattern, replacement in rules
    )


# ------------------------------------------------------------------------------------- speech
# models

# towards transformers' names, as klassify.models.frontends.ssl.SSLFrontEnd.model has them
WEIGHT_NORM: Rules = (
    (r"(encoder\.pos_conv_embed\.conv)\.weight_g", r"\1.parametrizations.weight.original0"),
    (r"(encoder\.pos_conv_embed\.conv)\.weight_v", r"\1.parametrizations.weight.original1"),
)
FAIRSEQ: Rules = (
    (r"(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"(feature_extractor\.conv_layers\.\d+)\.2\.1\.", r"\1.layer_norm."),
    (r"layer_norm\.", "feature_projection.layer_norm."),
    (r"post_extract_proj\.", "feature_projection.projection."),
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
FAIRSEQ_UNUSED = r"(quantizer|project_q|final_proj|mask_emb)\b"

SPEECH_MODELS = {
    # Microsoft's WavLM-Large.pt; before fairseq, whose names it shares
    "wavlm": KeyMap(
        signature=r"encoder\.layers\.\d+\.self_attn\.grep_a", rules=FAIRSEQ, unused=FAIRSEQ_UNUSED
    ),
    # fairseq's xlsr_53_56k.pt, xlsr2_300m.pt, w2v_large_lv_fsh_swbd_cv.pt
    "fairseq": KeyMap(signature=r"post_extract_proj\.", rules=FAIRSEQ, unused=FAIRSEQ_UNUSED),
    # pytorch_model.bin or model.safetensors of the same models in transformers' own naming
    "transformers": KeyMap(
        signature=r"((wav2vec2|wavlm)\.)?feature_projection\.",
        rules=(
            *below(WEIGHT_NORM, "wav2vec2.", ""),
            *below(WEIGHT_NORM, "wavlm.", ""),
            *WEIGHT_NORM,
        )
        + ((r"(wav2vec2|wavlm)\.", ""),),
        unused=r"((wav2vec2|wavlm)\.)?masked_spec_embed|(quantizer|project_hid|project_q|lm_head|projector|classifier)\.",
    ),
}

# -----------------------------------------------------------------------------------------
# detectors

COUNTERS = r".*\.num_batches_tracked"  # of batch norms, which older files lack

AUDIO = {
    # SSL_Anti-spoofing, LA_model.pth and Best_LA_model_for_DF.pth ->
    # klassify.models.w2v_aasist.W2VAASIST
    "ssl-anti-spoofing": KeyMap(
        signature=r"ssl_model\.model\.",
        rules=(*below(FAIRSEQ, "ssl_model.model.", "frontend.model."), ("", "backend.")),
        # older files have the first block's normalisation, which no version of the model uses
        unused=rf"ssl_model\.model\.{FAIRSEQ_UNUSED}|encoder\.0\.0\.bn1\b",
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
        # the ResNet's shortcut is a second name of layer4's
        unused=rf"ssl_layer\.model\.{FAIRSEQ_UNUSED}|intra_layer\.resnet\.downsample\b",
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
        # mean 0 and deviation 1 of a normalisation that the project never applies
        unused=rf"extracter\.model\.{FAIRSEQ_UNUSED}|(input|output)_(mean|std)$",
        reordered={r"m_angle_scales\.\d+\.weight": COLUMNS},
    ),
}

VISUAL = {
    # the Purdue system's visual.ckpt and MM-Det's current_model.pth ->
    # klassify.models.visual.Visual
    "visual": KeyMap(
        signature=r"final_fusion\.channel_attn\.",
        rules=((r"backbone\.temporal_token$", "backbone.fc_token"),),
        unused=(  # the frozen LMM inside MM-Det: its states are features here (extract --kind lmm)
            r"mm_encoder\b"
        ),
    ),
    # vqvae.pt of both -> klassify.models.vqvae.VQVAE
    "vqvae": KeyMap(signature=r"codebook\.embedding\.", rules=()),
    # the Purdue system's fusion.ckpt -> klassify.models.linear_fusion.LinearFusion. Its inputs are
    # visual real and fake, then spoof and bona fide at 160, 320 and 640 ms; ours are real and fake
    # throughout.
    "fusion": KeyMap(
        signature=r"(model\.)?weight$",
        rules=((r"model\.", ""),),
        reordered={r"weight": Order(1, (0, 1, 3, 2, 5, 4, 7, 6))},
    ),
}

KEY_MAPS: dict[str, KeyMap] = {**SPEECH_MODELS, **AUDIO, **VISUAL}


def detect_source(state: Mapping[str, Tensor], where: object = None) -> str:
    """The name in KEY_MAPS of the kind of file that has these keys."""
    for source, key_map in KEY_MAPS.items():
        if key_map.fits(state):
            return source
    raise KlassifyError(
        f"No known kind of checkpoint has such keys: {first_few(state)}.",
        where=where,
        fix=f"known kinds are {', '.join(KEY_MAPS)}",
    )
