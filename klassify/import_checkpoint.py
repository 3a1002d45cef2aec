"""Turn a published checkpoint into safetensors with this toolkit's names and polarity (class 1 = fake).

    klassify import-checkpoint ssl-anti-spoofing LA_model.pth --out w2v_aasist.safetensors
    klassify import-checkpoint fairseq xlsr_53_56k.pt --out xlsr53.safetensors

The first can start a training of W2VAASIST (`klassify train --init`), the second is a `source` of
SSLFrontEnd. Nothing in the published file is run. Every tensor must find its place, but for those that the
key map lists as unused; the summary names them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from klassify.errors import KlassifyError
from klassify.files import file_hash

SOURCES = ("ssl-anti-spoofing", "fairseq", "transformers")  # the names in checkpoints.KEY_MAPS


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", choices=SOURCES, help="the kind of file")
    parser.add_argument("file", type=Path, help="the published checkpoint")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    parser.add_argument(
        "--architecture",
        help="speech model: xlsr53, xlsr300m, large-robust, wavlm-large, or settings of the large model to "
        "replace, as JSON (default: xlsr300m for ssl-anti-spoofing, else xlsr53)",
    )


def run(args: argparse.Namespace) -> int:
    from klassify.checkpoints import import_weights, save_weights

    if args.out.suffix != ".safetensors":
        raise KlassifyError("The output must be a .safetensors file.", where=args.out)
    model = _model(args.source, _architecture(args))
    report = import_weights(model, args.file, args.source)
    metadata = {"source": args.source, "file": args.file.name, "sha256": file_hash(args.file), "class_1": "fake"}
    save_weights(model, args.out, metadata)
    print(f"{args.out}: {report}")
    return 0


def _architecture(args: argparse.Namespace) -> str | dict[str, Any]:
    text = args.architecture or ("xlsr300m" if args.source == "ssl-anti-spoofing" else "xlsr53")
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise KlassifyError(f"--architecture is not readable JSON: {error}.", where=text) from None


def _model(source: str, architecture: str | dict[str, Any]):
    from klassify.models.ssl import SSLFrontEnd
    from klassify.models.w2v_aasist import W2VAASIST

    frontend = SSLFrontEnd(normalize_input=False, architecture=architecture)
    return W2VAASIST(frontend) if source == "ssl-anti-spoofing" else frontend.model
