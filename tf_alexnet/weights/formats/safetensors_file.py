"""safetensors files: tensors ``<layer>/kernel`` and ``<layer>/bias`` in TensorFlow's layout."""

from __future__ import annotations

import json
import os
import stat
import struct

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tf_alexnet.errors import UsageError
from tf_alexnet.weights.arrays import LayerArrays, WeightArrays
from tf_alexnet.weights.formats.common import (
    ADVICE,
    NotAlexNetError,
    as_float32,
    assemble,
    damaged,
    mapped,
    recorded,
    split_metadata,
)
from tf_alexnet.weights.formats.named import named_layers

MAX_HEADER = 1 << 20  # 16 tensors take 2 KB; the library's own limit is 100 MB
DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}


def read(path: str | os.PathLike) -> WeightArrays:
    """Read the kernels and biases in a safetensors file.

    Names may be ours, ``<layer>/kernel`` and ``<layer>/bias``, or torch's. The library validates
    the file; arrays are views of it, mapped into memory.

    Raises
    ------
    WeightsError
        If the file is damaged, or its tensors are not those of AlexNet.
    """
    view = mapped(path)
    size = struct.unpack("<Q", view[:8])[0] if len(view) > 8 else MAX_HEADER + 1
    if size > MAX_HEADER:
        raise damaged(path, "a safetensors file with a header that is too large")
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            metadata = file.metadata()
        values = view[8 + size :]
        header = json.loads(bytes(view[8 : 8 + size]))
        header.pop("__metadata__", None)
        layers = named_layers(header, lambda key: _array(values, key, header[key]))
    except NotAlexNetError as error:
        raise damaged(path, f"a safetensors file of {error}", ADVICE) from None
    except (SafetensorError, OverflowError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"a damaged safetensors file ({error})") from None
    return assemble(path, layers, *split_metadata(metadata or {}))


def _array(values: memoryview, key: str, entry: dict) -> np.ndarray:
    """A view of the file, or bfloat16 converted to float32."""
    if entry["dtype"] not in DTYPES:
        raise NotAlexNetError(f"{entry['dtype']} numbers in the tensor {key[:80]!r}")
    array = np.frombuffer(values[slice(*entry["data_offsets"])], DTYPES[entry["dtype"]])
    if entry["dtype"] == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(entry["shape"])


def write(arrays: WeightArrays, path: str | os.PathLike) -> None:
    """Write a safetensors file, with architecture and metadata in its header.

    Raises
    ------
    UsageError
        If the metadata is too long to be read back.
    OSError
        If the file can't be written.
    """
    tensors = {
        f"{name}/{part}": as_float32(array)
        for name, layer in arrays.layers.items()
        for part, array in zip(LayerArrays._fields, layer, strict=True)
    }
    metadata = recorded(arrays)
    if sum(len(k) + len(v) for k, v in metadata.items()) > MAX_HEADER // 16:
        raise UsageError("metadata", "it is larger than 64 KB", "Shorten it.")
    with open(path, "wb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    try:
        save_file(tensors, os.fspath(path), metadata)
        os.chmod(path, mode)  # the library ignores the umask
    except SafetensorError as error:
        raise OSError(str(error)) from error
