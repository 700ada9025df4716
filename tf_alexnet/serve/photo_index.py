"""`PhotoIndex`: nearest neighbours of a photo in a file of features."""

from __future__ import annotations

import os
from typing import NamedTuple

import cv2
import numpy as np

from tf_alexnet.errors import ImageError, InputError, UsageError
from tf_alexnet.extraction import FeatureExtractor
from tf_alexnet.extraction.formats import printable
from tf_alexnet.extraction.spec import POOLS
from tf_alexnet.images import load_image
from tf_alexnet.training.run import Run
from tf_alexnet.visualize.features_file import read_features
from tf_alexnet.visualize.figures import shrunk

_ADVICE = "Extract the index with the weights that are served."
_TILE = 224  # pixels of a thumbnail's longer side


class Neighbour(NamedTuple):
    """A photo of the index.

    Attributes
    ----------
    row : int
        Its row in the index.
    name : str
        Its path relative to the folder that all photos of the index share.
    similarity : float
        Cosine similarity of the two rows, -1..1.
    """

    row: int
    name: str
    similarity: float


class PhotoIndex:
    """Rows of one layer, all in memory, and their photos.

    Parameters
    ----------
    path : path
        Output of `extract_features`, as in `read_features`; the last layer is used.

    Attributes
    ----------
    layer : str
        The layer compared.
    names : list of str
        The photos, as in `Neighbour`.

    Raises
    ------
    InputError
        If there is no such file, or it is not a feature file.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = os.fspath(path)
        found = read_features(path)
        self.layer = [*found.layers][-1]
        self._photos, rows, _ = found.complete(self.layer)
        if not self._photos:
            raise InputError(self._path, f"no row of {self.layer} is complete", _ADVICE)
        self._attributes = found.attributes
        self._rows = rows / _norms(rows)
        self.names = [printable(name) for name in _below_common_folder(self._photos)]

    def __len__(self) -> int:
        return len(self.names)

    def check(self, extractor: FeatureExtractor, run: Run | None = None) -> None:
        """Refuse an index of other weights, or with other settings.

        Parameters
        ----------
        extractor : FeatureExtractor
            The network served.
        run : Run, optional
            Its training: a new classifier on fixed layers accepts an index of the base weights.

        Raises
        ------
        UsageError
        """
        found, digest = self._attributes, extractor.weights_digest
        if run is not None and run.record.mode == "head" and self.layer not in ("fc8", "prob"):
            base = run.record.base.get("digest")
            digest = base if found.get("weights_digest") == base else digest
        expected = {
            "weights_digest": digest,
            "preset": extractor.preset,
            "crops": "center",
            "mean_image": "none",
        }
        for name, value in expected.items():
            if found.get(name, value) != value:
                raise UsageError(
                    f"index {self._path}",
                    f"its {name} is {found[name]}, and the served network has {value}",
                    _ADVICE,
                )

    def row_of(self, blob: np.ndarray) -> np.ndarray:
        """A photo's blob of `layer` as a row of the index: pooled, flat, of unit norm."""
        pool = POOLS.get(self._attributes.get("pool", "none"))
        row = (pool(blob, axis=(0, 1)) if pool and blob.ndim == 3 else blob).reshape(1, -1)
        return (row / _norms(row))[0]

    def nearest(self, row: np.ndarray, count: int) -> list[Neighbour]:
        """The most similar photos, best first; ties in row order."""
        similarity = self._rows @ row
        count = min(count, len(similarity))
        some = np.sort(np.argpartition(-similarity, count - 1)[:count])
        order = some[np.argsort(-similarity[some], kind="stable")]
        return [Neighbour(int(i), self.names[i], float(similarity[i])) for i in order]

    def thumbnail(self, row: int) -> bytes:
        """A JPEG of a photo of the index.

        Raises
        ------
        ImageError
            If its file no longer exists.
        IndexError
            If there is no such row.
        """
        path = self._photos[row]
        if not os.path.isfile(path):  # URLs are not opened
            raise ImageError(self.names[row], "its file no longer exists", "Extract it again.")
        return jpeg(shrunk(load_image(path), _TILE), 85)


def jpeg(picture: np.ndarray, quality: int = 90) -> bytes:
    """Encode a picture, uint8 (H, W, 3) RGB or (H, W) grey, as JPEG."""
    if picture.ndim == 3:
        picture = picture[..., ::-1]
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _below_common_folder(paths: list[str]) -> list[str]:
    """The paths relative to their common folder."""
    try:
        common = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # absolute and relative ones
        return [os.path.basename(path) for path in paths]
    return [path[len(common) :].lstrip(os.sep) for path in paths]
