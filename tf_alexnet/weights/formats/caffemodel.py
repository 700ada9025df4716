"""Caffe models: the protobuf message NetParameter, read and written field by field.

Field numbers are those of BVLC/caffe ``src/caffe/proto/caffe.proto``; the wire format is protobuf's
"Encoding" page. Generated classes would copy every number one by one; here an array of packed
floats is a view of the file until it is transposed into TensorFlow's layout.

Caffe keeps convolutions as (out, in / groups, height, width), dense kernels as (out, in), and
flattens (channels, height, width); here they become (height, width, in / groups, out), (in, out)
and (height, width, channels).
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import UsageError, WeightsError
from tf_alexnet.weights.arrays import LayerArrays, WeightArrays, fitting_architectures
from tf_alexnet.weights.formats.common import (
    as_float32,
    assemble,
    damaged,
    first_dense,
    from_channels_first,
    to_channels_first,
)

MAX_BYTES = 1 << 31
MAX_FIELDS = 20_000  # a network of 24 layers takes about 1,000
MAX_DIMENSIONS = 8
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
CONVOLUTION, INNER_PRODUCT = 4, 14  # V1LayerParameter.LayerType
CAFFE_NAMES = {"AlexNet": "bvlc_alexnet", "CaffeNet": "caffenet"}


class WireError(Exception):
    """The bytes are no NetParameter; the message completes "a file with ..."."""


@dataclass
class _Blob:
    """One BlobProto: its shape and the pieces of its data."""

    legacy: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    dims: list[int] = field(default_factory=list)
    floats: list[np.ndarray] = field(default_factory=list)
    doubles: list[np.ndarray] = field(default_factory=list)

    def array(self) -> np.ndarray:
        """The values in Caffe's shape: a view of the file where they lie in one piece."""
        # Blob::FromProto in blob.cpp: any of the four old dimensions hides the new shape,
        # and double_data, where there is any, goes before data.
        shape = tuple(self.legacy if any(self.legacy) else self.dims)
        pieces = self.doubles or self.floats
        count = sum(len(piece) for piece in pieces)
        if not 1 <= len(shape) <= 4 or min(shape) < 1 or math.prod(shape) != count:
            raise WireError(f"a blob of shape {shape} with {count} values")
        return (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)).reshape(shape)


