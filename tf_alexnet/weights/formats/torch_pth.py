"""torch's .pth files with the state dict of torchvision's AlexNet, or of a similar network.

There are two containers. Since torch 1.6 a file is a zip archive with a pickle ``data.pkl`` and a
member ``data/<key>`` for each storage (``caffe2/serialize/inline_container.h``). Before, it was a
sequence of five pickles, followed by the storages (``_legacy_save`` in ``torch/serialization.py``).
Both are read by a `tf_alexnet.weights.pickles.Unpickler` that knows a few of torch's names.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import MappingProxyType

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
from tf_alexnet.weights.pickles import PickleError, Unpickler, require

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # 0x1950a86a20f9469cfc6c as a pickle
PROTOCOL = 1001
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
ADVICE = "Save the state dict alone: torch.save(model.state_dict(), ...)."


class TorchName(Enum):
    """The functions that a file may refer to; nothing is imported for them."""

    REBUILD_TENSOR = "torch._utils._rebuild_tensor"  # before torch 0.4
    REBUILD_TENSOR_V2 = "torch._utils._rebuild_tensor_v2"
    REBUILD_PARAMETER = "torch._utils._rebuild_parameter"


BFLOAT16 = np.dtype("u2")
FLOATS = {*map(np.dtype, ("f4", "f8", "f2")), BFLOAT16}
STORAGES = {
    f"torch.{name}Storage": np.dtype(code)
    for name, code in {
        **{"Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": BFLOAT16},
        **{"Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "?"},
    }.items()
}


@dataclass(frozen=True)
class Storage:
    """A sequence of numbers elsewhere in the file."""

    key: str
    dtype: np.dtype
    size: int

    def values(self, raw: memoryview, order: str) -> np.ndarray:
        """The numbers in `raw`; bfloat16, the upper half of a float32, is returned as float32."""
        if len(raw) != self.dtype.itemsize * self.size:
            raise PickleError(f"a storage of {self.size} numbers with {len(raw)} bytes")
        numbers = np.frombuffer(raw, self.dtype.newbyteorder(order))
        if self.dtype == BFLOAT16:
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers


@dataclass(frozen=True)
class Tensor:
    """A tensor as described by the stream."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple

    def __post_init__(self):
        numbers = (self.offset, *self.shape, *self.strides)
        require(all(type(n) is int and n >= 0 for n in numbers), "a tensor of invalid shape")
        require(len(self.shape) == len(self.strides), "a tensor with invalid strides")

    def array(self, values: np.ndarray) -> np.ndarray:
        """A view of the storage's `values`.

        Raises
        ------
        PickleError
            If shape, strides and offset exceed the storage, or use values repeatedly.
        """
        require(1 <= len(self.shape) <= pickles.MAX_RANK, "a tensor of invalid rank")
        count = math.prod(self.shape)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if not 0 < count <= len(values) or last >= len(values):
            raise PickleError(f"a tensor of shape {self.shape} in {len(values)} values")
        strides = [s * values.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(
            values[self.offset :], self.shape, strides, writeable=False
        )


class TorchUnpickler(Unpickler):
    """Reads state dicts, and what training scripts save with them."""

    names = MappingProxyType(
        {**Unpickler.names, **{name.value: name for name in TorchName}, **STORAGES}
    )

    def __init__(self, data: bytes, at: int = 0):
        super().__init__(data, at)
        self.storages: dict[str, Storage] = {}

    def key(self, value):
        """Text, or an integer, as in optimizer states."""
        return value if type(value) is int else pickles.as_text(value)

    def call(self, name, *arguments):
        """A `Tensor`, or a dict."""
        match [name, *arguments]:
            case [TorchName.REBUILD_TENSOR, Storage(), int(), tuple(), tuple()]:
                return Tensor(*arguments)
            case [TorchName.REBUILD_TENSOR_V2, _, _, _, _, bool(), dict(), *metadata]:
                require(
                    not any(metadata), "an unsupported tensor"
                )  # such as a conjugate or negative view
                return self.call(TorchName.REBUILD_TENSOR, *arguments[:4])
            case [TorchName.REBUILD_PARAMETER, Tensor() as tensor, bool(), dict()]:
                return tensor
        return super().call(name, *arguments)

    def build(self, target, state):
        """Ignore the metadata (versions) of a state dict."""
        if not (
            isinstance(target, dict) and isinstance(state, dict) and set(state) == {"_metadata"}
        ):
            super().build(target, state)

    def persistent(self, identity):
        """A `Storage`."""
        match identity:
            case ("storage", np.dtype() as dtype, str() as key, str(), int() as size, *views):
                # Only torch before 0.4 wrote views of other storages.
                require(size >= 0 and views in ([], [None]), "an invalid storage")
                storage = Storage(key, dtype, size)
                require(self.storages.setdefault(key, storage) == storage, "two kinds of a storage")
                return storage
        raise PickleError("a reference to something other than numbers")


def archive_root(members: Iterable[str]) -> str | None:
    """The folder of ``data.pkl`` in a torch archive, with a slash at the end, or None."""
    roots = [name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl")]
    return roots[0] if len(roots) == 1 and roots[0].count("/") == 1 else None


def read(path: str | os.PathLike, members: ZipMembers | tuple[()]) -> WeightArrays:
    """Read a state dict from either container.

    Parameters
    ----------
    path : path-like
        The file.
    members : ZipMembers or ()
        Its members, if it is a zip archive.

    Raises
    ------
    WeightsError
        If the file is damaged, contains anything else, or would run code.
    """
    sizes = []
    try:
        value, order, raw = _from_archive(members) if members else _from_stream(path)
        state = _state_dict(value)

        @cache
        def values(storage: Storage) -> np.ndarray:
            found = raw(storage.key)
            require(found is not None, f"no bytes for the storage {storage.key[:40]!r}")
            return storage.values(found, order)

        def array(key: str) -> np.ndarray:
            tensor = state[key]
            is_floats = isinstance(tensor, Tensor) and tensor.storage.dtype in FLOATS
            require(is_floats, f"the entry {key[:80]!r}, which is not a tensor of floats")
            found = tensor.array(values(tensor.storage))
            sizes.append(found.nbytes)  # all may be views of the same storage
            limit = affordable(os.path.getsize(path))
            require(sum(sizes) <= limit, "far more numbers than an AlexNet")
            return found

        return assemble(path, named_layers(state, array))
    except (PickleError, NotAlexNetError) as error:
        advice = NOT_ALEXNET if isinstance(error, NotAlexNetError) else ADVICE
        raise damaged(path, f"a torch file that holds {error}", advice) from None
    except ZipError as error:
        raise damaged(path, f"a zip archive with {error}") from None


def _from_archive(members: ZipMembers) -> tuple[object, str, Callable[[str], memoryview | None]]:
    """The content of data.pkl, the byte order, and a function from key to bytes of a storage."""
    root = archive_root(members)
    order = "<"
    if root + "byteorder" in members:
        order = {b"little": "<", b"big": ">"}.get(bytes(members.read(root + "byteorder")[:9]))
        require(order is not None, "an unknown byte order")
    unpickler = TorchUnpickler(bytes(members.read(root + "data.pkl")))
    value = unpickler.load()
    require(unpickler.at == len(unpickler.data), "more than one pickle in data.pkl")

    def raw(key: str) -> memoryview | None:
        name = f"{root}data/{key}"
        return members.read(name) if name in members else None

    return value, order, raw


def _from_stream(path) -> tuple[object, str, Callable[[str], memoryview | None]]:
    """The same for the container before torch 1.6."""
    unpickler = TorchUnpickler(Path(path).read_bytes(), len(MAGIC))
    require(unpickler.load() == PROTOCOL, "an unknown protocol")
    system, value, keys = (unpickler.load() for _ in range(3))
    little = system.get("little_endian") if isinstance(system, dict) else None
    require(isinstance(little, bool), "an unknown byte order")
    require(isinstance(keys, list), "no list of storages")
    order = "<" if little else ">"
    found = {}
    for key in map(pickles.as_text, keys):
        known = key in unpickler.storages and key not in found
        require(known, f"the storage {key!r} twice or never used")
        count = struct.unpack(order + "q", unpickler.read(8))[0]
        found[key] = unpickler.read(count * unpickler.storages[key].dtype.itemsize)
    left = len(unpickler.data) - unpickler.at
    require(left == 0, f"{left} bytes after its last storage")
    return value, order, found.get


def _state_dict(value: object) -> dict[str, object]:
    """The state dict: the file's content, or an entry of a checkpoint."""
    for _ in range(8):  # a dictionary may contain itself
        require(isinstance(value, dict), "no state dict")
        named = {str(key): entry for key, entry in value.items()}
        inner = {key: entry for key, entry in named.items() if isinstance(entry, dict) and entry}
        parts = [split_key(key)[1] for key, entry in named.items() if isinstance(entry, Tensor)]
        if not inner or not set(LayerArrays._fields).isdisjoint(parts):
            break
        known = [key for key in WRAPPERS if key in inner] or list(inner)
        several = known[0] not in WRAPPERS and len(inner) > 1
        require(not several, f"several state dicts ({', '.join(inner)[:80]})")
        value = inner[known[0]]
    return named
