"""`AlexNetFeatures`: features of photos as a step of a scikit-learn pipeline."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_alexnet.architectures import architecture_named
from tf_alexnet.errors import InputError, UsageError

try:
    from sklearn.base import BaseEstimator, TransformerMixin
except ImportError:
    # Keep AlexNetFeatures importable; creating one raises the error below.
    class BaseEstimator:  # type: ignore[no-redef]
        def __new__(cls, *_, **__):
            raise UsageError(
                cls.__name__,
                "scikit-learn is not installed",
                "Install it: pip install 'tf-alexnet[sklearn]'.",
            )

    class TransformerMixin:  # type: ignore[no-redef]
        pass


if TYPE_CHECKING:
    from tf_alexnet.extraction import FeatureExtractor

_POOLS = {"avg": np.mean, "max": np.max, "none": None}
_NETWORKS = 2  # kept in memory per process; bvlc_alexnet takes 250 MB
_loading = threading.Lock()  # so that joblib's threads load a network once


@dataclass(eq=False, repr=False)
class AlexNetFeatures(TransformerMixin, BaseEstimator):
    """A scikit-learn transformer from photos, as paths or arrays, to AlexNet's features.

    Stateless: the network is already trained. It is loaded when first needed, once per process for
    all steps with the same settings. Clones and pickles hold only the parameters below.

    Parameters
    ----------
    layer : str
        A blob name, or ``"<name>_preact"`` for values before the ReLU.
    weights : str or path
        A weight file or a catalogue name.
    architecture : str, optional
        As in `AlexNet`.
    preset : str, optional
        Preprocessing (default: the one the weights were trained with).
    mean_image : path or three numbers, optional
        As in `preprocess_input`.
    pool : {"none", "avg", "max"}
        Pool convolutional blobs (height, width, channels) to (channels,), or flatten them ("none").
    batch_size : int
        Number of photos per batch.

    Attributes
    ----------
    n_features_out_ : int
        Number of output features. Set by `fit`.

    See Also
    --------
    tf_alexnet.extract_features : For more photos than fit in memory, or with unreadable ones.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> import tf_alexnet as ta
    >>> steps = ta.AlexNetFeatures("pool5", "torchvision-convs"), LogisticRegression()
    >>> model = make_pipeline(*steps, memory="cache").fit(paths, labels)  # doctest: +SKIP
    """

    layer: str = "fc7"
    weights: str | os.PathLike = "imagenet"
    _: KW_ONLY
    architecture: str | None = None
    preset: str | None = None
    mean_image: str | os.PathLike | Sequence[float] | None = None
    pool: str = "none"
    batch_size: int = 64

    def fit(self, X: Any = None, y: Any = None) -> AlexNetFeatures:
        """Load the network, to check the parameters.

        Parameters
        ----------
        X, y : ignored

        Returns
        -------
        self : AlexNetFeatures

        Raises
        ------
        WeightsError, LayerError, PresetError, UsageError
            If the network can't be loaded with these parameters.
        """
        self.n_features_out_ = self._width()
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Features of photos.

        Parameters
        ----------
        X : container of photos
            As in `FeatureExtractor.from_images`; also a table with one column.

        Returns
        -------
        ndarray of float32, (N, features)
            One row per photo, in the order of `X`; convolutional blobs pooled, or flattened in the
            order (height, width, channels).

        Raises
        ------
        ImageError
            If a photo can't be read; skipping it would misalign rows and labels.
        InputError
            If `X` is not a sequence of photos.
        """
        if not isinstance(self.batch_size, int | np.integer) or self.batch_size < 1:
            raise UsageError(
                f"batch_size={self.batch_size!r}", "not a batch size", "Use 1 or more."
            )
        from tf_alexnet.images.lists import as_sequence

        network = self._network()
        images, parts = as_sequence(X, "X"), []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            blob = network.from_images(batch, self.batch_size)[self.layer]
            parts.append(_rows(blob, self.pool))  # pooled early: memory holds rows, not blobs
        if not parts:
            raise InputError("X", "it is empty", "Give at least one photo.")
        return np.concatenate(parts)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the output columns: ``fc7_0``, ``fc7_1``, ... (used by `set_output`).

        Parameters
        ----------
        input_features : ignored

        Returns
        -------
        ndarray of object, (features,)
        """
        return np.array([f"{self.layer}_{i}" for i in range(self._width())], dtype=object)

    def _network(self) -> FeatureExtractor:
        if self.pool not in _POOLS:
            raise UsageError(f"pool={self.pool!r}", "no such pooling", "Use none, avg or max.")
        if not isinstance(self.layer, str):
            raise UsageError(f"layer={self.layer!r}", "not the name of one layer", 'Use "fc7".')
        if not isinstance(self.weights, str | os.PathLike):
            raise UsageError(
                f"weights of type {type(self.weights).__name__}",
                "every clone and pickle of a pipeline would copy them",
                "Write them to a file (write_weights) and give its path.",
            )
        from tf_alexnet.weights import find_weights, random_seed

        mean = self.mean_image
        if not isinstance(mean, str | os.PathLike | None):
            mean = ",".join(map(str, mean))
        with _loading:
            known = random_seed(self.weights) is not None
            file = _stamp(self.weights if known else find_weights(self.weights))
            means = mean and _stamp(mean)
            return _loaded(file, self.layer, self.architecture, self.preset, means)

    def _width(self) -> int:
        network = self._network()
        size = architecture_named(network.architecture).input_size
        nothing = network(np.zeros((1, size, size, 3), np.float32))[self.layer]
        return _rows(nothing, self.pool).shape[1]

    def __sklearn_is_fitted__(self) -> bool:
        """Always True: the transformer is stateless."""
        return True

    def __sklearn_tags__(self):
        """X holds photos rather than a numeric table, and `fit` is optional."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        tags.requires_fit = False
        return tags


@functools.lru_cache(maxsize=_NETWORKS)
def _loaded(weights, layer, architecture, preset, mean_image) -> FeatureExtractor:
    """The network for these settings. Files are keyed by `_stamp`: changed ones are read again."""
    from tf_alexnet.extraction import FeatureExtractor

    return FeatureExtractor(
        weights[0],
        (layer,),
        architecture=architecture,
        preset=preset,
        mean_image=mean_image and mean_image[0],
    )


def _stamp(path: str | os.PathLike) -> tuple[str, int, int]:
    """(absolute path, size, modification time) of a file; (`path`, 0, 0) if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return os.fspath(path), 0, 0
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def _rows(blob: np.ndarray, pool: str) -> np.ndarray:
    """A blob (N, ...) as one row per photo, pooled or flattened."""
    if _POOLS[pool] and blob.ndim == 4:
        return _POOLS[pool](blob, axis=(1, 2))
    return blob.reshape(len(blob), -1)
