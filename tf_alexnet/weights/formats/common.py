"""What every weight format shares: the order of layers, sane shapes, float32."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping

import numpy as np

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import UsageError, WeightsError
from tf_alexnet.weights.arrays import LayerArrays, WeightArrays, network_order

MAX_METADATA = 1 << 16  # characters
_COLUMNS = 16
GET_ANOTHER = "Get the file again from where it is published, or use another one."


def damaged(path: str | os.PathLike, found: str, advice: str = GET_ANOTHER) -> WeightsError:
    """The error for a file that can't be read, ready to be raised."""
    return WeightsError(str(path), found, advice)


def as_float32(array: np.ndarray) -> np.ndarray:
    """`array` as float32 in C order: itself where it is that already.

    Values beyond float32's range become infinite, and are found when the arrays are checked.
    """
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def first_dense(layers: Mapping[str, LayerArrays]) -> tuple[str, int, int] | None:
    """The dense layer whose rows depend on how its input was flattened.

    Parameters
    ----------
    layers : mapping of str to LayerArrays
        In network order, kernels in TensorFlow's layout.

    Returns
    -------
    (name, side, channels) or None
        `side` * `side` * `channels` rows; the channels are the filters of the convolution before.
        None where no layer is dense.

    Raises
    ------
    ValueError
        If the rows are no square of positions times these channels.
    """
    channels = None
    for name, layer in layers.items():
        if layer.kernel.ndim == 4:
            channels = layer.kernel.shape[3]
            continue
        rows = layer.kernel.shape[0]
        if channels is None:
            raise ValueError(f"no convolution comes before {name}, so its rows have no known order")
        side = math.isqrt(rows // channels)
        if side * side * channels != rows:
            raise ValueError(f"{name} has {rows} inputs, no square of {channels} channels")
        return name, side, channels
    return None


def affordable(file_size: int) -> int:
    """Bytes of arrays that a file of this size may unfold to: any AlexNet, and no bomb."""
    return 2 * file_size + 245_000_000


def from_channels_first(
    layers: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> dict[str, LayerArrays]:
    """Kernels and biases as Caffe and torch keep them, in TensorFlow's layout.

    Parameters
    ----------
    layers : mapping of str to (kernel, bias)
        Convolutions (out, in / groups, height, width), dense kernels (out, in) with the inputs of
        the first one flattened as (channels, height, width).

    Returns
    -------
    dict of str to LayerArrays
        Float32 copies, in network order.

    Raises
    ------
    ValueError
        If a layer is none of these, or the order of the first dense layer's inputs is not known.
    """
    views = {}
    for name in network_order(layers):
        kernel, bias = layers[name]
        if kernel.ndim not in (2, 4) or bias.ndim != 1:
            raise ValueError(f"layer {name} with arrays of {kernel.shape} and {bias.shape}")
        axes = (1, 0) if kernel.ndim == 2 else (2, 3, 1, 0)
        views[name] = LayerArrays(kernel.transpose(axes), bias)
    flattened = first_dense(views)
    converted = {}
    for name, (kernel, bias) in views.items():
        shape = kernel.shape
        if flattened and name == flattened[0]:
            _, side, channels = flattened
            kernel = kernel.T.reshape(-1, channels, side, side).transpose(2, 3, 1, 0)
        converted[name] = LayerArrays(
            float32_copy(kernel).reshape(shape), float32_copy(bias).reshape(-1)
        )
    return converted


def to_channels_first(layers: Mapping[str, LayerArrays]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, kernel) of each layer in Caffe's and torch's layout; views but for the first dense.

    Raises
    ------
    ValueError
        If it is not known how the rows of the first dense layer are ordered.
    """
    flattened = first_dense(layers)
    for name, layer in layers.items():
        kernel = as_float32(layer.kernel)
        if flattened and name == flattened[0]:
            _, side, channels = flattened
            kernel = kernel.reshape(side, side, channels, -1).transpose(3, 2, 0, 1)
            yield name, kernel.reshape(len(kernel), -1)
        else:
            yield name, kernel.transpose((1, 0) if kernel.ndim == 2 else (3, 2, 0, 1))


def float32_copy(array: np.ndarray) -> np.ndarray:
    """A copy of `array` as float32 in C order; see `as_float32`.

    The columns of a transposed kernel lie as rows in the file. Sixteen rows stay in the
    processor's cache while they are scattered, which takes a sixth of the time of NumPy's copy.
    """
    copy = np.empty(array.shape, np.float32)
    with np.errstate(all="ignore"):
        for start in range(0, array.shape[-1], _COLUMNS):
            columns = slice(start, start + _COLUMNS)
            copy[..., columns] = array[..., columns]
    return copy


def assemble(
    path: str | os.PathLike,
    layers: Mapping[str, LayerArrays],
    architecture: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> WeightArrays:
    """The layers of a file, in network order, as float32.

    Raises
    ------
    WeightsError
        If there is no layer, or one that is neither a convolution nor dense.
    """
    if not layers:
        raise damaged(path, "no layer with weights in it")
    ordered = {}
    for name in network_order(layers):
        kernel, bias = layers[name]
        if kernel.ndim not in (2, 4) or bias.shape != kernel.shape[-1:] or not kernel.size:
            raise damaged(
                path,
                f"layer {name} has a kernel of shape {kernel.shape} and a bias of {bias.shape}",
                "A kernel is (height, width, in, out) or (in, out), its bias (out,).",
            )
        ordered[name] = LayerArrays(as_float32(kernel), as_float32(bias))
    return WeightArrays(ordered, architecture, str(path), dict(metadata or {}))


def split_metadata(record: object) -> tuple[str | None, dict[str, str]]:
    """Architecture and other metadata out of a flat record of strings, as `recorded` made it.

    Anything else than strings is left out; a name that is no table here stays metadata.
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
    """`recorded` as JSON, for formats that have room for one text.

    Raises
    ------
    UsageError
        If it is too long to be read back.
    """
    text = json.dumps(recorded(arrays))
    if len(text) > MAX_METADATA // 2:
        raise UsageError("metadata", f"{len(text)} characters of it", "Write less of it.")
    return text


def parsed_metadata(text: str | None) -> tuple[str | None, dict[str, str]]:
    """Architecture and metadata out of such a text; nothing where it is damaged."""
    try:
        return split_metadata(json.loads(text or "{}"))
    except (ValueError, RecursionError):
        return None, {}
