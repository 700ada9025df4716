"""torch's .pth files: the state dict of torchvision's AlexNet, or of a network built like it.

There are two containers. Since torch 1.6 a file is a zip archive with a pickle ``data.pkl`` and one
member ``data/<key>`` a storage (``caffe2/serialize/inline_container.h``); before, it was five
pickles in sequence with the storages behind them (``_legacy_save`` in ``torch/serialization.py``).
Both are read by the machine of `tf_alexnet.weights.pickles`, which knows a few of torch's names.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path

import numpy as np

from tf_alexnet.weights import pickles
from tf_alexnet.weights.arrays import LayerArrays, WeightArrays
from tf_alexnet.weights.formats.common import ADVICE as NOT_ALEXNET
from tf_alexnet.weights.formats.common import (
    NotAlexNetError,
    affordable,
    assemble,
    damaged,
)
from tf_alexnet.weights.formats.named import named_layers, split_key
from tf_alexnet.weights.formats.zip_members import ZipError, ZipMembers
from tf_alexnet.weights.pickles import PickleError, require

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # 0x1950a86a20f9469cfc6c as a pickle
PROTOCOL = 1001
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
PARTS = LayerArrays._fields
ADVICE = "Save the state dict alone: torch.save(model.state_dict(), ...)."


class Name(Enum):
    """The names a file may refer to. They stand for themselves and do nothing."""

    ORDERED_DICT = "OrderedDict"
    REBUILD_TENSOR = "_rebuild_tensor"  # before torch 0.4
    REBUILD_TENSOR_V2 = "_rebuild_tensor_v2"
    REBUILD_PARAMETER = "_rebuild_parameter"


class Number(Enum):
    """The types of storages, as NumPy calls them."""

    FLOAT = "f4"
    DOUBLE = "f8"
    HALF = "f2"
    BFLOAT16 = "u2"
    LONG = "i8"
    INT = "i4"
    SHORT = "i2"
    CHAR = "i1"
    BYTE = "u1"
    BOOL = "?"


FLOATS = {Number.FLOAT, Number.DOUBLE, Number.HALF, Number.BFLOAT16}
NAMES = {
    ("collections", "OrderedDict"): Name.ORDERED_DICT,
    **{("torch._utils", name.value): name for name in Name if name.value[0] == "_"},
    **{
        ("torch", f"{'BFloat16' if kind is Number.BFLOAT16 else kind.name.title()}Storage"): kind
        for kind in Number
    },
}


@dataclass(frozen=True)
class Storage:
    """A run of numbers elsewhere in the file."""

    key: str
    kind: Number
    size: int

    def values(self, raw: memoryview, order: str) -> np.ndarray:
        """The numbers in `raw`; of bfloat16, the upper half of a float32, as float32."""
        dtype = np.dtype(order + self.kind.value)
        if len(raw) != dtype.itemsize * self.size:
            raise PickleError(f"a storage of {self.size} numbers with {len(raw)} bytes")
        numbers = np.frombuffer(raw, dtype)
        if self.kind is Number.BFLOAT16:
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers


@dataclass(frozen=True)
class Tensor:
    """A tensor as the stream describes it; nothing is believed until `array` is called."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple

    @property
    def is_sane(self) -> bool:
        """Whether its shape is made of sizes."""
        return all(type(n) is int and n >= 0 for n in self.shape)

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

    def __init__(self):
        self.storages: dict[str, Storage] = {}

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
            ]:
                return Tensor(storage, offset, shape, strides)
            case [Name.REBUILD_TENSOR_V2, storage, offset, shape, strides, bool(), dict(), *more]:
                require(len(more) < 2, "an odd tensor")
                return self.call(machine, Name.REBUILD_TENSOR, storage, offset, shape, strides)
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
            case ("storage", Number() as kind, str() as key, str(), int() as size, *views):
                # Only torch before 0.4 wrote views of other storages.
                require(size >= 0 and views in ([], [None]), "an odd storage")
                storage = Storage(key, kind, size)
                require(self.storages.setdefault(key, storage) == storage, "two kinds of a storage")
                return storage
        raise PickleError("a reference to something else than numbers")


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

        def raw(storage: Storage) -> memoryview:
            name = f"{root}data/{storage.key}"
            require(name in members, f"no member for the storage {storage.key[:40]!r}")
            return members.read(name)

        return _weights(path, pickled.value, raw, order, len(members.view))
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
    data, dialect = Path(path).read_bytes(), TorchDialect()
    try:
        require(data.startswith(MAGIC), "another magic number")
        protocol = pickles.load(data, len(MAGIC), dialect)
        require(protocol.value == PROTOCOL, "an unknown protocol")
        system = pickles.load(data, protocol.end, dialect)
        little = system.value.get("little_endian") if isinstance(system.value, dict) else None
        require(isinstance(little, bool), "an unknown byte order")
        content = pickles.load(data, system.end, dialect)
        keys = pickles.load(data, content.end, dialect)
        order = "<" if little else ">"
        storages = _behind(data, keys, order, dialect.storages)

        def raw(storage: Storage) -> memoryview:
            require(storage.key in storages, f"no storage {storage.key[:40]!r}")
            return storages[storage.key]

        return _weights(path, content.value, raw, order, len(data))
    except PickleError as error:
        raise damaged(path, f"a torch file that holds {error}", ADVICE) from None


