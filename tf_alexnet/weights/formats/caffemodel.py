"""Caffe models: the protobuf message NetParameter, read and written field by field.

Field numbers are those of BVLC/caffe ``src/caffe/proto/caffe.proto``; the wire format is described
on protobuf's page "Encoding". Generated classes would copy each number separately; here, packed
floats are a view of the file until they are transposed to TensorFlow's layout.

In Caffe, convolutions are (out, in / groups, height, width), dense kernels (out, in), and feature
maps are flattened as (channels, height, width). They are converted to (height, width, in / groups,
out), (in, out) and (height, width, channels).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.weights.arrays import (
    LAYER_ORDER,
    WeightArrays,
    fitting_architectures,
    with_classifier,
    with_own_names,
)
from tf_alexnet.weights.formats.common import (
    ADVICE,
    MAX_METADATA,
    NotAlexNetError,
    as_float32,
    assemble,
    damaged,
    from_channels_first,
    mapped,
    metadata_text,
    modern,
    parsed_metadata,
    to_channels_first,
)
from tf_alexnet.weights.graph import GraphMatch, Node, caffe_node, foreign_layer, match_graph
from tf_alexnet.wire import (
    BLOB,
    FIXED32,
    LENGTH,
    VARINT,
    Wire,
    WireError,
    blob_array,
    field_bytes,
    field_opening,
    fields,
    last,
    varint_bytes,
    wire_types,
)

# Field numbers for `write`: the layer, its name, type and blobs; and values of the type.
_NUMBERS = {
    "new": (100, 1, 2, 7, (b"Convolution", b"InnerProduct")),
    "v1": (2, 4, 5, 6, (4, 14)),
}
CAFFE_NAMES = {"AlexNet": "bvlc_alexnet", "CaffeNet": "caffenet"}
RECORD = 20_000  # field of NetParameter for our metadata as JSON
_CONVOLUTION = {
    **fields("int", num_output=1, pad=3, kernel_size=4, group=5, stride=6, dilation=18),
    **fields("int", pad_h=9, pad_w=10, kernel_h=11, kernel_w=12, stride_h=13, stride_w=14),
}
_DENSE = fields("int", num_output=1, transpose=6)
_LRN = fields("int", local_size=1, norm_region=4) | fields("float", alpha=2, beta=3, k=5)
_POOLING = {
    **fields("int", pool=1, kernel_size=2, stride=3, pad=4, kernel_h=5, kernel_w=6),
    **fields("int", stride_h=7, stride_w=8, pad_h=9, pad_w=10),
}
_LAYER = {
    **fields("text", name=1, type=2, bottom=3, top=4),
    **fields(BLOB, blobs=7),
    **fields(_CONVOLUTION, convolution_param=106),
    **fields(_DENSE, inner_product_param=117),
    **fields(_LRN, lrn_param=118),
    **fields(_POOLING, pooling_param=121),
}
_V1_LAYER = {
    **fields(fields("text", name=1) | fields(BLOB, blobs=50), layer=1),  # V0
    **fields("text", bottom=2, top=3, name=4),
    **fields("int", type=5),
    **fields(BLOB, blobs=6),
    **fields(_CONVOLUTION, convolution_param=10),
    **fields(_DENSE, inner_product_param=17),
    **fields(_LRN, lrn_param=18),
    **fields(_POOLING, pooling_param=19),
}
_NET = {
    **fields("text", name=1),
    **fields(_V1_LAYER, layers=2),
    **fields(_LAYER, layer=100),
    **fields("bytes", record=RECORD),
}


def read(path: str | os.PathLike) -> WeightArrays:
    """Read a Caffe model in the current format, V1, V0 or NVIDIA's.

    Layers keep the order of the file. The architecture is taken from our own record in the file,
    its graph or the net's name, in this order; ``metadata["net"]`` is that name. If the graph
    matches a table only up to the last convolution, ``metadata["differs"]`` describes the first
    difference.

    Raises
    ------
    WeightsError
        If the file is damaged or not a Caffe model, or the network has layers that AlexNet does not
        have, such as batch normalisation.
    """
    try:
        message = mapped(path)
        if other := _other_kind(wire_types(message)):
            raise damaged(path, other, "Use the .caffemodel that belongs to it.")
        net = Wire().read(message, _NET)
        nodes, weighted = _layers(net)
        if foreign := foreign_layer(nodes):
            raise NotAlexNetError(foreign)
        match = match_graph(nodes)
        layers = from_channels_first(_pairs(weighted), match.flattened)
        record = str(last(net, "record", b"")[:MAX_METADATA], "utf-8", "replace")
        arrays = assemble(path, layers, *parsed_metadata(record), match.flattened)
    except NotAlexNetError as error:
        raise damaged(path, str(error), ADVICE) from None
    except (WireError, ValueError) as error:
        raise damaged(path, f"a damaged Caffe model, or another kind of file: {error}") from None
    metadata, title = dict(arrays.metadata), last(net, "name", "")
    if title and title not in ARCHITECTURES:
        metadata.setdefault("net", title)
    if match.difference and match.architecture:
        metadata.setdefault("differs", match.difference)
    return replace(arrays, architecture=_architecture(title, match, arrays), metadata=metadata)


def recognised(message: memoryview) -> bool:
    """Whether it starts like a file written by Caffe: a network, a solver's state or a blob."""
    wires = wire_types(message)
    return bool({2, 100} & wires.keys()) or wires.get(1) == LENGTH or _other_kind(wires) is not None


