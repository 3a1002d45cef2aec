"""Generate a small corpus of partially faked talking-head clips: painted faces, espeak-ng speech.

    klassify corpus --out media/demo --size default

The four versions of each original (real, audio, visual, both modified) differ only in their fake
segments. The folder has the challenge's layout: train/ val/ testA/ testB/, train_metadata.json,
val_metadata.json, testA_files.txt, testB_files.txt. The labels of the test splits are in a separate
folder, heldout/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.arguments import at_least_0, at_least_1
from klassify.corpus.plan import DIFFICULTIES, SIZES


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the corpus")
    add("--size", choices=SIZES, default="default", help="24, 120 or 728 clips")
    add("--seed", type=at_least_0, default=0, help="equal seeds give equal files")
    add("--difficulty", choices=DIFFICULTIES, default="normal", help="of the fakes")
    add("--jobs", type=at_least_1, default=1, help="processes (default 1)")
    add("--sheet", type=Path, metavar="PNG", help="also draw a contact sheet of the clips")
    add("--force", action="store_true", help="replace a corpus made with other settings")


def run(args: argparse.Namespace) -> int:
    """Generate the corpus, and draw the contact sheet if asked."""
    from klassify.corpus.build import build

    build(args.out, args.size, args.seed, args.difficulty, jobs=args.jobs, force=args.force)
    if args.sheet:
        from klassify.corpus.sheet import draw_sheet

        draw_sheet(args.out, args.sheet)
    return 0
