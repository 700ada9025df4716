"""Weight file formats: detected from the content when read, chosen by suffix when written."""

from __future__ import annotations

import itertools
import os
import re
import stat
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
    onnx_graph,
    safetensors_file,
    torch_pth,
)
from tf_alexnet.weights.formats.common import GET_ANOTHER, affordable, damaged, mapped
from tf_alexnet.weights.formats.zip_members import ZipError, ZipMembers
from tf_alexnet.wire import LENGTH, VARINT, Wire, WireError, wire_types

KERAS_WEIGHTS = "model.weights.h5"
MAX_BYTES = 1 << 31  # networks take at most 245 MB; also protobuf's limit


# How a kind of file is recognised: by a test, or by its first bytes.
Sniff = Callable[["Opened"], object] | bytes | tuple[bytes, ...]


class Opened:
    """A file to be recognised: its path, first 512 bytes, content and zip members."""

    def __init__(self, path: str | os.PathLike):
        self.path = path
        with open(path, "rb") as file:
            self.head = file.read(512)

    @cached_property
    def content(self) -> memoryview:
        """The whole file, mapped into memory."""
        return mapped(self.path)

    @cached_property
    def members(self) -> ZipMembers | tuple[()]:
        """Its members if it is a zip archive, else ()."""
        if not self.head.startswith(b"PK\x03\x04"):
            return ()
        try:
            return ZipMembers(self.content.obj)
        except ZipError as error:
            raise damaged(self.path, f"a zip archive with {error}") from None

    def fits(self, sniff: Sniff) -> bool:
        """Whether it passes the test, or starts with one of these bytes."""
        return bool(sniff(self)) if callable(sniff) else self.head.startswith(sniff)


@dataclass(frozen=True)
class Format:
    """A format of weight files."""

    title: str  # for messages
    suffixes: tuple[str, ...]  # the first is used for writing, none for reading
    sniff: Sniff
    read: Callable[..., WeightArrays]  # takes a path; if zipped, also the members
    write: Callable | None = None
    options: Mapping[str, tuple] = field(default_factory=dict)  # option of `write` -> its values
    zipped: bool = False


def _is_safetensors(file: Opened) -> bool:
    # A header of 0x480 bytes starts like a pickle, but no pickle continues with five zeros.
    begins = len(file.head) > 8 and file.head[8:9] == b"{"
    return begins and struct.unpack_from("<Q", file.head)[0] < MAX_BYTES


def _read_keras(path: str | os.PathLike, members: ZipMembers) -> WeightArrays:
    """The weights in a .keras archive. Of its configuration, only layer names are used."""
    try:
        text = str(members.read("config.json")[: 16 << 20], "utf-8", "replace")
        if members.size(KERAS_WEIGHTS) > affordable(os.path.getsize(path)):
            raise ZipError("far more in it than an AlexNet")
        with tempfile.NamedTemporaryFile(suffix=".h5") as inner:
            for piece in members.pieces(KERAS_WEIGHTS):
                inner.write(piece)
            inner.flush()
            arrays = hdf5_file.read(inner.name)
    except ZipError as error:
        raise damaged(path, f"a zip archive with {error}") from None
    except WeightsError as error:
        raise damaged(path, error.found, error.advice) from None
    names = re.findall(r'"name": *"([^"\\]{1,80})"', text)
    return hdf5_file.described(replace(arrays, source=os.fspath(path)), names)


