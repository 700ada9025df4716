"""`WeightArrays`: the arrays of one network, whatever file they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from tf_alexnet.architectures import ARCHITECTURES, Architecture
from tf_alexnet.errors import WeightsError


class LayerArrays(NamedTuple):
    """Kernel and bias of one layer, float32, in TensorFlow's layout.

    Attributes
    ----------
    kernel : ndarray of float32
        Convolution: (height, width, channels in / groups, channels out). Dense: (in, out).
        The rows of the first dense layer follow the flattened (height, width, channels).
    bias : ndarray of float32
        (channels out,) or (out,).
    """

    kernel: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class WeightArrays:
    """The arrays of one network.

    Attributes
    ----------
    layers : mapping of str to LayerArrays
        Caffe's layer names in network order.
    architecture : str or None
        Name of the table they belong to, where that is known.
    source : str
        Where they came from, for messages.
    metadata : mapping of str to str
        What the file recorded beside the arrays (licence, origin, preset, ...).
    """

    layers: Mapping[str, LayerArrays]
    architecture: str | None = None
    source: str = "arrays in memory"
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """``sha256:<hex>`` over names, shapes and values: the same weights in any file format."""
        sha = hashlib.sha256()
        for name, layer in self.layers.items():
            for part, array in zip(LayerArrays._fields, layer, strict=True):
                sha.update(f"{name}/{part}:{array.shape}\n".encode())
                sha.update(np.ascontiguousarray(array, dtype="<f4").data)
        return f"sha256:{sha.hexdigest()}"

    @property
    def classes(self) -> int | None:
        """Units of `fc8`, or None where the arrays have no such layer."""
        layer = self.layers.get("fc8")
        return None if layer is None else int(layer.bias.shape[0])


def own_table(arrays: WeightArrays, table: Architecture) -> Architecture:
    """`table` with the number of classes, and cut to the head, that `arrays` have.

    Where `fc8` stands on `pool5` (`Architecture.with_head`), its rows say so. On `fc6` it has as
    many rows as on `fc7`, and a damaged file that has lost `fc7` would look the same: there the
    file must record ``head: fc6``.
    """
    layers, classes = arrays.layers, arrays.classes or table.classes
    if "fc8" not in layers or "fc7" in layers:
        return table.with_classes(classes)
    cut = table.with_head("fc6" if "fc6" in layers else "pool5", classes)
    if "fc6" in layers:
        own = arrays.metadata.get("head") == "fc6"
    else:
        own = layers["fc8"].kernel.shape[:1] == cut.parameter_shapes()["fc8"][0][:1]
    return cut if own else table.with_classes(classes)


def fitting_architectures(arrays: WeightArrays) -> list[str]:
    """Names of the tables whose shapes all given layers have (`fc8` with any number of classes).

    A classifier that stands on `pool5` or `fc6` fits the table that it was cut from (`own_table`).

    bvlc_alexnet and caffenet have the same shapes, so either both are listed or neither.
    """
    names = []
    for table in ARCHITECTURES.values():
        shapes = own_table(arrays, table).parameter_shapes()
        if arrays.layers and all(
            (layer.kernel.shape, layer.bias.shape) == shapes.get(name)
            for name, layer in arrays.layers.items()
        ):
            names.append(table.name)
    return names


def check_arrays(
    arrays: WeightArrays, architecture: Architecture, needed: Collection[str] | None = None
) -> None:
    """Accept all of `arrays` for `architecture`, or refuse them in one message.

    Parameters
    ----------
    arrays : WeightArrays
        What a reader returned.
    architecture : Architecture
        The table to hold them against, with the number of classes the file should have.
    needed : collection of str, optional
        Layers that must be there; by default all. Layers of the table beyond these may be there.

    Raises
    ------
    WeightsError
        If a layer is missing, extra, misshapen or not finite; all faults are listed at once.
    """
    shapes = architecture.parameter_shapes()
    faults = []
    for name in shapes if needed is None else needed:
        if name not in arrays.layers:
            faults.append(f"{name} is missing")
    for name, layer in arrays.layers.items():
        if name not in shapes:
            faults.append(f"{name} is not a layer of the network")
            continue
        for part, array, shape in zip(LayerArrays._fields, layer, shapes[name], strict=True):
            if array.shape != shape:
                faults.append(f"{name} {part} has shape {array.shape}, expected {shape}")
            elif not is_finite(array):
                faults.append(f"{name} {part} holds NaN or infinite values")
    if faults:
        raise WeightsError(
            f"{arrays.source} as {architecture.name}",
            "; ".join(faults),
            "Get a file of this network, or name the one it is with architecture=.",
        )


def is_finite(array: np.ndarray) -> bool:
    """Whether no value is NaN or infinite; min and max need no array of flags."""
    return array.size == 0 or bool(np.isfinite(array.min()) and np.isfinite(array.max()))
