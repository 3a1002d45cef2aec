"""Make a labelled corpus of partially faked talking-head clips, generated or from genuine clips.

    klassify corpus --out media/demo --size default
    klassify corpus --from my_clips --out media/real

Without --from, faces are painted and espeak-ng speaks. With it, pieces of 4 to 10 s of the genuine
clips in a folder are edited: mouths are taken from another time, moved or warped; speech is taken
from elsewhere in the clip or changed by a vocoder, in pace or in pitch. --people names the person
in each clip; without it, the person is the first folder below --from, or, for clips directly in it,
the file name up to the first underscore. Each person is in one split only. Clips without sound give
fakes of the picture only, clips without a face fakes of the sound only; failures.tsv says what
could not be used, and why.

The versions of each original (real, audio, visual, both modified) differ only in their fake
segments; --from adds a real version with harmless disturbances. The folder has the challenge's
layout: train/ val/ testA/ testB/, train_metadata.json, val_metadata.json, testA_files.txt,
testB_files.txt. The labels of the test splits are in a separate folder, heldout/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.arguments import at_least_0, at_least_1
from klassify.corpus.plan import DIFFICULTIES, SIZES
from klassify.errors import KlassifyError


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the corpus")
    add("--from", dest="source", type=Path, metavar="FOLDER", help="genuine clips to edit")
    add("--people", type=Path, metavar="TSV", help="with --from: file, person[, licence, origin]")
    add(
        "--licence",
        metavar="TEXT",
        help="with --from: licence of clips for which --people names none",
    )
    add("--size", choices=SIZES, help="24, 120, 456 (default) or 728 clips")
    add("--seed", type=at_least_0, default=0, help="random seed; equal seeds give equal files")
    add(
        "--difficulty", choices=DIFFICULTIES, help="how hard the fakes are to find (default normal)"
    )
    add("--jobs", type=at_least_1, default=1, help="processes (default 1)")
    add("--sheet", type=Path, metavar="PNG", help="also draw a contact sheet of the clips")
    add("--force", action="store_true", help="replace a corpus made with other settings")


def run(args: argparse.Namespace) -> int:
    """Generate the corpus, and draw the contact sheet if asked."""
    from klassify.corpus.build import build, build_from

    refused = ("size", "difficulty") if args.source else ("people", "licence")
    if wrong := [f"--{name}" for name in refused if getattr(args, name) is not None]:
        when = "without" if args.source else "with"
        raise KlassifyError(f"{', '.join(wrong)} can be given {when} --from only.")
    how = {"jobs": args.jobs, "force": args.force}
    if args.source:
        named = {"people": args.people, "licence": args.licence or ""}
        build_from(args.source, args.out, args.seed, **named, **how)
    else:
        size, difficulty = args.size or "default", args.difficulty or "normal"
        build(args.out, size, args.seed, difficulty, **how)
    if args.sheet:
        from klassify.corpus.sheet import draw_sheet

        draw_sheet(args.out, args.sheet)
    return 0
