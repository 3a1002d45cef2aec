"""Print the version and commit of this package, those of Python and torch, and the device.

klassify version
klassify --version
"""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """There are no arguments."""


def run(args: argparse.Namespace) -> int:
    import torch

    import klassify
    from klassify.models.devices import pick_device
    from klassify.systems.experiment import environment

    made = environment()
    commit = f", commit {made['commit'][:12]}" if made["commit"] else ""
    print(f"klassify {klassify.__version__}{commit}")
    python = made["versions"]["python"]
    print(f"Python {python}, torch {torch.__version__}, device {pick_device('auto')}")
    return 0
