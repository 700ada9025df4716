"""What every weight format shares: the order of layers, sane shapes, float32."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import WeightsError
from tf_alexnet.weights.arrays import LayerArrays, WeightArrays

LAYER_ORDER = tuple(
    dict.fromkeys(layer.name for table in ARCHITECTURES.values() for layer in table.weighted)
)
GET_ANOTHER = "Get the file again from where it is published, or use another one."


def damaged(path: str | os.PathLike, found: str, advice: str = GET_ANOTHER) -> WeightsError:
    """The error for a file that can't be read, ready to be raised."""
    return WeightsError(str(path), found, advice)


def network_order(layers: Mapping[str, object]) -> list[str]:
    """The names in the order of the networks' tables; unknown ones follow as they came."""
    known = [name for name in LAYER_ORDER if name in layers]
    return known + [name for name in layers if name not in LAYER_ORDER]


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
