"""Package a submission again from its manifest, in a temporary folder, and compare bytes.

    klassify reproduce 3f2a81c09e  an id of the ledger (make reproduce submission=3f2a81c09e)
    klassify reproduce submissions/demo/klassify/testA     a package's folder

Run it where the package was made. Exits with 0 if every input has the recorded hash and the zip has
the recorded bytes; otherwise it says what differs and why, and exits with 1. It uses the existing
scores; `make stage3 force=1` makes them again. Paths of the manifest may not leave the working
directory (--allow names further folders).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klassify.submission import ledger
from klassify.submission.manifest import read_manifest
from klassify.submission.reproduce import locate, reproduce


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("submission", help="an id of the ledger, or the folder of a package")
    path = Path(ledger.HOME, ledger.LEDGER)
    add("--ledger", type=Path, default=path, metavar="FILE", help="default: %(default)s")
    add(
        "--allow",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder outside the working directory that may hold inputs",
    )


def run(args: argparse.Namespace) -> int:
    """Run `klassify reproduce`; 0 the same bytes from the same inputs, 1 something differs."""
    path, stored = locate(args.submission, args.ledger)
    manifest = read_manifest(path)
    name = f"{ledger.id_of(manifest)} ({manifest['split']}, {path})"
    differences = reproduce(manifest, stored, allow=args.allow, where=path)
    if differences:
        print(f"NOT REPRODUCED {name}:", *differences, sep="\n")
        return 1
    print(
        f"REPRODUCED {name}: every input and every byte is the same, sha256"
        f" {manifest['zip_sha256']}"
    )
    return 0
