"""The tokenizer of a LLaVA-1.5 folder, from tokenizer.json or SentencePiece's tokenizer.model.

The LLaVA project has only tokenizer.model. To convert it, transformers needs two more packages,
whose newer versions conflict with the protobuf that MediaPipe needs. The conversion of this one
kind (byte pairs with byte fallback, text unchanged except for a space in front) is short.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError
from klassify.models.frontends.torchaudio_import import import_transformers

SPACE = "▁"
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, a PreTrainedTokenizerFast. KlassifyError if missing or broken."""
    names = ("tokenizer.json", "tokenizer.model")
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise KlassifyError(f"This folder has neither {' nor '.join(names)}.", where=folder)
    from tokenizers import Tokenizer

    try:
        if path.suffix == ".json":
            backend = Tokenizer.from_file(str(path))
        else:
            backend = from_sentencepiece(path)
    except Exception as error:  # both parsers raise bare Exceptions
        raise KlassifyError(f"This tokenizer cannot be read: {error}.", where=path) from None
    absent = [token for token in SPECIAL.values() if backend.token_to_id(token) is None]
    if absent:
        raise KlassifyError(
            f"This is not a Llama tokenizer: it lacks {', '.join(absent)}.", where=path
        )
    return import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **SPECIAL
    )


def from_sentencepiece(path: Path) -> Any:
    """A `tokenizers.Tokenizer` that does what SentencePiece does with a Llama tokenizer.model."""
    import_transformers()
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers.utils import sentencepiece_model_pb2_new as messages

    model = messages.ModelProto.FromString(path.read_bytes())
    scores = {piece.piece: piece.score for piece in model.pieces}
    trainer = model.trainer_spec
    if trainer.model_type != trainer.BPE or not trainer.byte_fallback:
        raise KlassifyError("it does not have byte pairs with byte fallback")
    vocabulary = {piece.piece: number for number, piece in enumerate(model.pieces)}
    bpe = models.BPE(
        vocab=vocabulary,
        merges=merges(scores),
        unk_token=SPECIAL["unk_token"],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(bpe)
    spaces = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    backend.normalizer = normalizers.Sequence(spaces)
    bytes_to_text = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*bytes_to_text, decoders.Strip(" ", 1, 0)])
    special = [AddedToken(token, normalized=False, special=True) for token in SPECIAL.values()]
    backend.add_special_tokens(special)
    return backend


def merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """The pairs of pieces that SentencePiece joins, in its order: by the score of the result."""
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
