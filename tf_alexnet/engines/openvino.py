"""A network for OpenVINO, built in memory from a table and arrays; TensorFlow is not needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_alexnet.architectures import LRN, PREACT, Architecture, Conv, Dense, Dropout, MaxPool
from tf_alexnet.errors import UsageError

if TYPE_CHECKING:
    from tf_alexnet.weights import WeightArrays

_TO_NCHW, _TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


def network(
    table: Architecture, arrays: WeightArrays, blobs: Sequence[str], precision: str = "float32"
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Compile a network for this machine's processor.

    Parameters
    ----------
    table : Architecture
        The network.
    arrays : WeightArrays
        Its weights, which may end at the last layer that `blobs` needs.
    blobs : sequence of str
        Names of blobs, or ``<name>_preact``.
    precision : {"float32", "bfloat16"}
        Type of the products. bfloat16 is fast on processors that have AMX, and changes fc7 by
        about 0.7 % of its maximum.

    Returns
    -------
    callable
        From ndarray of float32, (N, S, S, 3), to a dict of blobs: ndarray of float32, first axis
        N; blobs of convolutions and pools are (N, height, width, channels).

    Raises
    ------
    UsageError
        If OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError:
        raise UsageError(
            "engine 'openvino'",
            "OpenVINO is not installed",
            "Install it: pip install 'tf-alexnet[openvino]'.",
        ) from None
    # Asked for float32 in so many words: on AMX OpenVINO takes bfloat16 by itself.
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16",
    }
    compiled = openvino.Core().compile_model(_model(table, arrays, blobs), "CPU", hints)

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        found = compiled(np.ascontiguousarray(batch))
        return {name: found[place] for place, name in enumerate(blobs)}

    return run


def _model(table: Architecture, arrays: WeightArrays, blobs: Sequence[str]) -> Any:
    """The table as a graph: OpenVINO's convolutions are channels first, its inputs ours."""
    import openvino
    from openvino import opset13 as op

    def constant(values: np.ndarray) -> Any:
        return op.constant(np.ascontiguousarray(values))

    size = table.input_size
    data = op.parameter([-1, size, size, 3], np.float32, name="data")
    found, x = {"data": data.output(0)}, op.transpose(data, op.constant(_TO_NCHW)).output(0)
    for layer in table.layers:
        if set(blobs) <= found.keys():
            break
        if isinstance(layer, Conv | Dense):
            kernel, bias = arrays.layers[layer.name]
            if isinstance(layer, Conv):
                x = op.add(_convolved(op, layer, constant, kernel, x), constant(_column(bias)))
            else:
                if x.get_partial_shape().rank.get_length() == 4:
                    # Rows of the kernel are in the order height, width, channels.
                    x = op.transpose(x, op.constant(_TO_NHWC))
                    x = op.reshape(x, op.constant([0, kernel.shape[0]]), special_zero=True)
                x = op.add(op.matmul(x, constant(kernel), False, False), constant(bias[None]))
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
    return openvino.Model(results, [data])


def _convolved(op: Any, layer: Conv, constant: Callable, kernel: np.ndarray, x: Any) -> Any:
    kernel = kernel.transpose(3, 2, 0, 1)
    sides = [layer.stride] * 2, [layer.pad] * 2, [layer.pad] * 2, [1, 1]
    if layer.groups == 1:
        return op.convolution(x, constant(kernel), *sides)
    parts = kernel.reshape(layer.groups, -1, *kernel.shape[1:])
    return op.group_convolution(x, constant(parts), *sides)


def _column(bias: np.ndarray) -> np.ndarray:
    return bias.reshape(1, -1, 1, 1)
