"""Weight files of every kind: told apart by their content, written by their suffix."""

from __future__ import annotations

import mmap
import os
import re
import stat
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tf_alexnet.errors import UsageError, WeightsError
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
from tf_alexnet.weights.formats.common import GET_ANOTHER, affordable, damaged
from tf_alexnet.weights.formats.zip_members import ZipError, ZipMembers
from tf_alexnet.wire import WireError, varint

MAX_BYTES = 1 << 31  # no network here takes more than 245 MB; protobuf ends here too


class Opened:
    """A file whose kind is to be told.

    Attributes
    ----------
    path : str or path
        The file.
    head : bytes
        Its first 512 bytes.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path
        with open(path, "rb") as file:
            self.head = file.read(512)

    @cached_property
    def content(self) -> memoryview:
        """All of it."""
        with open(self.path, "rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    @cached_property
    def members(self) -> ZipMembers | tuple[()]:
        """Its members, if it is a zip archive."""
        if not self.head.startswith(b"PK\x03\x04"):
            return ()
        try:
            return ZipMembers(self.content.obj)
        except ZipError as error:
            raise damaged(self.path, f"a zip archive with {error}") from None

    def starts(self, *magics: bytes) -> bool:
        """Whether it begins with one of these."""
        return self.head.startswith(magics)


@dataclass(frozen=True)
class Format:
    """A format of weight files.

    Attributes
    ----------
    title : str
        What it is called in messages.
    suffixes : tuple of str
        Usual endings of file names. Files are written by them, and read whatever their name is.
    sniff : callable
        Whether an `Opened` file is of this format.
    read : callable
        Reads an `Opened` file.
    write : callable or None
        Writes `WeightArrays` to a path, if files of this format are written here.
    forms : tuple of str
        Values of the argument `form` of `write`.
    """

    title: str
    suffixes: tuple[str, ...]
    sniff: Callable[[Opened], bool]
    read: Callable[[Opened], WeightArrays]
    write: Callable | None = None
    forms: tuple[str, ...] = ()


def _is_safetensors(file: Opened) -> bool:
    # A header of 0x480 bytes begins like a pickle, but no pickle has these five zeros.
    begins = len(file.head) > 8 and file.head[8:9] == b"{"
    return begins and struct.unpack_from("<Q", file.head)[0] < MAX_BYTES


def _read_keras(file: Opened) -> WeightArrays:
    """The weights in a .keras archive; of its configuration only names of layers are looked at."""
    try:
        text = bytes(file.members.read("config.json")[: 16 << 20])
        if file.members.size("model.weights.h5") > affordable(len(file.content)):
            raise ZipError("far more in it than an AlexNet")
        with tempfile.NamedTemporaryFile(suffix=".h5") as inner:
            for piece in file.members.pieces("model.weights.h5"):
                inner.write(piece)
            inner.flush()
            arrays = hdf5_file.read(inner.name)
    except ZipError as error:
        raise damaged(file.path, f"a zip archive with {error}") from None
    except WeightsError as error:
        raise damaged(file.path, error.found, error.advice) from None
    preset = re.search(rb'"preset_([a-z0-9.-]+)"', text)
    places = [text.find(name) for name in (b'"norm1"', b'"pool1"')]
    order = "bvlc_alexnet" if places[0] < places[1] else "caffenet"
    return replace(
        arrays,
        source=os.fspath(file.path),
        architecture=arrays.architecture or (order if min(places) >= 0 else None),
        metadata={"preset": preset[1].decode(), **arrays.metadata} if preset else arrays.metadata,
    )


# The order matters where one begins like another; a Caffe model begins like nothing in particular.
FORMATS = (
    Format(
        *("safetensors", (".safetensors",), _is_safetensors),
        *(lambda file: safetensors_file.read(file.path), safetensors_file.write),
    ),
    Format(
        *("NumPy dictionary (.npy)", (".npy",), lambda file: file.starts(npy.MAGIC)),
        *(lambda file: npy.read(file.path), npy.write, ("list", "dict")),
    ),
    Format(
        *("torch file (.pth)", (".pth", ".pt"), lambda file: file.starts(torch_pth.MAGIC)),
        lambda file: torch_pth.read(file.path),
    ),
    Format(
        "torch file (.pth)",
        (".pth", ".pt"),
        lambda file: torch_pth.archive_root(file.members) is not None,
        lambda file: torch_pth.read_archive(file.path, file.members),
    ),
    Format(
        "NumPy archive (.npz)",
        (".npz",),
        lambda file: any(name.endswith(".npy") for name in file.members),
        lambda file: npz.read(file.path, file.members),
        npz.write,
    ),
    Format(
        "Keras model (.keras)",
        (".keras",),
        lambda file: {"config.json", "model.weights.h5"} <= set(file.members),
        _read_keras,
    ),
    Format(
        *("HDF5 (.h5)", (".h5", ".hdf5"), lambda file: file.starts(hdf5_file.MAGIC)),
        *(lambda file: hdf5_file.read(file.path), hdf5_file.write, ("keras", "caffe")),
    ),
    Format(
        *("Deep Compression (.net)", (".net",)),
        lambda file: deep_compression.recognised(file.path, file.head),
        lambda file: deep_compression.read(file.path),
    ),
    Format(
        *("pickled dictionary", (".pkl",), lambda file: file.starts(*npy.PICKLES)),
        lambda file: npy.read(file.path),
    ),
    Format(
        *("ONNX", (".onnx",), lambda file: onnx_file.recognised(file.head, file.content)),
        lambda file: onnx_file.read(file.path),
    ),
    Format(
        *("Caffe model (.caffemodel)", (".caffemodel",), lambda file: True),
        *(lambda file: caffemodel.read(file.path), caffemodel.write),
    ),
)
WRITABLE = {x.suffixes[0]: x for x in FORMATS if x.write}
READABLE = f"Readable are: {', '.join(dict.fromkeys(x.title for x in FORMATS))}."
_EXPORT = "Export it to ONNX, or save its arrays with numpy.savez."
_UNPACK = "Unpack it first."


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\r\n" for byte in head)


# Files of other kinds: how they are told, what they are, what to do.
FOREIGN: tuple[tuple[Callable[[Opened], object], str, str], ...] = (
    (lambda x: x.starts(b"\x1f\x8b"), "a gzip archive", "Unpack it first: gunzip it."),
    (lambda x: x.starts(b"BZh"), "a bzip2 archive", _UNPACK),
    (lambda x: x.starts(b"\xfd7zXZ\x00"), "an xz archive", _UNPACK),
    (lambda x: x.starts(b"7z\xbc\xaf\x27\x1c"), "a 7z archive", _UNPACK),
    (lambda x: x.starts(b"\x28\xb5\x2f\xfd"), "a zstd archive", _UNPACK),
    (lambda x: x.head[257:262] == b"ustar", "a tar archive", _UNPACK),
    (
        lambda x: x.starts(b"version https://git-lfs"),
        "a Git LFS pointer, not the file itself",
        "Run `git lfs pull`.",
    ),
    (lambda x: x.starts(b"\x89PNG", b"\xff\xd8\xff"), "a picture", READABLE),
    (lambda x: x.head[4:8] == b"TFL3", "a TensorFlow Lite model", _EXPORT),
    (lambda x: x.starts(b"MATLAB "), "a MATLAB file (.mat)", _EXPORT),
    (
        lambda x: re.search(r"\.data-\d{5}-of-\d{5}$|\.ckpt(-\d+)?(\.(index|meta))?$", str(x.path)),
        "part of a TensorFlow checkpoint",
        "Load it with tf.train.load_checkpoint, and save its arrays with numpy.savez.",
    ),
    (
        lambda x: x.starts(b"model_checkpoint_path"),
        "a TensorFlow checkpoint's list",
        "Load the checkpoint with tf.train.load_checkpoint, and save its arrays with numpy.savez.",
    ),
    # A SavedModel: version 1, then a message that begins with a message. A graph: a message that
    # begins with a name, where a Caffe model has its own name.
    (lambda x: x.starts(b"\x08\x01\x12") and _nests(x.head, 2), "a SavedModel's graph", _EXPORT),
    (
        lambda x: x.starts(b"\x0a") and _nests(x.head, 0),
        "a TensorFlow graph (.pb)",
        "Convert it to ONNX with tf2onnx.",
    ),
    (
        lambda x: x.starts(b"<?xml") and b"<net " in x.head,
        "an OpenVINO network (.xml, whose weights are in a .bin file)",
        "Use the file that it was made from.",
    ),
    (
        lambda x: x.head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"),
        "an HTML or XML page",
        GET_ANOTHER,
    ),
    (
        lambda x: _is_text(x.head) and re.search(rb"\blayers?\s*\{", x.content),
        "a network definition (prototxt), not weights",
        "Pass it as architecture= (--architecture), beside its .caffemodel.",
    ),
    (
        lambda x: _is_text(x.head) and not x.starts(*npy.PICKLES),
        "a text file",
        READABLE,
    ),
    (
        lambda x: torch_pth.archive_root(x.members) and any("/code/" in y for y in x.members),
        "a TorchScript program, not weights",
        torch_pth.ADVICE,
    ),
)


def _nests(head: bytes, at: int) -> bool:
    """Whether the protobuf field at `at` begins with a field of number 1 and a length."""
    try:
        _, begin = varint(memoryview(head), at + 1)
    except WireError:
        return False
    return head[begin : begin + 1] == b"\x0a"


def _opened(path: str | os.PathLike) -> Opened:
    """A regular file of a reasonable size, and of a kind that may be a weight file."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise damaged(
            path, "there is no such file", "Check the path; `tf-alexnet weights list` shows names."
        ) from None
    except ValueError as error:  # a NUL in it
        raise damaged(path, f"not a path ({error})", "Check the path.") from None
    if stat.S_ISDIR(status.st_mode):
        if os.path.exists(os.path.join(path, "saved_model.pb")):
            raise damaged(path, "a SavedModel: a graph, and its variables in other files", _EXPORT)
        raise damaged(path, "a folder, not a file", "Name a weight file in it.")
    if not stat.S_ISREG(status.st_mode):
        raise damaged(path, "not a regular file", "Name a weight file.")
    if status.st_size == 0:
        raise damaged(path, "the file is empty", GET_ANOTHER)
    if status.st_size > MAX_BYTES:
        raise damaged(path, f"{status.st_size} bytes, more than 2 GiB", READABLE)
    file = Opened(path)
    for sniff, found, advice in FOREIGN:
        if sniff(file):
            raise damaged(path, found, advice)
    return file


