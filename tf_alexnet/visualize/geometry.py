"""Map values of a network to the photo: cells of a blob to the input, the input to the photo.

Positions are in pixels; the first pixel has its centre at 0. A cell of a blob lies at the centre of
its receptive field (for `conv5` of the Caffe networks, cell i at pixel 17 + 16 i). Values are
interpolated between the centres, and constant beyond the first and last. Stretching a blob over the
whole input would shift it by up to 9 pixels at the edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from tf_alexnet.architectures import Architecture
from tf_alexnet.errors import LayerError
from tf_alexnet.images import Preset
from tf_alexnet.images.pipeline import centre_offset, resize_by, resized_size


def cell_centres(table: Architecture, layer: str) -> np.ndarray:
    """Positions of a blob's rows (and of its columns) in the input, in pixels.

    Returns
    -------
    ndarray of float64, (side of the blob,)

    Raises
    ------
    LayerError
        If there is no such layer, or it has no height and width.
    """
    row = next((row for row in table.rows() if row.name == layer), None)
    if row is None or len(row.output_shape) != 3:
        names = [x.name for x in table.rows() if len(x.output_shape) == 3][1:]
        raise LayerError(
            f"layer {layer!r}",
            f"{table.name} has no such layer with height and width",
            f"Use one of {', '.join(names)}.",
        )
    return row.centre + row.step * np.arange(row.output_shape[0], dtype=np.float64)


@dataclass(frozen=True)
class Placement:
    """Where the network's input lies in a photo.

    Attributes
    ----------
    photo : tuple of int
        Height and width of the photo.
    resized : tuple of int
        Height and width that the preset resizes it to.
    corner : tuple of int
        Row and column, in the resized photo, of the input's first pixel.
    size : int
        Side of the input.
    """

    photo: tuple[int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]
    size: int

    @classmethod
    def of(cls, height: int, width: int, preset: Preset, size: int) -> Placement:
        """The placement by a preset, for inputs of side `size`."""
        if preset.size is None:  # neither resized nor cropped
            return cls((height, width), (height, width), (0, 0), size)
        resized = resized_size(height, width, preset)
        corner = tuple(centre_offset(side, size) for side in resized)
        return cls((height, width), resized, corner, size)

    @classmethod
    def of_crop(cls, size: int) -> Placement:
        """The identity, for maps on the crop itself."""
        return cls((size, size), (size, size), (0, 0), size)

    def onto_photo(self, values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Interpolate values at points of the input to the pixels of the photo.

        Where the photo is coarser than the input, a pixel is the mean of what it covers.

        Parameters
        ----------
        values : ndarray of float, (n, m)
        rows, columns : ndarray of float, (n,) and (m,)
            Ascending positions of the values in the input.

        Returns
        -------
        ndarray of float32, (H, W)
            NaN outside the input.
        """
        down, seen_rows = self._weights(0, rows)
        across, seen_columns = self._weights(1, columns)
        placed = (across @ (down @ values.astype(np.float32)).T).T
        placed = np.ascontiguousarray(placed)
        placed[~seen_rows] = np.nan
        placed[:, ~seen_columns] = np.nan
        return placed

    def to_photo(self, row: float, column: float) -> tuple[float, float]:
        """Convert a position in the input to one in the photo."""
        inside = zip((row, column), self.corner, self.photo, self.resized, strict=True)
        return tuple((x + start + 0.5) * side / to - 0.5 for x, start, side, to in inside)

    def _weights(self, axis: int, points: np.ndarray) -> tuple[sparse.csr_array, np.ndarray]:
        """Interpolation weights (side, points) along an axis, and which pixels have any.

        Each pixel of the photo is sampled at its centre, or at several positions if it is wider
        than a pixel of the input.
        """
        side, resized, start = self.photo[axis], self.resized[axis], self.corner[axis]
        times = max(1, -(-resized // side))
        # Only positions in the input: few, for a long strip.
        first = max(0, int((start - 0.5) / resized * side * times) - 1)
        last = min(side * times, int((start + self.size + 0.5) / resized * side * times) + 2)
        fine = np.arange(first, last)
        place = (fine + 0.5) / (side * times) * resized - 0.5 - start
        inside = (place >= -0.5) & (place < self.size - 0.5)
        fine, place = fine[inside] // times, place[inside]
        left = np.clip(np.searchsorted(points, place, "right") - 1, 0, max(0, len(points) - 2))
        right = np.minimum(left + 1, len(points) - 1)
        gap = np.where(right > left, points[right] - points[left], 1.0)
        part = np.clip((place - points[left]) / gap, 0.0, 1.0)
        count = np.bincount(fine, minlength=side)
        values = np.concatenate([1 - part, part]) / np.tile(count[fine], 2)
        at = np.tile(fine, 2), np.concatenate([left, right])
        weights = sparse.csr_array(
            (values.astype(np.float32), at), shape=(side, len(points)), dtype=np.float32
        )
        return weights, count > 0


def crop_of(image: np.ndarray, preset: Preset, size: int) -> np.ndarray:
    """The part of a photo that the network sees, before channel swap and mean subtraction.

    Parameters
    ----------
    image : ndarray of uint8, (H, W, 3)
    preset : Preset
    size : int
        Side of the network's input.

    Returns
    -------
    ndarray of uint8, (size, size, 3)
        RGB.
    """
    if preset.size is None:
        return image
    top, left = Placement.of(*image.shape[:2], preset, size).corner
    return resize_by(image, preset)[top : top + size, left : left + size]
