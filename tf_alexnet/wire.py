"""Reading and writing protobuf messages, for Caffe models, mean images and ONNX files.

The wire format is described on protobuf's page "Encoding", BlobProto in BVLC/caffe
``src/caffe/proto/caffe.proto``, and its ``raw_data`` in NVIDIA/caffe's. Packed floats are returned
as views of the message. All declared sizes are checked against the number of bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

MAX_FIELDS = 20_000  # per file; a network of 24 layers has about 1,000
MAX_DIMENSIONS = 8
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_SIZES = {FIXED32: 4, FIXED64: 8}
_RAW_TYPES = ("<f8", "<f4", "<f2")  # NVIDIA's raw_data_type


class WireError(Exception):
    """The bytes are not a valid message; the text completes "a file with ..."."""


class Field(NamedTuple):
    """One field of a message; the value is an integer (VARINT) or bytes."""

    number: int
    wire: int
    value: int | memoryview


def fields(kind: str | Mapping, **numbers: int) -> dict[int, tuple[str, str | Mapping]]:
    """A schema, number -> (name, kind), for fields of the same kind.

    Kinds are "int", "float", "text" and "bytes"; "<f4" and "<f8" for arrays; and a schema for
    messages.
    """
    return {number: (name, kind) for name, number in numbers.items()}


BLOB = {
    **fields("int", num=1, channels=2, height=3, width=4, raw_data_type=10),
    **fields("<f4", data=5, diff=6),
    **fields(fields("int", dim=1), shape=7),
    **fields("<f8", double_data=8, double_diff=9),
    **fields("bytes", raw_data=12),
}


class Wire:
    """Reader of messages, which limits the number of fields in a file."""

    def __init__(self):
        self.fields = 0

    def field(self, message: memoryview, at: int) -> tuple[Field, int]:
        """The field at offset `at`, and the offset of the next one."""
        self.fields += 1
        if self.fields > MAX_FIELDS:
            raise WireError(f"more than {MAX_FIELDS} fields")
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise WireError("a field of number 0")
        if wire == VARINT:
            value, at = _varint(message, at)
            return Field(number, wire, value), at
        if wire == LENGTH:
            size, at = _varint(message, at)
        elif wire in _SIZES:
            size = _SIZES[wire]
        else:
            raise WireError(f"a field of wire type {wire}")
        if size > len(message) - at:
            raise WireError("a field that runs past the end")
        return Field(number, wire, message[at : at + size]), at + size

    def walk(self, message: memoryview) -> Iterator[Field]:
        """Yield the fields of a message."""
        at = 0
        while at < len(message):
            field, at = self.field(message, at)
            yield field

    def read(self, message: memoryview, schema: Mapping) -> dict[str, Any]:
        """The fields of a message that are in a schema (see `fields`), as name -> values.

        Arrays are views of `message` if they are contiguous. The values of other fields are lists:
        of at most `MAX_DIMENSIONS` numbers, or of any number of texts, bytes or messages.
        """
        found: dict[str, Any] = {}
        pieces: dict[str, list[np.ndarray]] = {}
        at = 0
        while at < len(message):
            field, after = self.field(message, at)
            name, kind = schema.get(field.number, ("", ""))
            if kind in ("<f4", "<f8"):
                size = np.dtype(kind).itemsize
                if _SIZES.get(field.wire) == size:
                    values, after = _run(message, at, np.dtype(kind))
                else:
                    values = numbers(_content(field), kind)
                pieces.setdefault(name, []).append(values)
            elif name:
                values = found.setdefault(name, [])
                values += self._values(field, kind)
                if kind in ("int", "float") and len(values) > MAX_DIMENSIONS:
                    raise WireError(f"an array of more than {MAX_DIMENSIONS} dimensions")
            at = after
        arrays = {k: v[0] if len(v) == 1 else np.concatenate(v) for k, v in pieces.items()}
        return found | arrays

    def _values(self, field: Field, kind: str | Mapping) -> list:
        if kind == "int" and field.wire == VARINT:
            return [_signed(field.value)]
        if kind == "float":
            return numbers(_content(field, FIXED32), "<f4").tolist()
        content = _content(field)
        if kind == "int":
            found, at = [], 0
            while at < len(content) and len(found) <= MAX_DIMENSIONS:
                value, at = _varint(content, at)
                found.append(_signed(value))
            return found
        if kind == "text":
            return [_text(content)]
        return [content] if kind == "bytes" else [self.read(content, kind)]


def wire_types(message: memoryview) -> dict[int, int]:
    """Number -> wire type of the first fields, up to the first invalid one."""
    wires: dict[int, int] = {}
    with contextlib.suppress(WireError):
        for number, wire, _ in itertools.islice(Wire().walk(message), 20):
            wires.setdefault(number, wire)
    return wires


def last(message: Mapping[str, Sequence], name: str, default: Any = None) -> Any:
    """The last value of a field, which is the one that counts in protobuf."""
    values = message.get(name, ())
    return values[-1] if len(values) else default


def read_blob(message: memoryview | bytes) -> np.ndarray:
    """The array in a file that holds a BlobProto, such as a mean image (``.binaryproto``).

    Raises
    ------
    WireError
        If it does not hold one.
    """
    return blob_array(Wire().read(memoryview(message), BLOB))


def blob_array(blob: Mapping) -> np.ndarray:
    """The array in a BlobProto, of float16, float32 or float64.

    As in Caffe's ``Blob::FromProto``, the four legacy dimensions take precedence over ``shape``,
    and ``double_data`` over ``data``. NVIDIA's ``raw_data`` takes precedence over both.
    """
    shape = [last(blob, name, 0) for name in ("num", "channels", "height", "width")]
    if not any(shape):
        shape = [n for part in blob.get("shape", ()) for n in part.get("dim", ())]
    if "raw_data" in blob:
        kind = last(blob, "raw_data_type", 0)
        if not 0 <= kind < len(_RAW_TYPES):
            raise WireError(f"raw data of type {kind}")
        values = numbers(last(blob, "raw_data"), _RAW_TYPES[kind])
    else:
        values = blob.get("double_data", blob.get("data", np.empty(0, np.float32)))
    return shaped(values, shape)


def shaped(values: np.ndarray, shape: list[int]) -> np.ndarray:
    """`values` reshaped to one to four dimensions, whose product must be their number."""
    if not 1 <= len(shape) <= 4 or min(shape) < 1 or math.prod(shape) != len(values):
        raise WireError(f"an array of shape {tuple(shape)} with {len(values)} values")
    return values.reshape(shape)


def numbers(raw: memoryview, form: str) -> np.ndarray:
    """Numbers of fixed width, as a view of `raw`."""
    if len(raw) % np.dtype(form).itemsize:
        raise WireError("an array cut off within a number")
    return np.frombuffer(raw, form)


def field_bytes(number: int, value: int | bytes | str) -> bytes:
    """An encoded field: a VARINT, or bytes after their length."""
    if isinstance(value, int):
        return varint_bytes(number << 3 | VARINT) + varint_bytes(value)
    value = value.encode() if isinstance(value, str) else value
    return field_opening(number, len(value)) + value


def field_opening(number: int, length: int) -> bytes:
    """Key and length of a field of `length` bytes."""
    return varint_bytes(number << 3 | LENGTH) + varint_bytes(length)


def varint_bytes(value: int) -> bytes:
    """An unsigned integer, encoded."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _content(field: Field, wire: int = LENGTH) -> memoryview:
    if field.wire != wire:
        raise WireError(f"a field {field.number} of wire type {field.wire}")
    return field.value


