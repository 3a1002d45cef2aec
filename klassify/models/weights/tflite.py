"""Networks of TFLite files as torch modules: one function of torch per operation.

Read are the operations of MediaPipe's face networks: float32, or float16 and sparse weights that
are made dense float32. Their custom operations follow mediapipe/util/tflite/operations. The schema
of the files, classes over flatbuffers, is the one that MediaPipe's package brings.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.errors import KlassifyError

SCHEMA = "tasks/metadata/schema_py_generated.py"  # of MediaPipe's package
DENSE = 0  # format of a level of a sparse tensor
SAME = 0  # of padding
ACTIVATIONS = {0: lambda x: x, 1: torch.relu_}
DTYPES = {0: np.float32, 1: np.float16, 2: np.int32}


def package_folder(name: str) -> Path | None:
    """The folder of an installed package, found without importing it; None without one."""
    found = importlib.util.find_spec(name)
    return None if found is None else Path(found.submodule_search_locations[0])


class TFLiteNetwork(nn.Module):
    """The network of a TFLite file with one input (1, H, W, C), for batches.

    Call it with (B, H, W, C) float32; it gives the outputs (B, ...) in the order of the file.
    Raises KlassifyError for an operation that is not known here.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        schema = _schema()
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(Path(path).read_bytes(), 0))
        graph = model.subgraphs[0]
        self._input, self._outputs = int(graph.inputs[0]), [int(i) for i in graph.outputs]
        shapes = [[] if t.shape is None else [int(n) for n in t.shape] for t in graph.tensors]
        constants = _constants(model, graph)
        names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
        self._ops, self._wires = nn.ModuleList(), []
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            name = code.customCode.decode() if name == "CUSTOM" else name
            inputs, (output,) = (
                [int(i) for i in operator.inputs],
                [int(i) for i in operator.outputs],
            )
            if name in ("DEQUANTIZE", "DENSIFY"):  # of weights
                constants[output] = constants[inputs[0]]
                continue
            if name not in OPERATIONS:
                raise KlassifyError(f"The operation {name} of this network is unknown.", where=path)
            options = operator.builtinOptions
            if operator.customOptions is not None:
                options = _custom_options(operator.customOptions)
            given = [constants.get(i) for i in inputs]
            about = [shapes[i] for i in [*inputs, output]]
            self._ops.append(OPERATIONS[name](options, given, about))
            fed = [i for i in inputs if i not in constants]
            self._wires.append((fed, output))
        last = {i: n for n, (fed, _) in enumerate(self._wires) for i in fed}
        self._over = [[i for i in fed if last[i] == n] for n, (fed, _) in enumerate(self._wires)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """The outputs for a batch."""
        found = {self._input: _inward(images)}
        outputs = {}
        for op, (fed, output), over in zip(self._ops, self._wires, self._over):
            found[output] = op(*(found[i] for i in fed))
            if output in self._outputs:
                outputs[output] = _outward(found[output])
            for i in over:
                found.pop(i, None)
        return [outputs[i] for i in self._outputs]

    def custom(self, kind: type[nn.Module]) -> list[nn.Module]:
        """Its operations of a kind, in order."""
        return [op for op in self._ops if isinstance(op, kind)]


def _inward(x: Tensor) -> Tensor:
    """(B, H, W, C) as torch has it, (B, C, H, W) in the same memory."""
    return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


def _outward(x: Tensor) -> Tensor:
    """(B, C, H, W) as TFLite has it, (B, H, W, C)."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


@functools.cache
def _schema() -> Any:
    folder = package_folder("mediapipe")
    if folder is None or not (folder / SCHEMA).is_file():
        raise KlassifyError(
            "The networks are read with MediaPipe 0.10.14, which is not installed.",
            fix="pip install mediapipe==0.10.14",
        )
    # without mediapipe itself, which takes seconds to import
    spec = importlib.util.spec_from_file_location("klassify_tflite_schema", folder / SCHEMA)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _custom_options(data: np.ndarray) -> dict[str, Any]:
    from flatbuffers import flexbuffers

    return flexbuffers.Loads(bytes(data))


def _constants(model: Any, graph: Any) -> dict[int, Tensor]:
    """The tensors of a graph that have values."""
    found = {}
    for i, tensor in enumerate(graph.tensors):
        data = model.buffers[tensor.buffer].data
        if data is None:
            continue
        values = np.frombuffer(data.tobytes(), DTYPES[tensor.type])
        if tensor.sparsity is not None:
            values = _dense(tensor.sparsity, [int(n) for n in tensor.shape], values)
        elif tensor.shape is not None:
            values = values.reshape([int(n) for n in tensor.shape])
        if values.dtype == np.float16:
            values = values.astype(np.float32)
        found[i] = torch.from_numpy(values.copy())
    return found


def _dense(sparsity: Any, shape: Sequence[int], values: np.ndarray) -> np.ndarray:
    """A sparse tensor, whose levels are dense or lists of indices, made dense."""
    order, levels = [int(i) for i in sparsity.traversalOrder], sparsity.dimMetadata
    of_blocks = [] if sparsity.blockMap is None else [int(i) for i in sparsity.blockMap]
    # places in the level above, and the index of each place in each level
    parents, coordinates = np.zeros(1, int), []
    for level in levels:
        if level.format == DENSE:
            parents = (parents[:, None] * level.denseSize + np.arange(level.denseSize)).ravel()
            coordinates = [np.repeat(one, level.denseSize) for one in coordinates]
            coordinates.append(parents % level.denseSize)
            continue
        starts = np.asarray(level.arraySegments.values)
        counts = np.diff(starts)[parents]
        coordinates = [np.repeat(one, counts) for one in coordinates]
        parents = np.concatenate([np.arange(starts[p], starts[p + 1]) for p in parents])
        coordinates.append(np.asarray(level.arrayIndices.values)[parents])
    index = [np.zeros(len(parents), int) for _ in shape]
    block = {of_blocks[d - len(shape)]: n for n, d in enumerate(order) if d >= len(shape)}
    for n, d in enumerate(order):
        if d < len(shape):
            index[d] += coordinates[n] * (levels[block[d]].denseSize if d in block else 1)
        else:
            index[of_blocks[d - len(shape)]] += coordinates[n]
    found = np.zeros(shape, values.dtype)
    found[tuple(index)] = values[parents]
    return found


class _Function(nn.Module):
    """An operation without weights."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self._function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._function(*inputs)


class _Conv(nn.Module):
    """CONV_2D and DEPTHWISE_CONV_2D, padded as TensorFlow does: what is odd goes to the end."""

    def __init__(self, options: Any, given: Sequence, shapes: Sequence, *, depthwise: bool = False):
        super().__init__()
        _, weight, bias = given
        weight = weight.permute(*((3, 0, 1, 2) if depthwise else (0, 3, 1, 2)))
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        self._groups = len(weight) if depthwise else 1
        self._stride = options.strideH, options.strideW
        self._activation = ACTIVATIONS[options.fusedActivationFunction]
        before_after = []
        for n, kernel, stride in zip(shapes[0][1:3], weight.shape[2:], self._stride):
            total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
            total = total if options.padding == SAME else 0
            before_after.append((total // 2, total - total // 2))
        self._even = [before for before, _ in before_after]
        self._odd = None
        if any(before != after for before, after in before_after):
            self._even, self._odd = [0, 0], [*before_after[1], *before_after[0]]

    def forward(self, x: Tensor) -> Tensor:
        x = x if self._odd is None else F.pad(x, self._odd)
        y = F.conv2d(x, self.weight, self.bias, self._stride, self._even, 1, self._groups)
        return self._activation(y)


class _PReLU(nn.Module):
    """PRELU with a slope for each channel."""

    def __init__(self, options: Any, given: Sequence, shapes: Sequence):
        super().__init__()
        self.register_buffer("slope", given[1].reshape(-1))

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.slope)


class _Mul(nn.Module):
    """MUL by a constant."""

    def __init__(self, options: Any, given: Sequence, shapes: Sequence):
        super().__init__()
        self.register_buffer("factor", given[1])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class LandmarksToMatrix(nn.Module):
    """Landmarks2TransformMatrix: (B, 4, 4) from a crop's pixels to those of its image, for the
    upright box around a subset of landmarks (B, K, 3), enlarged.
    """

    def __init__(self, options: dict[str, Any], given: Sequence, shapes: Sequence):
        super().__init__()
        self.subset = list(options["subset_idxs"])
        self._ends = options["left_rotation_idx"], options["right_rotation_idx"]
        self._target = options["target_rotation_radians"]
        self._size = [options["output_width"], options["output_height"]]
        self._scale = [options["scale_x"], options["scale_y"]]

    def forward(self, landmarks: Tensor) -> Tensor:
        """The matrices of a batch."""
        points = landmarks[..., :2]
        left, right = (points[:, end] for end in self._ends)
        turn = _turn(self._target - torch.atan2(*(right - left).flip(-1).unbind(-1)))
        turned = points[:, self.subset] @ turn.mT
        high, low = turned.amax(dim=1), turned.amin(dim=1)
        size = points.new_tensor(self._size)
        back = turn.mT * ((high - low) * points.new_tensor(self._scale) / size)[:, None]
        centre = ((high + low) / 2)[:, None] @ turn
        matrix = torch.zeros(len(points), 4, 4, dtype=points.dtype, device=points.device)
        matrix[:, :2, :2] = back
        matrix[:, :2, 3] = centre[:, 0] - (back @ (size / 2)[:, None])[..., 0]
        matrix[:, 2, 2] = matrix[:, 3, 3] = 1
        return matrix


def _turn(angle: Tensor) -> Tensor:
    """(B, 2, 2) of angles (B,)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1)


class _Crop(nn.Module):
    """TransformTensorBilinear: the part of (B, C, H, W) that a matrix (B, 4, 4) names; 0 outside of
    the outer pixels' middles.
    """

    def __init__(self, options: dict[str, Any], given: Sequence, shapes: Sequence):
        super().__init__()
        y, x = torch.meshgrid(
            torch.arange(options["output_height"]),
            torch.arange(options["output_width"]),
            indexing="ij",
        )
        self.register_buffer("pixels", torch.stack([x, y], -1) + 0.5)

    def forward(self, x: Tensor, matrix: Tensor) -> Tensor:
        at = self.pixels @ matrix[:, None, :2, :2].mT + matrix[:, None, None, :2, 3] - 0.5
        most = at.new_tensor([x.shape[3] - 1, x.shape[2] - 1])
        inside = ((at >= 0) & (at <= most)).all(dim=-1)
        seen = F.grid_sample(x, at / most * 2 - 1, padding_mode="border", align_corners=True)
        return seen * inside[:, None]


def _transformed(points: Tensor, matrix: Tensor) -> Tensor:
    """TransformLandmarks: (B, K, 2) by a matrix (B, 4, 4)."""
    return points @ matrix[:, :2, :2].mT + matrix[:, None, :2, 3]


def _add(options: Any, given: Sequence, shapes: Sequence) -> nn.Module:
    activation = ACTIVATIONS[options.fusedActivationFunction]
    return _Function(lambda x, y: activation(x + y))


def _max_pool(options: Any, given: Sequence, shapes: Sequence) -> nn.Module:
    size, stride = (options.filterHeight, options.filterWidth), (options.strideH, options.strideW)
    return _Function(lambda x: F.max_pool2d(x, size, stride))


def _pad(options: Any, given: Sequence, shapes: Sequence) -> nn.Module:
    _, height, width, channels = given[1].tolist()
    return _Function(lambda x: F.pad(x, [*width, *height, *channels]))


def _resize(options: Any, given: Sequence, shapes: Sequence) -> nn.Module:
    size = given[1].tolist()
    how = {"mode": "bilinear", "align_corners": options.alignCorners}
    return _Function(lambda x: F.interpolate(x, size, **how))


def _depth_to_space(options: Any, given: Sequence, shapes: Sequence) -> nn.Module:
    n, (_, height, width, channels) = options.blockSize, shapes[-1]

    def spread(x: Tensor) -> Tensor:
        parts = _outward(x).reshape(len(x), height // n, width // n, n, n, channels)
        return _inward(parts.transpose(2, 3).reshape(len(x), height, width, channels))

    return _Function(spread)


def _reshape(options: Any, given: Sequence, shapes: Sequence) -> nn.Module:
    shape = shapes[-1][1:]
    return _Function(lambda x: _inward(_outward(x).reshape(len(x), *shape)))


def _whole(options: Any, given: Sequence, shapes: Sequence) -> nn.Module:
    if shapes[0] != shapes[-1]:
        raise KlassifyError(f"A slice of {shapes[0]} to {shapes[-1]} is unknown.")
    return nn.Identity()


OPERATIONS: dict[str, Callable[[Any, Sequence, Sequence], nn.Module]] = {
    "ADD": _add,
    "CONV_2D": _Conv,
    "DEPTHWISE_CONV_2D": functools.partial(_Conv, depthwise=True),
    "DEPTH_TO_SPACE": _depth_to_space,
    "MAX_POOL_2D": _max_pool,
    "MUL": _Mul,
    "PAD": _pad,
    "PRELU": _PReLU,
    "RESHAPE": _reshape,
    "RESIZE_BILINEAR": _resize,
    "STRIDED_SLICE": _whole,
    "Landmarks2TransformMatrix": LandmarksToMatrix,
    "TransformLandmarks": lambda *_: _Function(_transformed),
    "TransformTensorBilinear": _Crop,
}
