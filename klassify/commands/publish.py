"""Copy a trained detector into a folder that can be passed on: weights, model card, hashes.

    klassify publish exp/demo/klassify --out published/klassify

The folder holds detector.yaml, the systems that it names (safetensors and YAML), README.md (the
model card) and manifest.json (SHA-256 of each file): the layout of a model repository. Nothing is
uploaded. `klassify predict --detector FOLDER` and `load_detector` read it; so they do as
hf://owner/name once `hf upload owner/name FOLDER` has put it on the Hugging Face hub.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("detector", type=Path, metavar="DETECTOR", help="a detector.yaml or its folder")
    add("--out", type=Path, required=True, help="a new folder")
    add("--split", default="testA", help="split whose results the card quotes (default testA)")


def run(args: argparse.Namespace) -> int:
    from klassify.prediction.publish import publish

    print(publish(args.detector, args.out, split=args.split))
    return 0