def _text(raw: memoryview) -> str:
    """A name of at most 256 bytes of UTF-8."""
    if len(raw) > 256:
        raise WireError(f"a name of {len(raw)} bytes")
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        raise WireError("a name that is not UTF-8") from None


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The unsigned integer at offset `at`, and the offset after it."""
    value = 0
    for index, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at + index + 1
    raise WireError("a number that runs past its end")


def _signed(value: int) -> int:
    """An unsigned 64-bit integer as two's complement."""
    return value - (1 << 64) if value >> 63 else value


def _run(message: memoryview, at: int, form: np.dtype) -> tuple[np.ndarray, int]:
    """The values of a run of fields with the same one-byte key, and the offset after it."""
    record = np.dtype([("key", "u1"), ("value", form)])
    key = message[at]
    pieces, window = [], 64
    while True:
        size = min(window, (len(message) - at) // record.itemsize)
        run = np.frombuffer(message, record, size, at) if size else np.empty(0, record)
        others = np.flatnonzero(run["key"] != key)
        length = int(others[0]) if len(others) else size
        pieces.append(run["value"][:length])
        at += length * record.itemsize
        if length < size or size < window:
            break
        window *= 2  # keeps the work proportional to the length of the run
    values = np.concatenate(pieces)
    if not len(values):
        raise WireError("a field that runs past the end")
    return values, at
