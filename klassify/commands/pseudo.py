"""Choose pseudo-labels: clips of an unlabelled list that a trained system is confident about.

    klassify pseudo exp/demo/fused/stack --split more --lists data_lists/demo \\
        --out exp/demo/pseudo/more.tsv
    klassify train recipes/fused/conf/demo/audio_mil.yaml --out exp/demo/pseudo/audio_mil \\
        --lists data_lists/demo --media media/demo --features features/demo \\
        train.pseudo=exp/demo/pseudo/more.tsv data.init_args.label=video

The list holds equal numbers of clips called fake and real. Training reads them, with the media and
features of their split, beside its own clips. A model that learned from them, and everything
computed from its scores, has the supervision `pseudo`. Answers of a system that learned from
segments are refused. No recipe uses pseudo-labels.

Labelled clips are refused. Clips of a test split need --transductive: the challenge's rules name
train and val for training, so ask the organisers before you submit such a system.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.arguments import at_least_1
from klassify.lists.pseudo import write_pseudo
from klassify.systems.pseudo import choose
from klassify.systems.system import load_system


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("system", type=Path, metavar="SYSTEM_DIR", help="the system that answered the clips")
    add("--split", required=True, help="unlabelled list that it has scored")
    add("--lists", type=Path, required=True, help="folder of the data lists")
    add("--out", type=Path, required=True, metavar="TSV", help="the list of pseudo-labels")
    add(
        "--fake-from",
        type=float,
        default=0.98,
        help="lowest probability of a clip that counts as fake (default 0.98)",
    )
    add(
        "--real-to",
        type=float,
        default=0.02,
        help="highest probability of a clip that counts as real (default 0.02)",
    )
    add("--most", type=at_least_1, default=100_000, help="most clips in the list (default 100000)")
    add("--transductive", action="store_true", help="allow the clips of a test split")


def run(args: argparse.Namespace) -> int:
    table, record = choose(
        load_system(args.system),
        args.split,
        args.lists,
        fake_from=args.fake_from,
        real_to=args.real_to,
        most=args.most,
        transductive=args.transductive,
    )
    write_pseudo(args.out, table, record)
    print(
        f"{args.out}: {len(table) // 2} fake and {len(table) // 2} real of {record.n_clips} clips"
        f" of {args.split}"
    )
    return 0