def _other_kind(wires: Mapping[int, int]) -> str | None:
    """The kind of a Caffe file other than a network, or None."""
    if wires.get(1) == VARINT and wires.get(3) == LENGTH:
        return "a Caffe solver's state, not a network"
    if (wires.get(1) == VARINT and wires.get(3) == VARINT) or wires.get(5) in (LENGTH, FIXED32):
        return "a single Caffe blob (a mean image?), not a network"
    return None


def _layers(net: Mapping[str, list]) -> tuple[list[Node], dict[str, tuple[Node, list]]]:
    """The layers of a NetParameter, and name -> (layer, blobs) of those with blobs."""
    nodes, weighted = [], {}
    for layer in (*net.get("layers", ()), *net.get("layer", ())):
        layer |= last(layer, "layer", {})
        node = caffe_node(layer)
        blobs = [blob_array(blob) for blob in layer.get("blobs", ())]
        if node.kind == "Convolution" and blobs:
            node = replace(node, numbers={**node.numbers, "filters": len(blobs[0])})
        nodes.append(node)
        if blobs and node.name in weighted:
            raise WireError(f"layer {node.name!r} twice")
        if blobs:
            weighted[node.name] = node, blobs
    return nodes, weighted


def _pairs(
    weighted: Mapping[str, tuple[Node, list]],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Kernel and bias of each layer in Caffe's layout, for blobs of all versions.

    Other layers with blobs, such as a deconvolution, are left out with a warning; if one has the
    name of one of our layers, an error is raised.
    """
    pairs = {}
    for name, (node, blobs) in weighted.items():
        if node.kind not in ("Convolution", "InnerProduct", "") or len(blobs) != 2:
            if name in LAYER_ORDER:
                parts = "without a bias" if len(blobs) == 1 else f"with {len(blobs)} blobs"
                raise NotAlexNetError(f"a network whose layer {name!r} is {parts}, not AlexNet")
            words = f"{node.kind or 'a layer'} with {len(blobs)} blobs"
            warnings.warn(f"left out: {name} ({words})", stacklevel=3)
            continue
        kernel, bias = modern(*blobs)
        if kernel.ndim == 2 and node.numbers.get("transpose"):
            kernel = kernel.T
        if bias.ndim != 1 or kernel.ndim not in (2, 4):
            raise NotAlexNetError(f"layer {name!r} with blobs of {kernel.shape} and {bias.shape}")
        pairs[name] = kernel, bias
    return pairs


def _architecture(title: str, match: GraphMatch, arrays: WeightArrays) -> str | None:
    """The architecture from the record, the graph or the net's name, if the shapes fit."""
    fitting = fitting_architectures(with_classifier(arrays))
    for name in (arrays.architecture, match.architecture, title):
        if name in fitting:
            return name
    table = ARCHITECTURES.get(CAFFE_NAMES.get(title))
    if table is None or match.difference:
        return None
    shapes = {name: tuple(x.shape for x in layer) for name, layer in arrays.layers.items()}
    return table.name if shapes == table.parameter_shapes() else None


def write(
    arrays: WeightArrays,
    path: str | os.PathLike,
    layers: str = "new",
    blobs: str = "shaped",
    packed: bool = True,
) -> None:
    """Write a Caffe model: the net's name, and the layers with their blobs.

    Layers have the names and order of the file that the arrays come from. Caffe matches them to a
    prototxt by name. Architecture and metadata are in a field unknown to NetParameter, which
    protobuf readers skip.

    Parameters
    ----------
    arrays : WeightArrays
        Weights to write.
    path : path-like
        Output file.
    layers : {"new", "v1"}
        LayerParameter, or V1LayerParameter of 2014.
    blobs : {"shaped", "legacy"}
        BlobShape, or the legacy four dimensions: (1, 1, 1, out) and (1, 1, out, in) for biases and
        dense kernels.
    packed : bool
        All values of an array in a single field, or each in its own.

    Raises
    ------
    WeightsError
        If the order of a dense layer's rows is unknown.
    UsageError
        If the metadata is too long to be read back.
    """
    title = arrays.metadata.get("net", arrays.architecture)
    record = metadata_text(arrays)
    arrays = with_own_names(arrays)
    kernels = to_channels_first(arrays)
    with open(path, "wb") as file:
        if title:
            file.write(field_bytes(1, title.encode()))
        for name, kernel in kernels:
            bias = as_float32(arrays.layers[name].bias)
            _write_layer(file, name, (kernel, bias), layers, blobs, packed)
        file.write(field_bytes(RECORD, record.encode()))


def _write_layer(file, name: str, arrays, layers: str, blobs: str, packed: bool) -> None:
    """Write a layer: its name and type, then its blobs, each after its length."""
    layer, title, kind, blob, kinds = _NUMBERS[layers]
    fields = field_bytes(title, name.encode()) + field_bytes(kind, kinds[arrays[0].ndim == 2])
    heads, size = [], len(fields)
    for array in arrays:
        head, length = _shape_field(array, blobs), array.size * 5
        if packed:
            length = array.nbytes
            head += field_opening(5, length)
        heads.append(field_opening(blob, len(head) + length) + head)
        size += len(heads[-1]) + length
    file.write(field_opening(layer, size) + fields)
    for head, array in zip(heads, arrays, strict=True):
        file.write(head)
        _write_values(file, array, packed)


def _shape_field(array: np.ndarray, blobs: str) -> bytes:
    if blobs == "shaped":
        return field_bytes(7, field_bytes(1, b"".join(map(varint_bytes, array.shape))))
    shape = (1,) * (4 - array.ndim) + array.shape
    return b"".join(field_bytes(i, n) for i, n in enumerate(shape, start=1))


def _write_values(file, array: np.ndarray, packed: bool) -> None:
    """Write values in C order, in slices of the first axis to avoid a large copy."""
    step = max(1, (1 << 20) // max(1, array[0].size))
    for start in range(0, len(array), step):
        values = np.ascontiguousarray(array[start : start + step], "<f4").reshape(-1)
        if not packed:
            fields = np.empty(values.size, [("key", "u1"), ("value", "<f4")])
            fields["key"], fields["value"] = 5 << 3 | FIXED32, values
            values = fields
        file.write(values.view("u1").data)
