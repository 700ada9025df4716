"""ONNX files: the initializers of a graph, and which layer each of them feeds.

Field numbers are those of ``onnx.proto``. Read are the model zoo's AlexNet and CaffeNet, torch's
exports of torchvision's network, and others with the layers of one of our tables: their names are
taken from the initializers (``conv1_w_0``), or from the place in the graph.

Convolutions are (out, in / groups, height, width) and dense kernels (out, in) with `transB`; maps
are flattened as (channels, height, width), unless a Transpose puts the channels last before.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field, replace

import numpy as np

from tf_alexnet.weights.arrays import LAYER_ORDER, WeightArrays, fitting_architectures
from tf_alexnet.weights.formats.common import (
    NotAlexNetError,
    affordable,
    assemble,
    damaged,
    from_channels_first,
)
from tf_alexnet.weights.formats.named import split_key
from tf_alexnet.weights.graph import Node, foreign_layer, told_by
from tf_alexnet.wire import LENGTH, VARINT, Wire, WireError, shaped, signed, text

ADVICE = "Use an ONNX file of an AlexNet in floating point."
DTYPES = {1: "<f4", 10: "<f2", 11: "<f8"}
_NAMES = {1: "float", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 16: "bfloat16"}
# ONNX's operators that Caffe has by another name; others keep theirs.
_KINDS = {
    **{"Conv": "Convolution", "Gemm": "InnerProduct", "MatMul": "InnerProduct", "Relu": "ReLU"},
    **{"MaxPool": "Pooling", "AveragePool": "Pooling", "BatchNormalization": "BatchNorm"},
    **{"PRelu": "PReLU", "LeakyRelu": "LeakyReLU", "Tanh": "TanH", "Elu": "ELU", "Add": "Eltwise"},
    **{"Cast": "Identity", "Squeeze": "Identity", "Unsqueeze": "Identity"},
}


def recognised(head: bytes, message: memoryview) -> bool:
    """Whether a protobuf message is a ModelProto: ir_version 1, graph 7."""
    if head[:1] != b"\x08":
        return False
    try:
        wires = {number: wire for number, wire, _ in Wire().walk(message)}
    except WireError:
        return False
    return wires.get(1) == VARINT and wires.get(7) == LENGTH


@dataclass
class _Operator:
    """A NodeProto."""

    name: str = ""
    kind: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, object] = field(default_factory=dict)


@dataclass
class _Graph:
    """A GraphProto: its operators, and its initializers, which are read when they are needed."""

    operators: list[_Operator] = field(default_factory=list)
    tensors: dict[str, memoryview] = field(default_factory=dict)


def read(path: str | os.PathLike) -> WeightArrays:
    """Read the weights in an ONNX file.

    The architecture is what the graph tells: the order of normalisation and pooling.

    Raises
    ------
    WeightsError
        If the file is damaged, is not an AlexNet, is quantised, or keeps its weights in other
        files.
    """
    with open(path, "rb") as file:
        # Every array is copied when it is transposed, so the mapping does not outlive this call.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    wire = Wire()
    try:
        graph = _graph(wire, memoryview(mapped))
        nodes, pairs = _layers(wire, graph)
        foreign = foreign_layer(nodes)
        if foreign:
            raise NotAlexNetError(foreign)
        if 4 * sum(x.size for pair in pairs.values() for x in pair) > affordable(len(mapped)):
            raise NotAlexNetError("far more numbers than an AlexNet")
        told = told_by(nodes)
        names = _names(pairs, told.names)
        if len(set(names.values())) < len(names):
            raise NotAlexNetError("two layers of one name")
        pairs = {names[key]: pair for key, pair in pairs.items()}
        flattened = {names[key]: value for key, value in told.flattened.items() if key in names}
        arrays = assemble(path, from_channels_first(pairs, flattened), in_order=True)
    except NotAlexNetError as error:
        raise damaged(path, f"an ONNX file with {error}", ADVICE) from None
    except (WireError, ValueError) as error:
        raise damaged(path, f"a damaged ONNX file: {error}") from None
    fits = told.architecture in fitting_architectures(arrays)
    metadata = {"differs": told.difference} if fits and told.difference else {}
    return replace(
        arrays,
        architecture=told.architecture if fits else None,
        metadata=metadata,
        flattened={k: v for k, v in flattened.items() if k in arrays.layers},
    )


def _graph(wire: Wire, message: memoryview) -> _Graph:
    graph = _Graph()
    for _, content in wire.messages(message, 7):
        for number, value in wire.messages(content, 1, 5):
            if number == 1:
                operator, constant = _operator(wire, value)
                if constant is None:
                    graph.operators.append(operator)
                elif operator.outputs:
                    graph.tensors[operator.outputs[0]] = constant
            else:
                name = next((text(x) for n, x in wire.messages(value, 8) if n == 8), "")
                if name in graph.tensors:
                    raise WireError(f"initializer {name!r} twice")
                graph.tensors[name] = value
    return graph


def _operator(wire: Wire, message: memoryview) -> tuple[_Operator, memoryview | None]:
    """A NodeProto, and the tensor of a Constant."""
    found, constant = _Operator(), None
    for number, value in wire.messages(message, 1, 2, 3, 4, 5):
        if number == 5:
            name, content, tensor = _attribute(wire, value)
            found.attributes[name] = content
            constant = tensor if tensor is not None and name == "value" else constant
        elif number == 1:
            found.inputs.append(text(value))
        elif number == 2:
            found.outputs.append(text(value))
        elif number == 3:
            found.name = text(value)
        else:
            found.kind = text(value)
    return found, constant if found.kind == "Constant" else None


def _attribute(wire: Wire, message: memoryview) -> tuple[str, object, memoryview | None]:
    """An AttributeProto: name 1, float 2, integer 3, tensor 5, integers 8."""
    name, content, tensor, integers = "", None, None, []
    for item in wire.walk(message):
        if item.number == 1 and item.wire == LENGTH:
            name = text(item.value)
        elif item.number == 2 and item.wire not in (LENGTH, VARINT) and len(item.value) == 4:
            content = float(np.frombuffer(item.value, "<f4")[0])
        elif item.number == 3 and item.wire == VARINT:
            content = signed(item.value)
        elif item.number == 5 and item.wire == LENGTH:
            tensor = item.value
        elif item.number == 8:
            integers.append(item)
    return name, wire.integers(integers, 8) if integers else content, tensor


def _tensor(wire: Wire, message: memoryview) -> np.ndarray:
    """A TensorProto of floating point: dims 1, data_type 2, float_data 4, raw_data 9."""
    arrays, others = wire.split(message, {4: "<f4", 10: "<f8"})
    single = {x.number: x.value for x in others if x.wire == VARINT}
    if single.get(14) or any(x.number == 13 for x in others):
        raise NotAlexNetError("weights in another file, which is not read")
    kind = single.get(2, 0)
    if kind not in DTYPES:
        raise NotAlexNetError(f"{_NAMES.get(kind, f'type {kind}')} weights instead of floats")
    raw = [x.value for x in others if x.number == 9 and x.wire == LENGTH]
    form = np.dtype(DTYPES[kind])
    if raw:
        if len(raw[-1]) % form.itemsize:
            raise WireError("an array cut off within a number")
        values = np.frombuffer(raw[-1], form)
    else:
        values = arrays.get(10 if kind == 11 else 4, np.empty(0, form))
    return shaped(values, wire.integers(others, 1))


def _layers(
    wire: Wire, graph: _Graph
) -> tuple[list[Node], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The graph by Caffe's names, and kernel and bias of each layer with weights."""
    nodes, pairs = [], {}
    for operator in graph.operators:
        if operator.kind.startswith(("QLinear", "Quantize", "DynamicQuantize", "ConvInteger")):
            raise NotAlexNetError(f"quantised weights ({operator.kind}): another network")
        if operator.kind == "Identity" and set(operator.inputs) & graph.tensors.keys():
            tensor = graph.tensors[operator.inputs[0]]
            graph.tensors |= dict.fromkeys(operator.outputs, tensor)
            continue
        weights = [x for x in operator.inputs[1:] if x in graph.tensors]
        kind = _KINDS.get(operator.kind, operator.kind)
        after_product = operator.kind == "Add" and nodes and nodes[-1].name in pairs
        if after_product and _is_bias(nodes[-1], operator, graph):
            bias = next(x for x in operator.inputs if x in graph.tensors)
            name = nodes[-1].name
            pairs[name] = pairs[name][0], _tensor(wire, graph.tensors[bias]).reshape(-1)
            nodes[-1] = replace(nodes[-1], tops=tuple(operator.outputs[:1]))
            continue
        name, numbers = operator.name or f"{operator.kind} {len(nodes)}", _numbers(operator)
        if kind in ("Convolution", "InnerProduct") and weights:
            layer, part = split_key(weights[0])
            name = layer if part == "kernel" else weights[0]
            if name in pairs:
                name = f"{name} {len(nodes)}"
            pairs[name] = _pair(wire, graph, operator, weights)
            numbers["filters"] = len(pairs[name][0])
        elif operator.kind == "Transpose":
            last = operator.attributes.get("perm") == [0, 2, 3, 1]
            kind = "ChannelsLast" if last else "Identity"
        elif operator.kind == "AveragePool" and operator.attributes.get("kernel_shape") == [1, 1]:
            kind = "Identity"
        data = [x for x in operator.inputs if x and x not in graph.tensors]
        nodes.append(Node(name, kind, tuple(data), tuple(operator.outputs[:1]), numbers))
    return nodes, pairs