# The order matters for formats that start alike.
FORMATS = (
    Format(
        "safetensors",
        (".safetensors",),
        _is_safetensors,
        safetensors_file.read,
        safetensors_file.write,
    ),
    Format(
        "NumPy dictionary (.npy)",
        (".npy",),
        npy.MAGIC,
        npy.read,
        npy.write,
        {"form": ("list", "dict")},
    ),
    Format(
        "torch file (.pth)",
        (".pth", ".pt"),
        lambda x: x.fits(torch_pth.MAGIC) or torch_pth.archive_root(x.members) is not None,
        torch_pth.read,
        zipped=True,
    ),
    Format(
        "NumPy archive (.npz)",
        (".npz",),
        lambda x: any(name.endswith(".npy") for name in x.members),
        npz.read,
        npz.write,
        zipped=True,
    ),
    Format(
        "Keras model (.keras)",
        (".keras",),
        lambda x: {"config.json", KERAS_WEIGHTS} <= set(x.members),
        _read_keras,
        zipped=True,
    ),
    Format(
        "HDF5 (.h5)",
        (".h5", ".hdf5"),
        hdf5_file.MAGIC,
        hdf5_file.read,
        hdf5_file.write,
        {"form": ("keras", "caffe")},
    ),
    Format(
        "Deep Compression (.net)",
        (".net",),
        lambda x: deep_compression.recognised(x.head),
        deep_compression.read,
    ),
    Format("pickled dictionary", (".pkl",), npy.PICKLES, npy.read),
    Format(
        "ONNX",
        (".onnx",),
        lambda x: onnx_file.recognised(x.head, x.content),
        onnx_file.read,
        onnx_graph.write,
        {"lrn": ("operator", "ops")},
    ),
    Format(
        "Caffe model (.caffemodel)",
        (".caffemodel",),
        lambda x: caffemodel.recognised(x.content),
        caffemodel.read,
        caffemodel.write,
        {"layers": ("new", "v1"), "blobs": ("shaped", "legacy"), "packed": (True, False)},
    ),
)
WRITABLE = {x.suffixes[0]: x for x in FORMATS if x.write}
READABLE = f"Use one of: {', '.join(dict.fromkeys(x.title for x in FORMATS))}."
_EXPORT = "Export it to ONNX, or save its arrays with numpy.savez."
_UNPACK = "Unpack it first."
_ORIGINAL = "Use the file from which it was converted."
_CHECKPOINT = "Load it with tf.train.load_checkpoint, and save its arrays with numpy.savez."


def _is_text(file: Opened) -> bool:
    return all(byte >= 32 or byte in b"\t\r\n" for byte in file.head)


def _field(message: memoryview, *numbers: int) -> bytes | None:
    """The first bytes of a nested field, given by its path of field numbers."""
    try:
        for number in numbers:
            fields = itertools.islice(Wire().walk(message), 100)
            message = next(x.value for x in fields if x.number == number and x.wire == LENGTH)
    except (WireError, StopIteration):
        return None
    return bytes(message[:80])


def _has_operations(file: Opened, *numbers: int) -> bool:
    """Whether there is a TensorFlow GraphDef at this path: its nodes have a name and an operation.

    Caffe's first models are nested alike, but their layer types start with lower-case letters.
    """
    return re.match(rb"[A-Z]\w+$", _field(file.content, *numbers, 1, 2) or b"") is not None


def _is_core_ml(file: Opened) -> bool:
    """Whether it is a Core ML Model: fields 1 (version), 2 (description) and one from 200 on."""
    wires = wire_types(file.content)
    return wires.get(1) == VARINT and wires.get(2) == LENGTH and max(wires) >= 200


