"""`FeatureExtractor`: a loaded network that turns preprocessed batches into named arrays."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_alexnet.architectures import PREACT, Architecture, blob_names
from tf_alexnet.engines import choose_engine, import_engine, load_network
from tf_alexnet.errors import InputError, PresetError, UsageError
from tf_alexnet.images import (
    Preset,
    as_preset,
    load_image,
    preprocess_input,
    preset_mismatch,
    recorded_name,
    resolve,
)
from tf_alexnet.images.lists import as_sequence
from tf_alexnet.images.mean_image import Mean
from tf_alexnet.progress import progress_callback
from tf_alexnet.weights import WeightArrays, check_softmax, identify_weights
from tf_alexnet.weights.resolve import (
    fitted_layers,
    resolve_weights,
    trained_preset,
)

if TYPE_CHECKING:
    import keras


class FeatureExtractor:
    """Compute the activations of one or more layers.

    Parameters
    ----------
    weights : str, path, WeightArrays or keras.Model
        As in `AlexNet`; the weights of a model are copied.
    layers : str or sequence of str
        Blob names, ``"<name>_preact"`` for values before the ReLU, or ``"all"``. `fc8` may
        also be called by its name in the weight file.
    architecture : str, optional
        As in `AlexNet`.
    preset : str or Preset, optional
        Preprocessing (default: the one the weights were trained with).
    mean_image : array, path or three numbers, optional
        As in `preprocess_input`.
    engine : {"auto", "tensorflow", "openvino"}
        Inference engine; see `tf_alexnet.engines.choose_engine`.
    precision : {"float32", "bfloat16"}
        Type of the multiplications; bfloat16 needs OpenVINO, and is faster only with AMX.

    Attributes
    ----------
    engine, precision : str
        Engine and precision in use.
    layers : tuple of str
        Layers that are returned.
    architecture, preset : str
        Name of the network, and of the preprocessing its batches need.
    mean_image : ndarray of float32, or None
        Mean image, if `preset` subtracts one.
    weights_digest : str
        ``sha256:...`` over the arrays, the same in every file format.
    weights_source : str
        Where the weights came from.
    untrained : bool
        Whether the weights are random (``"random:SEED"``), as a control.
    classes : int or None
        Number of classes; None without `fc8`.
    trained_as : str or None
        Catalogue name of the trained weights; None if they are unknown, in which case the features
        may be meaningless.

    Raises
    ------
    WeightsError, LayerError, PresetError
        If the weights can't be read, or a layer or the preset does not exist or fit.
    """

    def __init__(
        self,
        weights: str | os.PathLike | WeightArrays | keras.Model = "imagenet",
        layers: str | Sequence[str] = ("fc7",),
        *,
        architecture: str | None = None,
        preset: str | Preset | None = None,
        mean_image: Mean = None,
        engine: str = "auto",
        precision: str = "float32",
    ):
        self.engine, self.precision = choose_engine(engine, precision=precision), precision
        if "keras" in sys.modules and isinstance(weights, sys.modules["keras"].Model):
            from tf_alexnet.blobs import arrays_of

            weights = arrays_of(weights)
        # Pickled instead of the network; a path stays a path.
        self._arguments = {
            "weights": weights,
            "layers": blob_names(layers),
            "architecture": architecture,
            "preset": preset,
            "mean_image": mean_image,
            "engine": engine,
            "precision": precision,
        }
        if weights is None:
            raise UsageError("FeatureExtractor(None)", "it needs weights", "Pass a weight file.")
        pool = ThreadPoolExecutor(2)
        pool.submit(import_engine, self.engine)  # while the weights are read
        weights, table = resolve_weights(weights, architecture)
        own = {weights.classifier: "fc8"}
        wanted = blob_names(layers, table, weights.layers)
        self._blobs = {name: table.check_blob(own.get(name, name)) for name in wanted}
        self.layers, blobs = tuple(self._blobs), tuple(dict.fromkeys(self._blobs.values()))
        if "prob" in blobs:
            check_softmax(weights)
        self.architecture = table.name
        record, self.mean_image = resolve_preset(weights, table, preset, mean_image)
        self.preset = recorded_name(record)
        self._size, self._centred = table.input_size, record.mean != (0.0, 0.0, 0.0)
        self.weights_source, self.untrained = weights.source, weights.untrained
        self.classes = weights.classes
        names = [layer.name for layer in table.layers]
        deepest = max(["data", *names].index(x.removesuffix(PREACT)) - 1 for x in blobs)
        # The file need not have layers that come after the ones wanted.
        needed = table
        if deepest <= names.index("pool5"):
            needed = table.until("pool5")
        elif "fc7" in names and deepest <= names.index("fc7"):
            needed = table.until("fc7")
        arrays = fitted_layers(weights, needed, table, None)
        # Photos can be read while the network is set up.
        self._network = pool.submit(load_network, self.engine, table, arrays, blobs, precision)
        pool.shutdown(wait=False)
        self.trained_as, self.weights_digest = identify_weights(weights).name, weights.digest

    def __repr__(self) -> str:
        known = "untrained" if self.untrained else self.trained_as or "unknown"
        return (
            f"<FeatureExtractor {', '.join(self.layers)} of {self.architecture} "
            f"({known} weights), preset {self.preset}, {self.engine} {self.precision}>"
        )

    @property
    def on_gpu(self) -> bool:
        """Whether the network runs on a GPU."""
        if self.engine != "tensorflow":
            return False
        return bool(import_engine(self.engine).tf.config.list_physical_devices("GPU"))

    def __call__(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Compute features of a preprocessed batch.

        Parameters
        ----------
        batch : ndarray of float32, (N, S, S, 3)
            What `preprocess_input` with this extractor's `preset` returns; S is 227 for the Caffe
            networks and 224 for the others.

        Returns
        -------
        dict of str to ndarray
            Layer -> float32 array, (N, units) or, for convolutional blobs, (N, height, width,
            channels).

        Raises
        ------
        InputError
            If the batch has another dtype or shape, or was not preprocessed.
        AlexNetError
            In a process forked from one that has used TensorFlow.
        """
        batch = np.asarray(batch)
        self._check(batch)
        found = self._network.result()(batch)
        return {name: found[blob] for name, blob in self._blobs.items()}

    def from_images(
        self, images: Any, batch_size: int = 64, progress: Callable | bool | None = None
    ) -> dict[str, np.ndarray]:
        """Compute features of photos that fit in memory; for more, use `extract_features`.

        Parameters
        ----------
        images : container of photos
            Paths, URLs, bytes, binary files, Pillow images or (H, W, 3) uint8 RGB arrays of any
            size, in a list, generator or pandas column; an (N, H, W, 3) array or tensor (NumPy,
            TensorFlow, PyTorch); or a single photo.
        batch_size : int
            Photos per forward pass.
        progress : callable or bool, optional
            As in `extract_features`.

        Returns
        -------
        dict of str to ndarray
            Layer -> float32 array, one row per photo in the order given.

        Raises
        ------
        ImageError
            If a photo can't be read.
        InputError
            If there are none, or an entry is not a photo.
        """
        entries = as_sequence(images)
        if not entries:
            raise InputError("from_images", "it got no photos", "Pass at least one.")

        def read(number: int) -> np.ndarray:
            entry = entries[number]
            array = entry if isinstance(entry, np.ndarray) else load_image(entry)
            try:
                return self.preprocess([array])
            except InputError as error:
                raise InputError(f"images[{number}]", error.found, error.advice) from None

        parts = []
        with ThreadPoolExecutor(os.cpu_count()) as pool, progress_callback(progress) as tell:
            if tell:
                tell(0, len(entries), 0, 0)
            for start in range(0, len(entries), batch_size):
                numbers = range(start, min(start + batch_size, len(entries)))
                parts.append(self(np.concatenate(list(pool.map(read, numbers)))))
                if tell:
                    tell(numbers.stop, len(entries), 0, 0)
        return {name: np.concatenate([part[name] for part in parts]) for name in self.layers}

    def __reduce__(self):
        """Pickle the arguments (with weights given as arrays), not the network."""
        return functools.partial(FeatureExtractor, **self._arguments), ()

    def preprocess(self, images: Sequence[np.ndarray], crops: str = "center") -> np.ndarray:
        """Preprocess photos for this network: `preprocess_input` with its preset.

        Parameters
        ----------
        images : sequence of ndarray of uint8, (H, W, 3)
            RGB, of any sizes.
        crops : {"center", "ten"}
            One crop per photo, or ten.

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
                f"pictures are {batch.shape[1]}x{batch.shape[2]}, but the dense layers need "
                f"{size}x{size}: fc6 has weights for the 6x6 positions of pool5 at that size",
                advice,
            )
        if not batch.size:
            return
        first = batch[0]  # a mistake is the same in all; checking every value costs 3 %
        low, high = float(first.min()), float(first.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(asked, "it holds NaN or infinite values", advice)
        # The Caffe networks take 0..255 minus a mean: about -124..152.
        if self.architecture in ("bvlc_alexnet", "caffenet") and 0 <= low < high <= 1:
            raise InputError(asked, "values lie in 0..1, not 0..255 minus the mean", advice)
        if high > 200 and low >= 0 and self._centred:
            raise InputError(asked, "values lie in 0..255: no mean was subtracted", advice)


def resolve_preset(
    weights: WeightArrays, table: Architecture, preset: str | Preset | None, mean_image: Mean
) -> tuple[Preset, np.ndarray | None]:
    """Preset for weights (default: the one they were trained with), and its mean image.

    Warns if the preset does not suit the network.

    Raises
    ------
    PresetError
        If the preset does not exist, or makes pictures of another size.
    """
    trained = as_preset(trained_preset(weights, table))
    record, mean = resolve(preset or trained, mean_image)
    size = table.input_size
    if record.size not in (None, size):
        raise PresetError(
            f"preset {recorded_name(record)!r} for {table.name}",
            f"it makes pictures of {record.size} pixels a side, the network takes {size}",
            f"Use {table.preset!r}.",
        )
    if preset is not None and preset_mismatch(record, trained):
        warnings.warn(preset_mismatch(record, trained), stacklevel=3)
    return record, mean
