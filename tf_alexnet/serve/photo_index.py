"""`PhotoIndex`: photos like another one, found among the rows of a file of features."""

from __future__ import annotations

import os
from typing import NamedTuple

import cv2
import numpy as np

from tf_alexnet.errors import ImageError, UsageError
from tf_alexnet.extraction import FeatureExtractor
from tf_alexnet.extraction.formats import open_output
from tf_alexnet.extraction.spec import POOLS
from tf_alexnet.images import load_image

_TILE = 224  # pixels of a thumbnail's longer side


class Neighbour(NamedTuple):
    """A photo of the index.

    Attributes
    ----------
    row : int
        Its place in the index.
    name : str
        Its path below the folder that all photos of the index share.
    similarity : float
        Cosine similarity of the two rows, -1..1.
    """

    row: int
    name: str
    similarity: float


class PhotoIndex:
    """Rows of one layer, all in memory, and the photos that they belong to.

    Parameters
    ----------
    path : path
        A file that `extract_features` wrote; of several layers the last is used.

    Attributes
    ----------
    layer : str
        The layer compared.
    names : list of str
        The photos, as in `Neighbour`.

    Raises
    ------
    UsageError
        If there is no such file, or it is not one of features.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = os.fspath(path)
        if not os.path.isfile(path):
            advice = "Name a file that `tf-alexnet extract` wrote."
            raise UsageError(f"index {self._path}", "there is no such file", advice)
        try:
            with open_output(path) as output:
                if not output.count:
                    raise ValueError("it holds no rows")
                self.layer = [*output.layers][-1]
                self._attributes = output.attributes
                self._photos = [photo.place or photo.path for photo in output.photos]
                blocks = output.blocks([self.layer])
                rows = [_flat(np.float32(block[self.layer])) for block in blocks]
        except (ValueError, KeyError, OSError, ImportError) as error:
            advice = "Name a file that `tf-alexnet extract` wrote."
            raise UsageError(f"index {self._path}", f"it can't be read ({error})", advice) from None
        self._rows = np.concatenate(rows)
        del rows
        if not np.isfinite(self._rows).all():  # --missing nan
            self._rows = np.nan_to_num(self._rows, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        self._rows /= _norms(self._rows)
        self.names = _below_common_folder(self._photos)

    def __len__(self) -> int:
        return len(self.names)

    def check(self, extractor: FeatureExtractor) -> None:
        """Refuse an index of other weights, or of pixels or rows made in another way.

        Raises
        ------
        UsageError
        """
        found = self._attributes
        expected = {
            "weights_digest": extractor.weights_digest,
            "preset": extractor.preset,
            "crops": "center",
            "mean_image": "none",
        }
        for name, value in expected.items():
            if found.get(name, value) != value:
                raise UsageError(
                    f"index {self._path}",
                    f"its {name} is {found[name]}, and the network that is served has {value}",
                    "Extract the index with the weights that are served.",
                )

    def row_of(self, blob: np.ndarray) -> np.ndarray:
        """A photo's blob of `layer` as a row of the index: pooled, flat, of length 1."""
        pool = POOLS.get(self._attributes.get("pool", "none"))
        row = _flat((pool(blob, axis=(0, 1)) if pool and blob.ndim == 3 else blob)[None])
        return (row / _norms(row))[0]

    def nearest(self, row: np.ndarray, count: int) -> list[Neighbour]:
        """The most similar photos, most similar first; of equal ones the earlier."""
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
            If it is not there any more.
        IndexError
            If there is no such row.
        """
        path = self._photos[row]
        if not os.path.isfile(path):  # URLs are not opened
            raise ImageError(self.names[row], "its file is not there any more", "Extract anew.")
        return jpeg(shrunk(load_image(path), _TILE), 85)


def shrunk(photo: np.ndarray, most: int) -> np.ndarray:
    """`photo`, uint8 (H, W, 3), with at most so many pixels a side."""
    height, width = photo.shape[:2]
    scale = most / max(height, width)
    if scale >= 1:
        return photo
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA)


def jpeg(picture: np.ndarray, quality: int = 90) -> bytes:
    """A picture, uint8 (H, W, 3) RGB or (H, W) grey, as a JPEG file."""
    if picture.ndim == 3:
        picture = picture[..., ::-1]
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _flat(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(len(rows), -1)


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _below_common_folder(paths: list[str]) -> list[str]:
    """The paths, without what all of them begin with."""
    try:
        common = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # absolute and relative ones
        return [os.path.basename(path) for path in paths]
    return [path[len(common) :].lstrip(os.sep) for path in paths]