# Files of other kinds: how they are recognised, what they are, what to do.
FOREIGN: tuple[tuple[Sniff, str, str], ...] = (
    (b"\x1f\x8b", "a gzip archive", "Unpack it first: gunzip it."),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (lambda x: x.head[257:262] == b"ustar", "a tar archive", _UNPACK),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Run `git lfs pull`."),
    ((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM"), "a picture", READABLE),
    (b"%PDF", "a PDF document", READABLE),
    (lambda x: x.head[4:8] == b"TFL3", "a TensorFlow Lite model", _EXPORT),
    (b"MATLAB ", "a MATLAB file (.mat)", _EXPORT),
    (b"\x12\x01\0\0\0\0\0\0", "an MXNet file of arrays", _EXPORT),
    (
        lambda x: x.content[-8:] == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb",
        "the index of a TensorFlow checkpoint",
        _CHECKPOINT,
    ),
    (b"model_checkpoint_path", "a list of TensorFlow checkpoints", _CHECKPOINT),
    (lambda x: _has_operations(x, 2, 2), "the graph of a SavedModel", _EXPORT),
    (lambda x: _has_operations(x, 2), "the graph of a TensorFlow checkpoint", _CHECKPOINT),
    (_has_operations, "a TensorFlow graph (.pb)", "Convert it to ONNX with tf2onnx."),
    (_is_core_ml, "a Core ML model", _ORIGINAL),
    (
        lambda x: x.head.startswith(b"<") and b"<net " in x.head,
        "an OpenVINO network (.xml, whose weights are in a .bin file)",
        _ORIGINAL,
    ),
    (
        lambda x: x.head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"),
        "an HTML or XML page",
        GET_ANOTHER,
    ),
    (
        lambda x: _is_text(x) and re.search(rb"\blayers?\s*\{", x.content),
        "a network definition (prototxt), not weights",
        "Pass it as architecture= (--architecture), together with its .caffemodel.",
    ),
    (lambda x: _is_text(x) and not x.fits(npy.PICKLES), "a text file", READABLE),
    (
        lambda x: torch_pth.archive_root(x.members) and any("/code/" in y for y in x.members),
        "a TorchScript program, not weights",
        torch_pth.ADVICE,
    ),
)
# The same for files that match no format, and have no signature.
UNKNOWN: tuple[tuple[Sniff, str, str], ...] = (
    (b"PK", "a zip archive without weights of a known kind", READABLE),
    (
        lambda x: re.search(r"\.data-\d{5}-of-\d{5}$", str(x.path)),
        "the arrays of a TensorFlow checkpoint",
        _CHECKPOINT,
    ),
    (
        lambda x: Path(x.path).suffix == ".bin" and Path(x.path).with_suffix(".xml").exists(),
        "the weights of an OpenVINO network, without names or shapes",
        _ORIGINAL,
    ),
)
# Folders written by other tools: a file in them, what they are, what to do.
FOLDERS = (
    ("saved_model.pb", "a SavedModel: a graph, and its variables in other files", _EXPORT),
    ("checkpoint", "a folder of TensorFlow checkpoints", _CHECKPOINT),
    ("Manifest.json", "a Core ML package", _ORIGINAL),
    ("settings.json", "an unfinished training", "Finish it: tf-alexnet train with --resume."),
)


def _opened(path: str | os.PathLike) -> tuple[Opened, Format]:
    """Open and recognise a file, which must be regular and not too large."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        advice = "Check the path, or pass `fetch_weights(name)` for a name of the catalogue."
        raise damaged(path, "there is no such file", advice) from None
    except ValueError as error:  # a NUL in it
        raise damaged(path, f"not a path ({error})", "Check the path.") from None
    if stat.S_ISDIR(status.st_mode):
        for name, found, advice in FOLDERS:
            if os.path.exists(os.path.join(path, name)):
                raise damaged(path, found, advice)
        raise damaged(path, "a folder, not a file", "Name a weight file in it.")
    if not stat.S_ISREG(status.st_mode):
        raise damaged(path, "not a regular file", "Name a weight file.")
    if status.st_size == 0:
        raise damaged(path, "the file is empty", GET_ANOTHER)
    if status.st_size > MAX_BYTES:
        raise damaged(path, f"{status.st_size} bytes, more than 2 GiB", READABLE)
    file = Opened(path)
    for sniff, found, advice in FOREIGN:
        if file.fits(sniff):
            raise damaged(path, found, advice)
    for known in FORMATS:
        if file.fits(known.sniff):
            return file, known
    for sniff, found, advice in UNKNOWN:
        if file.fits(sniff):
            raise damaged(path, found, advice)
    raise damaged(path, "not a weight file of a known kind", READABLE)


def format_of(path: str | os.PathLike) -> Format:
    """The format of a weight file, detected from its content."""
    return _opened(path)[1]


def read_file(path: str | os.PathLike) -> WeightArrays:
    """Read a weight file of any supported format.

    Parameters
    ----------
    path : path-like
        The file. Its format is detected from the content, not the suffix.

    Returns
    -------
    WeightArrays
        float32 in TensorFlow's layout, with the layer names of the file; `architecture` and
        `metadata` as the file records them. The values are not checked: see `faults`.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, of another kind, or would run code.
    """
    try:
        file, known = _opened(path)
        return known.read(path, file.members) if known.zipped else known.read(path)
    except OSError as error:
        raise damaged(
            path, f"it can't be read ({error.strerror or error})", "Check its permissions."
        ) from error
    except MemoryError:
        raise damaged(path, "not enough memory to read it", "Free some memory.") from None


def write_file(
    arrays: WeightArrays, path: str | os.PathLike, form: str | None = None, **options
) -> None:
    """Write weights atomically, in the format of the suffix of `path`.

    Parameters and errors are those of `tf_alexnet.weights.write_weights`.
    """
    suffix = Path(path).suffix.lower()
    use = f"Use one of {', '.join(WRITABLE)}."
    if suffix not in WRITABLE:
        known = any(suffix in x.suffixes for x in FORMATS)
        read_only = f"{suffix} files can be read but not written"
        found = read_only if known else f"no weight format has the suffix {suffix!r}"
        raise UsageError(str(path), found, use)
    chosen = WRITABLE[suffix]
    options = {k: v for k, v in {"form": form, **options}.items() if v is not None}
    for name, value in options.items():
        values = chosen.options.get(name, ())
        if value not in values:
            found = "one form only" if name == "form" else f"no option {name}"
            one = f"that format has {found}", "Leave it out."
            several = f"there is no such {name}", f"Use one of {', '.join(map(str, values))}."
            raise UsageError(f"{name}={value!r} for {path}", *(several if values else one))
    with replacing(path) as temporary:
        chosen.write(arrays, temporary, **options)
