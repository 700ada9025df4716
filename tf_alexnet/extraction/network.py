"""The network's fast path: the same sums as the Keras model's, in the order a processor likes.

Three things differ from the layers of `tf_alexnet.layers`; each was kept because a measurement
(``benchmarks/extraction.py``) asked for it, and parity with the plain model is tested:

- Response normalisation as five shifted slices in an inner function compiled by XLA: the stock
  kernel takes a quarter of the whole network's time on a processor.
- Convolutions in groups by TensorFlow's own grouped kernels instead of split and concat.
- Fewer than four rows are filled up before the dense layers: TensorFlow multiplies those by another
  kernel, which changes fc6 in the sixth digit, so that a photo would have one row alone and another
  in company.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tf_alexnet.architectures import LRN, PREACT, Architecture, Conv, Dense, Dropout, MaxPool

_LEAST_ROWS = 4


def fast_network(
    table: Architecture, model: keras.Model, layers: Sequence[str]
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """A compiled function that computes blobs of a model.

    Parameters
    ----------
    table : Architecture
        What `model` was built from.
    model : keras.Model
        From `AlexNet`, as deep as `layers` ask for. Its variables are used, not copied.
    layers : sequence of str
        Blob names, or ``"<name>_preact"``.

    Returns
    -------
    callable
        From (N, S, S, 3) float32, N at least 1, to a dict: layer -> float32 tensor. The last step
        computed is the deepest layer asked for.
    """
    size = table.input_size

    def forward(x: tf.Tensor) -> dict[str, tf.Tensor]:
        blobs = {"data": x}
        count = tf.shape(x)[0]
        for layer in table.layers:
            if set(layers) <= set(blobs):
                break
            if isinstance(layer, Dropout):
                continue
            if isinstance(layer, Conv | Dense):
                x = blobs[layer.name + PREACT] = _weighted(layer, model.get_layer(layer.name), x)
                x = tf.nn.relu(x) if getattr(layer, "relu", True) else x
            elif isinstance(layer, LRN):
                x = _normalize(x, layer.local_size, layer.alpha, layer.beta, layer.k)
            elif isinstance(layer, MaxPool):
                x = tf.nn.max_pool2d(x, layer.kernel, layer.stride, "VALID")
            else:
                x = tf.nn.softmax(x)
            blobs[layer.name] = x
        return {name: blobs[name][:count] for name in layers}

    pixels = tf.TensorSpec((None, size, size, 3), tf.float32)
    return tf.function(forward, input_signature=[pixels], autograph=False)


def _weighted(layer: Conv | Dense, built: keras.layers.Layer, x: tf.Tensor) -> tf.Tensor:
    kernel, bias = built.kernel.value, built.bias.value
    if isinstance(layer, Conv):
        pad = [layer.pad, layer.pad]
        product = tf.nn.conv2d(x, kernel, layer.stride, [[0, 0], pad, pad, [0, 0]])
        return tf.nn.bias_add(product, bias)
    if x.shape.rank > 2:
        x = tf.reshape(x, (-1, kernel.shape[0]))
        missing = tf.maximum(0, _LEAST_ROWS - tf.shape(x)[0])
        x = tf.pad(x, [[0, missing], [0, 0]])
    return tf.nn.bias_add(tf.matmul(x, kernel), bias)


@tf.function(jit_compile=True, autograph=False)
def _normalize(x: tf.Tensor, local_size: int, alpha: float, beta: float, k: float) -> tf.Tensor:
    """`LocalResponseNormalization` for XLA, which makes one loop of it."""
    half = local_size // 2
    squares = tf.pad(x * x, [[0, 0], [0, 0], [0, 0], [half, half]])
    channels = x.shape[-1]
    total = tf.add_n([squares[..., i : i + channels] for i in range(local_size)])
    scale = k + alpha / local_size * total
    if beta == 0.75:  # scale^-3/4 by square roots, a few instructions instead of a power
        root = tf.math.rsqrt(scale)
        return x * root * tf.sqrt(root)
    return x * tf.pow(scale, -beta)
