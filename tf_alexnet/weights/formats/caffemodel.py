"""Caffe models: the protobuf message NetParameter, read and written field by field.

Field numbers are those of BVLC/caffe ``src/caffe/proto/caffe.proto``; the wire format is protobuf's
"Encoding" page. Generated classes would copy every number one by one; here an array of packed
floats is a view of the file until it is transposed into TensorFlow's layout.

Caffe keeps convolutions as (out, in / groups, height, width), dense kernels as (out, in), and
flattens (channels, height, width); here they become (height, width, in / groups, out), (in, out)
and (height, width, channels).
"""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import UsageError, WeightsError
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
    metadata_text,
    modern,
    parsed_metadata,
    to_channels_first,
)
from tf_alexnet.weights.graph import SETTINGS, Node, Told, caffe_node, foreign_layer, told_by
from tf_alexnet.wire import FIXED32, LENGTH, VARINT, Wire, WireError, text

MAX_BYTES = 1 << 31
CONVOLUTION, INNER_PRODUCT = 4, 14  # V1LayerParameter.LayerType
CAFFE_NAMES = {"AlexNet": "bvlc_alexnet", "CaffeNet": "caffenet"}
RECORD = 20_000  # of NetParameter: our metadata as JSON
_NEW = {1: "name", 2: "kind", 3: "bottom", 4: "top", 7: "blobs"}
_NEW |= {new: name for name, (new, _, _) in SETTINGS.items()}
_V1 = {1: "layer", 2: "bottom", 3: "top", 4: "name", 5: "kind", 6: "blobs"}
_V1 |= {old: name for name, (_, old, _) in SETTINGS.items()}


def read(path: str | os.PathLike) -> WeightArrays:
    """Read a Caffe model: of the first format (V0), V1 or the present one, or NVIDIA's.

    Layers keep the order of the file. The architecture is what our own record in the file, its
    graph or the net's name tells, in this order; ``metadata["net"]`` is that name. A graph that
    agrees with a table only as far as the convolutions is described in ``metadata["differs"]``.

    Raises
    ------
    WeightsError
        If the file is damaged, or not a Caffe model, or a network with layers that change the
        result and that AlexNet does not have, such as batch normalisation.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= MAX_BYTES:
            raise damaged(path, f"a file of {size} bytes")
        # Every array is copied when it is transposed, so the mapping does not outlive this call.
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    try:
        message = memoryview(mapped)
        other = _other_kind(_wires(message))
        if other:
            raise damaged(path, other, "Name the .caffemodel that belongs to it.")
        net = _net(message)
        foreign = foreign_layer(net.nodes)
        if foreign:
            raise NotAlexNetError(foreign)
        told = told_by(net.nodes)
        layers = from_channels_first(_pairs(net), told.flattened)
        arrays = assemble(path, layers, *parsed_metadata(net.record), in_order=True)
    except NotAlexNetError as error:
        raise damaged(path, str(error), ADVICE) from None
    except (WireError, ValueError) as error:
        raise damaged(path, f"a damaged Caffe model, or not one at all: {error}") from None
    metadata = dict(arrays.metadata)
    if net.title and net.title not in ARCHITECTURES:
        metadata.setdefault("net", net.title)
    if told.difference and told.architecture:
        metadata.setdefault("differs", told.difference)
    return replace(
        arrays,
        architecture=_architecture(net.title, told, arrays),
        metadata=metadata,
        flattened={k: v for k, v in told.flattened.items() if k in layers},
    )


def recognised(message: memoryview) -> bool:
    """Whether it begins like a file that Caffe writes: a network, a solver's state or a blob."""
    wires = _wires(message)
    return bool({2, 100} & wires.keys()) or wires.get(1) == LENGTH or _other_kind(wires) is not None


def _wires(message: memoryview) -> dict[int, int]:
    """Number -> wire type of the first fields."""
    wires: dict[int, int] = {}
    try:
        for number, wire, _ in Wire().walk(message):
            wires.setdefault(number, wire)
            if len(wires) > 4:
                break
    except WireError:
        pass
    return wires


def _other_kind(wires: Mapping[int, int]) -> str | None:
    """What a file of Caffe's is that is not a network."""
    if wires.get(1) == VARINT and wires.get(3) == LENGTH:
        return "a Caffe solver's state, not a network"
    if (wires.get(1) == VARINT and wires.get(3) == VARINT) or wires.get(5) in (LENGTH, FIXED32):
        return "a single Caffe blob (a mean image?), not a network"
    return None