def format_of(path: str | os.PathLike) -> Format:
    """The format of a weight file, told by its content.

    Raises
    ------
    WeightsError
        If the file can't be read, or is of another kind.
    """
    return _format_of(_opened(path))


def _format_of(file: Opened) -> Format:
    found = next(x for x in FORMATS if x.sniff(file))
    if file.head.startswith(b"PK\x03\x04") and found.suffixes == (".caffemodel",):
        raise damaged(file.path, "a zip archive without weights of a known kind", READABLE)
    return found


def read_file(path: str | os.PathLike) -> WeightArrays:
    """Read a weight file of any supported format, told by its content.

    Parameters
    ----------
    path : path-like
        The file; its name does not matter.

    Returns
    -------
    WeightArrays
        float32 in TensorFlow's layout, under the names that layers have in the file; `architecture`
        and `metadata` as far as the file records them. The values are not checked: see `faults`.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, of another kind, or asks for code to be run.
    """
    try:
        file = _opened(path)
        return _format_of(file).read(file)
    except OSError as error:
        raise damaged(
            path, f"it can't be read ({error.strerror or error})", "Check the file and its rights."
        ) from error
    except MemoryError:
        raise damaged(path, "not enough memory to read it", "Free some memory.") from None


def write_file(
    arrays: WeightArrays, path: str | os.PathLike, form: str | None = None, **options
) -> None:
    """Write weights in the format that the suffix of `path` names, all or nothing.

    Parameters
    ----------
    arrays : WeightArrays
        What to write.
    path : path-like
        Ends in .npy, .npz, .caffemodel, .h5 or .safetensors.
    form : str, optional
        For formats that have several: "list" or "dict" (.npy), "keras" or "caffe" (.h5).
    **options
        Of the format's own `write`.

    Raises
    ------
    UsageError
        If the suffix, the form or an option names nothing known.
    WeightsError
        If the format can't hold these arrays.
    OutputError
        If the file can't be written; nothing is left behind, and an old file stays as it was.
    """
    suffix = Path(path).suffix.lower()
    use = f"Use one of {', '.join(WRITABLE)}."
    if suffix not in WRITABLE:
        known = any(suffix in x.suffixes for x in FORMATS)
        read_only = f"{suffix} files are read here, not written"
        found = read_only if known else f"no weight format has the suffix {suffix!r}"
        raise UsageError(str(path), found, use)
    chosen = WRITABLE[suffix]
    if form is not None:
        if not chosen.forms:
            advice = "Leave it out."
            raise UsageError(f"form={form!r} for {path}", "that format has one form only", advice)
        options["form"] = form
    with replacing(path) as temporary:
        chosen.write(arrays, temporary, **options)
