"""The network for TensorFlow: graphs of `tf_alexnet.layers.forward` for batches and photos."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tf_alexnet.architectures import PREACT, Architecture, Conv, Dense, Dropout, Layer
from tf_alexnet.engines import processor_features
from tf_alexnet.errors import AlexNetError
from tf_alexnet.layers import forward
from tf_alexnet.weights import LayerArrays

_process: int | None = None  # the one that uses TensorFlow
_SINGLE = 4
_ROWS = 64  # XLA compiles a product for each number of rows
# Photos that go through the convolutions together. In large batches without AVX-512, 64 are 1 %
# faster than 32, and take 150 MB more. With AVX-512, a batch of 64 was slower per photo than one
# of 32.
_CHUNK, _LARGE_CHUNK, _GPU_CHUNK = 32, 64, 256


def network(
    table: Architecture,
    arrays: Mapping[str, LayerArrays],
    blobs: Sequence[str],
    precision: str = "float32",
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A compiled function that computes blobs, in the order a processor likes.

    The sums are the Keras model's. Each difference was kept because a measurement
    (``benchmarks/extraction.py``) asked for it; parity with the model is tested:

    - Response normalisation as five shifted slices, compiled by XLA: the stock kernel takes a
      quarter of the whole network's time on a processor.
    - Convolutions in groups by TensorFlow's own kernels where it has them (oneDNN's).
    - For fewer than four photos, kernels of convolutions are constants: oneDNN keeps them in the
      order it works in. TensorFlow copies a graph many times over, so that these 9 MB take 100:
      more than they are worth to batches.
    - On processors without AVX-512, convolutions over 32 photos or so at a time, dense layers over
      the whole batch, by XLA and in multiples of 64 rows: 1.03 to 1.05 times as fast there from 64
      photos on, and 0.96 times with AVX-512.
    """
    _check_process()
    end = next(i for i, layer in enumerate(table.layers) if isinstance(layer, Dense | Dropout))
    body, head = table.layers[:end], table.layers[end:]
    names = {"data"} | {x.name for x in body} | {x.name + PREACT for x in body}
    early = [name for name in blobs if name in names]
    late = [name for name in blobs if name not in names]
    last = body[-1].name
    gpu = bool(tf.config.list_physical_devices("GPU"))
    at_once = gpu or "avx512f" in processor_features()
    shape = (None, table.input_size, table.input_size, 3)
    rows = table.parameter_shapes()[next(x.name for x in head if isinstance(x, Dense))][0][0]
    variables = {
        name: tuple(tf.Variable(values, trainable=False, dtype=tf.float32) for values in pair)
        for name, pair in arrays.items()
    }
    together = _compiled(table.layers, variables, blobs, shape)
    single = _compiled(table.layers, variables, blobs, shape, fixed=True)
    to_head = dict.fromkeys([*early, *([last] if late else [])])
    convolve = _compiled(body, variables, to_head, shape)
    classify = _compiled(head, variables, late, (None, rows), jit_compile=True)

    batches = False  # such a job's last few photos need no graph of their own

    @full_precision()
    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        nonlocal batches
        _check_process()
        count = len(batch)
        batches = batches or count >= _SINGLE
        chunk = _LARGE_CHUNK if count > 2 * _CHUNK and not at_once else _CHUNK
        starts = range(0, count or 1, _GPU_CHUNK if gpu else chunk)
        some = (tf.constant(batch[x : x + starts.step]) for x in starts)
        if count <= _CHUNK or at_once:
            parts = [*map(together if batches else single, some)]
            return {name: np.concatenate([part[name] for part in parts]) for name in blobs}
        parts = [*map(convolve, some)]
        done = {name: np.concatenate([part[name] for part in parts]) for name in early}
        if late:
            flat = tf.concat([tf.reshape(part[last], (-1, rows)) for part in parts], axis=0)
            found = classify(tf.pad(flat, [[0, -count % _ROWS], [0, 0]]))
            done |= {name: blob.numpy()[:count] for name, blob in found.items()}
        return {name: done[name] for name in blobs}

    return run


def _compiled(
    steps: Sequence[Layer],
    variables: Mapping[str, tuple[tf.Variable, tf.Variable]],
    wanted: Sequence[str],
    shape: tuple,
    *,
    fixed: bool = False,
    jit_compile: bool | None = None,
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """A graph of `forward`; kernels of convolutions are `fixed` as they are at its first call."""

    def run(x: tf.Tensor) -> dict[str, tf.Tensor]:
        given = dict(variables)
        if fixed:
            with tf.init_scope():
                for layer in steps:
                    if isinstance(layer, Conv):
                        kernel, bias = given[layer.name]
                        given[layer.name] = kernel.numpy(), bias
        return forward(steps, given, x, wanted)

    # Traced at the first call, and then called directly: `tf.function` itself would warn of
    # retracing where a program makes several extractors.
    @functools.cache
    def graph() -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
        traced = tf.function(run, autograph=False, jit_compile=jit_compile)
        return traced.get_concrete_function(tf.TensorSpec(shape, tf.float32))

    return lambda x: graph()(x)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Keep newer GPUs from computing in TensorFloat-32, which has 10 bits, during a block."""
    switch = tf.config.experimental
    before = switch.tensor_float_32_execution_enabled()
    switch.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        switch.enable_tensor_float_32_execution(before)


def _check_process() -> None:
    """Refuse to compute in a fork of a process that did: TensorFlow would wait for ever."""
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise AlexNetError(
            "FeatureExtractor in a forked process",
            "TensorFlow was used before the fork, and does not work after it",
            'Start processes with multiprocessing.get_context("spawn"), or make extractors only in '
            "them.",
        )
