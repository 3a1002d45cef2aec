"""Make torchaudio importable where its native part is not, and transformers with it.

torchaudio's wheel links against CUDA, so with a CPU build of torch its import raises an OSError,
and a torchaudio that is installed but not importable breaks every transformers model import too.
Its Python part (resampling, filter banks, wav2vec models) works without the native one. Call
`ensure_importable` before importing torchaudio; import transformers with `import_transformers`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn


def _needs_alignment(function: Callable) -> Callable:
    def refuse(*args, **kwargs) -> NoReturn:
        raise RuntimeError(
            f"torchaudio's {function.__name__} needs the native part, which is not loadable here."
        )

    return refuse


def _no_extension() -> types.ModuleType:
    """A substitute for `torchaudio._extension` that reports no native part."""
    stand_in = types.ModuleType("torchaudio._extension")
    stand_in.__path__ = []
    stand_in._IS_TORCHAUDIO_EXT_AVAILABLE = False
    stand_in._IS_ALIGN_AVAILABLE = False
    stand_in._check_cuda_version = lambda: None
    stand_in.fail_if_no_align = _needs_alignment
    return stand_in


def ensure_importable() -> bool:
    """Import torchaudio, without its extension if need be; False where it is not installed."""
    if "torchaudio" in sys.modules:
        return True
    if importlib.util.find_spec("torchaudio") is None:
        return False
    try:
        importlib.import_module("torchaudio")
    except OSError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        sys.modules["torchaudio._extension"] = _no_extension()
        importlib.import_module("torchaudio")
    return True


def import_transformers() -> Any:
    """The transformers package, which imports torchaudio."""
    ensure_importable()
    return importlib.import_module("transformers")
