"""safetensors files: tensors ``<layer>/kernel`` and ``<layer>/bias`` in TensorFlow's layout.

The container is the safetensors library's; ours are the names, the layout and the limits.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
import struct

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tf_alexnet.errors import UsageError
from tf_alexnet.weights.arrays import LayerArrays, WeightArrays
from tf_alexnet.weights.formats.common import (
    as_float32,
    assemble,
    damaged,
    recorded,
    split_metadata,
)

MAX_HEADER = 1 << 20  # 16 tensors take 2 KB; the library itself would parse 100 MB
DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def read(path: str | os.PathLike) -> WeightArrays:
    """Read a safetensors file with tensors ``<layer>/kernel`` and ``<layer>/bias``.

    The library judges the file; the arrays are then views of it, mapped into memory.

    Raises
    ------
    WeightsError
        If the file is damaged, or its tensors are other ones.
    """
    with open(path, "rb") as file:
        prefix = file.read(8)
    if len(prefix) < 8 or struct.unpack("<Q", prefix)[0] > MAX_HEADER:
        raise damaged(path, "a safetensors file with a header out of all proportion")
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            names = {key: _dtype(path, file, key) for key in file.keys()}  # noqa: SIM118 (no dict)
            metadata = file.metadata()
        parts = _mapped_parts(path, names)
    except (SafetensorError, OverflowError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"a damaged safetensors file ({error})") from None
    layers = {}
    for name, arrays in parts.items():
        if len(arrays) != 2:
            raise damaged(path, f"layer {name} has only a {next(iter(arrays))}")
        layers[name] = LayerArrays(**arrays)
    return assemble(path, layers, *split_metadata(metadata or {}))


def _dtype(path, file, key: str) -> np.dtype:
    """The type of the tensor `key`, which must be a layer's kernel or bias."""
    name, _, part = key.rpartition("/")
    dtype = file.get_slice(key).get_dtype()
    if part not in LayerArrays._fields or not name or dtype not in DTYPES:
        raise damaged(
            path,
            f"a safetensors file with the {dtype} tensor {key[:80]!r}",
            "Expected are float tensors called <layer>/kernel and <layer>/bias.",
        )
    return np.dtype(DTYPES[dtype])


def _mapped_parts(path, names: dict[str, np.dtype]) -> dict[str, dict]:
    """Layer name -> part name -> array."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + struct.unpack("<Q", mapped[:8])[0]
    header = json.loads(mapped[8:start])
    parts = {}
    for key, dtype in names.items():
        begin, end = header[key]["data_offsets"]
        array = np.frombuffer(mapped, dtype, (end - begin) // dtype.itemsize, start + begin)
        name, _, part = key.rpartition("/")
        parts.setdefault(name, {})[part] = as_float32(array.reshape(header[key]["shape"]))
    return parts


def write(arrays: WeightArrays, path: str | os.PathLike) -> None:
    """Write a safetensors file, with architecture and metadata in its header.

    Raises
    ------
    UsageError
        If the metadata are too long to be read back.
    OSError
        If the library can't write the file.
    """
    tensors = {
        f"{name}/{part}": as_float32(array)
        for name, layer in arrays.layers.items()
        for part, array in zip(LayerArrays._fields, layer, strict=True)
    }
    metadata = recorded(arrays)
    if sum(len(k) + len(v) for k, v in metadata.items()) > MAX_HEADER // 16:
        raise UsageError("metadata", "more than 64 KB of it", "Write less of it.")
    with open(path, "wb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    try:
        save_file(tensors, os.fspath(path), metadata)
        os.chmod(path, mode)  # the library's files are their owner's alone, whatever the umask
    except SafetensorError as error:
        raise OSError(str(error)) from error
