"""A photo's activations as pictures."""

from __future__ import annotations

import math

import numpy as np

from tf_alexnet.errors import InputError

_GAP = 1  # pixels between channels
_LIMIT = 99.9  # percentile of the values that is drawn as white


def ceiling(blob: np.ndarray) -> float:
    """The value that `mosaic` draws as white: the 99.9th percentile, or the largest if that is 0.

    0 where no value is positive.
    """
    high = float(np.percentile(blob, _LIMIT))
    return max(0.0, high if high > 0 else float(blob.max(initial=0)))


def mosaic(blob: np.ndarray) -> np.ndarray:
    """All channels of a blob side by side, strongest first.

    Parameters
    ----------
    blob : ndarray of float, (h, w, channels) or (units,)
        Values of one photo. Channels are in the order of their largest value; units keep their
        order.

    Returns
    -------
    ndarray of uint8, (H, W)
        0 is black and 0 activation (or below), 255 the value that `ceiling` returns. Channels are
        in rows of nearly as many as there are rows, with a line of 128 between them.

    Raises
    ------
    InputError
        If `blob` has another number of axes, is empty or holds values that are not finite.
    """
    blob = np.asarray(blob)
    if blob.ndim not in (1, 3) or not blob.size or not np.isfinite(blob).all():
        raise InputError(
            f"blob of shape {blob.shape}",
            "it is no photo's (h, w, channels) or (units,), or not all of it is finite",
            "Pass one row of what FeatureExtractor returns.",
        )
    gap = _GAP if blob.ndim == 3 else 0
    blob = blob[None, None] if blob.ndim == 1 else blob[..., strongest(blob)]
    height, width, channels = blob.shape
    across = math.ceil(math.sqrt(channels * (height + gap) / (width + gap)))
    down = -(-channels // across)
    shape = down * (height + gap) - gap, across * (width + gap) - gap
    sheet = np.full(shape, 128 if gap else 0, np.uint8)
    shades = np.rint(np.clip(blob / (ceiling(blob) or 1), 0, 1) * 255).astype(np.uint8)
    for number in range(channels):
        top = number // across * (height + gap)
        left = number % across * (width + gap)
        sheet[top : top + height, left : left + width] = shades[..., number]
    return sheet


def strongest(blob: np.ndarray) -> np.ndarray:
    """Channels of a blob (h, w, channels) by their largest value, the largest first."""
    return np.argsort(-blob.max(axis=(0, 1)), kind="stable")
