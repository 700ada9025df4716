"""Weight files of every kind: told apart by their content, written by their suffix."""

from __future__ import annotations

import mmap
import os
import stat
import struct
from pathlib import Path

from tf_alexnet.errors import UsageError
from tf_alexnet.files import replacing
from tf_alexnet.weights.arrays import WeightArrays
from tf_alexnet.weights.formats import (
    caffemodel,
    deep_compression,
    hdf5_file,
    npy,
    npz,
    onnx_file,
    safetensors_file,
    torch_pth,
)
from tf_alexnet.weights.formats.common import GET_ANOTHER, damaged
from tf_alexnet.weights.formats.zip_members import ZipError, ZipMembers

WRITERS = {
    ".npy": npy.write,
    ".npz": npz.write,
    ".caffemodel": caffemodel.write,
    ".h5": hdf5_file.write,
    ".safetensors": safetensors_file.write,
}
READABLE = (
    "Readable are .npy dictionaries of layers, .npz, Caffe models, HDF5 files of Keras and Caffe, "
    "safetensors files, torch's .pth and Deep Compression's .net."
)
MAX_BYTES = 1 << 31  # no network here takes more than 245 MB; protobuf ends here too

_FOREIGN = (
    (0, b"\x1f\x8b", "a gzip archive", "Unpack it first: gunzip it."),
    (0, b"BZh", "a bzip2 archive", "Unpack it first."),
    (0, b"\xfd7zXZ\x00", "an xz archive", "Unpack it first."),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it first."),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", "Unpack it first."),
    (257, b"ustar", "a tar archive", "Unpack it first."),
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "Run `git lfs pull`.",
    ),
    (0, b"\x89PNG", "a picture", READABLE),
    (0, b"\xff\xd8\xff", "a picture", READABLE),
)


def read_file(path: str | os.PathLike) -> WeightArrays:
    """Read a weight file of any supported format, told by its content.

    Parameters
    ----------
    path : path-like
        The file; its name does not matter.

    Returns
    -------
    WeightArrays
        float32 in TensorFlow's layout, layers in network order; `architecture` and `metadata` as
        far as the file records them. The values are not looked at: see `check_arrays`.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, foreign, or asks for code to be run.
    """
    try:
        head = _head(path)
        reader = _reader(path, head)
        return reader(path)
    except OSError as error:
        raise damaged(
            path, f"it can't be read ({error.strerror or error})", "Check the file and its rights."
        ) from error
    except MemoryError:
        raise damaged(path, "not enough memory to read it", "Free some memory.") from None


def _head(path: str | os.PathLike) -> bytes:
    """The first bytes of a regular file of a reasonable size."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise damaged(
            path, "there is no such file", "Check the path; `tf-alexnet weights list` knows names."
        ) from None
    except ValueError as error:  # a NUL in it
        raise damaged(path, f"no path at all ({error})", "Check the path.") from None
    if stat.S_ISDIR(status.st_mode):
        raise damaged(path, "a folder, not a file", "Name a weight file in it.")
    if not stat.S_ISREG(status.st_mode):
        raise damaged(path, "not a regular file", "Name a weight file.")
    if status.st_size == 0:
        raise damaged(path, "the file is empty", GET_ANOTHER)
    if status.st_size > MAX_BYTES:
        raise damaged(path, f"{status.st_size} bytes, more than 2 GiB", READABLE)
    with open(path, "rb") as file:
        return file.read(512)


def _reader(path: str | os.PathLike, head: bytes):
    """The `read` of the format that a file begins like."""
    for offset, magic, found, advice in _FOREIGN:
        if head.startswith(magic, offset):
            raise damaged(path, found, advice)
    if head.startswith(torch_pth.MAGIC):
        return torch_pth.read
    if head.startswith(hdf5_file.MAGIC):
        return hdf5_file.read
    if head.startswith(b"PK\x03\x04"):
        return _read_archive
    if deep_compression.recognised(path, head):
        return deep_compression.read
    # Before pickles: a header of 0x480 bytes begins like one, but no pickle has these five zeros.
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack_from("<Q", head)[0] < MAX_BYTES:
        return safetensors_file.read
    if head.startswith((npy.MAGIC, *npy.PICKLES)):
        return npy.read
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise damaged(path, "an HTML or XML page", GET_ANOTHER)
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        raise damaged(path, "a text file", READABLE)
    if head[:1] == b"\x08":
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if onnx_file.recognised(head, memoryview(mapped)):
            return onnx_file.read
    return caffemodel.read


def _read_archive(path: str | os.PathLike) -> WeightArrays:
    """Read a zip archive, told by its members."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        members = ZipMembers(mapped)
    except ZipError as error:
        raise damaged(path, f"a zip archive with {error}") from None
    if "config.json" in members and "model.weights.h5" in members:
        raise damaged(
            path,
            "a whole Keras model, which may hold code",
            "Take the weights out of it (unzip it, and pass its model.weights.h5).",
        )
    root = torch_pth.archive_root(members)
    if root is not None:
        if any(name.startswith(root + "code/") for name in members):
            raise damaged(path, "a TorchScript program, not weights", torch_pth.ADVICE)
        return torch_pth.read_archive(path, members)
    if any(name.endswith(".npy") for name in members):
        return npz.read(path, members)
    raise damaged(path, "a zip archive without weights of a known kind", READABLE)


def write_file(arrays: WeightArrays, path: str | os.PathLike, **options) -> None:
    """Write weights in the format that the suffix of `path` names, all or nothing.

    Parameters
    ----------
    arrays : WeightArrays
        What to write.
    path : path-like
        Ends in .npy, .npz, .caffemodel, .h5 or .safetensors.
    **options
        Of the format's own `write`.

    Raises
    ------
    UsageError
        If the suffix or an option names nothing known.
    WeightsError
        If the format can't hold these arrays.
    OutputError
        If the file can't be written; nothing is left behind, and an old file stays as it was.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".pth", ".pt", ".net"):
        raise UsageError(
            str(path),
            f"{suffix} files are read here, not written",
            f"Use one of {', '.join(WRITERS)}.",
        )
    if suffix not in WRITERS:
        raise UsageError(
            str(path),
            f"no weight format has the suffix {suffix!r}",
            f"Use one of {', '.join(WRITERS)}.",
        )
    with replacing(path) as temporary:
        WRITERS[suffix](arrays, temporary, **options)
