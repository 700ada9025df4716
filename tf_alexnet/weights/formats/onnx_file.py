"""Reading ONNX files: the initializers of a graph, and the layers that use them.

Field numbers are those of ``onnx.proto``. Supported are our own files (`onnx_graph`), the model
zoo's AlexNet and CaffeNet, torch's exports of torchvision's network, and others with the layers of
one of our tables. Layers are named by their initializers (``conv1_w_0``), or by their position in
the graph.

Convolutions are (out, in / groups, height, width), and dense kernels (out, in) with `transB`.
Feature maps are flattened as (channels, height, width), unless a Transpose comes before.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from tf_alexnet.architectures import ARCHITECTURES, Architecture
from tf_alexnet.weights.arrays import (
    LAYER_ORDER,
    WeightArrays,
    adapted_table,
    fitting_architectures,
)
from tf_alexnet.weights.formats.common import (
    MAX_METADATA,
    NotAlexNetError,
    affordable,
    assemble,
    damaged,
    from_channels_first,
    mapped,
    split_metadata,
)
from tf_alexnet.weights.formats.named import split_key
from tf_alexnet.weights.formats.onnx_graph import DIGEST, band
from tf_alexnet.weights.graph import Node, foreign_layer, match_graph, one_or_both
from tf_alexnet.wire import (
    LENGTH,
    VARINT,
    Wire,
    WireError,
    fields,
    last,
    numbers,
    shaped,
    wire_types,
)

ADVICE = "Use an ONNX file of an AlexNet in floating point."
DTYPES = {1: "<f4", 10: "<f2", 11: "<f8"}
_NAMES = {1: "float", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 16: "bfloat16"}
# ONNX operators -> Caffe's names, where they differ.
_KINDS = {
    **{"Conv": "Convolution", "Gemm": "InnerProduct", "MatMul": "InnerProduct", "Relu": "ReLU"},
    **{"MaxPool": "Pooling", "AveragePool": "Pooling", "BatchNormalization": "BatchNorm"},
    **{"PRelu": "PReLU", "LeakyRelu": "LeakyReLU", "Tanh": "TanH", "Elu": "ELU", "Add": "Eltwise"},
    **{"Cast": "Identity", "Squeeze": "Identity", "Unsqueeze": "Identity"},
}


_TENSOR = {
    **fields("int", dims=1, data_type=2, data_location=14),
    **fields("<f4", float_data=4),
    **fields("<f8", double_data=10),
    **fields("text", name=8),
    **fields("bytes", raw_data=9, external_data=13),
}
_ATTRIBUTE = {
    **fields("text", name=1),
    **fields("float", f=2),
    **fields("int", i=3, ints=8),
    **fields(_TENSOR, t=5),
}
_OPERATOR = fields("text", input=1, output=2, name=3, op_type=4) | fields(_ATTRIBUTE, attribute=5)
_MODEL = {
    **fields(fields(_OPERATOR, node=1) | fields(_TENSOR, initializer=5), graph=7),
    **fields(fields("bytes", key=1, value=2), metadata_props=14),
}
_DECOMPOSED = ["Mul", "Conv", "Sqrt", "Sqrt", "Mul", "Div"]  # response normalisation


def recognised(head: bytes, message: memoryview) -> bool:
    """Whether a protobuf message is a ModelProto: ir_version 1, graph 7."""
    wires = wire_types(message) if head[:1] == b"\x08" else {}
    return wires.get(1) == VARINT and wires.get(7) == LENGTH


_Pair = tuple[np.ndarray, np.ndarray]  # kernel and bias
_Pairs = dict[str, _Pair]


class _Operator(NamedTuple):
    """A NodeProto."""

    name: str
    kind: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, object]


def read(path: str | os.PathLike) -> WeightArrays:
    """Read the weights in an ONNX file.

    The architecture is taken from our own record in the file, or from the graph (the order of
    normalisation and pooling). If the graph matches that table only up to the last convolution,
    ``metadata["differs"]`` describes the first difference.

    Raises
    ------
    WeightsError
        If the file is damaged, not an AlexNet, quantised, or has its weights in other files.
    """
    content = mapped(path)
    try:
        model = Wire().read(content, _MODEL)
        nodes, pairs = _layers(*_graph(last(model, "graph", {})))
        if foreign := foreign_layer(nodes):
            raise NotAlexNetError(foreign)
        if 4 * sum(x.size for pair in pairs.values() for x in pair) > affordable(len(content)):
            raise NotAlexNetError("far more numbers than an AlexNet")
        match = match_graph(nodes)
        names = _names(pairs, match.names)
        if len(set(names.values())) < len(names):
            raise NotAlexNetError("two layers of the same name")
        pairs = {names[key]: pair for key, pair in pairs.items()}
        flattened = {names[key]: value for key, value in match.flattened.items() if key in names}
        layers = from_channels_first(pairs, flattened)
        arrays = assemble(path, layers, *_record(model), flattened)
    except NotAlexNetError as error:
        raise damaged(path, f"an ONNX file with {error}", ADVICE) from None
    except (WireError, ValueError) as error:
        raise damaged(path, f"a damaged ONNX file: {error}") from None
    fitting = fitting_architectures(arrays)
    for name in (arrays.architecture, match.architecture):
        if name in fitting:
            difference = match_graph(nodes, [_cut(arrays, ARCHITECTURES[name])]).difference
            differs = {"differs": difference} if difference else {}
            return replace(arrays, architecture=name, metadata=differs | arrays.metadata)
    return replace(arrays, architecture=None)


def _cut(arrays: WeightArrays, table: Architecture) -> Architecture:
    """`table` up to the last layer of `arrays`, which may be a convolution."""
    end = list(arrays.layers)[-1]
    cut = end in [layer.name for layer in table.weighted[:-1]]
    return table.until(end) if cut else adapted_table(arrays, table)


def _record(model: dict) -> tuple[str | None, dict[str, str]]:
    """Architecture and metadata; empty if there is more than we would write."""
    pairs = [(last(x, "key", b""), last(x, "value", b"")) for x in model.get("metadata_props", ())]
    if sum(len(text) for pair in pairs for text in pair) > MAX_METADATA:
        return None, {}
    record = {str(key, "utf-8", "replace"): str(value, "utf-8", "replace") for key, value in pairs}
    record.pop(DIGEST, None)
    return split_metadata(record)


def _graph(graph: dict) -> tuple[list[_Operator], dict[str, dict]]:
    """The operators of a GraphProto; its initializers and constants."""
    operators, tensors = [], {}
    for node in graph.get("node", ()):
        given = {last(x, "name", ""): x for x in node.get("attribute", ())}
        kind, outputs = last(node, "op_type", ""), node.get("output", [])
        if kind == "Constant" and "t" in given.get("value", {}):
            tensors |= dict.fromkeys(outputs[:1], last(given["value"], "t"))
            continue
        attributes = {k: x.get("ints") or last(x, "i", last(x, "f")) for k, x in given.items()}
        inputs = node.get("input", [])
        operators.append(_Operator(last(node, "name", ""), kind, inputs, outputs, attributes))
    for tensor in graph.get("initializer", ()):
        name = last(tensor, "name", "")
        if name in tensors:
            raise WireError(f"initializer {name!r} twice")
        tensors[name] = tensor
    return operators, tensors


def _array(tensor: dict) -> np.ndarray:
    """The array in a TensorProto of floats."""
    if last(tensor, "data_location") or "external_data" in tensor:
        raise NotAlexNetError("weights in another file, which is not read")
    kind = last(tensor, "data_type", 0)
    if kind not in DTYPES:
        raise NotAlexNetError(f"{_NAMES.get(kind, f'type {kind}')} weights instead of floats")
    if "raw_data" in tensor:
        values = numbers(last(tensor, "raw_data"), DTYPES[kind])
    else:
        name = "double_data" if kind == 11 else "float_data"
        values = tensor.get(name, np.empty(0, DTYPES[kind]))
    return shaped(values, tensor.get("dims", []))


def _layers(operators: list[_Operator], tensors: dict[str, dict]) -> tuple[list[Node], _Pairs]:
    """The graph as nodes with Caffe's names, and kernel and bias of each layer with weights."""
    nodes, pairs = [], {}
    for operator in _composed(operators, tensors):
        if operator.kind.startswith(("QLinear", "Quantize", "DynamicQuantize", "ConvInteger")):
            raise NotAlexNetError(f"quantised weights ({operator.kind}): another network")
        if operator.kind == "Identity" and set(operator.inputs[:1]) & tensors.keys():
            tensors |= dict.fromkeys(operator.outputs, tensors[operator.inputs[0]])
            continue
        weights = [x for x in operator.inputs[1:] if x in tensors]
        kind = _KINDS.get(operator.kind, operator.kind)
        after_product = operator.kind == "Add" and nodes and nodes[-1].name in pairs
        if after_product and _is_bias(nodes[-1], operator, tensors):
            bias = next(x for x in operator.inputs if x in tensors)
            name = nodes[-1].name
            pairs[name] = pairs[name][0], _array(tensors[bias]).reshape(-1)
            nodes[-1] = replace(nodes[-1], tops=tuple(operator.outputs[:1]))
            continue
        name, found = operator.name or f"{operator.kind} {len(nodes)}", _numbers(operator)
        if kind in ("Convolution", "InnerProduct") and weights:
            layer, part = split_key(weights[0])
            name = layer if part == "kernel" else weights[0]
            if name in pairs:
                name = f"{name} {len(nodes)}"
            kernel, *bias = (_array(tensors[x]) for x in weights[:2])
            pairs[name] = _pair(kernel, bias, operator)
            found["filters"] = len(pairs[name][0])
        elif operator.kind == "Transpose":
            channels_last = operator.attributes.get("perm") == [0, 2, 3, 1]
            kind = "ChannelsLast" if channels_last else "Identity"
        elif operator.kind == "AveragePool" and operator.attributes.get("kernel_shape") == [1, 1]:
            kind = "Identity"
        data = [x for x in operator.inputs if x and x not in tensors]
        nodes.append(Node(name, kind, tuple(data), tuple(operator.outputs[:1]), found))
    return nodes, pairs


