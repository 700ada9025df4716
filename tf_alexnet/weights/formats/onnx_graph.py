"""Writing ONNX files: a network's table as a graph, with its weights.

Field numbers are those of ``onnx.proto``. Blobs have Caffe's names, and end in ``_preact`` before a
ReLU. They are channels first, as usual in ONNX; input and output are channels last.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from tf_alexnet.architectures import LRN, PREACT, Architecture, Conv, Dense, MaxPool, Softmax
from tf_alexnet.version import VERSION
from tf_alexnet.weights.arrays import (
    LayerArrays,
    WeightArrays,
    check_arrays,
    check_softmax,
    find_table,
)
from tf_alexnet.weights.formats.common import as_float32, damaged, metadata_text, recorded
from tf_alexnet.wire import FIXED32, field_bytes, field_opening, varint_bytes

IR_VERSION, OPSET = 8, 17
DIGEST = "digest"  # key of the metadata
_FLOAT = 1  # TensorProto.DataType
_TO_NCHW, _TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
_PIXELS = {
    "caffe": "BGR, 0 to 255, minus the mean",
    "torchvision": "RGB, 0 to 1, minus the mean, divided by the standard deviation",
    "compact": "RGB, -1 to 1",
}


def write(
    arrays: WeightArrays,
    path: str | os.PathLike,
    lrn: str = "operator",
    also: Sequence[str] = (),
) -> None:
    """Write a network as ONNX (opset 17), from preprocessed pixels to probabilities.

    The input ``data`` is float32, (N, S, S, 3), in the channel order of the weights. The output is
    ``prob``, float32, (N, classes), or, for weights without dense layers, ``pool5``, float32,
    (N, height, width, channels). Metadata and `WeightArrays.digest` are in ``metadata_props``.

    Parameters
    ----------
    arrays : WeightArrays
        Weights to write.
    path : path-like
        Output file.
    lrn : {"operator", "ops"}
        Response normalisation as ONNX's LRN, or as a 1x1 convolution and elementary operators. With
        the latter, ONNX Runtime computes the whole network 1.6 times as fast.
    also : sequence of str
        Additional outputs, before the last blob: pools (channels last) and dense layers.

    Raises
    ------
    WeightsError
        If the network is unknown, or arrays don't fit it or contain NaN or infinite values.
    UsageError
        If the metadata is too long to be read back, or the classifier needs sigmoids.
    """
    table = find_table(arrays)
    check_arrays(arrays, table)
    if others := [name for name in arrays.layers if name not in table.parameter_shapes()]:
        found = f"{', '.join(others)} has no place in the graph of {table.name}"
        raise damaged(arrays.source, found, "Write a .safetensors file, which holds any layer.")
    if not any(isinstance(x, Dense) and x.name in arrays.layers for x in table.layers):
        table = table.until("pool5")
    else:
        check_softmax(arrays)
    preset = arrays.metadata.get("preset", table.preset)
    pixels = _PIXELS.get(preset.partition(".")[0], "see its documentation")
    size, shapes = table.input_size, {row.name: row.output_shape for row in table.rows()}
    outputs = [*also, table.layers[-1].name]
    title = (
        f"{table.title}. Input: float32, (N, {size}, {size}, 3), preprocessed as by tf_alexnet's "
        f"preset {preset} ({pixels})."
    )
    metadata_text(arrays)  # checks its length
    record = {"preset": preset, "origin": os.path.basename(arrays.source), **recorded(arrays)}
    nodes, tensors = _graph(table, arrays.layers, lrn == "ops", outputs)
    graph = [
        *(field_bytes(1, node) for node in nodes),
        field_bytes(2, table.name),
        *(piece for tensor in tensors for piece in _message(5, tensor)),
        field_bytes(11, _value("data", (size, size, 3))),
        *(field_bytes(12, _value(name, shapes[name])) for name in outputs),
    ]
    model = [
        *(field_bytes(1, IR_VERSION), field_bytes(2, "tf_alexnet"), field_bytes(3, VERSION)),
        *(field_bytes(6, title), *_message(7, graph), field_bytes(8, field_bytes(2, OPSET))),
        *(
            field_bytes(14, field_bytes(1, key) + field_bytes(2, value))
            for key, value in {**record, DIGEST: arrays.digest}.items()
        ),
    ]
    with open(path, "wb") as file:
        file.writelines(model)


def _graph(
    table: Architecture,
    layers: Mapping[str, LayerArrays],
    decomposed: bool,
    outputs: Sequence[str],
) -> tuple[list[bytes], list[list]]:
    """The nodes, each with the name of its output, and the initializers."""
    nodes, tensors = [], []

    def add(kind: str, inputs: Sequence[str], output: str, **attributes) -> str:
        nodes.append(_node(kind, inputs, output, attributes))
        return output

    def constant(name: str, values: np.ndarray) -> str:
        tensors.append(_tensor(name, values))
        return name

    flat = False
    x = add("Transpose", ["data"], "data_nchw", perm=_TO_NCHW)
    for layer in table.layers:
        name = layer.name
        if isinstance(layer, Conv | Dense):
            kernel, bias = layers[name]
            settings = {}
            if isinstance(layer, Conv):
                kernel = kernel.transpose(3, 2, 0, 1)
                settings = {"kernel_shape": [layer.kernel] * 2, "strides": [layer.stride] * 2}
                settings |= {"pads": [layer.pad] * 4, "group": layer.groups}
            elif not flat:  # the kernel's rows are in the order (height, width, channels)
                x = add("Transpose", [x], f"{x}_nhwc", perm=_TO_NHWC)
                x, flat = add("Flatten", [x], "flat", axis=1), True
            inputs = [x, constant(f"{name}/kernel", kernel), constant(f"{name}/bias", bias)]
            rectified = getattr(layer, "relu", True)
            kind = "Conv" if settings else "Gemm"
            x = add(kind, inputs, name + PREACT if rectified else name, **settings)
            x = add("Relu", [x], name) if rectified else x
        elif isinstance(layer, LRN) and decomposed and layer.beta == 0.75:  # 1 / 2 + 1 / 4
            window = band(len(bias), layer.local_size, layer.alpha)
            window = constant(f"{name}/window", window)
            k = constant(f"{name}/k", np.full(len(bias), layer.k))
            square = add("Mul", [x, x], f"{name}_square")
            scale = add("Conv", [square, window, k], f"{name}_scale")
            root = add("Sqrt", [scale], f"{name}_root")
            fourth = add("Sqrt", [root], f"{name}_fourth_root")
            power = add("Mul", [root, fourth], f"{name}_power")
            x = add("Div", [x, power], name)
        elif isinstance(layer, LRN):
            numbers = {"alpha": layer.alpha, "beta": layer.beta, "bias": layer.k}
            x = add("LRN", [x], name, size=layer.local_size, **numbers)
        elif isinstance(layer, MaxPool):
            sides = {"kernel_shape": [layer.kernel] * 2, "strides": [layer.stride] * 2}
            x = add("MaxPool", [x], f"{name}_nchw" if name in outputs else name, **sides)
            if name in outputs:
                add("Transpose", [x], name, perm=_TO_NHWC)
        elif isinstance(layer, Softmax):
            x = add("Softmax", [x], name, axis=1)
    return nodes, tensors


def band(channels: int, size: int, alpha: float) -> np.ndarray:
    """The kernel of a 1x1 convolution that sums alpha / size over `size` channels, (C, C, 1, 1)."""
    places = np.arange(channels)
    near = abs(places[:, None] - places) <= size // 2
    return (near * np.float32(alpha / size)).astype(np.float32)[..., None, None]


def _node(kind: str, inputs: Sequence[str], output: str, attributes: Mapping) -> bytes:
    """A NodeProto with the name of its output."""
    texts = [(1, x) for x in inputs] + [(2, output), (3, output), (4, kind)]
    return b"".join(
        [field_bytes(number, text) for number, text in texts]
        + [field_bytes(5, _attribute(*x)) for x in attributes.items()]
    )


def _attribute(name: str, value: float | int | Sequence[int]) -> bytes:
    if isinstance(value, float):
        kind, content = 1, varint_bytes(2 << 3 | FIXED32) + struct.pack("<f", value)
    elif isinstance(value, int):
        kind, content = 2, field_bytes(3, value)
    else:
        kind, content = 7, b"".join(field_bytes(8, x) for x in value)
    return field_bytes(1, name) + content + field_bytes(20, kind)


def _tensor(name: str, values: np.ndarray) -> list:
    """The pieces of a TensorProto."""
    values = as_float32(values)
    head = [field_bytes(1, n) for n in values.shape]
    head += [field_bytes(2, _FLOAT), field_bytes(8, name)]
    return [*head, *_message(9, [values.reshape(-1).view("u1").data])]


def _value(name: str, shape: Sequence[int]) -> bytes:
    """A ValueInfoProto: float32, with a batch axis and this shape."""
    sides = [field_bytes(2, "N"), *(field_bytes(1, n) for n in shape)]
    dims = b"".join(field_bytes(1, side) for side in sides)
    kind = field_bytes(1, field_bytes(1, _FLOAT) + field_bytes(2, dims))
    return field_bytes(1, name) + field_bytes(2, kind)


def _message(number: int, pieces: Sequence) -> list:
    """A field as a list of pieces, which avoids copying large arrays."""
    return [field_opening(number, sum(map(len, pieces))), *pieces]