def _is_bias(before: Node, add: _Operator, graph: _Graph) -> bool:
    """Whether an Add adds the bias of the MatMul before it."""
    terms = {x in graph.tensors or x in before.tops for x in add.inputs}
    both = len(set(add.inputs) & graph.tensors.keys()) == 1 and terms == {True}
    return before.kind == "InnerProduct" and both


def _pair(
    wire: Wire, graph: _Graph, operator: _Operator, weights: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel, with the outputs first, and bias; zeros where there is none."""
    kernel, *bias = (_tensor(wire, graph.tensors[name]) for name in weights[:2])
    attributes = operator.attributes
    if operator.kind != "Conv":
        if kernel.ndim != 2:
            raise NotAlexNetError(f"a dense kernel of shape {kernel.shape}")
        if operator.kind == "MatMul" or not attributes.get("transB"):
            kernel = kernel.T
        if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
            raise NotAlexNetError("a Gemm with factors of its own")
    return kernel, bias[0].reshape(-1) if bias else np.zeros(len(kernel), np.float32)


def _numbers(operator: _Operator) -> dict[str, float | str]:
    """What the graph says of a layer. Padding of pools is left out: exporters spell it freely."""
    given = operator.attributes
    names = {
        "Conv": {"kernel_shape": "kernel", "strides": "stride", "group": "groups"},
        "MaxPool": {"kernel_shape": "kernel", "strides": "stride"},
        "AveragePool": {"kernel_shape": "kernel", "strides": "stride"},
        "LRN": {"size": "local_size", "alpha": "alpha", "beta": "beta", "bias": "k"},
    }.get(operator.kind, {})
    numbers: dict[str, float | str] = {}
    for name, ours in names.items():
        value = given.get(name)
        if isinstance(value, list):
            value = value[0] if len(set(value)) == 1 else "x".join(map(str, value))
        if value is not None:
            numbers[ours] = value
    pads = given.get("pads")
    if operator.kind == "Conv" and isinstance(pads, list) and pads:
        numbers["pad"] = pads[0] if len(set(pads)) == 1 else "x".join(map(str, pads))
    if operator.kind in ("MaxPool", "AveragePool"):
        numbers["pool"] = "MAX" if operator.kind == "MaxPool" else "AVE"
    return numbers


def _names(pairs: dict, told: dict[str, str]) -> dict[str, str]:
    """Name in the file -> ours: by the place in the graph if it is a network of ours."""
    names = {name: told.get(name, name) for name in pairs}
    twice = [name for name in names if list(names.values()).count(names[name]) > 1]
    return names | {name: name for name in twice if name not in told and name not in LAYER_ORDER}
