"""Random weights for tests: full size, and reproducible to the bit."""

from __future__ import annotations

import math

import numpy as np

from tf_alexnet.architectures import Architecture, architecture_named
from tf_alexnet.weights.arrays import LayerArrays, WeightArrays

_CHUNK = 1 << 16  # values at a time, to stay in the processor's cache: 512 kB of words
# The sum of four uniform 16-bit words: mean 2 * 65535, variance 4 * (65536^2 - 1) / 12.
_MEAN = 2 * 65535
_STD = math.sqrt((65536**2 - 1) / 3)


def synthetic_weights(
    architecture: str | Architecture = "bvlc_alexnet", seed: int = 0
) -> WeightArrays:
    """Random weights in the shapes of a network, for tests.

    Kernels are roughly normal with He's standard deviation sqrt(2 / fan_in) (He et al. 2015), which
    keeps the scale of activations through the ReLUs; the last layer's are 64 times smaller, so that
    the softmax does not saturate. Biases have a standard deviation of 0.1. The bytes depend only on
    `architecture` and `seed`: they are computed from Philox's raw 64-bit words in integers and one
    correctly rounded product, and are the same on every NumPy version and platform.

    Parameters
    ----------
    architecture : str or Architecture
        A table or its name.
    seed : int
        Random seed, 0 to 2**32 - 1.

    Returns
    -------
    WeightArrays
        float32, in TensorFlow's layout; 244 MB for bvlc_alexnet.
    """
    table = architecture_named(architecture) if isinstance(architecture, str) else architecture
    shapes = table.parameter_shapes()
    last = table.weighted[-1].name
    layers = {}
    for index, (name, (kernel, bias)) in enumerate(shapes.items()):
        std = math.sqrt(2 / math.prod(kernel[:-1])) / (64 if name == last else 1)
        layers[name] = LayerArrays(
            _bell(kernel, std, key=(seed << 32) + 2 * index),
            _bell(bias, 0.1, key=(seed << 32) + 2 * index + 1),
        )
    return WeightArrays(layers, table.name, f"synthetic weights for {table.name}, seed {seed}")


def _bell(shape: tuple[int, ...], std: float, key: int) -> np.ndarray:
    """float32 values of mean 0, std `std`, |value| <= 3.5 std: sums of a word's four quarters."""
    values = np.empty(math.prod(shape), np.float32)
    words = np.random.Philox(key=key)
    scale = np.float32(std / _STD)
    for start in range(0, values.size, _CHUNK):
        part = values[start : start + _CHUNK]
        raw = words.random_raw(part.size)
        total = (raw & 0xFFFF) + (raw >> 16 & 0xFFFF) + (raw >> 32 & 0xFFFF) + (raw >> 48)
        np.multiply(total.astype(np.int32) - _MEAN, scale, out=part, casting="same_kind")
    return values.reshape(shape)
