"""Trained systems as ONNX files (model.onnx beside the weights), answered by onnxruntime.

A file holds all between the inputs of a window and the model's outputs of it, in float32; windows,
joining and calibration stay as they are. It is bound to the hash of its system: with other weights
or another config it is refused. Answers equal torch's within TOLERANCE, which is checked when the
file is made.

Exported are systems that hear waves or read mouth features. The others stream the clip through
several networks, or read the embeddings of other systems.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from klassify.data.audio import AudioClips, AudioFrames
from klassify.data.audio_shares import AudioShares
from klassify.data.base import ClipData
from klassify.data.mouth import MouthFeatures, MouthTags
from klassify.data.partialspoof import PartialSpoofFrames
from klassify.errors import KlassifyError, first_line
from klassify.files import whole_file
from klassify.models.w2v_aasist import W2VAASIST
from klassify.models.weights import EXPORTED
from klassify.systems.base import System
from klassify.systems.trained import Trained

EXPORTABLE = (
    *(AudioClips, AudioFrames, AudioShares, PartialSpoofFrames, MouthFeatures, MouthTags),
)
SYSTEM_HASH = "klassify.system_hash"  # the key of the metadata
TOLERANCE = 1e-3  # of log-odds, log-probabilities and cosines, and of their size above 1
MOST_BYTES = 2**31 - 2**20  # of one protobuf file
ROWS = 4  # windows at a time, against the memory that long ones take
INSTALL = "pip install 'klassify[onnx]'"
OPSET = 20  # with DFT and GELU


class Asked(nn.Module):
    """What a data class asks of a model, as its forward pass: inputs by name -> outputs by name."""

    def __init__(self, model: nn.Module, data: ClipData):
        super().__init__()
        self.model, self.data = model, data

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of the inputs of windows (B, ...), outputs (B, ...) by name."""
        model, data = self.model, self.data
        if isinstance(data, MouthTags):
            return {"log_probs": model.tag_log_probs(batch)}
        if isinstance(data, AudioShares):
            return {"scores": model.frame_scores(batch)}
        if isinstance(data, AudioFrames):
            return model.frame_scores(**batch)
        if isinstance(data, PartialSpoofFrames):
            return model.frame_scores(batch["wave"])
        return {"score": model.score(batch)}


