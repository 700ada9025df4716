"""NumPy object files: a dictionary of layers, as the first converters from Caffe wrote them.

The file is a 0-d array of one object, ``{layer: [kernel, bias]}``,
``{layer: {"weights": kernel, "biases": bias}}`` or ``{"conv1_W": kernel, ...}``. Convolutions are
(height, width, channels in / groups, channels out), dense kernels (in, out), and the rows of fc6 in
(height, width, channels) order; in files of the first Caffe users all as in Caffe.

The header is described in NumPy's ``lib/format.py``. `numpy.load` reads what `write` writes (with
``allow_pickle=True``), but runs code from any file that asks for it; `read` never does.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from pathlib import Path

import numpy as np

from tf_alexnet.errors import UsageError
from tf_alexnet.weights import pickles
from tf_alexnet.weights.arrays import LAYER_ORDER, WeightArrays
from tf_alexnet.weights.formats.common import (
    ADVICE,
    NotAlexNetError,
    as_float32,
    assemble,
    damaged,
    parsed_metadata,
    recorded,
)
from tf_alexnet.weights.formats.named import named_layers

MAGIC = b"\x93NUMPY"
MAX_HEADER = 4096
# How a bare pickle begins: protocols 2 to 5, 0 and 1.
PICKLES = (
    *(b"\x80" + bytes([n]) for n in range(2, 6)),
    *(b"(d", b"}q", b"}(", b"cnumpy", b"ccollections\nOrderedDict\n"),
)
PARTS = ("weights", "biases")
_HEADER = re.compile(
    rb"\{'descr': *'([^']{1,40})', *'fortran_order': *(True|False), *'shape': *"
    rb"\(([0-9L, ]{0,100})\),? *\}\s*"
)


class HeaderError(ValueError):
    """A file is not a NumPy array of floats; the message completes "a file with ..."."""


def parse_header(data: bytes | memoryview) -> tuple[str, bool, tuple[int, ...], int]:
    """dtype, whether Fortran's order, shape, and offset of the values of a NumPy file.

    NumPy's own parser evaluates the header as an expression.

    Raises
    ------
    HeaderError
        If the file has no such header.
    """
    form = {b"\x01": "<H", b"\x02": "<I", b"\x03": "<I"}.get(bytes(data[6:7]))
    start = 8 + struct.calcsize(form or "")
    if data[:6] != MAGIC or form is None or len(data) < start:
        raise HeaderError("no NumPy array of a known version")
    size = struct.unpack_from(form, data, 8)[0]
    if size > min(MAX_HEADER, len(data) - start):
        raise HeaderError("an odd header")
    header = _HEADER.fullmatch(data, start, start + size)
    if header is None:
        raise HeaderError("an odd header")
    descr, fortran, dims = (str(part, "latin-1") for part in header.groups())
    try:
        shape = tuple(int(n.strip().rstrip("L")) for n in dims.split(",") if n.strip())
    except ValueError:
        raise HeaderError(f"a shape of ({dims})") from None
    return descr, fortran == "True", shape, start + size


def floats(data: memoryview) -> np.ndarray:
    """The array in a NumPy file, of rank 1 to 4; a view of its bytes.

    Raises
    ------
    HeaderError
        If the file has no such array.
    """
    descr, fortran, shape, start = parse_header(data)
    code, count = descr.lstrip("<>=|"), math.prod(shape)
    if code not in ("f2", "f4", "f8") or not 1 <= len(shape) <= 4 or not count:
        raise HeaderError(f"an array of dtype {descr} and shape {shape}")
    dtype = np.dtype((">" if descr[0] == ">" else "<") + code)
    if count * dtype.itemsize != len(data) - start:
        raise HeaderError(f"an array of shape {shape} in {len(data) - start} bytes")
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")


def read(path: str | os.PathLike) -> WeightArrays:
    """Read a dictionary of layers from a .npy file or a bare pickle.

    Little-endian float32 arrays in TensorFlow's layout are views of the file's bytes; others are
    converted.

    Raises
    ------
    WeightsError
        If the file is damaged, holds anything else, or asks for code to be run.
    """
    data = Path(path).read_bytes()
    try:
        start = _payload(path, data) if data.startswith(MAGIC) else 0
        unpickler = pickles.NumpyUnpickler(data, start)
        named = _named(_layers(unpickler.load()))
        if unpickler.at != len(data):
            raise damaged(path, f"{len(data) - unpickler.at} bytes follow the end of its pickle")
        layers = named_layers(named, lambda key: _array(key, named[key]))
    except NotAlexNetError as error:
        raise damaged(path, f"it holds {error}", ADVICE) from None
    except pickles.PickleError as error:
        raise damaged(path, f"it holds {error}") from None
    except HeaderError as error:
        raise damaged(path, f"a NumPy file with {error}") from None
    return assemble(path, layers, *parsed_metadata(unpickler.comment))


def _payload(path, data: bytes) -> int:
    """Offset of the pickle behind the header."""
    descr, _, shape, start = parse_header(data)
    if descr != "|O" or shape:
        raise damaged(
            path,
            f"a plain NumPy array of dtype {descr} and shape {shape}",
            "Weights are a file with one dictionary of layers in it.",
        )
    return start


def _layers(value: object) -> dict:
    """The dictionary of layers, out of its 0-d object array."""
    if isinstance(value, pickles.PickledArray):
        scalar = value.dtype is not None and value.dtype.is_object and value.shape == ()
        pickles.require(scalar and len(value.data) == 1, "an array where its layers belong")
        value = value.data[0]
    pickles.require(isinstance(value, dict), f"a {type(value).__name__} where its layers belong")
    return value


def _named(layers: dict) -> dict[str, object]:
    """``<layer>/kernel`` and ``<layer>/bias`` -> array, of a dictionary in any of the forms."""
    if len(layers) == 1 and all(map(_nested, layers.values())):  # Flax's "params"
        (layers,) = layers.values()
    named = {}
    for name, value in layers.items():
        if value in ([], ()):  # of layers without weights
            continue
        if isinstance(value, list | tuple) and (name in LAYER_ORDER or _is_pair(value)):
            pickles.require(
                len(value) == 2, f"layer {name} with {len(value)} arrays instead of kernel and bias"
            )
            value = dict(zip(PARTS, value, strict=True))
        if isinstance(value, dict):
            named |= {f"{name}/{part}": array for part, array in value.items()}
            continue
        known = name in LAYER_ORDER
        pickles.require(not known, f"layer {name} as something else than kernel and bias")
        named[name] = value  # {"conv1_W": array, ...}
    return named


def _nested(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(x, dict) for x in value.values())


def _is_pair(value: list | tuple) -> bool:
    return len(value) == 2 and all(isinstance(x, pickles.PickledArray) for x in value)


def _array(key: str, value: object) -> np.ndarray:
    pickles.require(
        isinstance(value, pickles.PickledArray), f"something else than an array in {key!r}"
    )
    try:
        return value.array()
    except pickles.PickleError as error:
        raise pickles.PickleError(f"{error} in {key!r}") from None


def write(arrays: WeightArrays, path: str | os.PathLike, form: str = "list") -> None:
    """Write a dictionary of layers that any NumPy from 1.10 on reads, on Python 3.

    The pickle is of protocol 3, written here opcode by opcode so that no array is copied.
    Architecture and metadata stand behind its header as a text that is dropped at once, and that
    readers other than `read` never see.

    Parameters
    ----------
    arrays : WeightArrays
        What to write.
    path : path-like
        Where to.
    form : {"list", "dict"}
        ``{layer: [kernel, bias]}``, or ``{layer: {"weights": kernel, "biases": bias}}``.

    Raises
    ------
    UsageError
        If the metadata are too long to be read back.
    """
    comment = pickles.COMMENT + json.dumps(recorded(arrays))
    if len(comment) > pickles.MAX_TEXT:
        raise UsageError("metadata", f"{len(comment)} characters of it", "Write less of it.")
    with open(path, "wb") as file:
        header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
        header = header.ljust(-(len(header) + 11) % 64 + len(header)) + b"\n"
        file.write(MAGIC + b"\x01\x00" + struct.pack("<H", len(header)) + header)
        file.write(b"\x80\x03" + _text(comment) + b"0")
        file.write(_RECONSTRUCT + b"(K\x01)" + _dtype("O8", "|", 63) + b"\x89]}")
        for name, layer in arrays.layers.items():
            file.write(_text(name) + (b"]" if form == "list" else b"}"))
            for part, array in zip(PARTS, layer, strict=True):
                file.write(b"" if form == "list" else _text(part))
                _write_array(file, as_float32(array))
                file.write(b"a" if form == "list" else b"s")
            file.write(b"s")
        file.write(b"atb.")


_RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _dtype(code: str, order: str, flags: int) -> bytes:
    state = b"(K\x03" + _text(order) + b"NNN" + 2 * _integer(-1) + _integer(flags) + b"tb"
    return b"cnumpy\ndtype\n" + _text(code) + b"\x89\x88\x87R" + state


def _write_array(file, array: np.ndarray) -> None:
    shape = b"(" + b"".join(map(_integer, array.shape)) + b"t"
    file.write(_RECONSTRUCT + b"(K\x01" + shape + _dtype("f4", "<", 0) + b"\x89")
    file.write(b"B" + struct.pack("<I", array.nbytes))
    file.write(np.asarray(array, "<f4").data)
    file.write(b"tb")
