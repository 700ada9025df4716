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
    # AlexNetFeatures can still be imported; making one says what is missing.
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
_NETWORKS = 2  # kept loaded in a process; the whole bvlc_alexnet takes 250 MB
_loading = threading.Lock()  # joblib's threads ask at the same time


@dataclass(eq=False, repr=False)
class AlexNetFeatures(TransformerMixin, BaseEstimator):
    """A scikit-learn transformer from photos, as paths or arrays, to AlexNet's features.

    There is nothing to fit: the network is trained already. It is loaded when it is first needed,
    once per process for all steps with the same settings. Clones and pickles hold only the
    arguments below.

    Parameters
    ----------
    layer : str
        A blob's name, or ``"<name>_preact"`` for values before the ReLU.
    weights : str or path
        A weight file or a name of the catalogue.
    architecture : str, optional
        As in `AlexNet`.
    preset : str, optional
        Preprocessing; by default the one the weights were trained with.
    mean_image : path or three numbers, optional
        As in `preprocess_input`.
    pool : {"none", "avg", "max"}
        Convolutional blobs (height, width, channels) pooled to (channels,), or flattened.
    batch_size : int
        Photos that go through the network together.

    Attributes
    ----------
    n_features_out_ : int
        Values per row, after `fit`.

    See Also
    --------
    tf_alexnet.extract_features : For photos too many for memory, or some of which can't be read.

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
        """Load the network, which checks the arguments.

        Parameters
        ----------
        X, y : ignored

        Returns
        -------
        AlexNetFeatures
            Itself.

        Raises
        ------
        WeightsError, LayerError, PresetError, UsageError
            If the network can't be loaded with these arguments.
        """
        self.n_features_out_ = self._width()
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Features of photos.

        Parameters
        ----------
        X : container of photos
            As `FeatureExtractor.from_images` takes them; also a table of one column.

        Returns
        -------
        ndarray of float32, (N, features)
            One row per photo, in their order; convolutional blobs pooled, or flattened in the order
            height, width, channels.

        Raises
        ------
        ImageError
            If a photo can't be read: without it, rows would no longer match their labels.
        InputError
            If `X` is not a sequence of photos.
        """
        if not isinstance(self.batch_size, int | np.integer) or self.batch_size < 1:
            raise UsageError(
                f"batch_size={self.batch_size!r}", "nothing would be done", "Use 1 or more."
            )
        from tf_alexnet.images.lists import as_sequence

        network = self._network()
        images, parts = as_sequence(X, "X"), []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            blob = network.from_images(batch, self.batch_size)[self.layer]
            parts.append(_rows(blob, self.pool))  # pooled early: memory holds rows, not blobs
        if not parts:
            raise InputError("X", "it holds no photo", "Give at least one.")
        return np.concatenate(parts)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns, ``fc7_0``, ``fc7_1``, ..., for tables (`set_output`).

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
        """Always: nothing is learned from photos."""
        return True

    def __sklearn_tags__(self):
        """For scikit-learn: X holds photos, not tables of numbers, and `fit` is not needed."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        tags.requires_fit = False
        return tags


@functools.lru_cache(maxsize=_NETWORKS)
def _loaded(weights, layer, architecture, preset, mean_image) -> FeatureExtractor:
    """The network for these settings; files are given by `_stamp`, so a changed one is read."""
    from tf_alexnet.extraction import FeatureExtractor

    return FeatureExtractor(
        weights[0],
        (layer,),
        architecture=architecture,
        preset=preset,
        mean_image=mean_image and mean_image[0],
    )


def _stamp(path: str | os.PathLike) -> tuple[str, int, int]:
    """A file as it is now, as path, size and time of the last change; else the text itself."""
    try:
        status = os.stat(path)
    except OSError:
        return os.fspath(path), 0, 0
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def _rows(blob: np.ndarray, pool: str) -> np.ndarray:
    """(N, ...) values as one row per photo."""
    if _POOLS[pool] and blob.ndim == 4:
        return _POOLS[pool](blob, axis=(1, 2))
    return blob.reshape(len(blob), -1)
