"""Protobuf messages, field by field: what Caffe models, mean images and ONNX files share.

The wire format is described on protobuf's page "Encoding"; BlobProto in BVLC/caffe
``src/caffe/proto/caffe.proto`` and, for its raw form, in NVIDIA/caffe's. Packed floats are views of
the message. Everything that a message declares is checked against the bytes that are there.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

MAX_FIELDS = 20_000  # in a file; a network of 24 layers takes about 1,000
MAX_DIMENSIONS = 8
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_SIZES = {FIXED32: 4, FIXED64: 8}
_RAW_TYPES = ("<f8", "<f4", "<f2")  # NVIDIA's raw_data_type


class WireError(Exception):
    """The bytes are not such a message; the text completes "a file with ..."."""


class Field(NamedTuple):
    """One field of a message: an integer (VARINT), or its bytes."""

    number: int
    wire: int
    value: int | memoryview


def fields(kind: str | Mapping, **numbers: int) -> dict[int, tuple[str, str | Mapping]]:
    """A schema: number -> name and kind, of fields that are all of one kind.

    Kinds are "int", "float", "text" and "bytes"; "<f4" and "<f8" for arrays; and for messages their
    own schema.
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
    """Reads messages, and counts the fields it has seen in the whole file."""

    def __init__(self):
        self.fields = 0

    def field(self, message: memoryview, at: int) -> tuple[Field, int]:
        """The field at `at`, and where the next one begins."""
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
        """Each field of a message."""
        at = 0
        while at < len(message):
            field, at = self.field(message, at)
            yield field

    def read(self, message: memoryview, schema: Mapping) -> dict[str, Any]:
        """The fields of a message that are in a schema (see `fields`): name -> values.

        An array is a view of `message` where it is in one piece. The values of other fields are a
        list: of at most `MAX_DIMENSIONS` numbers, or of any number of texts, bytes or messages.
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
    """Number -> wire type of the first fields, as far as they are sound."""
    wires: dict[int, int] = {}
    with contextlib.suppress(WireError):
        for number, wire, _ in itertools.islice(Wire().walk(message), 20):
            wires.setdefault(number, wire)
    return wires


def last(message: Mapping[str, Sequence], name: str, default: Any = None) -> Any:
    """The last value of a field, which is the one that protobuf takes."""
    values = message.get(name, ())
    return values[-1] if len(values) else default


def read_blob(message: memoryview | bytes) -> np.ndarray:
    """The array in a file that is one BlobProto, such as a mean image (``.binaryproto``).

    Raises
    ------
    WireError
        If it is not one; the text completes "a file with ...".
    """
    return blob_array(Wire().read(memoryview(message), BLOB))


def blob_array(blob: Mapping) -> np.ndarray:
    """A BlobProto's values in its shape: float16, float32 or float64.

    As in Caffe's ``Blob::FromProto``, any of the four old dimensions hides the new shape, and
    double_data goes before data; NVIDIA's raw_data goes before both.
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
    """`values` in a shape of one to four dimensions, which must hold just these."""
    if not 1 <= len(shape) <= 4 or min(shape) < 1 or math.prod(shape) != len(values):
        raise WireError(f"an array of shape {tuple(shape)} with {len(values)} values")
    return values.reshape(shape)


def numbers(raw: memoryview, form: str) -> np.ndarray:
    """Numbers of fixed width, as a view."""
    if len(raw) % np.dtype(form).itemsize:
        raise WireError("an array cut off within a number")
    return np.frombuffer(raw, form)


def field_bytes(number: int, value: int | bytes | str) -> bytes:
    """A field as it is written: a VARINT, or bytes behind their length."""
    if isinstance(value, int):
        return varint_bytes(number << 3 | VARINT) + varint_bytes(value)
    value = value.encode() if isinstance(value, str) else value
    return field_opening(number, len(value)) + value


def field_opening(number: int, length: int) -> bytes:
    """What stands before this many bytes of a field."""
    return varint_bytes(number << 3 | LENGTH) + varint_bytes(length)


def varint_bytes(value: int) -> bytes:
    """An unsigned number as it is written."""
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
    """A name, at most 256 bytes of UTF-8."""
    if len(raw) > 256:
        raise WireError(f"a name of {len(raw)} bytes")
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        raise WireError("a name that is not UTF-8") from None


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The unsigned number at `at`, and where the next field begins."""
    value = 0
    for index, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at + index + 1
    raise WireError("a number that runs past its end")


def _signed(value: int) -> int:
    """A 64-bit two's complement."""
    return value - (1 << 64) if value >> 63 else value


def _run(message: memoryview, at: int, form: np.dtype) -> tuple[np.ndarray, int]:
    """The values of a run of fields with the same one-byte key, and where the run ends."""
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
        window *= 2  # so that the work stays in proportion to the run
    values = np.concatenate(pieces)
    if not len(values):
        raise WireError("a field that runs past the end")
    return values, at
