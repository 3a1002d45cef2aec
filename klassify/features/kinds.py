"""The kinds of features that `klassify extract` makes: their arguments, settings, inputs and
extractors.

Mouth features and audio use a crew of worker processes, one clip each. The other kinds run one
model on one device in this process; several GPUs take a shard (`--shard i/n`) each.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from klassify.arguments import at_least_1
from klassify.errors import KlassifyError
from klassify.features.audio import audio_extraction
from klassify.features.base import Extraction
from klassify.features.lmm.kind import LMMRow, lmm_extraction
from klassify.features.mouth.kind import MouthRow, mouth_extraction
from klassify.features.reconstruction import ReconstructionRow, reconstruction_extraction

# clips a file: a file stays below a few hundred MB
CHUNKS = {"mouth": 2000, "audio": 500, "lmm": 200, "reconstruction": 200}
OWN_ARGUMENTS = {"landmarks": "mouth", "lmm": "lmm", "clip": "lmm", "vqvae": "reconstruction"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that belong to single kinds."""
    group = parser.add_argument_group("--kind mouth")
    group.add_argument(
        "--landmarks",
        type=Path,
        metavar="DIR",
        help="read <DIR>/<file>.npz instead of running Face Mesh",
    )
    group.add_argument(
        "--refine",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Face Mesh with refined lips and irises",
    )
    group = parser.add_argument_group("--kind lmm")
    models = "a folder, a hub id, or `tiny`, which is untrained"
    group.add_argument("--lmm", metavar="MODEL", help=f"LLaVA-1.5: {models}")
    group.add_argument(
        "--clip",
        metavar="MODEL",
        help=f"CLIP-L/14-336 instead of the LMM's own vision tower: {models}",
    )
    group.add_argument(
        "--interval",
        type=at_least_1,
        default=200,
        help="every how many frames (default: %(default)s)",
    )
    group.add_argument(
        "--load-in",
        type=int,
        choices=(16, 8, 4),
        default=16,
        help="bits a weight (on CPU always 32)",
    )
    group.add_argument(
        "--download", action="store_true", help="fetch a hub id that is not on this machine"
    )
    group = parser.add_argument_group("--kind reconstruction")
    group.add_argument(
        "--vqvae",
        type=Path,
        metavar="SYSTEM",
        help="folder of a trained VQ-VAE, or a safetensors file",
    )
    group.add_argument(
        "--size",
        type=at_least_1,
        default=224,
        help="pixels a side of a frame (default: %(default)s)",
    )
    group = parser.add_argument_group("--kind lmm and reconstruction")
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)"
    )
    group.add_argument("--batch", type=at_least_1, help="frames a batch (default: 8 and 64)")


def extraction(
    args: argparse.Namespace,
    device: str | None = None,
    load_vqvae: Callable[[Path], Any] | None = None,
) -> Extraction:
    """The extraction that the arguments ask for; KlassifyError for those that do not fit together.

    device: of another machine, on which it will run, `cuda` or `cpu`; None: one of this machine, as
    --device says. load_vqvae: loads the model of --vqvae once rows are made.
    """
    for name, kind in OWN_ARGUMENTS.items():
        if kind != args.kind and getattr(args, name) is not None:
            raise KlassifyError(f"--{name} belongs to --kind {kind}, not to --kind {args.kind}.")
    kinds = {
        "mouth": mouth_extraction,
        "audio": audio_extraction,
        "lmm": functools.partial(lmm_extraction, elsewhere=device),
        "reconstruction": functools.partial(reconstruction_extraction, load=load_vqvae),
    }
    return kinds[args.kind](args)


Row = MouthRow | LMMRow | ReconstructionRow
KINDS: dict[str, type[Row]] = {
    "mouth": MouthRow,
    "lmm": LMMRow,
    "reconstruction": ReconstructionRow,
}


def row_class(settings: Mapping[str, Any], where: object = None) -> type[Row]:
    """The row class of shards with these settings."""
    kind = settings.get("kind", "mouth")
    if kind not in KINDS:
        raise KlassifyError(
            f"There is no kind of features {kind!r}.", where=where, fix=f"known: {', '.join(KINDS)}"
        )
    return KINDS[kind]
