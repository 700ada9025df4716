"""Protobuf messages, read field by field: what Caffe models, mean images and ONNX files share.

The wire format is described on protobuf's page "Encoding"; BlobProto in BVLC/caffe
``src/caffe/proto/caffe.proto`` and, for its raw form, in NVIDIA/caffe's. Packed floats are views of
the message. Everything that a message declares is checked against the bytes that are there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

MAX_FIELDS = 20_000  # in a file; a network of 24 layers takes about 1,000
MAX_DIMENSIONS = 8
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_SIZES = {FIXED32: 4, FIXED64: 8}
_BLOB_NUMBERS = {5: "<f4", 6: "<f4", 8: "<f8", 9: "<f8"}  # data, diff, double_data, double_diff
_RAW_TYPES = ("<f8", "<f4", "<f2")  # NVIDIA's raw_data_type: DOUBLE, FLOAT, FLOAT16


class WireError(Exception):
    """The bytes are not such a message; the text completes "a file with ..."."""


class Field(NamedTuple):
    """One field of a message: an integer (VARINT), or its bytes."""

    number: int
    wire: int
    value: int | memoryview


class Wire:
    """Walks messages, and counts the fields it has seen in the whole file."""

    def __init__(self):
        self.fields = 0

    def field(self, message: memoryview, at: int) -> tuple[Field, int]:
        """The field at `at`, and where the next one begins."""
        self.fields += 1
        if self.fields > MAX_FIELDS:
            raise WireError(f"more than {MAX_FIELDS} fields")
        key, at = varint(message, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise WireError("a field of number 0")
        if wire == VARINT:
            value, at = varint(message, at)
            return Field(number, wire, value), at
        if wire == LENGTH:
            size, at = varint(message, at)
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

    def messages(self, message: memoryview, *numbers: int) -> Iterator[tuple[int, memoryview]]:
        """The fields of these numbers, which must be strings or messages."""
        for number, wire, value in self.walk(message):
            if number in numbers:
                if wire != LENGTH:
                    raise WireError(f"a field {number} of wire type {wire}")
                yield number, value

    def split(
        self, message: memoryview, forms: Mapping[int, str]
    ) -> tuple[dict[int, np.ndarray], list[Field]]:
        """Repeated numbers, packed or not, and the other fields of a message.

        Parameters
        ----------
        message : memoryview
            A message that holds arrays.
        forms : mapping of int to str
            Field number (below 16) -> dtype of its fixed-width numbers.

        Returns
        -------
        dict of int to ndarray, list of Field
            One array for each number that occurs, a view of `message` where it is in one piece.
        """
        pieces: dict[int, list[np.ndarray]] = {}
        others = []
        at = 0
        while at < len(message):
            field, after = self.field(message, at)
            form = np.dtype(forms[field.number]) if field.number in forms else None
            if form and field.wire in _SIZES and _SIZES[field.wire] == form.itemsize:
                values, after = _run(message, at, form)
                pieces.setdefault(field.number, []).append(values)
            elif form and field.wire == LENGTH:
                if len(field.value) % form.itemsize:
                    raise WireError("an array cut off within a number")
                pieces.setdefault(field.number, []).append(np.frombuffer(field.value, form))
            else:
                others.append(field)
            at = after
        arrays = {k: v[0] if len(v) == 1 else np.concatenate(v) for k, v in pieces.items()}
        return arrays, others

    def integers(self, fields: list[Field], number: int) -> list[int]:
        """The signed integers of a repeated field, packed or not; at most `MAX_DIMENSIONS`."""
        found = []
        for field in fields:
            if field.number != number:
                continue
            if field.wire == VARINT:
                found.append(signed(field.value))
            elif field.wire == LENGTH:
                at = 0
                while at < len(field.value) and len(found) <= MAX_DIMENSIONS:
                    value, at = varint(field.value, at)
                    found.append(signed(value))
            if len(found) > MAX_DIMENSIONS:
                raise WireError(f"an array of more than {MAX_DIMENSIONS} dimensions")
        return found

    def blob(self, message: memoryview) -> np.ndarray:
        """A BlobProto's values in its shape: float16, float32 or float64.

        A view of `message` where they are in one piece. As in Caffe's ``Blob::FromProto``, any of
        the four old dimensions hides the new shape, and double_data goes before data; NVIDIA's
        raw_data goes before both.
        """
        arrays, others = self.split(message, _BLOB_NUMBERS)
        single = {f.number: f.value for f in others if f.wire == VARINT}
        legacy = [signed(single.get(number, 0)) for number in range(1, 5)]
        if any(legacy):
            shape = legacy
        else:
            shapes = [f.value for f in others if f.number == 7 and f.wire == LENGTH]
            dims = [list(self.walk(shape)) for shape in shapes]
            shape = self.integers([field for fields in dims for field in fields], 1)
        raw = [f.value for f in others if f.number == 12 and f.wire == LENGTH]
        if raw:
            values = _raw_values(raw[-1], single.get(10, 0))
        else:
            values = arrays.get(8, arrays.get(5, np.empty(0, np.float32)))
        return shaped(values, shape)


def read_blob(message: memoryview | bytes) -> np.ndarray:
    """The array in a file that is one BlobProto, such as a mean image (``.binaryproto``).

    Raises
    ------
    WireError
        If it is not one; the text completes "a file with ...".
    """
    return Wire().blob(memoryview(message))


def text(raw: memoryview) -> str:
    """A name, at most 256 bytes of UTF-8."""
    if len(raw) > 256:
        raise WireError(f"a name of {len(raw)} bytes")
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        raise WireError("a name that is not UTF-8") from None


def shaped(values: np.ndarray, shape: list[int]) -> np.ndarray:
    """`values` in a shape of one to four dimensions, which must hold just these."""
    if not 1 <= len(shape) <= 4 or min(shape) < 1 or math.prod(shape) != len(values):
        raise WireError(f"an array of shape {tuple(shape)} with {len(values)} values")
    return values.reshape(shape)


def _raw_values(raw: memoryview, kind: int) -> np.ndarray:
    if kind >= len(_RAW_TYPES):
        raise WireError(f"raw data of type {kind}")
    form = np.dtype(_RAW_TYPES[kind])
    if len(raw) % form.itemsize:
        raise WireError("an array cut off within a number")
    return np.frombuffer(raw, form)


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


def _run(message: memoryview, at: int, form: np.dtype) -> tuple[np.ndarray, int]:
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
