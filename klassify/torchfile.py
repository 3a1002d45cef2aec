"""Read files written by torch.save without running what they contain.

Such a file is a pickle, and unpickling may run any code. `read_torch_file` goes through torch's restricted
unpickler alone, which knows tensors and plain containers; a class that it does not know (a config object,
mostly) becomes an inert Record. There is no flag to trust a file.
"""

from __future__ import annotations

import argparse
import functools
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from klassify.errors import KlassifyError, some

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # first pickle of a file by torch < 1.6
RENAMED_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # pickle protocol 2 has Python 2 names
# A checkpoint has no use for these: a file that names one is hostile, though it could do no harm here.
HOSTILE = re.compile(
    r"(os|posix|nt|sys|subprocess|pty|shutil|socket|ctypes|runpy|importlib|multiprocessing|webbrowser|code)\..*"
    r"|builtins\.(eval|exec|compile|open|__import__|input|breakpoint)"
)
NOT_A_CHECKPOINT = {
    b"<": "It is a web page: the download stopped at a page that asks for confirmation.",
    b"version https://git-lfs": "It is a Git LFS pointer: fetch the file itself with `git lfs pull`.",
    b"\x1f\x8b": "It is a gzip archive: unpack it and name the checkpoint inside.",
}


class Record:
    """Stands for an object of an unknown class: it keeps arguments and state, and does nothing."""

    qualified_name = ""

    def __new__(cls, *arguments: Any):
        record = super().__new__(cls)
        record.arguments, record.state = arguments, None
        return record

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<record of {self.qualified_name}>"


def _plain_dict(*_factory: Any) -> dict:
    return {}


def _plain_list(items: Any = (), *_maxlen: Any) -> list:
    return list(items)


PLAIN = {
    "argparse.Namespace": argparse.Namespace,
    "collections.defaultdict": _plain_dict,
    "collections.deque": _plain_list,
}


@functools.cache
def _stand_in(name: str) -> Any:
    return PLAIN.get(name) or type("Record", (Record,), {"qualified_name": name})


def _named_in_pickle(handle: BinaryIO) -> Iterator[str]:
    """Full names of the classes and functions that one pickle asks for, without running it."""
    for operation, argument, _ in pickletools.genops(handle):
        if operation.name in ("GLOBAL", "INST"):
            module, name = argument.split(" ", 1)
            yield f"{RENAMED_MODULES.get(module, module)}.{name}"


def _named_in(path: Path, zipped: bool) -> set[str]:
    if not zipped:
        with open(path, "rb") as handle:  # magic, protocol, system, content, storage keys
            return {name for _ in range(5) for name in _named_in_pickle(handle)}
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        if any(Path(member).name == "constants.pkl" for member in members):
            raise KlassifyError(
                "This is a TorchScript program, not a checkpoint.",
                where=path,
                mend="use the project's file of weights (a state dict)",
            )
        content = next(member for member in members if Path(member).name == "data.pkl")
        with archive.open(content) as handle:
            return set(_named_in_pickle(handle))


def read_torch_file(path: str | Path) -> Any:
    """The content of a file written by torch.save, on the CPU, without running anything that it contains."""
    path = Path(path)
    if not path.is_file():
        raise KlassifyError("This checkpoint does not exist.", where=path)
    with open(path, "rb") as handle:
        head = handle.read(64)
    zipped = head.startswith(b"PK\x03\x04")
    if not zipped and not head.startswith(LEGACY_MAGIC):
        hints = [hint for start, hint in NOT_A_CHECKPOINT.items() if head.lstrip().startswith(start)]
        raise KlassifyError(" ".join(["This is no torch checkpoint.", *hints]), where=path)
    try:
        names = _named_in(path, zipped)
        if hostile := sorted(filter(HOSTILE.fullmatch, names)):
            raise KlassifyError(
                f"This file is hostile: to be loaded it wants to call {some(hostile)}. Nothing was called.",
                where=path,
                mend="delete it, and get the checkpoint from its authors",
            )
        with torch.serialization.safe_globals([(_stand_in(name), name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except KlassifyError:
        raise
    except Exception as error:  # a torn or strange file may fail anywhere in there
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise KlassifyError(
            f"This checkpoint cannot be read as tensors and plain containers: {reason}.",
            where=path,
            mend="download it again; if that does not help, save its state dict alone with its own project",
        ) from None
