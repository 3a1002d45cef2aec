"""Convert a published checkpoint to safetensors with this toolkit's names and classes (1 = fake).

    klassify import-checkpoint bam model.ckpt --out pretrained/bam.safetensors
    klassify import-checkpoint visual visual.ckpt --vqvae vqvae.pt \\
        --out pretrained/visual.safetensors
    klassify import-checkpoint partialspoof trained_network.pt --config ps.yaml \\
        --system exp/DATA/RECIPE/ps

The file of a detector can start a training (`klassify train --init`); that of a speech model or a
lip encoder can be the `source` of SSLFrontEnd or LipEncoder. With --system the result is a system
folder, as a training writes it, for `klassify score`. No code from the file is run. A wrapper
around the model's names is stripped, tensors that the model does not need are left out, and the
summary names both; a missing tensor is an error. docs/checkpoints.md lists all kinds and where they
are published.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.errors import KlassifyError
from klassify.models.weights.published import LIPS, SPEECH_MODELS
from klassify.systems.imported import (
    SECOND_FILES,
    SOURCES,
    Released,
    read_architecture,
    released_experiment,
    released_model,
)


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", choices=SOURCES, help="the kind of file")
    add("file", type=Path, help="the published checkpoint, or its folder")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="as in klassify train")
    result = parser.add_mutually_exclusive_group(required=True)
    result.add_argument(
        "--out", type=Path, metavar="FILE.safetensors", help="write only the weights"
    )
    result.add_argument(
        "--system", type=Path, metavar="SYSTEM_DIR", help="write a system folder; needs --config"
    )
    add("--config", type=Path, help="YAML of the system that gets the weights")
    add(
        "--architecture",
        help=(
            "without --config: the speech model, that is xlsr53, xlsr300m, large-robust,"
            " wavlm-large, or settings of the large model to replace, as JSON; of aasist: aasist or"
            " aasist-l; a lip encoder: av-hubert-large, raven-base, ... (default: that of the"
            " released file)"
        ),
    )
    add(
        "--vqvae",
        type=Path,
        metavar="FILE",
        help="for visual: vqvae.pt, or the folder of a VQ-VAE trained here",
    )
    add("--prn", type=Path, metavar="FILE", help="for cfprf: 2PRN_*.pth beside 1FDN_*.pth")
    add("--force", action="store_true", help="replace a system made from another file or config")


def run(args: argparse.Namespace) -> int:
    """Convert the checkpoint, write the result and print the summary."""
    _check(args)
    if args.config:
        experiment = released_experiment(args.source, args.config, args.overrides)
        model = experiment.model
    else:
        model = released_model(args.source, read_architecture(args.source, args.architecture))
    released = Released(args.source, args.file, model, second=args.vqvae or args.prn)
    if args.system:
        report = released.write_system(args.system, experiment, force=args.force)
    else:
        report = released.load()
        released.save(args.out)
    print(f"{args.system or args.out}: {report or 'already imported'}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together, before anything is built."""
    if args.out and args.out.suffix != ".safetensors":
        raise KlassifyError("The output must be a .safetensors file.", where=args.out)
    for source, (option, *_) in SECOND_FILES.items():
        given = getattr(args, option.strip("-"))
        if given and args.source != source:
            raise KlassifyError(f"{option} belongs to {source}, not to {args.source}.", where=given)
    if args.source == "fusion" and (args.system or args.config):
        fix = (
            "import it with --out, then klassify fuse AUDIO VISUAL --rule linear --weights"
            " FILE.safetensors"
        )
        raise KlassifyError(
            "A fusion is a system only together with the systems that it combines.", fix=fix
        )
    if args.config and args.source in {**SPEECH_MODELS, **LIPS}:
        raise KlassifyError(
            "An encoder alone takes no config.", where=args.config, fix="use --architecture"
        )
    if args.config and args.architecture:
        raise KlassifyError(
            "The config has an architecture already.", where=args.config, fix="drop --architecture"
        )
    if args.overrides and not args.config:
        raise KlassifyError(
            f"{args.overrides[0]!r} overrides a config, but none is given.", fix="give --config"
        )
    if args.system and not args.config:
        raise KlassifyError(
            "A system folder needs the settings of its model and data.", fix="give --config"
        )
