"""Fresh weights: the first values of a network that is trained from scratch, and of a new head."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from tf_alexnet.architectures import Architecture, Conv, Dense, Gaussian, KaimingNormal
from tf_alexnet.weights import LayerArrays


def fresh_layers(
    table: Architecture, seed: int, names: Iterable[str] | None = None
) -> dict[str, LayerArrays]:
    """Random starting weights as the table's fillers say.

    NumPy's numbers, not Keras's: a layer's values depend on `seed` and its place in the table
    alone, whatever else is drawn.

    Parameters
    ----------
    table : Architecture
        The network.
    seed : int
        0 <= seed < 2**32.
    names : iterable of str, optional
        The layers wanted; by default all that have weights.

    Returns
    -------
    dict of str to LayerArrays
        float32, TensorFlow's layout.
    """
    wanted = {layer.name for layer in table.weighted} if names is None else set(names)
    shapes = table.parameter_shapes()
    return {
        layer.name: _drawn(layer, *shapes[layer.name], np.random.default_rng([seed, place, 0]))
        for place, layer in enumerate(table.weighted)
        if layer.name in wanted
    }


def _drawn(
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
