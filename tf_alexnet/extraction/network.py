"""The network's fast path: the same sums as the Keras model's, in the order a processor likes.

Five things differ from the layers of `tf_alexnet.layers`; each was kept because a measurement
(``benchmarks/extraction.py``) asked for it, and parity with the plain model is tested:

- Response normalisation as five shifted slices in an inner function compiled by XLA: the stock
  kernel takes a quarter of the whole network's time on a processor.
- Convolutions in groups by TensorFlow's own grouped kernels instead of split and concat, where it
  has them: on a processor they are oneDNN's, which ``tf_alexnet/__init__.py`` asks for.
- For fewer than four photos, kernels of convolutions are constants: oneDNN keeps them in the order
  it works in, which costs it a fifth of a single photo's convolutions to make anew. TensorFlow
  copies a graph many times over, so that these 9 MB take 100: more than they are worth to batches.
- Convolutions over 32 photos or so at a time, dense layers over the whole batch, by XLA and in rows
  that are a multiple of 64: oneDNN's product takes 1.9 times as long for 64 rows, 2.2 times for
  128, where a processor has no AVX-512.
- For up to 32 photos a dense layer is eight partial sums, which oneDNN does better than one, and
  XLA worse. (NumPy's own product is quicker, but its threads spin while they wait for the next,
  and the convolutions pay for that.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tf_alexnet.architectures import LRN, PREACT, Architecture, Conv, Dense, Dropout, Layer, MaxPool

_SINGLE, _PARTS = 4, 8
_ROWS = 64  # XLA compiles a product for each number of rows
# Photos that go through the convolutions together. 64 are 1 % quicker than 32 and take 150 MB more,
# which matters less to who has large batches.
_CHUNK, _LARGE_CHUNK, _GPU_CHUNK = 32, 64, 256


def fast_network(
    table: Architecture, model: keras.Model, layers: Sequence[str]
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A compiled function that computes blobs of a model.

    Parameters
    ----------
    table : Architecture
        What `model` was built from.
    model : keras.Model
        From `AlexNet`, as deep as `layers` ask for. Its variables are used, not copied, but for
        convolutions of fewer than four photos: their kernels are those of the first call.
    layers : sequence of str
        Blob names, or ``"<name>_preact"``.

    Returns
    -------
    callable
        From (N, S, S, 3) float32, N at least 1, to a dict: layer -> float32 array. The last step
        computed is the deepest layer asked for.
    """
    end = next(i for i, layer in enumerate(table.layers) if isinstance(layer, Dense | Dropout))
    body, head = table.layers[:end], table.layers[end:]
    names = {"data"} | {x.name for x in body} | {x.name + PREACT for x in body}
    early = [name for name in layers if name in names]
    late = [name for name in layers if name not in names]
    last = body[-1].name
    gpu = bool(tf.config.list_physical_devices("GPU"))
    shape = (None, table.input_size, table.input_size, 3)
    rows = table.parameter_shapes()[next(x.name for x in head if isinstance(x, Dense))][0][0]
    together = _compiled(table.layers, model, layers, shape, parts=_PARTS)
    single = _compiled(table.layers, model, layers, shape, parts=_PARTS, fixed=True)
    convolve = _compiled(body, model, dict.fromkeys([*early, *([last] if late else [])]), shape)
    classify = _compiled(head, model, late, (None, rows), jit_compile=True)

    batches = False  # such a job's last few photos need no graph of their own

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        nonlocal batches
        count = len(batch)
        batches = batches or count >= _SINGLE
        if count <= _CHUNK:
            found = (together if batches else single)(tf.constant(batch))
            return {name: found[name].numpy() for name in layers}
        chunk = _GPU_CHUNK if gpu else _CHUNK if count <= 2 * _CHUNK else _LARGE_CHUNK
        starts = range(0, count, chunk)
        parts = [convolve(tf.constant(batch[start : start + chunk])) for start in starts]
        blobs = {name: np.concatenate([part[name] for part in parts]) for name in early}
        if late:
            flat = tf.concat([tf.reshape(part[last], (-1, rows)) for part in parts], axis=0)
            found = classify(tf.pad(flat, [[0, -count % _ROWS], [0, 0]]))
            blobs |= {name: blob.numpy()[:count] for name, blob in found.items()}
        return {name: blobs[name] for name in layers}

    return run


