"""Random initial weights for networks and new heads, and untrained controls."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from tf_alexnet.architectures import Architecture, Conv, Dense, Gaussian, KaimingNormal
from tf_alexnet.errors import UsageError
from tf_alexnet.weights.arrays import LayerArrays, WeightArrays

_NAME = "random"


def random_seed(name: object) -> int | None:
    """The seed in ``random:SEED`` (0 for ``random``); None for other weights.

    Raises
    ------
    UsageError
        If the text after ``random:`` is not a seed.
    """
    if not isinstance(name, str) or name.partition(":")[0] != _NAME:
        return None
    text = name.partition(":")[2] if ":" in name else "0"
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 32):
        raise UsageError(
            f"weights {name!r}", "not a seed", "Use random, or random:0 to random:4294967295."
        )
    return int(text)


def fresh_weights(table: Architecture, seed: int) -> WeightArrays:
    """All `fresh_layers` of a network, marked as an untrained control in source and metadata."""
    source = f"{_NAME}:{seed} (untrained)"
    return WeightArrays(fresh_layers(table, seed), table.name, source, {"untrained": "yes"})


def fresh_layers(
    table: Architecture, seed: int, names: Iterable[str] | None = None
) -> dict[str, LayerArrays]:
    """Random initial weights from the table's fillers.

    They come from NumPy rather than Keras: the values of a layer depend only on `seed` and its
    position in the table.

    Parameters
    ----------
    table : Architecture
        The network.
    seed : int
        Random seed, 0 to 2**32 - 1.
    names : iterable of str, optional
        Layers to initialize (default: all with weights).

    Returns
    -------
    dict of str to LayerArrays
        float32, in TensorFlow's layout.
    """
    wanted = {layer.name for layer in table.weighted} if names is None else set(names)
    shapes = table.parameter_shapes()
    return {
        layer.name: _random(layer, *shapes[layer.name], np.random.default_rng([seed, place, 0]))
        for place, layer in enumerate(table.weighted)
        if layer.name in wanted
    }


def _random(
    layer: Conv | Dense, kernel: tuple, bias: tuple, generator: np.random.Generator
) -> LayerArrays:
    if isinstance(layer.filler, Gaussian | KaimingNormal):
        deviation = (
            layer.filler.std
            if isinstance(layer.filler, Gaussian)
            else math.sqrt(2 / (math.prod(kernel[:-2]) * kernel[-1]))
        )
        values = generator.standard_normal(kernel, np.float32) * np.float32(deviation)
        return LayerArrays(values, np.full(bias, layer.bias, np.float32))
    bound = np.float32(1 / math.sqrt(math.prod(kernel[:-1])))
    values, ones = (generator.random(shape, np.float32) * 2 - 1 for shape in (kernel, bias))
    return LayerArrays(values * bound, ones * bound)
