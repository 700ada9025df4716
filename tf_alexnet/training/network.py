"""The network while it is trained: the sums of the Keras model, written for gradients.

The Keras model of `AlexNet` holds the variables; this computes with them. What differs, and why:

- Layers before the first that is trained get no gradient and are never part of its graph.
- Dropout is a function of a seed that the caller gives, so that a resumed training draws what an
  unbroken one would have; no generator's state is to be kept.
- Groups and response normalisation as in `tf_alexnet.layers`, where those are faster.
- Mixed precision: products in bfloat16, everything else and all variables in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from tf_alexnet.architectures import LRN, Architecture, Conv, Dense, Dropout, MaxPool
from tf_alexnet.layers import groups_are_native, normalize

Variables = Mapping[str, tuple[tf.Variable, tf.Variable]]


class Network:
    """A table and its variables, as a function of pictures.

    Parameters
    ----------
    table : Architecture
        The network, with or without its softmax.
    variables : mapping of str to (tf.Variable, tf.Variable)
        Layer -> kernel and bias, float32.
    trained_from : str
        The first layer that is trained.
    dtype : tf.DType
        Of the products: float32 or bfloat16.
    """

    def __init__(
        self,
        table: Architecture,
        variables: Variables,
        trained_from: str,
        dtype: tf.DType = tf.float32,
    ):
        self._layers, self._variables = table.layers, variables
        self._trained_from, self._dtype = trained_from, dtype
        # Asked here, not in the midst of a graph, where a replica's thread might be asking.
        self._native = any(x.groups > 1 for x in table.convolutions) and groups_are_native()

    def logits(
        self, pictures: tf.Tensor, seed: tf.Tensor | None = None, first: tf.Tensor | int = 0
    ) -> tf.Tensor:
        """What goes into the softmax.

        Parameters
        ----------
        pictures : tensor of float32, (N, S, S, 3)
            Preprocessed.
        seed : tensor of int32 (2,), optional
            For dropout; None leaves dropout out.
        first : int
            Place of the first picture in its batch, where several devices share one: what is
            dropped does not depend on how many they are.

        Returns
        -------
        tensor of float32, (N, classes)
        """
        x = pictures
        for place, layer in enumerate(self._layers):
            if layer.name == self._trained_from:
                x = tf.stop_gradient(x)
            if isinstance(layer, Conv):
                x = self._convolved(layer, x)
            elif isinstance(layer, Dense):
                x = self._multiplied(layer, x)
            elif isinstance(layer, LRN):
                x = tf.cast(x, tf.float32)
                x = normalize(x, layer.local_size, layer.alpha, layer.beta, layer.k)
            elif isinstance(layer, MaxPool):
                x = tf.nn.max_pool2d(x, layer.kernel, layer.stride, "VALID")
            elif isinstance(layer, Dropout) and seed is not None:
                x = dropped(x, layer.rate, tf.stack([seed[0] + place, seed[1]]), first)
        return tf.cast(x, tf.float32)

    def _convolved(self, layer: Conv, x: tf.Tensor) -> tf.Tensor:
        kernel, bias = (tf.cast(v, self._dtype) for v in self._variables[layer.name])
        x, padding = tf.cast(x, self._dtype), "VALID"
        # Explicit padding in the convolution itself has slow gradients: oneDNN does not know it.
        if layer.pad and layer.stride == 1 and 2 * layer.pad == layer.kernel - 1:
            padding = "SAME"
        elif layer.pad:
            x = tf.pad(x, [[0, 0], [layer.pad, layer.pad], [layer.pad, layer.pad], [0, 0]])
        if layer.groups == 1 or (self._native and self._dtype == tf.float32):
            product = tf.nn.conv2d(x, kernel, layer.stride, padding)
        else:
            parts = zip(
                tf.split(x, layer.groups, -1), tf.split(kernel, layer.groups, -1), strict=True
            )
            products = [tf.nn.conv2d(some, part, layer.stride, padding) for some, part in parts]
            product = tf.concat(products, -1)
        return tf.nn.relu(tf.nn.bias_add(product, bias))

    def _multiplied(self, layer: Dense, x: tf.Tensor) -> tf.Tensor:
        kernel, bias = (tf.cast(v, self._dtype) for v in self._variables[layer.name])
        x = tf.cast(tf.reshape(x, (-1, kernel.shape[0])), self._dtype)
        x = tf.nn.bias_add(tf.matmul(x, kernel), bias)
        return tf.nn.relu(x) if layer.relu else x


def dropped(x: tf.Tensor, rate: float, seed: tf.Tensor, first: tf.Tensor | int) -> tf.Tensor:
    """Dropout, scaled so that the mean stays (Caffe's too: ``dropout_layer.cpp``)."""
    shape = tf.shape(x)
    # Drawn for the rows before as well, which are other devices'.
    draws = tf.random.stateless_uniform(tf.concat([[first + shape[0]], shape[1:]], 0), seed)
    return tf.where(draws[first:] >= rate, x / (1 - rate), tf.zeros_like(x))