def _compiled(
    steps: Sequence[Layer],
    model: keras.Model,
    wanted: Sequence[str],
    shape: tuple,
    *,
    parts: int = 1,
    fixed: bool = False,
    jit_compile: bool | None = None,
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """A graph of `steps`, as far as `wanted` asks, from a tensor of `shape`.

    Dense layers add in so many `parts`; kernels of convolutions are `fixed` as they are now.
    """

    def forward(x: tf.Tensor) -> dict[str, tf.Tensor]:
        blobs = {"data": x}
        for layer in steps:
            if set(wanted) <= set(blobs):
                break
            if isinstance(layer, Dropout):
                continue
            if isinstance(layer, Conv | Dense):
                built = model.get_layer(layer.name)
                if isinstance(layer, Conv):
                    x = _convolved(layer, built, x, fixed)
                else:
                    x = _multiplied(built, x, parts)
                blobs[layer.name + PREACT] = x
                x = tf.nn.relu(x) if getattr(layer, "relu", True) else x
            elif isinstance(layer, LRN):
                x = normalize(x, layer.local_size, layer.alpha, layer.beta, layer.k)
            elif isinstance(layer, MaxPool):
                x = tf.nn.max_pool2d(x, layer.kernel, layer.stride, "VALID")
            else:
                x = tf.nn.softmax(x)
            blobs[layer.name] = x
        return {name: blobs[name] for name in wanted}

    signature = [tf.TensorSpec(shape, tf.float32)]
    return tf.function(forward, input_signature=signature, autograph=False, jit_compile=jit_compile)


def _convolved(layer: Conv, built: keras.layers.Layer, x: tf.Tensor, fixed: bool) -> tf.Tensor:
    kernel, bias = built.kernel.value, built.bias.value
    if fixed:
        with tf.init_scope():
            values = kernel.numpy()
        kernel = tf.constant(values)
    pad = [[0, 0], [layer.pad, layer.pad], [layer.pad, layer.pad], [0, 0]]
    groups = 1 if layer.groups == 1 or groups_are_native() else layer.groups
    pairs = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
    products = [tf.nn.conv2d(some, part, layer.stride, pad) for some, part in pairs]
    return tf.nn.bias_add(products[0] if groups == 1 else tf.concat(products, -1), bias)


def _multiplied(built: keras.layers.Layer, x: tf.Tensor, parts: int) -> tf.Tensor:
    kernel, bias = built.kernel.value, built.bias.value
    inputs, units = kernel.shape
    x = tf.reshape(x, (-1, inputs))
    if parts == 1 or inputs % parts:
        return tf.nn.bias_add(tf.matmul(x, kernel), bias)
    folded = tf.transpose(tf.reshape(x, (-1, parts, inputs // parts)), (1, 0, 2))
    products = tf.matmul(folded, tf.reshape(kernel, (parts, inputs // parts, units)))
    return tf.nn.bias_add(tf.reduce_sum(products, axis=0), bias)


@functools.cache
def groups_are_native() -> bool:
    """Whether a convolution with bias and ReLU may have groups here; without oneDNN it may not."""

    @tf.function(autograph=False)
    def convolve(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias))

    try:
        with tf.init_scope():  # run it now, also while another graph is being made
            convolve(tf.zeros((1, 5, 5, 4)), tf.zeros((3, 3, 2, 4)), tf.zeros(4))
    except (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError):
        return False
    return True


@tf.function(jit_compile=True, autograph=False)
def normalize(x: tf.Tensor, local_size: int, alpha: float, beta: float, k: float) -> tf.Tensor:
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