def _behind(
    data: bytes, keys: pickles.Pickled, order: str, declared: dict[str, Storage]
) -> dict[str, memoryview]:
    """Key -> bytes of the storages behind the pickles: each a count of numbers and these."""
    require(isinstance(keys.value, list), "no list of storages")
    view, at, found = memoryview(data), keys.end, {}
    for key in map(pickles.as_text, keys.value):
        require(key in declared and key not in found, f"the storage {key!r} twice or never used")
        require(at + 8 <= len(view), "a storage that runs past the end")
        size = np.dtype(declared[key].kind.value).itemsize
        count = struct.unpack_from(order + "q", view, at)[0]
        at += 8
        require(0 <= count <= (len(view) - at) // size, "a storage that runs past the end")
        found[key] = view[at : at + size * count]
        at += size * count
    require(at == len(view), f"{len(view) - at} bytes behind its last storage")
    return found


def _weights(
    path, value: object, raw: Callable[[Storage], memoryview], order: str, file_size: int
) -> WeightArrays:
    """The layers of a state dict, in TensorFlow's layout."""
    state = _state_dict(value)
    values = cache(lambda storage: storage.values(raw(storage), order))
    total = sum(math.prod(x.shape) for x in state.values() if isinstance(x, Tensor) and x.is_sane)
    require(4 * total <= affordable(file_size), "far more numbers than an AlexNet")

    def array(key: str) -> np.ndarray:
        tensor = state[key]
        is_floats = isinstance(tensor, Tensor) and tensor.storage.kind in FLOATS
        require(is_floats, f"the entry {key[:80]!r}, which is not a tensor of floats")
        return tensor.array(values(tensor.storage))

    try:
        return assemble(path, named_layers(state, array))
    except NotAlexNetError as error:
        raise damaged(path, f"a torch file that holds {error}", NOT_ALEXNET) from None


def _state_dict(value: object) -> dict[str, object]:
    """The state dict of a file: what it holds, or the entry of a checkpoint that is one."""
    require(isinstance(value, dict), "no state dict")
    for wrapper in 2 * WRAPPERS:  # one in another, but not in itself for ever
        if any(isinstance(x, Tensor) and split_key(str(k))[1] in PARTS for k, x in value.items()):
            break
        value = value[wrapper] if isinstance(value.get(wrapper), dict) else value
    return {str(key): entry for key, entry in value.items()}
