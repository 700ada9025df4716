"""NumPy object files with a dictionary of layers, as written by early converters from Caffe.

The file is a 0-d object array with ``{layer: [kernel, bias]}``,
``{layer: {"weights": kernel, "biases": bias}}`` or ``{"conv1_W": kernel, ...}``. Convolutions are
(height, width, channels in / groups, channels out), dense kernels (in, out), with the rows of fc6
in the order (height, width, channels); some early files have Caffe's layout.

The header is described in NumPy's ``lib/format.py``. `numpy.load` reads the files of `write` with
``allow_pickle=True``, but can run code from other files; `read` never does.
"""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path

import numpy as np

from tf_alexnet.errors import UsageError
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
from tf_alexnet.weights.pickles import (
    COMMENT,
    MAX_TEXT,
    NumpyUnpickler,
    PickledArray,
    PickledDtype,
    PickleError,
    require,
)

MAGIC = b"\x93NUMPY"
MAX_HEADER = 4096
# First bytes of a bare pickle: protocols 2 to 5, 0 and 1.
PICKLES = (
    *(b"\x80" + bytes([n]) for n in range(2, 6)),
    *(b"(d", b"}q", b"}(", b"cnumpy", b"ccollections\nOrderedDict\n"),
)
PARTS = ("weights", "biases")
_HEADER = re.compile(
    rb"\{'descr': *'([^']{1,40})', *'fortran_order': *(True|False), *'shape': *"
    rb"\(([0-9L, ]{0,100})\),? *\}\s*"
)


def parse_header(data: bytes | memoryview) -> tuple[str, bool, tuple[int, ...], int]:
    """Parse the header of a NumPy file, without evaluating it as NumPy does.

    Returns
    -------
    descr : str
        The dtype.
    fortran : bool
        Whether the array is in Fortran order.
    shape : tuple of int
    offset : int
        Offset of the values.

    Raises
    ------
    PickleError
        If the header is invalid.
    """
    form = {b"\x01": "<H", b"\x02": "<I", b"\x03": "<I"}.get(bytes(data[6:7]))
    start = 8 + struct.calcsize(form or "")
    if data[:6] != MAGIC or form is None or len(data) < start:
        raise PickleError("no NumPy array of a known version")
    size = struct.unpack_from(form, data, 8)[0]
    fits = size <= min(MAX_HEADER, len(data) - start)
    header = _HEADER.fullmatch(data, start, start + size) if fits else None
    if header is None:
        raise PickleError("an invalid header")
    descr, fortran, dims = (str(part, "latin-1") for part in header.groups())
    try:
        shape = tuple(int(n.strip().rstrip("L")) for n in dims.split(",") if n.strip())
    except ValueError:
        raise PickleError(f"a shape of ({dims})") from None
    return descr, fortran == "True", shape, start + size


def floats(data: memoryview) -> np.ndarray:
    """The array of floats in a NumPy file, of rank 1 to 4, as a view of its bytes.

    Raises
    ------
    PickleError
        If the file does not contain such an array.
    """
    descr, fortran, shape, start = parse_header(data)
    order = "F" if fortran else "C"
    try:
        return PickledArray(data[start:], PickledDtype(descr), shape, order).array()
    except PickleError:
        size = len(data) - start
        raise PickleError(f"an array of dtype {descr} and shape {shape} in {size} bytes") from None


def read(path: str | os.PathLike) -> WeightArrays:
    """Read a dictionary of layers from a .npy file or a bare pickle.

    Little-endian float32 arrays in TensorFlow's layout are views of the file's bytes; others are
    converted.

    Raises
    ------
    WeightsError
        If the file is damaged, contains anything else, or would run code.
    """
    data, start = Path(path).read_bytes(), 0
    try:
        if data.startswith(MAGIC):
            descr, _, shape, start = parse_header(data)
            if descr != "|O" or shape:
                found = f"a plain NumPy array of dtype {descr} and shape {shape}"
                advice = "Use a file that contains a dictionary of layers."
                raise damaged(path, found, advice)
        unpickler = NumpyUnpickler(data, start)
        named = _named(_layers(unpickler.load()))
        require(
            unpickler.at == len(data),
            f"{len(data) - unpickler.at} bytes follow the end of its pickle",
        )
        layers = named_layers(named, lambda key: _array(key, named[key]))
    except NotAlexNetError as error:
        raise damaged(path, f"it holds {error}", ADVICE) from None
    except PickleError as error:
        raise damaged(path, f"it holds {error}") from None
    return assemble(path, layers, *parsed_metadata(unpickler.comment))


def _layers(value: object) -> dict:
    """The dictionary of layers, which may be in a 0-d object array."""
    if isinstance(value, PickledArray):
        scalar = value.dtype is not None and value.dtype.is_object and value.shape == ()
        require(scalar and len(value.data) == 1, "an array where its layers belong")
        value = value.data[0]
    require(isinstance(value, dict), f"a {type(value).__name__} where its layers belong")
    return value


def _named(layers: dict) -> dict[str, object]:
    """``<layer>/<part>`` -> array, from a dictionary in any of the forms."""
    inner, *others = layers.values() or [None]
    if not others and isinstance(inner, dict) and all(isinstance(x, dict) for x in inner.values()):
        layers = inner  # Flax's "params"
    named = {}
    for name, value in layers.items():
        if value in ([], ()):  # a layer without weights
            continue
        known = name in LAYER_ORDER
        if isinstance(value, list | tuple):
            are_arrays = [isinstance(x, PickledArray) for x in value]
            if known or are_arrays == [True, True]:
                fault = f"layer {name} with {len(value)} arrays instead of kernel and bias"
                require(len(value) == 2, fault)
                value = dict(zip(PARTS, value, strict=True))
        if isinstance(value, dict):
            named |= {f"{name}/{part}": array for part, array in value.items()}
        else:  # {"conv1_W": array, ...}
            require(not known, f"layer {name} as something other than kernel and bias")
            named[name] = value
    return named


def _array(key: str, value: object) -> np.ndarray:
    require(isinstance(value, PickledArray), f"something other than an array in {key!r}")
    try:
        return value.array()
    except PickleError as error:
        raise PickleError(f"{error} in {key!r}") from None


def write(arrays: WeightArrays, path: str | os.PathLike, form: str = "list") -> None:
    """Write a dictionary of layers that NumPy 1.10 and later reads, on Python 3.

    The pickle (protocol 3) is written opcode by opcode, so that no array is copied. Architecture
    and metadata are a text after its header that is popped at once, so that only `read` sees it.

    Parameters
    ----------
    arrays : WeightArrays
        Weights to write.
    path : path-like
        Output file.
    form : {"list", "dict"}
        ``{layer: [kernel, bias]}``, or ``{layer: {"weights": kernel, "biases": bias}}``.

    Raises
    ------
    UsageError
        If the metadata is too long to be read back.
    """
    comment = COMMENT + json.dumps(recorded(arrays))
    if len(comment) > MAX_TEXT:
        raise UsageError("metadata", f"{len(comment)} characters are too many", "Shorten it.")
    with open(path, "wb") as file:
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(file, header)
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
