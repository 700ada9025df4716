"""The network while it is trained: `tf_alexnet.layers.forward`, with dropout and frozen layers.

The Keras model of `AlexNet` holds the variables; this computes with them. What differs, and why:

- Layers before the first that is trained get no gradient and are never part of its graph.
- Dropout is a function of a seed that the caller gives, so that a resumed training draws what an
  unbroken one would have; no generator's state is to be kept.
- Mixed precision: products in bfloat16, everything else and all variables in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from tf_alexnet.architectures import Architecture, Dropout, Layer, Softmax
from tf_alexnet.layers import forward, groups_are_native

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
        self._variables, self._dtype = variables, dtype
        names = [layer.name for layer in table.layers]
        self._places = {name: place for place, name in enumerate(names)}
        start = self._places[trained_from]
        self._frozen, self._trained = table.layers[:start], table.layers[start:]
        self._last = [x.name for x in table.layers if not isinstance(x, Softmax)][-1]
        # Asked here, not in the midst of a graph, where a replica's thread might be asking.
        groups_are_native()

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

        def drop(layer: Dropout, x: tf.Tensor) -> tf.Tensor:
            if seed is None:
                return x
            place = self._places[layer.name]
            return dropped(x, layer.rate, tf.stack([seed[0] + place, seed[1]]), first)

        def run(steps: Sequence[Layer], x: tf.Tensor, blob: str) -> tf.Tensor:
            found = forward(steps, self._variables, x, [blob], dtype=self._dtype, drop=drop)
            return found[blob]

        x = pictures
        if self._frozen:
            x = tf.stop_gradient(run(self._frozen, x, self._frozen[-1].name))
        return run(self._trained, x, self._last)


def dropped(x: tf.Tensor, rate: float, seed: tf.Tensor, first: tf.Tensor | int) -> tf.Tensor:
    """Dropout, scaled so that the mean stays (Caffe's too: ``dropout_layer.cpp``)."""
    shape = tf.shape(x)
    # Drawn for the rows before as well, which are other devices'.
    draws = tf.random.stateless_uniform(tf.concat([[first + shape[0]], shape[1:]], 0), seed)
    return tf.where(draws[first:] >= rate, x / (1 - rate), tf.zeros_like(x))
