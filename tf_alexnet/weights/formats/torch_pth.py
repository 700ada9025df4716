"""torch's .pth files: the state dict of torchvision's AlexNet, or of a network built like it.

There are two containers. Since torch 1.6 a file is a zip archive with a pickle ``data.pkl`` and one
member ``data/<key>`` a storage (``caffe2/serialize/inline_container.h``); before, it was five
pickles in sequence with the storages behind them (``_legacy_save`` in ``torch/serialization.py``).
Both are read by the machine of `tf_alexnet.weights.pickles`, which knows three of torch's names.

Convolutions are (out, in / groups, height, width) and dense kernels (out, in) there, and the inputs
of the first dense layer are flattened as (channels, height, width).
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path

import numpy as np

from tf_alexnet.weights import pickles
from tf_alexnet.weights.arrays import WeightArrays
from tf_alexnet.weights.formats.common import (
    NotAlexNetError,
    affordable,
    assemble,
    damaged,
    named_layers,
    of_layers,
)
from tf_alexnet.weights.formats.zip_members import ZipError, ZipMembers
from tf_alexnet.weights.pickles import PickleError, require

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # 0x1950a86a20f9469cfc6c as a pickle
PROTOCOL = 1001
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
ADVICE = "Save the state dict alone: torch.save(model.state_dict(), ...)."


class Name(Enum):
    """The names a file may refer to. They stand for themselves and do nothing."""

    ORDERED_DICT = "OrderedDict"
    REBUILD_TENSOR = "_rebuild_tensor_v2"
    REBUILD_OLD = "_rebuild_tensor"
    REBUILD_PARAMETER = "_rebuild_parameter"
    FLOAT_STORAGE = "FloatStorage"
    DOUBLE_STORAGE = "DoubleStorage"
    HALF_STORAGE = "HalfStorage"
    BFLOAT16_STORAGE = "BFloat16Storage"
    LONG_STORAGE = "LongStorage"
    INT_STORAGE = "IntStorage"
    BOOL_STORAGE = "BoolStorage"


# Bytes of a number, and NumPy's name for its type; bfloat16 is the upper half of a float32.
TYPES = {
    Name.FLOAT_STORAGE: (4, "f4"),
    Name.DOUBLE_STORAGE: (8, "f8"),
    Name.HALF_STORAGE: (2, "f2"),
    Name.BFLOAT16_STORAGE: (2, "u2"),
    # Counters and masks
    Name.LONG_STORAGE: (8, "i8"),
    Name.INT_STORAGE: (4, "i4"),
    Name.BOOL_STORAGE: (1, "u1"),
}
NAMES = {
    ("collections", "OrderedDict"): Name.ORDERED_DICT,
    ("torch._utils", "_rebuild_tensor_v2"): Name.REBUILD_TENSOR,
    ("torch._utils", "_rebuild_tensor"): Name.REBUILD_OLD,
    ("torch._utils", "_rebuild_parameter"): Name.REBUILD_PARAMETER,
    **{("torch", name.value): name for name in TYPES},
}


@dataclass(frozen=True)
class Storage:
    """A run of numbers elsewhere in the file."""

    key: str
    size: int
    kind: Name


@dataclass(frozen=True)
class Tensor:
    """A tensor as the stream describes it; nothing is believed until `array` is called."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple

    def array(self, values: np.ndarray) -> np.ndarray:
        """A view of the storage's `values`.

        Raises
        ------
        PickleError
            If shape, strides and offset reach beyond the storage, or show values twice.
        """
        require(1 <= len(self.shape) <= pickles.MAX_RANK, "a tensor of odd rank")
        require(len(self.shape) == len(self.strides), "a tensor with odd strides")
        numbers = (self.offset, *self.shape, *self.strides)
        require(all(type(n) is int and n >= 0 for n in numbers), "a tensor of odd shape")
        count = math.prod(self.shape)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if not 0 < count <= len(values) or last >= len(values):
            raise PickleError(f"a tensor of shape {self.shape} in {len(values)} values")
        strides = [s * values.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(
            values[self.offset :], self.shape, strides, writeable=False
        )


class TorchDialect(pickles.Dialect):
    """State dicts, and what training scripts put beside them."""

    names = NAMES
    opcodes = b"QG"

    def __init__(self):
        self.storages: list[Storage] = []

    def key(self, value):
        """Text, or an integer, as optimizers' states have them."""
        return value if type(value) is int else pickles.as_text(value)

    def call(self, machine, name, *arguments):
        """A `Tensor`, or a dict."""
        match name, *arguments:
            case [Name.ORDERED_DICT, *pairs]:
                return machine.ordered_dict(*pairs)
            case [
                Name.REBUILD_TENSOR,
                Storage() as storage,
                int() as offset,
                tuple() as shape,
                tuple() as strides,
                bool(),
                dict(),
                *more,
            ] if len(more) < 2:
                return Tensor(storage, offset, shape, strides)
            case [
                Name.REBUILD_OLD,
                Storage() as storage,
                int() as offset,
                tuple() as shape,
                tuple() as strides,
            ]:
                return Tensor(storage, offset, shape, strides)
            case [Name.REBUILD_PARAMETER, Tensor() as tensor, bool(), dict()]:
                return tensor
        return super().call(machine, name, *arguments)

    def build(self, target, state):
        """The versions that a state dict carries are not needed."""
        if not (
            isinstance(target, dict) and isinstance(state, dict) and set(state) == {"_metadata"}
        ):
            super().build(target, state)

    def persistent(self, identity):
        """A `Storage`."""
        match identity:
            case ("storage", Name() as kind, str() as key, str(), int() as size, *views):
                # Only torch before 0.4 wrote views of other storages.
                odd = kind not in TYPES or size < 0 or views not in ([], [None])
                require(not odd, "an odd storage")
                self.storages.append(Storage(key, size, kind))
                return self.storages[-1]
        raise PickleError("a reference to something else than floats")


def read_archive(path: str | os.PathLike, members: ZipMembers) -> WeightArrays:
    """Read a state dict from the zip container.

    Raises
    ------
    WeightsError
        If the file is damaged, holds anything else, or asks for code to be run.
    """
    try:
        root = archive_root(members)
        order = "<"
        if root + "byteorder" in members:
            order = {b"little": "<", b"big": ">"}.get(bytes(members.read(root + "byteorder")[:9]))
            require(order is not None, "an unknown byte order")
        stream = bytes(members.read(root + "data.pkl"))
        pickled = pickles.load(stream, 0, TorchDialect())
        require(pickled.end == len(stream), "more than one pickle in data.pkl")

        def values(storage: Storage) -> np.ndarray:
            name = f"{root}data/{storage.key}"
            require(name in members, f"no member for the storage {storage.key[:40]!r}")
            return _numbers(members.read(name), storage, order)

        return _weights(path, pickled.value, values, len(members.view))
    except PickleError as error:
        raise damaged(path, f"a torch file that holds {error}", ADVICE) from None
    except ZipError as error:
        raise damaged(path, f"a zip archive with {error}") from None


def archive_root(members: ZipMembers) -> str | None:
    """The folder of ``data.pkl`` in an archive of torch, slash included, or None."""
    roots = [name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl")]
    return roots[0] if len(roots) == 1 and roots[0].count("/") == 1 else None


def read(path: str | os.PathLike) -> WeightArrays:
    """Read a state dict from the container of before torch 1.6.

    Raises
    ------
    WeightsError
        If the file is damaged, holds anything else, or asks for code to be run.
    """
    data = Path(path).read_bytes()
    try:
        require(data.startswith(MAGIC), "another magic number")
        protocol = pickles.load(data, len(MAGIC), TorchDialect())
        require(protocol.value == PROTOCOL, "an unknown protocol")
        system = pickles.load(data, protocol.end, TorchDialect())
        little = system.value.get("little_endian") if isinstance(system.value, dict) else None
        require(isinstance(little, bool), "an unknown byte order")
        dialect = TorchDialect()
        content = pickles.load(data, system.end, dialect)
        keys = pickles.load(data, content.end, TorchDialect())
        sizes = {x.key: TYPES[x.kind][0] for x in dialect.storages}
        storages = _behind(data, keys, "<" if little else ">", sizes)

        def values(storage: Storage) -> np.ndarray:
            require(storage.key in storages, f"no storage {storage.key[:40]!r}")
            return _numbers(storages[storage.key], storage, "<" if little else ">")

        return _weights(path, content.value, values, len(data))
    except PickleError as error:
        raise damaged(path, f"a torch file that holds {error}", ADVICE) from None


def _behind(
    data: bytes, keys: pickles.Pickled, order: str, sizes: Mapping[str, int]
) -> dict[str, memoryview]:
    """Key -> bytes of the storages behind the pickles: each a count, and so many numbers.

    `sizes` has the bytes of a number of each storage that the pickles refer to.
    """
    require(isinstance(keys.value, list), "no list of storages")
    view, at, found = memoryview(data), keys.end, {}
    for key in keys.value:
        require(at + 8 <= len(view), "a storage that runs past the end")
        count = struct.unpack_from(order + "q", view, at)[0]
        at += 8
        key = pickles.as_text(key)
        require(key in sizes, f"the storage {key[:40]!r}, which nothing refers to")
        require(0 <= count <= (len(view) - at) // sizes[key], "a storage that runs past the end")
        require(key not in found, f"the storage {key!r} twice")
        found[key] = view[at : at + sizes[key] * count]
        at += sizes[key] * count
    require(at == len(view), f"{len(view) - at} bytes behind its last storage")
    return found


def _numbers(raw: memoryview, storage: Storage, order: str) -> np.ndarray:
    size, form = TYPES[storage.kind]
    if len(raw) != size * storage.size:
        raise PickleError(f"a storage of {storage.size} numbers with {len(raw)} bytes")
    numbers = np.frombuffer(raw, order + form)
    if storage.kind is Name.BFLOAT16_STORAGE:
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers


def _weights(path, value: object, values, file_size: int) -> WeightArrays:
    """The layers of a state dict, in TensorFlow's layout."""
    tensors = _named_tensors(value)
    total = sum(4 * math.prod(t.shape) for t in tensors.values() if _is_shape(t.shape))
    require(total <= affordable(file_size), "far more numbers than an AlexNet")
    cached = cache(values)  # one storage may serve many tensors
    try:
        arrays = {k: tensors[k].array(cached(tensors[k].storage)) for k in of_layers(tensors)}
        return assemble(path, named_layers(arrays, channels_first=True))
    except NotAlexNetError as error:
        raise PickleError(str(error)) from None


def _is_shape(shape: tuple) -> bool:
    """Whether a shape is made of sizes."""
    return all(type(n) is int and n >= 0 for n in shape)


def _named_tensors(value: object) -> dict[str, Tensor]:
    """Parameter -> tensor, out of a state dict or the entry of a checkpoint that is one."""
    require(isinstance(value, dict), "no state dict")
    inner = {key: x for key, x in value.items() if isinstance(x, dict) and _holds_tensors(x)}
    for wrapper in WRAPPERS:
        if wrapper in inner:
            return _named_tensors(inner[wrapper])
    found = {str(key): x for key, x in value.items() if isinstance(x, Tensor)}
    if found:
        return found
    require(len(inner) < 2, f"several state dicts ({', '.join(map(str, inner))[:80]})")
    require(bool(inner), "no tensors")
    return _named_tensors(*inner.values())


def _holds_tensors(value: dict, depth: int = 4) -> bool:
    """Whether a dictionary has tensors in it, or a dictionary that has."""
    return depth > 0 and any(
        isinstance(x, Tensor) or (isinstance(x, dict) and _holds_tensors(x, depth - 1))
        for x in value.values()
    )
