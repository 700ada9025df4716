"""The TensorFlow engine: graphs of `tf_alexnet.layers.forward` for batches and single photos."""

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

_process: int | None = None  # id of the process that uses TensorFlow
_SINGLE = 4
_ROWS = 64  # XLA compiles once per number of rows
# Photos per convolution batch. Without AVX-512, 64 at a time are 1 % faster than 32 in large
# batches, and take 150 MB more; with AVX-512, they were 4 % slower on one machine and
# 4 % faster on another.
_CHUNK, _LARGE_CHUNK, _GPU_CHUNK = 32, 64, 256


def network(
    table: Architecture,
    arrays: Mapping[str, LayerArrays],
    blobs: Sequence[str],
    precision: str = "float32",
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A compiled function that computes blobs; arguments are those of `openvino.network`.

    It computes the same as the Keras model, which is tested, but faster. Each difference is
    justified by a measurement (``benchmarks/extraction.py``):

    - Response normalisation is five shifted slices, compiled by XLA. TensorFlow's kernel takes a
      quarter of the network's time on a CPU.
    - Grouped convolutions use oneDNN's kernels if TensorFlow has them.
    - For fewer than four photos, convolution kernels are constants, which oneDNN keeps in its own
      layout. TensorFlow copies a graph several times, so that these 9 MB take 100 MB, which is not
      worth it for batches.
    - On processors without AVX-512, convolutions run on about 32 photos at a time, and dense layers
      on the whole batch, by XLA and in multiples of 64 rows: 1.03 to 1.05 times as fast there from
      64 photos on, but 0.96 times with AVX-512.
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

    batches = False  # after a batch, the last few photos don't need a graph of their own

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
    """A graph of `forward`; if `fixed`, kernels of convolutions become constants on first call."""

    def run(x: tf.Tensor) -> dict[str, tf.Tensor]:
        given = dict(variables)
        if fixed:
            with tf.init_scope():
                for layer in steps:
                    if isinstance(layer, Conv):
                        kernel, bias = given[layer.name]
                        given[layer.name] = kernel.numpy(), bias
        return forward(steps, given, x, wanted)

    # Trace on the first call, then call the concrete function: tf.function would warn of retracing
    # in programs with several extractors.
    @functools.cache
    def graph() -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
        traced = tf.function(run, autograph=False, jit_compile=jit_compile)
        return traced.get_concrete_function(tf.TensorSpec(shape, tf.float32))

    return lambda x: graph()(x)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Context manager: no TensorFloat-32 (10-bit mantissa) on GPUs."""
    switch = tf.config.experimental
    before = switch.tensor_float_32_execution_enabled()
    switch.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        switch.enable_tensor_float_32_execution(before)


def _check_process() -> None:
    """Raise an error in a forked process if its parent used TensorFlow: it would hang."""
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise AlexNetError(
            "FeatureExtractor in a forked process",
            "TensorFlow was used before the fork, and does not work after it",
            'Start processes with multiprocessing.get_context("spawn"), or make extractors only in '
            "them.",
        )
