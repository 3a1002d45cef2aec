"""Published detectors on the Hugging Face hub: `hf://owner/name`, or `hf://owner/name@revision`.

A repository holds what `klassify publish` writes. Its files are fetched into the hub's cache, and
every file that an answer depends on must have the SHA-256 that the manifest lists. No code from it
is run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from klassify.errors import KlassifyError, first_line
from klassify.files import read_json_mapping
from klassify.settings import file_hash
from klassify.systems.detector import DETECTOR, MANIFEST, PARTS, leaves, read_detector

HUB = "hf://"
PATTERN = re.compile(r"hf://(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
FETCHED = ("*.yaml", "*.json", "*.safetensors", "*.onnx", "*.md")


def located(detector: str | os.PathLike) -> Path:
    """The local path of a detector, which is fetched where its name begins with `hf://`."""
    text = os.fspath(detector)
    return download(text) if text.startswith(HUB) else Path(text)


def download(name: str) -> Path:
    """Fetch `hf://owner/name[@revision]` unless the cache has it; returns its folder, whose hashes
    were verified.

    KlassifyError for a repository that is missing, cannot be reached, or is not what `klassify
    publish` writes.
    """
    match = PATTERN.fullmatch(name)
    if match is None:
        what = "This is not written hf://owner/name or hf://owner/name@revision."
        raise KlassifyError(what, where=name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    repository, revision = match["repository"], match["revision"]
    try:
        fetched = snapshot_download(repository, revision=revision, allow_patterns=list(FETCHED))
    except RepositoryNotFoundError:
        what = "The hub has no such repository, or it is private or gated."
        fix = f"look at https://huggingface.co/{repository}; if it is private, hf auth login"
        raise KlassifyError(what, where=name, fix=fix) from None
    except RevisionNotFoundError:
        what = f"This repository has no revision {revision!r}."
        fix = f"give a branch, tag or commit, or leave it out: {HUB}{repository}"
        raise KlassifyError(what, where=name, fix=fix) from None
    except (OSError, ValueError) as error:  # the hub's other errors derive from these
        raise KlassifyError(
            "The hub cannot be reached, and its cache on this machine does not have this"
            f" repository: {first_line(error)}",
            where=name,
            fix="check the network (and that HF_HUB_OFFLINE is not 1), or copy the repository to a"
            " folder and name that",
        ) from None
    verify(Path(fetched), name)
    return Path(fetched)


def verify(folder: Path, name: str) -> None:
    """KlassifyError unless the files of a published detector have the hashes of its manifest."""
    if not (folder / MANIFEST).is_file():
        raise KlassifyError(
            f"This is not a published detector: it has no {MANIFEST}.",
            where=name,
            fix="publish it with klassify publish, and upload that folder",
        )
    hashes = read_json_mapping(folder / MANIFEST).get("sha256")
    if not isinstance(hashes, dict) or any(map(leaves, hashes)):
        raise KlassifyError(
            "This manifest does not list files and hashes.", where=folder / MANIFEST
        )
    for file, value in hashes.items():
        if not (folder / file).is_file() or file_hash(folder / file) != value:
            raise KlassifyError(
                f"{file} is missing or is not the file that the manifest lists.",
                where=folder,
                fix="delete this folder and fetch it again; if that does not help, ask the owner to"
                " publish it again",
            )
    used = [f"{system}/{part}" for system in read_detector(folder).systems for part in PARTS]
    for file in (DETECTOR, *used):
        if (folder / file).exists() and file not in hashes:
            what = f"{file} is not in the manifest."
            fix = "ask the owner to upload what klassify publish wrote, and no other system files"
            raise KlassifyError(what, where=folder, fix=fix)
