"""NumPy archives: arrays ``<layer>/kernel`` and ``<layer>/bias`` in TensorFlow's layout.

An archive may also hold ``metadata``, one string of JSON. The arrays' headers are described in
NumPy's ``lib/format.py``; arrays of objects are never read.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zipfile

import numpy as np

from tf_alexnet.weights.arrays import LayerArrays, WeightArrays
from tf_alexnet.weights.formats.common import (
    ADVICE,
    MAX_METADATA,
    NotAlexNetError,
    affordable,
    as_float32,
    assemble,
    damaged,
    metadata_text,
    named_layers,
    of_layers,
    parsed_metadata,
)
from tf_alexnet.weights.formats.npy import MAGIC
from tf_alexnet.weights.formats.zip_members import ZipError, ZipMembers

METADATA = "metadata"
MAX_HEADER = 4096
_HEADER = re.compile(
    rb"\{'descr': *'([<>|=]?[A-Za-z][0-9]{0,6})', *'fortran_order': *(True|False), *'shape': *"
    rb"\(([0-9, ]{0,100})\),? *\}\s*"
)


def read(path: str | os.PathLike, members: ZipMembers) -> WeightArrays:
    """Read an .npz archive of the kernels and biases of layers, packed or not.

    Their names may be ``conv1/kernel``, ``conv1/W``, ``conv1_weights`` and the like.

    Raises
    ------
    WeightsError
        If the file is damaged, its arrays are other ones, or it unfolds to far more than an
        AlexNet.
    """
    try:
        if sum(members.size(name) for name in members) > affordable(len(members.view)):
            raise ZipError("far more in it than an AlexNet")
        keys = [member.removesuffix(".npy") for member in members]
        text = _text(members, f"{METADATA}.npy") if METADATA in keys else None
        wanted = of_layers(key for key in keys if key != METADATA)
        arrays = {key: _array(members, f"{key}.npy") for key in wanted}
        return assemble(path, named_layers(arrays), *parsed_metadata(text))
    except NotAlexNetError as error:
        raise damaged(path, f"an .npz archive of {error}", ADVICE) from None
    except ZipError as error:
        raise damaged(path, f"a zip archive with {error}") from None


def _array(members: ZipMembers, member: str) -> np.ndarray:
    """An array of floats, filled straight from the archive."""
    pieces = members.pieces(member)
    descr, fortran, shape, head = _opened(pieces, member)
    code = descr.lstrip("<>=|")
    if code not in ("f2", "f4", "f8") or not 1 <= len(shape) <= 4 or not math.prod(shape):
        raise ZipError(f"an array of dtype {descr} and shape {shape} in {member[:80]!r}")
    dtype = np.dtype((">" if descr[0] == ">" else "<") + code)
    if math.prod(shape) * dtype.itemsize > members.size(member):
        raise ZipError(f"an array of shape {shape} in {members.size(member)} bytes")
    array = np.empty(shape, dtype, order="F" if fortran else "C")
    target = memoryview(array.T if fortran else array).cast("B")
    at = 0
    for piece in _chain(head, pieces):
        if len(piece) > len(target) - at:
            raise ZipError(f"more bytes in {member[:80]!r} than its shape takes")
        target[at : at + len(piece)] = piece
        at += len(piece)
    if at != len(target):
        raise ZipError(f"fewer bytes in {member[:80]!r} than its shape takes")
    return as_float32(array)


def _chain(first, rest):
    yield first
    yield from rest


def _opened(pieces, member: str) -> tuple[str, bool, tuple[int, ...], memoryview]:
    """dtype, order and shape from an array's header, and the bytes at hand behind it."""
    head = memoryview(b"")
    for piece in pieces:
        head = memoryview(bytes(head) + bytes(piece)) if len(head) else piece
        if len(head) >= MAX_HEADER + 12:
            break
    wide = head[6:7] in (b"\x02", b"\x03")
    start = 12 if wide else 10
    if head[:6] != MAGIC or not (wide or head[6:7] == b"\x01") or len(head) < start:
        raise ZipError(f"no NumPy array in {member[:80]!r}")
    size = struct.unpack_from("<I" if wide else "<H", head, 8)[0]
    header = _HEADER.fullmatch(bytes(head[start : start + size])) if size <= MAX_HEADER else None
    if header is None or len(head) < start + size:
        raise ZipError(f"an array with an odd header in {member[:80]!r}")
    descr, fortran, dims = (part.decode("ascii") for part in header.groups())
    try:
        shape = tuple(int(n) for n in dims.split(",") if n.strip())
    except ValueError:
        raise ZipError(f"an array of shape ({dims}) in {member[:80]!r}") from None
    return descr, fortran == "True", shape, head[start + size :]


def _text(members: ZipMembers, member: str) -> str:
    """The one string of a 0-d array of text: UTF-32 padded with NUL, as NumPy keeps it."""
    if members.size(member) > 4 * MAX_METADATA + MAX_HEADER:
        raise ZipError(f"{members.size(member)} bytes of metadata")
    pieces = members.pieces(member)
    descr, _, shape, head = _opened(pieces, member)
    raw = b"".join(_chain(head, pieces))
    if descr[:2] not in ("<U", ">U") or shape:
        raise ZipError(f"an array of dtype {descr} for metadata")
    try:
        return raw.decode("utf-32-le" if descr[0] == "<" else "utf-32-be").rstrip("\0")
    except UnicodeDecodeError:
        raise ZipError("broken text for metadata") from None


def write(arrays: WeightArrays, path: str | os.PathLike) -> None:
    """Write an archive that `numpy.load` reads, with architecture and metadata as JSON.

    The members are not packed: weights hardly shrink. The same arrays give the same bytes.

    Raises
    ------
    UsageError
        If the metadata are too long to be read back.
    """
    text = metadata_text(arrays)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, layer in arrays.layers.items():
            for part, array in zip(LayerArrays._fields, layer, strict=True):
                values = np.asarray(as_float32(array), "<f4")
                _write_member(archive, f"{name}/{part}", "<f4", values.shape, values)
        characters = np.frombuffer(text.encode("utf-32-le"), "u1")
        _write_member(archive, METADATA, f"<U{len(text)}", (), characters)


def _write_member(archive, name: str, descr: str, shape: tuple, values: np.ndarray) -> None:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header = header.ljust(-(len(header) + 11) % 64 + len(header)) + b"\n"
    member = zipfile.ZipInfo(name + ".npy")
    member.compress_type = zipfile.ZIP_STORED
    with archive.open(member, "w", force_zip64=True) as file:
        file.write(MAGIC + b"\x01\x00" + struct.pack("<H", len(header)) + header)
        file.write(memoryview(values).cast("B"))
