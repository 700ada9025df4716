"""The OpenVINO engine: a network built in memory from a table and arrays, without TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as op

from tf_alexnet.architectures import LRN, PREACT, Architecture, Conv, Dense, Dropout, MaxPool
from tf_alexnet.weights import LayerArrays

_TO_NCHW, _TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


def network(
    table: Architecture,
    arrays: Mapping[str, LayerArrays],
    blobs: Sequence[str],
    precision: str = "float32",
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Compile a network for the CPU.

    Parameters
    ----------
    table : Architecture
        The network.
    arrays : mapping of str to LayerArrays
        Its weights, at least up to the last of `blobs`.
    blobs : sequence of str
        Names of blobs, or ``<name>_preact``.
    precision : {"float32", "bfloat16"}
        Precision of inference. bfloat16 is fast on processors with AMX, and changes fc7 by about
        0.7 % of its maximum.

    Returns
    -------
    callable
        Maps an ndarray of float32, (N, S, S, 3), to a dict of blobs, ndarrays of float32:
        (N, height, width, channels), or (N, units).
    """
    # With AMX, OpenVINO defaults to bfloat16.
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16",
    }
    compiled = openvino.Core().compile_model(graph(table, arrays, blobs), "CPU", hints)

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        found = compiled(np.ascontiguousarray(batch))
        return {name: found[place] for place, name in enumerate(blobs)}

    return run


def graph(
    table: Architecture, arrays: Mapping[str, LayerArrays], blobs: Sequence[str]
) -> openvino.Model:
    """The network as a graph from the input ``data`` to the outputs `blobs`.

    Inputs and outputs are channels last; OpenVINO's convolutions are channels first.
    """
    size = table.input_size
    data = op.parameter([-1, size, size, 3], np.float32, name="data")
    found, x = {"data": data.output(0)}, op.transpose(data, op.constant(_TO_NCHW)).output(0)
    for layer in table.layers:
        if set(blobs) <= found.keys():
            break
        if isinstance(layer, Conv | Dense):
            kernel, bias = arrays[layer.name]
            if isinstance(layer, Conv):
                x = op.add(_convolved(layer, kernel, x), _constant(bias.reshape(1, -1, 1, 1)))
            else:
                if x.get_partial_shape().rank.get_length() == 4:
                    # Rows of the kernel are in the order height, width, channels.
                    x = op.transpose(x, op.constant(_TO_NHWC))
                    x = op.reshape(x, op.constant([0, kernel.shape[0]]), special_zero=True)
                x = op.add(op.matmul(x, _constant(kernel), False, False), _constant(bias[None]))
            found[layer.name + PREACT] = x.output(0)
            x = op.relu(x) if getattr(layer, "relu", True) else x
        elif isinstance(layer, LRN):
            x = op.lrn(x, op.constant([1]), layer.alpha, layer.beta, layer.k, layer.local_size)
        elif isinstance(layer, MaxPool):
            sides = [layer.stride] * 2, [1, 1], [0, 0], [0, 0], [layer.kernel] * 2
            x = op.max_pool(x, *sides, "floor")
        elif not isinstance(layer, Dropout):
            x = op.softmax(x, 1)
        x = found[layer.name] = x if isinstance(layer, Dropout) else x.output(0)
    results = []
    for name in blobs:
        blob = found[name]
        if name != "data" and blob.get_partial_shape().rank.get_length() == 4:
            blob = op.transpose(blob, op.constant(_TO_NHWC)).output(0)
        results.append(blob)
    model = openvino.Model(results, [data])
    for port, name in zip((*model.inputs, *model.outputs), ("data", *blobs), strict=True):
        port.get_tensor().add_names({name})
    return model


def _constant(values: np.ndarray) -> Any:
    return op.constant(np.ascontiguousarray(values, np.float32))


def _convolved(layer: Conv, kernel: np.ndarray, x: Any) -> Any:
    kernel = kernel.transpose(3, 2, 0, 1)
    sides = [layer.stride] * 2, [layer.pad] * 2, [layer.pad] * 2, [1, 1]
    if layer.groups == 1:
        return op.convolution(x, _constant(kernel), *sides)
    parts = kernel.reshape(layer.groups, -1, *kernel.shape[1:])
    return op.group_convolution(x, _constant(parts), *sides)
