"""Functions shared by all weight formats: memory layout, layer order, shapes, metadata."""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import UsageError, WeightsError
from tf_alexnet.weights.arrays import LAYER_ORDER, LayerArrays, WeightArrays, network_order

MAX_METADATA = 1 << 16  # characters
_ROWS = 16
GET_ANOTHER = "Download the file again, or use another one."
ADVICE = "Use the weights of an AlexNet."


class NotAlexNetError(ValueError):
    """The file is valid but holds something else; the message says what."""


def damaged(path: str | os.PathLike, found: str, advice: str = GET_ANOTHER) -> WeightsError:
    """Create the error for a file that can't be read."""
    return WeightsError(str(path), found, advice)


def as_float32(array: np.ndarray) -> np.ndarray:
    """`array` as float32 in C order, without a copy if possible.

    Values beyond the range of float32 become infinite, which `faults` reports.
    """
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def flattened_channels(
    layers: Mapping[str, LayerArrays], known: Mapping[str, int] = MappingProxyType({})
) -> dict[str, int | None]:
    """Channels of the feature map that each dense layer's inputs flatten.

    Caffe and torch flatten (channels, height, width), TensorFlow (height, width, channels), so that
    dense layers after a convolution have their rows in another order. Which layers these are is
    determined from, in this order: the file's graph (`known`, as `WeightArrays.flattened`); our
    tables, for layers with a known name and number of inputs; and the layers that could provide the
    inputs, either an earlier dense layer with that number of units (by the number in its name, such
    as ``fc6_new`` and ``fc7``, or by its position in the file), or a convolution whose channels
    times a square give the number of inputs.

    Parameters
    ----------
    layers : mapping of str to LayerArrays
        In the order of the network, kernels in TensorFlow's layout.
    known : mapping of str to int
        Known results.

    Returns
    -------
    dict of str to int or None
        0 for a layer whose input is a vector, None if unknown.
    """
    found = {}
    maps = {layer.bias.size for layer in layers.values() if layer.kernel.ndim == 4}
    for name, layer in layers.items():
        if layer.kernel.ndim != 2:
            continue
        rows = layer.kernel.shape[0]
        channels = known.get(name, _channels_in_tables(name, rows, maps))
        if channels is None:
            channels = _channels_by_place(name, rows, layers)
        fits = channels == 0 or (channels and _map_side(rows, channels))
        found[name] = channels if fits else None
    return found


def _map_side(rows: int, channels: int) -> int | None:
    """Side of the square feature map with `channels` and `rows` values in all, or None."""
    side = math.isqrt(rows // channels)
    return side if side * side * channels == rows else None


def channels_first(kernel: np.ndarray, channels: int | None) -> np.ndarray:
    """A view of a kernel in TensorFlow's layout in that of Caffe and torch.

    Its shape is (out, in, height, width) or (out, in); for a dense layer whose inputs flatten a
    feature map with `channels`, (out, channels, height, width).
    """
    if kernel.ndim == 2 and channels:
        side = _map_side(len(kernel), channels)
        kernel = kernel.reshape(side, side, channels, -1)
    return kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)


def _channels_in_tables(name: str, rows: int, maps: set[int]) -> int | None:
    for table in ARCHITECTURES.values():
        channels = 0
        for layer, (kernel, _) in table.parameter_shapes().items():
            if len(kernel) == 4:
                channels = kernel[3]
                continue
            if name.startswith(layer) and kernel[0] == rows and (maps | {0} >= {channels}):
                return channels
            channels = 0
    return None


def _channels_by_place(name: str, rows: int, layers: Mapping[str, LayerArrays]) -> int | None:
    maps, vectors = set(), []
    for other, layer in layers.items():
        if other != name and layer.kernel.ndim == 4 and _map_side(rows, layer.bias.size):
            maps.add(layer.bias.size)
        elif other != name and layer.kernel.ndim == 2 and layer.bias.size == rows:
            vectors.append(other)
    order = list(layers)
    numbers = {x: int(digits[0]) for x in order if (digits := re.findall(r"[0-9]+", x))}

    def comes_before(other: str) -> bool:
        if {name, other} <= numbers.keys():
            return numbers[other] < numbers[name]
        return order.index(other) < order.index(name)

    if not maps or any(map(comes_before, vectors)):
        return 0 if vectors else None
    return maps.pop() if len(maps) == 1 else None


def _unknown_rows(name: str, layer: LayerArrays) -> str:
    return f"{name} has {len(layer.kernel)} inputs in an unknown order"


def affordable(file_size: int) -> int:
    """Limit for bytes of arrays in a file of this size, against decompression bombs."""
    return 2 * file_size + 245_000_000


def from_channels_first(
    layers: Mapping[str, tuple[np.ndarray, np.ndarray]],
    known: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, LayerArrays]:
    """Convert kernels and biases from the layout of Caffe and torch to TensorFlow's, as float32.

    Convolutions are (out, in / groups, height, width), dense kernels (out, in); inputs after a
    convolution are flattened as (channels, height, width), see `flattened_channels`. Other layers,
    and those whose inputs are in an unknown order, are left out with a warning.

    Raises
    ------
    NotAlexNetError
        If one of these is a layer of AlexNet.
    """
    views = {}
    for name, (kernel, bias) in layers.items():
        if kernel.ndim in (2, 4) and bias.shape == kernel.shape[:1]:
            axes = (1, 0) if kernel.ndim == 2 else (2, 3, 1, 0)
            views[name] = LayerArrays(kernel.transpose(axes), bias)
            continue
        shapes = f"arrays of {kernel.shape} and {bias.shape}"
        _leave_out(name, f"layer {name} with {shapes}", f"{name} ({shapes})")
    channels = flattened_channels(views, known)
    converted = {}
    for name, (kernel, bias) in views.items():
        if channels.get(name, 0) is None:
            _leave_out(name, _unknown_rows(name, views[name]))
            continue
        copy = np.empty(kernel.shape, np.float32)
        _fill(channels_first(copy, channels.get(name)), layers[name][0])
        converted[name] = LayerArrays(copy, np.array(as_float32(bias)))
    return converted


