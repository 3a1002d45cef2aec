"""Generate the small corpus of talking-head clips with planted partial fakes: painted faces,
espeak-ng speech.

    klassify corpus --out media/demo --size default

Four versions of every original (real, audio, visual, both modified) share everything but the fake
spans. The folder is laid out as the challenge's is: train/ val/ testA/ testB/, train_metadata.json,
val_metadata.json, testA_files.txt, testB_files.txt. The labels of the test splits lie apart, in
heldout/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.arguments import at_least_0, at_least_1
from klassify.corpus.plan import DIFFICULTIES, SIZES


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `klassify corpus`."""
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--size", choices=SIZES, default="default", help="24, 120 or 728 clips (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=at_least_0, default=0, help="same seed, same files (%(default)s)"
    )
    parser.add_argument(
        "--difficulty", choices=DIFFICULTIES, default="normal", help="(%(default)s)"
    )
    parser.add_argument("--jobs", type=at_least_1, default=1, help="processes (%(default)s)")
    parser.add_argument(
        "--sheet", type=Path, metavar="PNG", help="also draw a contact sheet of the clips"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a corpus made with other settings"
    )


def run(args: argparse.Namespace) -> int:
    """Run `klassify corpus`."""
    from klassify.corpus.build import build

    build(args.out, args.size, args.seed, args.difficulty, jobs=args.jobs, force=args.force)
    if args.sheet:
        from klassify.corpus.sheet import draw_sheet

        draw_sheet(args.out, args.sheet)
    return 0