@dataclass
class _Net:
    """A NetParameter: its name, our record, its layers, and the blobs of those that have some."""

    title: str = ""
    record: str = ""
    nodes: list[Node] = field(default_factory=list)
    blobs: dict[str, list[np.ndarray]] = field(default_factory=dict)


def _net(message: memoryview) -> _Net:
    """A NetParameter: name 1, layers (V1) 2, layer 100."""
    wire, net = Wire(), _Net()
    for number, value in wire.messages(message, 1, 2, 100, RECORD):
        if number == 1:
            net.title = text(value)
            continue
        if number == RECORD:
            net.record = str(value[:MAX_METADATA], "utf-8", "replace")
            continue
        node, raw = _layer(wire, value, v1=number == 2)
        blobs = [wire.blob(blob) for blob in raw]
        if node.kind == "Convolution" and blobs:
            node = replace(node, numbers={**node.numbers, "filters": blobs[0].shape[0]})
        net.nodes.append(node)
        if blobs and node.name in net.blobs:
            raise WireError(f"layer {node.name!r} twice")
        if blobs:
            net.blobs[node.name] = blobs
    return net


def _layer(wire: Wire, message: memoryview, v1: bool) -> tuple[Node, list[memoryview]]:
    """A LayerParameter, a V1LayerParameter or the V0 within one, and its blobs."""
    form = _V1 if v1 else _NEW
    names: dict[str, list] = {"name": [""], "kind": [""], "bottom": [], "top": [], "blobs": []}
    settings = {}
    for number, kind, value in wire.walk(message):
        part = form.get(number)
        if part in SETTINGS and kind == LENGTH:
            settings[part] = _settings(wire, value, SETTINGS[part][2])
        elif part == "layer" and kind == LENGTH:  # V0: name 1, type 2, blobs 50
            for inner, content in wire.messages(value, 1, 50):
                names["name" if inner == 1 else "blobs"].append(
                    text(content) if inner == 1 else content
                )
        elif part in names:
            if kind == VARINT and part == "kind":
                names[part].append(value)
            elif kind != LENGTH:
                raise WireError(f"a field {number} of wire type {kind}")
            else:
                names[part].append(value if part == "blobs" else text(value))
    node = caffe_node(names["name"][-1], names["kind"][-1], names["bottom"], names["top"], settings)
    return node, names["blobs"]


def _settings(wire: Wire, message: memoryview, names: dict[int, str]) -> dict[str, list]:
    """Field name -> values of a layer's settings: integers, packed or not, and floats."""
    found: dict[str, list] = {}
    for field_ in wire.walk(message):
        if field_.number not in names:
            continue
        if field_.wire == FIXED32:
            values = np.frombuffer(field_.value, "<f4").tolist()
        else:
            values = wire.integers([field_], field_.number)
        found.setdefault(names[field_.number], []).extend(values)
    return found