def _composed(operators: list[_Operator], tensors: dict[str, dict]) -> list[_Operator]:
    """The operators, with decomposed response normalisation (see `onnx_graph`) as a single LRN."""
    composed = []
    for operator in operators:
        composed.append(operator)
        if [x.kind for x in composed[-6:]] == _DECOMPOSED:
            composed[-6:] = _normalisation(composed[-6:], tensors)
    return composed


def _normalisation(steps: list[_Operator], tensors: dict[str, dict]) -> list[_Operator]:
    """x / (k + window * x^2)^(1/2 + 1/4) as one LRN; `steps` unchanged if they differ from it."""
    blob, window, k = steps[0].inputs[:1], steps[1].inputs[1:2], steps[1].inputs[2:3]
    square, scale, root, fourth, power, _ = (x.outputs for x in steps)
    expected = [blob * 2, square + window + k, scale, root, root + fourth, blob + power]
    if [x.inputs for x in steps] != expected or not tensors.keys() >= {*window, *k} > set():
        return steps
    kernel, bias = (_array(tensors[name]) for name in (*window, *k))
    if kernel.shape != (len(bias), len(bias), 1, 1):
        return steps
    size = np.count_nonzero(kernel[len(bias) // 2])
    alpha = size * float(kernel.max())
    if not np.array_equal(kernel, band(len(bias), size, alpha)) or (bias != bias[0]).any():
        return steps
    numbers = {"size": size, "alpha": alpha, "beta": 0.75, "bias": float(bias[0])}
    return [_Operator(steps[-1].name, "LRN", blob, steps[-1].outputs, numbers)]


def _is_bias(before: Node, add: _Operator, tensors: dict[str, dict]) -> bool:
    """Whether an Add is the bias of the MatMul before it."""
    terms = {x in tensors or x in before.tops for x in add.inputs}
    both = len(set(add.inputs) & tensors.keys()) == 1 and terms == {True}
    return before.kind == "InnerProduct" and both


def _pair(kernel: np.ndarray, bias: list[np.ndarray], operator: _Operator) -> _Pair:
    """Kernel, outputs first, and bias; zeros if there is none."""
    attributes = operator.attributes
    if operator.kind != "Conv":
        if kernel.ndim != 2:
            raise NotAlexNetError(f"a dense kernel of shape {kernel.shape}")
        if operator.kind == "MatMul" or not attributes.get("transB"):
            kernel = kernel.T
        if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
            raise NotAlexNetError("a Gemm whose alpha or beta is not 1")
    return kernel, bias[0].reshape(-1) if bias else np.zeros(len(kernel), np.float32)


def _numbers(operator: _Operator) -> dict[str, float | str]:
    """Settings of a layer, without the padding of pools, which differs between exporters."""
    sides = {"kernel_shape": "kernel", "strides": "stride"}
    names = {
        "Conv": {**sides, "group": "groups", "pads": "pad", "dilations": "dilation"},
        "MaxPool": sides,
        "AveragePool": sides,
        "LRN": {"size": "local_size", "alpha": "alpha", "beta": "beta", "bias": "k"},
    }.get(operator.kind, {})
    found: dict[str, float | str] = {}
    for name, ours in names.items():
        value = operator.attributes.get(name)
        if value is not None:
            found[ours] = one_or_both(value) if isinstance(value, list) else value
    if names is sides:
        found["pool"] = "MAX" if operator.kind == "MaxPool" else "AVE"
    return found


def _names(pairs: _Pairs, matched: dict[str, str]) -> dict[str, str]:
    """Name in the file -> our name, from the position in the graph (`matched`) if known."""
    names = {name: matched.get(name, name) for name in pairs}
    twice = [name for name in names if list(names.values()).count(names[name]) > 1]
    return names | {name: name for name in twice if name not in matched and name not in LAYER_ORDER}
