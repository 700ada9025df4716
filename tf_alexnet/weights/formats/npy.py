"""NumPy object files: a dictionary of layers, as the first converters from Caffe wrote them.

The file is a 0-d array of one object, ``{layer: [kernel, bias]}`` or
``{layer: {"weights": kernel, "biases": bias}}``, with convolutions as (height, width,
channels in / groups, channels out), dense kernels as (in, out), and the rows of fc6 in
(height, width, channels) order.

The header is described in NumPy's ``lib/format.py``. `numpy.load` reads what `write` writes (with
``allow_pickle=True``), but runs code from any file that asks for it; `read` never does.
"""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path

import numpy as np

from tf_alexnet.errors import UsageError
from tf_alexnet.weights import pickles
from tf_alexnet.weights.arrays import WeightArrays
from tf_alexnet.weights.formats.common import (
    ADVICE,
    NotAlexNetError,
    as_float32,
    assemble,
    damaged,
    named_layers,
    of_layers,
    recorded,
    split_metadata,
)

MAGIC = b"\x93NUMPY"
MAX_HEADER = 4096
# How a bare pickle of a dictionary begins: protocols 2 to 5, 0 and 1.
PICKLES = (
    *(b"\x80" + bytes([n]) for n in range(2, 6)),
    b"(d",
    b"}q",
    b"ccollections\nOrderedDict\n",
)
PARTS = ("weights", "biases")
_HEADER = re.compile(
    rb"\{'descr': *'([^']{1,40})', *'fortran_order': *(?:True|False), *'shape': *"
    rb"\(([0-9L, ]*)\),? *\}\s*"
)


def read(path: str | os.PathLike) -> WeightArrays:
    """Read a dictionary of layers from a .npy file or a bare pickle.

    Little-endian float32 arrays are views of the file's bytes, in TensorFlow's layout as stored;
    float16, float64 and big-endian ones are converted to float32.

    Raises
    ------
    WeightsError
        If the file is damaged, holds anything else, or asks for code to be run.
    """
    data = Path(path).read_bytes()
    start = _payload(path, data) if data.startswith(MAGIC) else 0
    try:
        pickled = pickles.load(data, start)
        if pickled.end != len(data):
            raise damaged(path, f"{len(data) - pickled.end} bytes follow the end of its pickle")
        arrays = _arrays(_layers(pickled.value))
        layers = named_layers({key: arrays[key] for key in of_layers(arrays)})
    except NotAlexNetError as error:
        raise damaged(path, f"it holds {error}", ADVICE) from None
    except pickles.PickleError as error:
        raise damaged(path, f"it holds {error}") from None
    return assemble(path, layers, *_comment(pickled.comment))


def _payload(path, data: bytes) -> int:
    """Offset of the pickle behind the header."""
    wide = data[6:7] in (b"\x02", b"\x03")
    if not wide and data[6:7] != b"\x01":
        raise damaged(path, "a NumPy file of an unknown version")
    start = 12 if wide else 10
    if len(data) < start:
        raise damaged(path, "a NumPy file cut off in its header")
    size = struct.unpack_from("<I" if wide else "<H", data, 8)[0]
    header = _HEADER.fullmatch(data, start, start + min(size, MAX_HEADER))
    if header is None or size > len(data) - start or size > MAX_HEADER:
        raise damaged(path, "a NumPy file with an odd header")
    descr, shape = (part.decode("latin-1") for part in header.groups())
    if descr != "|O" or shape.strip():
        raise damaged(
            path,
            f"a plain NumPy array of dtype {descr} and shape ({shape[:40]})",
            "Weights are a file with one dictionary of layers in it.",
        )
    return start + size


def _layers(value: object) -> dict:
    """The dictionary of layers, out of its 0-d object array."""
    if isinstance(value, pickles.PickledArray):
        scalar = value.dtype is not None and value.dtype.is_object and value.shape == ()
        pickles.require(scalar and len(value.data) == 1, "an array where its layers belong")
        value = value.data[0]
    pickles.require(isinstance(value, dict), f"a {type(value).__name__} where its layers belong")
    return value


def _arrays(layers: dict) -> dict[str, np.ndarray]:
    """``<layer>/kernel`` and ``<layer>/bias`` -> array, of a dictionary in any of the forms."""
    if len(layers) == 1 and all(map(_nested, layers.values())):  # Flax's "params"
        (layers,) = layers.values()
    arrays = {}
    for name, value in layers.items():
        if value in ([], (), {}):  # of layers without weights
            continue
        if isinstance(value, pickles.PickledArray):  # {"conv1_W": array, ...}
            arrays[name] = _array(name, value)
            continue
        if isinstance(value, list | tuple):
            pickles.require(
                len(value) == 2, f"layer {name} with {len(value)} arrays instead of kernel and bias"
            )
            value = dict(zip(PARTS, value, strict=True))
        pickles.require(
            isinstance(value, dict), f"layer {name} as something else than kernel and bias"
        )
        arrays |= {f"{name}/{part}": _array(name, array) for part, array in value.items()}
    return arrays


def _nested(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(x, dict) for x in value.values())


def _array(name: str, value: object) -> np.ndarray:
    pickles.require(
        isinstance(value, pickles.PickledArray), f"layer {name} with something else than arrays"
    )
    try:
        return value.array()
    except pickles.PickleError as error:
        raise pickles.PickleError(f"{error} in layer {name}") from None


def _comment(text: str | None) -> tuple[str | None, dict[str, str]]:
    try:
        return split_metadata(json.loads(text or "{}"))
    except (ValueError, RecursionError):
        return None, {}


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
        If there is no such form.
    """
    if form not in ("list", "dict"):
        raise UsageError(f"form={form!r}", "there is no such form", 'Use "list" or "dict".')
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
