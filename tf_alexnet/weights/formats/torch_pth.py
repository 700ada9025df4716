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
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from tf_alexnet.weights import pickles
from tf_alexnet.weights.arrays import LayerArrays, WeightArrays
from tf_alexnet.weights.formats.common import affordable, assemble, damaged, from_channels_first
from tf_alexnet.weights.formats.zip_members import ZipError, ZipMembers
from tf_alexnet.weights.pickles import PickleError, require

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # 0x1950a86a20f9469cfc6c as a pickle
PROTOCOL = 1001
LAYERS = {
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3",
    "features.8": "conv4",
    "features.10": "conv5",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
    "classifier.6": "fc8",
}
PARTS = {"weight": "kernel", "bias": "bias"}
WRAPPERS = ("state_dict", "model_state_dict", "model")
ADVICE = "Save the state dict alone: torch.save(model.state_dict(), ...)."


class Name(Enum):
    """The names a file may refer to. They stand for themselves and do nothing."""

    ORDERED_DICT = "OrderedDict"
    REBUILD_TENSOR = "_rebuild_tensor_v2"
    REBUILD_PARAMETER = "_rebuild_parameter"
    FLOAT_STORAGE = "FloatStorage"


NAMES = {
    ("collections", "OrderedDict"): Name.ORDERED_DICT,
    ("torch._utils", "_rebuild_tensor_v2"): Name.REBUILD_TENSOR,
    ("torch._utils", "_rebuild_parameter"): Name.REBUILD_PARAMETER,
    ("torch", "FloatStorage"): Name.FLOAT_STORAGE,
}


@dataclass(frozen=True)
class Storage:
    """A run of floats elsewhere in the file."""

    key: str
    size: int


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
            case ("storage", Name.FLOAT_STORAGE, str() as key, str(), int() as size, *views):
                # Only torch before 0.4 wrote views of other storages.
                require(size > 0 and views in ([], [None]), "an odd storage")
                return Storage(key, size)
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
            return _floats(members.read(name), storage, order)

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
        content = pickles.load(data, system.end, TorchDialect())
        keys = pickles.load(data, content.end, TorchDialect())
        storages = _behind(data, keys, "<" if little else ">")

        def values(storage: Storage) -> np.ndarray:
            require(storage.key in storages, f"no storage {storage.key[:40]!r}")
            return _floats(storages[storage.key], storage, "<" if little else ">")

        return _weights(path, content.value, values, len(data))
    except PickleError as error:
        raise damaged(path, f"a torch file that holds {error}", ADVICE) from None


def _behind(data: bytes, keys: pickles.Pickled, order: str) -> dict[str, memoryview]:
    """Key -> bytes of the storages behind the pickles: each a number of floats and these.

    The file does not say of which type they are; all of FloatStorage, or sizes don't add up.
    """
    require(isinstance(keys.value, list), "no list of storages")
    view, at, found = memoryview(data), keys.end, {}
    for key in keys.value:
        require(at + 8 <= len(view), "a storage that runs past the end")
        count = struct.unpack_from(order + "q", view, at)[0]
        at += 8
        require(0 <= count <= (len(view) - at) // 4, "a storage that runs past the end")
        key = pickles.as_text(key)
        require(key not in found, f"the storage {key!r} twice")
        found[key] = view[at : at + 4 * count]
        at += 4 * count
    require(at == len(view), f"{len(view) - at} bytes behind its last storage")
    return found


def _floats(raw: memoryview, storage: Storage, order: str) -> np.ndarray:
    if len(raw) != 4 * storage.size:
        raise PickleError(f"a storage of {storage.size} floats with {len(raw)} bytes")
    return np.frombuffer(raw, order + "f4")


def _weights(path, value: object, values, file_size: int) -> WeightArrays:
    """The layers of a state dict, in TensorFlow's layout."""
    tensors = _named_tensors(value)
    total = sum(4 * math.prod(t.shape) for t in tensors.values() if _is_shape(t.shape))
    require(total <= affordable(file_size), "far more numbers than an AlexNet")
    parts: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in tensors.items():
        layer, _, part = key.rpartition(".")
        require(
            layer in LAYERS and part in PARTS,
            f"the tensor {key[:80]!r}, which torchvision's AlexNet does not have",
        )
        array = tensor.array(values(tensor.storage))
        parts.setdefault(LAYERS[layer], {})[PARTS[part]] = array
    for name, arrays in parts.items():
        require(len(arrays) == 2, f"layer {name} with only a {next(iter(arrays))}")
    try:
        layers = from_channels_first({k: LayerArrays(**v) for k, v in parts.items()})
    except ValueError as error:
        raise PickleError(str(error)) from None
    return assemble(path, layers)


def _is_shape(shape: tuple) -> bool:
    """Whether a shape is made of sizes."""
    return all(type(n) is int and n >= 0 for n in shape)


def _named_tensors(value: object) -> dict[str, Tensor]:
    """Parameter -> tensor, out of a state dict or the entry of a checkpoint that is one."""
    require(isinstance(value, dict), "no state dict")
    for wrapper in WRAPPERS:
        if isinstance(value.get(wrapper), dict):
            value = value[wrapper]
            break
    found = {}
    for key, tensor in value.items():
        require(isinstance(tensor, Tensor), f"the entry {str(key)[:80]!r}, which is no tensor")
        # nn.DataParallel puts "module." before every name; before 2017 before "features" alone.
        name = ".".join(part for part in str(key).split(".") if part != "module")
        require(name not in found, f"{name[:80]!r} twice")
        found[name] = tensor
    return found