def _pairs(net: _Net) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Kernel and bias of each layer, in Caffe's layout, whatever the vintage of the blobs.

    Other layers with blobs, such as a deconvolution, are left out with a warning, unless they have
    the name of one of ours.
    """
    kinds = {node.name: node.kind for node in net.nodes}
    transposed = {node.name for node in net.nodes if node.numbers.get("transposed")}
    pairs = {}
    for name, blobs in net.blobs.items():
        ours = kinds[name] in ("Convolution", "InnerProduct", "") and len(blobs) == 2
        if not ours and name not in LAYER_ORDER:
            words = f"{kinds[name] or 'a layer'} with {len(blobs)} blobs"
            warnings.warn(f"left out: {name} ({words})", stacklevel=3)
            continue
        if not ours:
            parts = "without a bias" if len(blobs) == 1 else f"with {len(blobs)} blobs"
            raise NotAlexNetError(f"a network whose layer {name!r} is {parts}, not AlexNet")
        kernel, bias = blobs
        kernel, bias = modern(kernel, bias)
        if kernel.ndim == 2 and name in transposed:
            kernel = kernel.T
        if bias.ndim != 1 or kernel.ndim not in (2, 4):
            raise NotAlexNetError(f"layer {name!r} with blobs of {kernel.shape} and {bias.shape}")
        pairs[name] = kernel, bias
    return pairs


def _architecture(title: str, told: Told, arrays: WeightArrays) -> str | None:
    """What the record, the graph or the net's name says, where the shapes agree."""
    fitting = fitting_architectures(with_classifier(arrays))
    for name in (arrays.architecture, told.architecture, title):
        if name in fitting:
            return name
    table = ARCHITECTURES.get(CAFFE_NAMES.get(title))
    if table is None or told.difference:
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

    Names and order of the layers are those of the file that the arrays came from. Caffe matches
    layers by name with a prototxt. Architecture and metadata are in a field that NetParameter does
    not have, which protobuf's readers pass over.

    Parameters
    ----------
    arrays : WeightArrays
        What to write.
    path : path-like
        Where to.
    layers : {"new", "v1"}
        LayerParameter, or the V1LayerParameter of 2014.
    blobs : {"shaped", "legacy"}
        BlobShape, or the four dimensions of old, (1, 1, 1, out) and (1, 1, out, in) for what has
        fewer.
    packed : bool
        Numbers as one field, or each as a field of its own.

    Raises
    ------
    UsageError
        If an option is none of these.
    WeightsError
        If nothing tells how the rows of a dense layer are ordered.
    """
    for option, value, known in (
        ("layers", layers, ("new", "v1")),
        ("blobs", blobs, ("shaped", "legacy")),
    ):
        if value not in known:
            raise UsageError(
                f"{option}={value!r}", "there is no such form", f"Use {' or '.join(known)}."
            )
    title = arrays.metadata.get("net", arrays.architecture)
    record = metadata_text(arrays)
    arrays = with_own_names(arrays)
    try:
        kernels = to_channels_first(arrays)
    except ValueError as error:
        raise WeightsError(arrays.source, str(error), "Write a .npy file instead.") from None
    with open(path, "wb") as file:
        if title:
            file.write(_bytes_field(1, title.encode()))
        for name, kernel in kernels:
            bias = as_float32(arrays.layers[name].bias)
            _write_layer(file, name, (kernel, bias), layers, blobs, packed)
        file.write(_bytes_field(RECORD, record.encode()))


def _write_layer(file, name: str, arrays, layers: str, blobs: str, packed: bool) -> None:
    """One layer: its name and type, then its blobs, each behind its length."""
    dense = arrays[0].ndim == 2
    if layers == "v1":
        kind = _key(5, VARINT) + _varint(INNER_PRODUCT if dense else CONVOLUTION)
        fields = _bytes_field(4, name.encode()) + kind
    else:
        kind = b"InnerProduct" if dense else b"Convolution"
        fields = _bytes_field(1, name.encode()) + _bytes_field(2, kind)
    opened = []
    size = len(fields)
    for array in arrays:
        shape, length = _shape_field(array, blobs), array.size * 5
        if packed:
            shape += _key(5, LENGTH) + _varint(array.nbytes)
            length = array.nbytes
        head = _key(6 if layers == "v1" else 7, LENGTH) + _varint(len(shape) + length) + shape
        opened.append(head)
        size += len(head) + length
    file.write(_key(2 if layers == "v1" else 100, LENGTH) + _varint(size) + fields)
    for head, array in zip(opened, arrays, strict=True):
        file.write(head)
        _write_values(file, array, packed)


def _shape_field(array: np.ndarray, blobs: str) -> bytes:
    if blobs == "shaped":
        return _bytes_field(7, _bytes_field(1, b"".join(map(_varint, array.shape))))
    shape = (1,) * (4 - array.ndim) + array.shape
    return b"".join(_key(i, VARINT) + _varint(n) for i, n in enumerate(shape, start=1))


def _write_values(file, array: np.ndarray, packed: bool) -> None:
    """The values in C order, in slices of the first axis, so that no large copy is made."""
    step = max(1, (1 << 20) // max(1, array[0].size))
    for start in range(0, len(array), step):
        values = np.ascontiguousarray(array[start : start + step], "<f4").reshape(-1)
        if not packed:
            fields = np.empty(values.size, [("key", "u1"), ("value", "<f4")])
            fields["key"], fields["value"] = _key(5, FIXED32)[0], values
            values = fields
        file.write(values.view("u1").data)


def _key(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _bytes_field(number: int, raw: bytes) -> bytes:
    return _key(number, LENGTH) + _varint(len(raw)) + raw
