"""The tokenizer of a LLaVA-1.5 folder, from its tokenizer.json or from SentencePiece's
tokenizer.model.

The LLaVA project ships tokenizer.model alone. transformers converts it with two more packages,
whose newer versions exclude the protobuf that MediaPipe needs; the conversion of this one kind
(byte-pair pieces with byte fallback, text unchanged but for a space in front) is short.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError
from klassify.models.frontends.torchaudio_import import import_transformers

SPACE = "▁"
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def load_tokenizer(folder: Path) -> Any:
    """A PreTrainedTokenizerFast as the folder describes it. KlassifyError where it has none or a
    broken one.
    """
    files = folder / "tokenizer.json", folder / "tokenizer.model"
    if not any(path.is_file() for path in files):
        raise KlassifyError(
            "This folder has neither tokenizer.json nor tokenizer.model.", where=folder
        )
    from tokenizers import Tokenizer

    path = next(path for path in files if path.is_file())
    try:
        backend = (
            Tokenizer.from_file(str(path)) if path.suffix == ".json" else from_sentencepiece(path)
        )
    except Exception as error:  # both parsers raise bare Exceptions of their own
        raise KlassifyError(f"This tokenizer cannot be read: {error}.", where=path) from None
    if absent := [token for token in SPECIAL.values() if backend.token_to_id(token) is None]:
        raise KlassifyError(
            f"This is no Llama tokenizer: it lacks {', '.join(absent)}.", where=path
        )
    return import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **SPECIAL
    )


def from_sentencepiece(path: Path) -> Any:
    """A `tokenizers.Tokenizer` that does what SentencePiece does with a Llama's tokenizer.model."""
    import_transformers()
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers.utils import sentencepiece_model_pb2_new as messages

    model = messages.ModelProto.FromString(path.read_bytes())
    scores = {piece.piece: piece.score for piece in model.pieces}
    if (
        model.trainer_spec.model_type != model.trainer_spec.BPE
        or not model.trainer_spec.byte_fallback
    ):
        raise KlassifyError("it is not of byte pairs with byte fallback")
    vocabulary = {piece.piece: number for number, piece in enumerate(model.pieces)}
    bpe = models.BPE(
        vocab=vocabulary,
        merges=merges(scores),
        unk_token=SPECIAL["unk_token"],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(bpe)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL.values()]
    )
    return backend


def merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Which two pieces become one, in the order in which SentencePiece would join them: by the
    score of the whole.
    """
    numbers = {piece: number for number, piece in enumerate(scores)}
    found = []
    for piece, score in scores.items():
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        found += [
            (-score, numbers[piece], left, right)
            for left, right in halves
            if left in scores and right in scores
        ]
    return [(left, right) for _, _, left, right in sorted(found, key=lambda merge: merge[:2])]