def _fill(target: np.ndarray, values: np.ndarray) -> None:
    """Copy values to a transposed view of float32, see `as_float32`.

    Its rows are columns in memory. Sixteen rows at a time stay in the processor's cache, which
    takes a sixth of the time of NumPy's copy.
    """
    values = values.reshape(target.shape)
    with np.errstate(all="ignore"):
        for start in range(0, len(target), _ROWS):
            target[start : start + _ROWS] = values[start : start + _ROWS]


def _leave_out(name: str, found: str, words: str = "") -> None:
    """Warn about a layer that is left out; raise an error if AlexNet needs it."""
    if name in LAYER_ORDER:
        raise NotAlexNetError(found)
    warnings.warn(f"left out: {words or found}", stacklevel=5)


def to_channels_first(arrays: WeightArrays) -> Iterator[tuple[str, np.ndarray]]:
    """Iterate over (name, kernel) of each layer in the layout of Caffe and torch.

    Kernels are views, except those of dense layers after a convolution.

    Raises
    ------
    WeightsError
        If the order of a dense layer's rows is unknown. Raised by the call itself.
    """
    channels = flattened_channels(arrays.layers, arrays.flattened)
    for name, depth in channels.items():
        if depth is None:
            found = _unknown_rows(name, arrays.layers[name])
            raise damaged(arrays.source, found, "Write a .npy file instead.")

    def kernels() -> Iterator[tuple[str, np.ndarray]]:
        for name, layer in arrays.layers.items():
            kernel = channels_first(as_float32(layer.kernel), channels.get(name))
            yield name, kernel.reshape(len(kernel), -1) if name in channels else kernel

    return kernels()


def modern(kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias without the axes of size 1 in Caffe's early files and their copies.

    There a dense kernel is (1, 1, out, in) and a bias (1, 1, 1, out).
    """
    if kernel.ndim == 4 and kernel.shape[:2] == (1, 1) and bias.size == kernel.shape[2]:
        kernel = kernel.reshape(kernel.shape[2:])
    return kernel, bias.reshape(-1) if bias.size == bias.shape[-1] else bias


def assemble(
    path: str | os.PathLike,
    layers: Mapping[str, LayerArrays],
    architecture: str | None = None,
    metadata: Mapping[str, str] = MappingProxyType({}),
    flattened: Mapping[str, int] | None = None,
) -> WeightArrays:
    """The layers of a file as WeightArrays of float32.

    They are put in network order, unless `flattened` is given by the file's graph.

    Raises
    ------
    WeightsError
        If there is no layer, or one that is neither a convolution nor dense.
    """
    if not layers:
        raise damaged(path, "no layer with weights in it")
    ordered = {}
    for name in network_order(layers) if flattened is None else layers:
        kernel, bias = layers[name]
        if kernel.ndim not in (2, 4) or bias.shape != kernel.shape[-1:] or not kernel.size:
            raise damaged(
                path,
                f"layer {name} has a kernel of shape {kernel.shape} and a bias of {bias.shape}",
                "A kernel is (height, width, in, out) or (in, out), its bias (out,).",
            )
        ordered[name] = LayerArrays(as_float32(kernel), as_float32(bias))
    known = {name: value for name, value in (flattened or {}).items() if name in ordered}
    return WeightArrays(ordered, architecture, str(path), dict(metadata), known)


def mapped(path: str | os.PathLike) -> memoryview:
    """The bytes of a file, mapped into memory."""
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def split_metadata(record: object) -> tuple[str | None, dict[str, str]]:
    """Architecture and other metadata from a flat record of strings made by `recorded`.

    Values other than strings are dropped. An unknown architecture is kept as metadata.
    """
    if not isinstance(record, dict):
        return None, {}
    metadata = {k: v for k, v in record.items() if isinstance(k, str) and isinstance(v, str)}
    known = metadata.get("architecture") in ARCHITECTURES
    return (metadata.pop("architecture") if known else None), metadata


def recorded(arrays: WeightArrays) -> dict[str, str]:
    """Metadata and architecture of `arrays` as one flat record of strings."""
    record = {str(k): str(v) for k, v in arrays.metadata.items()}
    if arrays.architecture:
        record["architecture"] = arrays.architecture
    return record


def metadata_text(arrays: WeightArrays) -> str:
    """`recorded` as JSON, for formats that store a single text.

    Raises
    ------
    UsageError
        If it is too long to be read back.
    """
    text = json.dumps(recorded(arrays))
    if len(text) > MAX_METADATA // 2:
        raise UsageError("metadata", f"{len(text)} characters are too many", "Shorten it.")
    return text


def parsed_metadata(text: str | None) -> tuple[str | None, dict[str, str]]:
    """Architecture and metadata from `metadata_text`; empty if it is damaged."""
    try:
        return split_metadata(json.loads(text or "{}"))
    except (ValueError, RecursionError):
        return None, {}
