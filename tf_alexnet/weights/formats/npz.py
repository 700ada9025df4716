"""NumPy archives: arrays ``<layer>/kernel`` and ``<layer>/bias`` in TensorFlow's layout.

An archive may also contain ``metadata``, a JSON string. Object arrays are never read.
"""

from __future__ import annotations

import os

import numpy as np

from tf_alexnet.weights.arrays import WeightArrays
from tf_alexnet.weights.formats.common import (
    ADVICE,
    MAX_METADATA,
    NotAlexNetError,
    as_float32,
    assemble,
    damaged,
    metadata_text,
    parsed_metadata,
)
from tf_alexnet.weights.formats.named import named_layers
from tf_alexnet.weights.formats.npy import MAX_HEADER, floats, parse_header
from tf_alexnet.weights.formats.zip_members import ZipError, ZipMembers
from tf_alexnet.weights.pickles import PickleError

METADATA = "metadata"


def read(path: str | os.PathLike, members: ZipMembers) -> WeightArrays:
    """Read the kernels and biases in an .npz archive, compressed or not.

    Names may be ``conv1/kernel``, ``conv1/W``, ``conv1_weights`` and the like.

    Raises
    ------
    WeightsError
        If the file is damaged, its arrays are not those of AlexNet, or it decompresses to far more.
    """
    try:
        keys = [member.removesuffix(".npy") for member in members if member.endswith(".npy")]
        text = _text(members) if METADATA in keys else None
        keys = [key for key in keys if key != METADATA]
        layers = named_layers(keys, lambda key: _array(members, key))
    except NotAlexNetError as error:
        raise damaged(path, f"an .npz archive of {error}", ADVICE) from None
    except (ZipError, PickleError) as error:
        raise damaged(path, f"a zip archive with {error}") from None
    return assemble(path, layers, *parsed_metadata(text))


def _array(members: ZipMembers, key: str) -> np.ndarray:
    try:
        return as_float32(floats(members.read(f"{key}.npy")))
    except PickleError as error:
        raise PickleError(f"{error} in {key[:80]!r}") from None


def _text(members: ZipMembers) -> str:
    """The string in a 0-d array: UTF-32 padded with NUL."""
    name = f"{METADATA}.npy"
    if members.size(name) > 4 * MAX_METADATA + MAX_HEADER:
        raise ZipError(f"{members.size(name)} bytes of metadata")
    raw = members.read(name)
    descr, _, shape, start = parse_header(raw)
    if descr[:2] not in ("<U", ">U") or shape:
        raise ZipError(f"an array of dtype {descr} for metadata")
    try:
        return str(raw[start:], "utf-32-le" if descr[0] == "<" else "utf-32-be").rstrip("\0")
    except UnicodeDecodeError:
        raise ZipError("broken text for metadata") from None


def write(arrays: WeightArrays, path: str | os.PathLike) -> None:
    """Write an archive that `numpy.load` reads, with architecture and metadata as JSON.

    Members are not compressed, since weights hardly shrink. The output is deterministic.

    Raises
    ------
    UsageError
        If the metadata is too long to be read back.
    """
    entries = {METADATA: np.array(metadata_text(arrays))}
    for name, layer in arrays.layers.items():
        for part, array in layer._asdict().items():
            entries[f"{name}/{part}"] = as_float32(array)
    with open(path, "wb") as file:
        np.savez(file, **entries)