class Exported(nn.Module):
    """Stands in for a trained model: the same methods, answered by an onnxruntime session."""

    def __init__(self, session: Any):
        super().__init__()
        self.session = session
        self.inputs = [one.name for one in session.get_inputs()]
        self.outputs = [one.name for one in session.get_outputs()]

    def run_named(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs (B, ...) by name of the inputs of windows (B, ...), on the inputs' device."""
        given = {name: batch[name].cpu().numpy() for name in self.inputs}
        n_rows, device = len(given[self.inputs[0]]), batch[self.inputs[0]].device
        parts = [
            self.session.run(None, {name: x[first : first + ROWS] for name, x in given.items()})
            for first in range(0, n_rows, ROWS)
        ]
        joined = [torch.from_numpy(np.concatenate(part)).to(device) for part in zip(*parts)]
        return dict(zip(self.outputs, joined))

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-odds of fake (B,)."""
        return self.run_named(batch)["score"]

    def tag_log_probs(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-probabilities (B, T, 4) of the tags of each frame."""
        return self.run_named(batch)["log_probs"]

    def frame_scores(
        self, batch: dict[str, Tensor] | Tensor | None = None, wave: Tensor | None = None
    ) -> dict[str, Tensor] | Tensor:
        """As that of the model: of a batch, or of waves (B, N)."""
        named = batch if isinstance(batch, dict) else {"wave": batch if wave is None else wave}
        outputs = self.run_named(named)
        return outputs.get("scores", outputs)


def export(system: System, *, force: bool = False) -> str:
    """Write model.onnx of a trained system unless it is there; returns a line that says so.

    KlassifyError for a system that cannot be exported, with the reason, and where the outputs of
    the file are not those of torch.
    """
    if not isinstance(system, Trained):
        what = f"{system.name} is computed from the scores of others: it has no model to export."
        raise KlassifyError(what, where=system.folder, fix="export the systems it is computed from")
    refuse_other_data(system)
    path = system.folder / EXPORTED
    if path.exists() and not force:
        open_session(system)  # which refuses that of other weights
        return f"{path}: already exported"
    model, data = system.load()
    if sum(x.numel() * x.element_size() for x in model.state_dict().values()) > MOST_BYTES:
        what = f"{system.name} cannot be exported: its weights do not fit into 2 GB."
        raise KlassifyError(what, where=system.folder)
    asked = Asked(model, data)
    batches = list(example_batches(data))
    with whole_file(path) as partial:
        write_graph(asked, batches[0], partial, system)
        exported = Exported(_session(partial, "cpu"))
        difference = max(furthest(asked, exported, batch) for batch in batches)
        if difference > 1:
            raise KlassifyError(
                f"The exported {system.name} differs from torch by {difference:.3g} times the"
                f" tolerance of {TOLERANCE:g}.",
                where=path,
                fix="answer with it by --runtime torch, and please report the model",
            )
        size = partial.stat().st_size
    return (
        f"{path}: {size / 1e6:.1f} MB, differs from torch by at most {difference * TOLERANCE:.1g}"
    )


def need_onnx() -> None:
    """KlassifyError if a package that exports or answers is not installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            what = f"Exporting needs the package {name}, which is not installed."
            raise KlassifyError(what, fix=INSTALL)


def refuse_other_data(system: Trained) -> None:
    """KlassifyError for a system whose inputs are not exported."""
    data = system.data()
    if type(data) not in EXPORTABLE:
        raise KlassifyError(
            f"{system.name} cannot be exported: its inputs ({type(data).__name__}) are not windows"
            " of sound or of mouth features.",
            where=system.folder,
            fix="answer with it by --runtime torch, which also answers for the systems without an"
            " export",
        )


def example_batches(data: ClipData) -> Iterator[dict[str, Tensor]]:
    """Batches of windows of noise, the first of two windows, the others of other lengths; sound
    that fades to silence, where small errors become large in logarithms.
    """
    rng = np.random.default_rng(0)
    waves = isinstance(data, AudioClips)
    sizes = (data.window + data.stride, data.window // 2, data.window // 5)
    if waves and isinstance(data, AudioShares):
        sizes = tuple(320 * size for size in sizes)
    for size in sizes:
        if waves:
            level = 0.3 * np.clip(np.linspace(1, -0.2, size), 0, 1) ** 4
            clip: Any = (level * rng.standard_normal(size)).astype(np.float32)
        else:
            features = rng.standard_normal((size, len(data.channels))).astype(np.float32)
            seen = torch.from_numpy(rng.random(size) < 0.9)
            clip = {"features": torch.from_numpy(features), "valid": seen}
        yield data.collate([window.inputs for window in data.cut(clip)[:2]])


def write_graph(asked: Asked, batch: dict[str, Tensor], path: Path, system: System) -> None:
    """Trace a model and write it as ONNX, with the number and, but for AASIST, the length of
    windows free.

    KlassifyError for a model that the exporter does not take.
    """
    # AASIST's graph pooling keeps a number of nodes that follows from the length
    axes = (0,) if isinstance(asked.model, W2VAASIST) else (0, 1)
    free = {name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name in batch}
    try:
        # gradients stay on: without them, models take long batches piece by piece
        with quiet():
            program = torch.onnx.export(
                asked,
                (),
                kwargs={"batch": batch},
                input_names=list(batch),
                output_names=list(asked(batch)),
                dynamic_shapes={"batch": free},
                opset_version=OPSET,
                dynamo=True,
                optimize=False,  # which leaves out the addition of numbers as small as 1e-8
                verbose=False,
            )
        program.model.metadata_props[SYSTEM_HASH] = system.hash
        program.save(path, external_data=False)
    except KlassifyError:
        raise
    except Exception as error:  # the exporter raises many kinds
        cause = error.__cause__ or error
        raise KlassifyError(
            f"{system.name} cannot be exported: {type(asked.model).__name__} has no ONNX form"
            f" ({type(cause).__name__}: {first_line(cause)}).",
            where=system.folder,
            fix="answer with it by --runtime torch",
        ) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's notes on its progress and on packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def furthest(asked: Asked, exported: Exported, batch: dict[str, Tensor]) -> float:
    """How far the outputs for a batch are from torch's, in tolerances."""
    with torch.inference_mode():
        expected = asked(batch)
    found = exported.run_named(batch)
    apart = [
        ((found[name] - x.float()).abs() / (TOLERANCE * x.float().abs().clamp(min=1))).max()
        for name, x in expected.items()
    ]
    return float(torch.stack(apart).max())


def load_exported(system: Trained, device: str = "auto") -> tuple[Exported, ClipData]:
    """The exported model of a system, and its ClipData.

    device: `cpu`, or `auto` or `cuda` for the GPU, if onnxruntime has it. KlassifyError for a
    missing file, one of other weights, and a GPU that onnxruntime does not have.
    """
    return Exported(open_session(system, device)), system.data()


def open_session(system: Trained, device: str = "auto") -> Any:
    """The onnxruntime session of an exported system; errors as load_exported."""
    path = system.folder / EXPORTED
    session = _session(path, device)
    if session.get_modelmeta().custom_metadata_map.get(SYSTEM_HASH) != system.hash:
        raise KlassifyError(
            f"This file was not exported from the present weights and config of {system.name}.",
            where=path,
            fix=f"klassify export {system.folder} --force",
        )
    return session


def _session(path: Path, device: str) -> Any:
    try:
        import onnxruntime
    except ImportError:
        what = "--runtime onnx needs the package onnxruntime, which is not installed."
        raise KlassifyError(what, fix=f"{INSTALL} (on a GPU onnxruntime-gpu)") from None
    providers = ["CPUExecutionProvider"]
    if device != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        number = int(device.partition(":")[2] or 0)
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": number}))
    elif device.startswith("cuda"):
        what = "This onnxruntime computes on CPUs alone."
        fix = "pip install onnxruntime-gpu instead of onnxruntime, or --device cpu"
        raise KlassifyError(what, where=f"device {device}", fix=fix)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # onnxruntime raises many kinds for a damaged file
        raise KlassifyError(
            f"This ONNX file cannot be read: {first_line(error)}.",
            where=path,
            fix=f"klassify export {path.parent} --force",
        ) from None