class _Wire:
    """Walks messages, and counts the fields it has seen in the whole file."""

    def __init__(self):
        self.fields = 0

    def count(self) -> None:
        self.fields += 1
        if self.fields > MAX_FIELDS:
            raise WireError(f"more than {MAX_FIELDS} fields")

    def walk(self, message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
        """Number, wire type and value of each field: an integer, or the bytes of it."""
        at = 0
        while at < len(message):
            self.count()
            key, at = varint(message, at)
            number, wire = key >> 3, key & 7
            if number == 0:
                raise WireError("a field of number 0")
            if wire == VARINT:
                value, at = varint(message, at)
                yield number, wire, value
                continue
            if wire == LENGTH:
                size, at = varint(message, at)
            elif wire in (FIXED32, FIXED64):
                size = 4 if wire == FIXED32 else 8
            else:
                raise WireError(f"a field of wire type {wire}")
            if size > len(message) - at:
                raise WireError("a field that runs past the end")
            yield number, wire, message[at : at + size]
            at += size

    def messages(self, message: memoryview, *numbers: int) -> Iterator[tuple[int, memoryview]]:
        """The fields of these numbers, which must be strings or messages."""
        for number, wire, value in self.walk(message):
            if number in numbers:
                if wire != LENGTH:
                    raise WireError(f"a field {number} of wire type {wire}")
                yield number, value

    def blob(self, message: memoryview) -> _Blob:
        """A BlobProto. Unpacked numbers, each a field of its own, are read in runs."""
        blob = _Blob()
        at = 0
        while at < len(message):
            # data 5, diff 6 (float), double_data 8, double_diff 9: the four that may be unpacked
            key = message[at]
            if key in (0x2D, 0x35, 0x41, 0x49):
                form = "<f4" if key in (0x2D, 0x35) else "<f8"
                values, at = run(message, at, form)
                self.count()
                if key == 0x2D:
                    blob.floats.append(values)
                elif key == 0x41:
                    blob.doubles.append(values)
                continue
            at = self.blob_field(blob, message, at)
        return blob

    def blob_field(self, blob: _Blob, message: memoryview, at: int) -> int:
        """Read the one field at `at`; return where the next begins."""
        number, wire, value = next(self.walk(message[at:]))
        if wire == VARINT:
            if 1 <= number <= 4:
                blob.legacy[number - 1] = signed(value)
            _, after_key = varint(message, at)
            return varint(message, after_key)[1]
        if wire == LENGTH and number in (5, 8):
            form = np.dtype("<f4" if number == 5 else "<f8")
            if len(value) % form.itemsize:
                raise WireError("a blob cut off within a number")
            if len(value):
                (blob.floats if number == 5 else blob.doubles).append(np.frombuffer(value, form))
        elif wire == LENGTH and number == 7:
            blob.dims += self.dims(value)
        _, after = varint(message, at)
        if wire == LENGTH:
            _, after = varint(message, after)
        return after + len(value)

    def dims(self, message: memoryview) -> list[int]:
        """The dimensions in a BlobShape, packed or not."""
        dims = []
        for number, wire, value in self.walk(message):
            if number != 1:
                continue
            if wire == VARINT:
                dims.append(signed(value))
            elif wire == LENGTH:
                at = 0
                while at < len(value) and len(dims) <= MAX_DIMENSIONS:
                    dim, at = varint(value, at)
                    dims.append(signed(dim))
            if len(dims) > MAX_DIMENSIONS:
                raise WireError(f"a blob of more than {MAX_DIMENSIONS} dimensions")
        return dims


def varint(message: memoryview, at: int) -> tuple[int, int]:
    """The unsigned number at `at`, and where the next field begins."""
    value = 0
    for index, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at + index + 1
    raise WireError("a number that runs past its end")


def signed(value: int) -> int:
    """A 64-bit two's complement."""
    return value - (1 << 64) if value >> 63 else value


def run(message: memoryview, at: int, form: str) -> tuple[np.ndarray, int]:
    """The values of a run of fields with the same one-byte key, and where the run ends."""
    record = np.dtype([("key", "u1"), ("value", form)])
    key = message[at]
    pieces, window = [], 64
    while True:
        size = min(window, (len(message) - at) // record.itemsize)
        fields = np.frombuffer(message, record, size, at) if size else np.empty(0, record)
        others = np.flatnonzero(fields["key"] != key)
        length = int(others[0]) if len(others) else size
        pieces.append(fields["value"][:length])
        at += length * record.itemsize
        if length < size or size < window:
            break
        window *= 2  # so that the work stays in proportion to the run
    values = np.concatenate(pieces)
    if not len(values):
        raise WireError("a field that runs past the end")
    return values, at


def read(path: str | os.PathLike) -> WeightArrays:
    """Read a Caffe model: of the first format (V0), V1 or the present one.

    Layers without blobs are left out. The architecture is known only where the network bears one
    of our tables' names or Caffe's own ("AlexNet", "CaffeNet", with all shapes and 1000 classes);
    a network of Caffe's order may well be called AlexNet by others.

    Raises
    ------
    WeightsError
        If the file is damaged, or no Caffe model.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= MAX_BYTES:
            raise damaged(path, f"a file of {size} bytes")
        # Every array is copied when it is transposed, so the mapping does not outlive this call.
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    try:
        message = memoryview(mapped)
        _check_kind(path, message)
        title, layers = _net(message)
        arrays = assemble(path, _tensorflow_layout(layers))
    except (WireError, ValueError) as error:
        raise damaged(path, f"a damaged Caffe model, or none at all: {error}") from None
    return WeightArrays(arrays.layers, _architecture(title, arrays), arrays.source)


def _check_kind(path, message: memoryview) -> None:
    """Name the other files that Caffe writes."""
    wires = {}
    try:
        for number, wire, _ in _Wire().walk(message):
            wires.setdefault(number, wire)
            if len(wires) > 4:
                break
    except WireError:
        pass
    advice = "Name the .caffemodel that belongs to it."
    if wires.get(1) == VARINT and wires.get(3) == LENGTH:
        raise damaged(path, "a Caffe solver's state, not a network", advice)
    if (wires.get(1) == VARINT and wires.get(3) == VARINT) or wires.get(5) in (LENGTH, FIXED32):
        raise damaged(path, "a single Caffe blob (a mean image?), not a network", advice)
    if not {2, 100} & wires.keys() and wires.get(1) != LENGTH:
        raise damaged(path, "no weight file of a known kind")


def _net(message: memoryview) -> tuple[str, dict[str, list[np.ndarray]]]:
    """A NetParameter's name, and its blobs by layer: name 1, layers (V1) 2, layer 100."""
    wire, title, layers = _Wire(), "", {}
    for number, value in wire.messages(message, 1, 2, 100):
        if number == 1:
            title = _name(value)
            continue
        name, blobs = _layer(wire, value, v1=number == 2)
        if not blobs:
            continue
        if name in layers:
            raise WireError(f"layer {name!r} twice")
        layers[name] = [wire.blob(blob).array() for blob in blobs]
    return title, layers


def _layer(wire: _Wire, message: memoryview, v1: bool) -> tuple[str, list[memoryview]]:
    """Name and blobs of a LayerParameter (1, 7), V1 (4, 6) or the V0 within one (1: 1, 50)."""
    name, blobs = "", []
    name_field, blob_field = (4, 6) if v1 else (1, 7)
    for number, value in wire.messages(message, name_field, blob_field, *([1] if v1 else [])):
        if number == name_field:
            name = _name(value)
        elif number == blob_field:
            blobs.append(value)
        else:
            for inner, part in wire.messages(value, 1, 50):
                name, blobs = (_name(part), blobs) if inner == 1 else (name, [*blobs, part])
    return name, blobs


def _name(raw: memoryview) -> str:
    if len(raw) > 256:
        raise WireError(f"a name of {len(raw)} bytes")
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        raise WireError("a name that is no UTF-8") from None


def _tensorflow_layout(layers: dict[str, list[np.ndarray]]) -> dict[str, LayerArrays]:
    """Blobs of any vintage as kernels and biases in TensorFlow's layout, in network order."""
    pairs = {}
    for name, blobs in layers.items():
        if len(blobs) != 2:
            raise WireError(f"layer {name!r} of {len(blobs)} blobs")
        kernel, bias = blobs
        if kernel.ndim == 4 and kernel.shape[:2] == (1, 1):  # the old shape of a dense kernel
            kernel = kernel.reshape(kernel.shape[2:])
        if bias.size != bias.shape[-1] or kernel.ndim not in (2, 4):
            raise WireError(f"layer {name!r} with blobs of {kernel.shape} and {bias.shape}")
        pairs[name] = kernel, bias.reshape(-1)
    return from_channels_first(pairs)


def _architecture(title: str, arrays: WeightArrays) -> str | None:
    """What the network's name says, where the shapes agree with it."""
    if title in ARCHITECTURES:
        return title if title in fitting_architectures(arrays) else None
    table = ARCHITECTURES.get(CAFFE_NAMES.get(title))
    if table is None:
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
    """Write a Caffe model: the layers with their blobs, and the architecture as the net's name.

    Other metadata find no place in the format. Caffe matches layers by name with a prototxt.

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
        If it is not known how the rows of the first dense layer are ordered.
    """
    for option, value, known in (
        ("layers", layers, ("new", "v1")),
        ("blobs", blobs, ("shaped", "legacy")),
    ):
        if value not in known:
            raise UsageError(
                f"{option}={value!r}", "there is no such form", f"Use {' or '.join(known)}."
            )
    try:
        first_dense(arrays.layers)
    except ValueError as error:
        raise WeightsError(arrays.source, str(error), "Write a .npy file instead.") from None
    with open(path, "wb") as file:
        if arrays.architecture:
            file.write(_bytes_field(1, arrays.architecture.encode()))
        for name, kernel in to_channels_first(arrays.layers):
            bias = as_float32(arrays.layers[name].bias)
            _write_layer(file, name, (kernel, bias), layers, blobs, packed)


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
