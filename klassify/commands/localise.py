"""Frame scores -> proposals of a split, `scores/<split>.segments.tsv`.

    klassify localise exp/demo/klassify/bam --split val,testA
    klassify localise --merge exp/demo/klassify/{bam,tcn_tags} --out exp/demo/klassify/merged \\
        --split val,testA

Frame scores are kept, so that trying another method or setting takes seconds. Method and settings
are those of the system's proposals.yaml, which `klassify tune` writes, else the defaults;
`--proposals`, `--method` and `--set` override them. `--merge` makes a new system: the union of its
inputs' proposals, weighted and thinned by soft-NMS, for any split on which they have proposals.
Afterwards `klassify localise exp/demo/klassify/merged --split ...` does the same. With `--merge
... --method union`, proposals of several systems for the same fake become one: their scores
support each other, and their edges are averaged; the inputs' clip scores can take part.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.errors import KlassifyError
from klassify.localisation import proposals
from klassify.localisation.localise import choose, localise, parse_settings, write_merged
from klassify.systems.base import SYSTEM
from klassify.systems.system import load_system, load_systems


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("systems", nargs="*", type=Path, metavar="SYSTEM_DIR", help="folders with a system.yaml")
    add("--split", help="scored splits, comma-separated")
    add("--merge", nargs="+", type=Path, metavar="SYSTEM_DIR", help="merge these systems")
    add("--out", type=Path, help="folder of the system that --merge makes")
    add(
        "--proposals",
        type=Path,
        metavar="FILE.yaml",
        help="a proposals.yaml to use instead of the system's",
    )
    add(
        "--method",
        choices=(*proposals.NAMES, *proposals.JOINING),
        help=f"default: the tuned one, else {proposals.DEFAULT}; with --merge: merge",
    )
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the method")
    add("--force", action="store_true", help="replace proposals made with other settings")


def run(args: argparse.Namespace) -> int:
    if bool(args.merge) != bool(args.out):
        raise KlassifyError(
            "--merge names the systems to join and --out the folder of the result: give both."
        )
    if not (args.merge or (args.systems and args.split)):
        raise KlassifyError(
            "Nothing to do.", fix="give SYSTEM_DIR and --split, or --merge and --out"
        )
    systems = load_systems(args.systems)
    if args.merge:
        made = write_merged(args.out, args.merge, args.method or "merge", force=args.force)
        print(f"{args.out / SYSTEM}{'' if made else ' is up to date'}")
        systems.append(load_system(args.out))
    for system in systems:
        choice = choose(system, args.proposals, args.method, parse_settings(args.set))
        for split in args.split.split(",") if args.split else ():
            made = localise(system, split, choice, force=args.force)
            print(f"{system.path(split, 'segments')}{'' if made else ' is up to date'}")
    return 0
