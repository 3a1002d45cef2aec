"""Export trained systems as ONNX files, which onnxruntime runs.

    klassify export exp/demo/klassify
    klassify predict clip.mp4 --detector exp/demo/klassify --runtime onnx

SOURCE is a detector.yaml, its folder, or the folder of one system. Each model that reads audio
waves or mouth features gets a model.onnx beside its weights, which is kept only if its outputs
agree with those of torch; the others are named with the reason. A model.onnx is bound to the
weights and the config: after another training it is refused, and --force replaces it. Needs
`pip install 'klassify[onnx]'`. docs/deploying.md describes inputs and outputs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.errors import KlassifyError
from klassify.systems.base import SYSTEM
from klassify.systems.detector import read_detector
from klassify.systems.system import load_system
from klassify.systems.trained import Trained
from klassify.untrusted import no_code_of


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="a detector or a system")
    add("--force", action="store_true", help="export again what is exported")


def run(args: argparse.Namespace) -> int:
    """Run `klassify export`; KlassifyError where nothing could be exported."""
    from klassify.prediction.publish import add_exports
    from klassify.systems.exported import export, need_onnx

    need_onnx()
    if (args.source / SYSTEM).exists():
        print(export(load_system(args.source), force=args.force))
        add_exports(args.source.parent, [args.source.name])
        return 0
    detector = read_detector(args.source)
    systems = [one for one in detector.loaded.values() if isinstance(one, Trained)]
    refused = []
    with no_code_of(detector.folder):
        for system in systems:
            try:
                print(export(system, force=args.force), flush=True)
            except KlassifyError as error:
                refused.append(error)
                print(f"not exported: {error.what}", flush=True)
    add_exports(detector.folder, detector.systems)
    if len(refused) == len(systems):
        raise refused[0]
    return 0
