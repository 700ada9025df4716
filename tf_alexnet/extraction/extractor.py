"""`FeatureExtractor`: a loaded network that turns preprocessed batches into named arrays."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_alexnet.architectures import PREACT, Architecture, Conv, Dense, Dropout, Layer, blob_names
from tf_alexnet.errors import AlexNetError, InputError, PresetError, UsageError
from tf_alexnet.images import (
    Preset,
    as_preset,
    load_image,
    misfit,
    preprocess_input,
    recorded_name,
    resolve,
)
from tf_alexnet.images.lists import as_sequence
from tf_alexnet.images.mean_image import Mean
from tf_alexnet.layers import forward
from tf_alexnet.model import AlexNet, arrays_of, resolve_weights
from tf_alexnet.progress import progress_callback
from tf_alexnet.weights import WeightArrays, identify_weights

_process: int | None = None  # the one that uses TensorFlow
_SINGLE, _PARTS = 4, 8
_ROWS = 64  # XLA compiles a product for each number of rows
# Photos that go through the convolutions together. 64 are 1 % quicker than 32 and take 150 MB more,
# which matters less to who has large batches.
_CHUNK, _LARGE_CHUNK, _GPU_CHUNK = 32, 64, 256


class FeatureExtractor:
    """A network and the layers wanted of it.

    Parameters
    ----------
    weights : str, path, WeightArrays or keras.Model
        As in `AlexNet`; a model's weights are copied.
    layers : str or sequence of str
        Blob names, ``"<name>_preact"`` for values before the ReLU, or ``"all"``. `fc8` may
        also be called by its name in the weight file.
    architecture : str, optional
        As in `AlexNet`.
    preset : str or Preset, optional
        Preprocessing; by default the one the weights were trained with.
    mean_image : array, path or three numbers, optional
        As in `preprocess_input`.

    Attributes
    ----------
    layers : tuple of str
        The layers wanted.
    architecture, preset : str
        What the weights are, and the name of the preprocessing that batches need.
    mean_image : ndarray of float32, or None
        The mean image, where `preset` subtracts one.
    weights_digest : str
        ``sha256:...`` over the arrays, the same in every file format.
    weights_source : str
        Where the weights came from.
    untrained : bool
        Whether they are random numbers, as a control (``"random:SEED"``).
    trained_as : str or None
        Catalogue name of the trained network these weights are known to be; None where they are
        not known, and what comes out may mean nothing.

    Raises
    ------
    WeightsError, LayerError, PresetError
        If weights, a layer or the preset can't be had.
    """

    def __init__(
        self,
        weights: str | os.PathLike | WeightArrays | keras.Model = "imagenet",
        layers: str | Sequence[str] = ("fc7",),
        *,
        architecture: str | None = None,
        preset: str | Preset | None = None,
        mean_image: Mean = None,
    ):
        _check_process()
        if isinstance(weights, keras.Model):
            weights = arrays_of(weights)
        # What another process needs to make the same; a path stays a path there.
        self._arguments = {
            "weights": weights,
            "layers": blob_names(layers),
            "architecture": architecture,
            "preset": preset,
            "mean_image": mean_image,
        }
        if weights is None:
            raise UsageError("FeatureExtractor(None)", "it needs weights", "Pass a weight file.")
        weights, table = resolve_weights(weights, architecture)
        own = {weights.classifier: "fc8"}
        wanted = blob_names(layers, table, weights.layers)
        self._blobs = {name: table.check_blob(own.get(name, name)) for name in wanted}
        self.layers, blobs = tuple(self._blobs), tuple(dict.fromkeys(self._blobs.values()))
        self.architecture = table.name
        trained = as_preset(weights.metadata.get("preset") or table.preset)
        record, self.mean_image = resolve(preset or trained, mean_image)
        self.preset = recorded_name(record)
        self._size, self._centred = table.input_size, record.mean != (0.0, 0.0, 0.0)
        if record.size not in (None, self._size):
            raise PresetError(
                f"preset {self.preset!r} for {table.name}",
                f"it makes pictures of {record.size} pixels a side, the network takes {self._size}",
                f"Use {table.preset!r}.",
            )
        if preset is not None and misfit(record, trained):
            warnings.warn(misfit(record, trained), stacklevel=2)
        self.weights_source, self.untrained = weights.source, weights.untrained
        names = [layer.name for layer in table.layers]
        deepest = max(["data", *names].index(x.removesuffix(PREACT)) - 1 for x in blobs)
        # A file without the layers behind those wanted will do.
        depth = {"include_top": deepest > names.index("pool5")}
        if depth["include_top"] and "fc7" in names and deepest <= names.index("fc7"):
            depth["feature_extract"] = True
        with ThreadPoolExecutor(1) as pool:  # the digest takes as long as the model
            known = pool.submit(identify_weights, weights)
            model = AlexNet(weights, architecture=table.name, **depth)
            self.trained_as, self.weights_digest = known.result().name, weights.digest
        self._run = _fast_network(table, model, blobs)

    def __call__(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Features of a preprocessed batch.

        Parameters
        ----------
        batch : ndarray of float32, (N, S, S, 3)
            What `preprocess_input` with this extractor's `preset` returns; S is 227 for the Caffe
            networks and 224 for the others.

        Returns
        -------
        dict of str to ndarray
            Layer -> float32 values, first axis N; convolutional blobs are (N, height, width,
            channels).

        Raises
        ------
        InputError
            If the batch is of another dtype or shape, or its values were not preprocessed.
        AlexNetError
            In a process forked from one that has used TensorFlow.
        """
        _check_process()
        batch = np.asarray(batch)
        self._check(batch)
        found = self._run(batch)
        return {name: found[blob] for name, blob in self._blobs.items()}

    def from_images(
        self, images: Any, batch_size: int = 64, progress: Callable | bool | None = None
    ) -> dict[str, np.ndarray]:
        """Features of photos that fit into memory; for more of them there is `extract_features`.

        Parameters
        ----------
        images : container of photos
            Paths, URLs, bytes or binary files, images of Pillow's, and pixels, RGB of uint8,
            (H, W, 3), of any sizes, in a list, generator, pandas column, array or tensor (NumPy,
            TensorFlow, PyTorch; also (N, H, W, 3)); or one of them.
        batch_size : int
            Photos that go through the network together.
        progress : callable or bool, optional
            As in `extract_features`.

        Returns
        -------
        dict of str to ndarray
            Layer -> float32 values, one row per photo in the order given.

        Raises
        ------
        ImageError
            If a photo can't be read.
        InputError
            If there is none, or an entry is not a photo.
        """
        entries = as_sequence(images)
        if not entries:
            raise InputError("from_images", "it got no photo", "Give at least one.")

        def read(number: int) -> np.ndarray:
            entry = entries[number]
            array = entry if isinstance(entry, np.ndarray) else load_image(entry)
            try:
                return self.preprocess([array])
            except InputError as error:
                raise InputError(f"images[{number}]", error.found, error.advice) from None

        parts = []
        with ThreadPoolExecutor(os.cpu_count()) as pool, progress_callback(progress) as tell:
            for start in range(0, len(entries), batch_size):
                numbers = range(start, min(start + batch_size, len(entries)))
                parts.append(self(np.concatenate(list(pool.map(read, numbers)))))
                if tell:
                    tell(numbers.stop, len(entries), 0, 0)
        return {name: np.concatenate([part[name] for part in parts]) for name in self.layers}

    def __reduce__(self):
        """Pickle how it was made, not the network; weights given as arrays go along."""
        return functools.partial(FeatureExtractor, **self._arguments), ()

    def preprocess(self, images: Sequence[np.ndarray], crops: str = "center") -> np.ndarray:
        """What this network takes of photos: `preprocess_input` with its preset.

        Parameters
        ----------
        images : sequence of ndarray of uint8, (H, W, 3)
            RGB, of any sizes.
        crops : {"center", "ten"}
            One picture a photo, or ten.

        Returns
        -------
        ndarray of float32, (N, S, S, 3) or (10 N, S, S, 3)
        """
        return preprocess_input(images, self.preset, mean_image=self.mean_image, crops=crops)

    def _check(self, batch: np.ndarray) -> None:
        size = self._size
        asked = f"batch for {self.architecture}"
        advice = f"Pass what preprocess_input(images, preset={self.preset!r}) returns."
        if batch.dtype != np.float32:
            raise InputError(asked, f"dtype is {batch.dtype}, not float32", advice)
        if batch.ndim != 4 or batch.shape[3] != 3:
            raise InputError(asked, f"shape is {batch.shape}, not (N, {size}, {size}, 3)", advice)
        if batch.shape[1:3] != (size, size):
            raise InputError(
                asked,
                f"pictures are {batch.shape[1]}x{batch.shape[2]}, and the dense layers take "
                f"{size}x{size} only: the rows of fc6 belong to the 6x6 places that pool5 has then",
                advice,
            )
        if not batch.size:
            return
        first = batch[0]  # the mistakes are the same in all; a look at every value costs 3 %
        low, high = float(first.min()), float(first.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(asked, "it holds NaN or infinite values", advice)
        # The Caffe networks take 0..255 minus a mean: about -124..152 in all photos together.
        if self.architecture in ("bvlc_alexnet", "caffenet") and 0 <= low < high <= 1:
            raise InputError(asked, "values lie in 0..1, but 0..255 minus a mean is due", advice)
        if high > 200 and low >= 0 and self._centred:
            raise InputError(asked, "values lie in 0..255: no mean was subtracted", advice)


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


def _fast_network(
    table: Architecture, model: keras.Model, layers: Sequence[str]
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A compiled function that computes blobs of a model, in the order a processor likes.

    The sums are the Keras model's, whose variables are used. Each difference was kept because a
    measurement (``benchmarks/extraction.py``) asked for it; parity with the model is tested:

    - Response normalisation as five shifted slices, compiled by XLA: the stock kernel takes a
      quarter of the whole network's time on a processor.
    - Convolutions in groups by TensorFlow's own kernels where it has them (oneDNN's).
    - For fewer than four photos, kernels of convolutions are constants: oneDNN keeps them in the
      order it works in. TensorFlow copies a graph many times over, so that these 9 MB take 100:
      more than they are worth to batches.
    - Convolutions over 32 photos or so at a time, dense layers over the whole batch, by XLA and in
      multiples of 64 rows: where a processor has no AVX-512, oneDNN's product takes 1.9 times as
      long for 64 rows, 2.2 times for 128.
    - For up to 32 photos a dense layer is eight partial sums, which oneDNN does better than one,
      and XLA worse.
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
    variables = {x.name: (x.kernel.value, x.bias.value) for x in model.layers if x.weights}
    together = _compiled(table.layers, variables, layers, shape, parts=_PARTS)
    single = _compiled(table.layers, variables, layers, shape, parts=_PARTS, fixed=True)
    to_head = dict.fromkeys([*early, *([last] if late else [])])
    convolve = _compiled(body, variables, to_head, shape)
    classify = _compiled(head, variables, late, (None, rows), jit_compile=True)

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
    variables: Mapping[str, tuple[tf.Variable, tf.Variable]],
    wanted: Sequence[str],
    shape: tuple,
    *,
    parts: int = 1,
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
        return forward(steps, given, x, wanted, parts=parts)

    # Traced at the first call, and then called directly: `tf.function` itself would warn of
    # retracing where a program makes several extractors.
    @functools.cache
    def graph() -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
        traced = tf.function(run, autograph=False, jit_compile=jit_compile)
        return traced.get_concrete_function(tf.TensorSpec(shape, tf.float32))

    return lambda x: graph()(x)
