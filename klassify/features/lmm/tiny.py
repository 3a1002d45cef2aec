"""A tiny LLaVA of the same classes with random weights, for tests and the demo. It is NOT trained.

It needs no download and tests the code: its features depend on the image, but they and its texts
mean nothing.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from klassify.models.frontends.torchaudio_import import import_transformers

SEED = 2025
WARNING = "the LMM is the tiny one with random weights: its features and texts mean nothing"
SPECIAL = ("<unk>", "<s>", "</s>", "<image>")


def llava_config() -> Any:
    """LlavaConfig: 64 wide, 2 layers, images of 56 x 56 in 16 patches; CLIP's part is 32 wide."""
    transformers = import_transformers()
    n_tokens = len(SPECIAL) + 256
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    # a wider spread than the usual 0.02, so that the output depends on the image
    spread = {"initializer_range": 0.2}
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        image_size=56,
        patch_size=14,
        projection_dim=32,
        **layers,
        **spread,
    )
    text = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_key_value_heads=2,
        vocab_size=n_tokens,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=2048,
        **layers,
        **spread,
    )
    return transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=16,
        **spread,
    )


def llava() -> nn.Module:
    """The model on the CPU, always with the same weights."""
    return _seeded(lambda: import_transformers().LlavaForConditionalGeneration(llava_config()))


def clip() -> nn.Module:
    """A CLIPVisionModel of the size of the tiny LLaVA's vision tower, with other weights."""
    return _seeded(lambda: import_transformers().CLIPVisionModel(llava_config().vision_config))


def tokenizer() -> Any:
    """One token per byte, and the special tokens of LLaVA's tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def _seeded(build: Any) -> nn.Module:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return build().eval()
