"""Measure how long stages 1 to 3 will take on this machine.

    klassify benchmark recipes/klassify/conf/paper/*.yaml --lists data_lists/avdeepfake1mpp \\
        --media /data/AV-Deepfake1M++ --split val,testA,testB --minutes 10 --devices 8 --workers 12

Extracts, reads, trains on and scores a sample of the clips of train and val with each of the
systems, for about `--minutes` in all, with random weights; no pretrained file is needed. Kinds of
features that are in --features are read from there and not measured. Prints a table of rates and
hours, and writes it to --out. Systems that read the output of another one (embeddings, LMM
features) are measured only if that is in --features.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from klassify.arguments import at_least_0, at_least_1
from klassify.files import write_text


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("configs", nargs="+", type=Path, metavar="CONFIG", help="the systems' YAML files")
    add("--lists", type=Path, required=True, help="folder of the data lists")
    add("--media", type=Path, required=True, help="media, one folder per split")
    add(
        "--features",
        type=Path,
        default=Path("features/none"),
        help="folder of existing features; kinds that it lacks are measured",
    )
    add("--split", default="val", help="splits to score, comma-separated (default: val)")
    add("--minutes", type=float, default=10.0, help="time for all trials (default 10)")
    add("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default)")
    add("--devices", type=at_least_1, default=1, help="devices that will share the work")
    add("--jobs", type=at_least_1, help="processes of stage 1 (default: all CPUs)")
    add("--workers", type=at_least_0, default=0, help="processes that read inputs (default 0)")
    add("--out", type=Path, default=Path("benchmark.md"), help="the table (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from klassify.data.base import Sources
    from klassify.training.timing import Machine, measure, table

    machine = Machine.from_options(args.device, args.devices, args.jobs, args.workers)
    trials = measure(
        args.configs,
        Sources(args.lists, args.media, args.features),
        machine,
        score_splits=args.split.split(","),
        seconds=60 * args.minutes,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    text = table(trials, machine)
    write_text(args.out, text + "\n")
    print(f"{text}\n\nwritten: {args.out}")
    return 0
