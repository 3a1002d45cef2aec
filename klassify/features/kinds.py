"""The kinds of features that `klassify extract` makes, one line each (docs/adding-features.md).

Mouth features, mouth crops, audio and content use worker processes, one clip each. The other kinds
run one model on one device in this process; several GPUs take a shard (`--shard i/n`) each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from klassify.errors import KlassifyError
from klassify.features import audio, avhubert, content, embedding, lips, reconstruction
from klassify.features.base import Kind
from klassify.features.lmm import kind as lmm
from klassify.features.mouth import kind as mouth

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        mouth.KIND,
        lips.KIND,
        audio.KIND,
        content.KIND,
        lmm.KIND,
        reconstruction.KIND,
        embedding.KIND,
        avhubert.KIND,
    )
}
Row = Any  # of one of the kinds


def row_class(settings: Mapping[str, Any], where: object = None) -> type:
    """The row class of shards with these settings."""
    name = settings.get("kind", "mouth")
    if name not in KINDS:
        raise KlassifyError(
            f"There is no kind of features {name!r}.", where=where, fix=f"known: {', '.join(KINDS)}"
        )
    return KINDS[name].row_class
