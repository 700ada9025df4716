"""Colour maps as uint8 RGB tables, without matplotlib."""

from __future__ import annotations

import functools

import cv2
import numpy as np

# ColorBrewer's RdBu, reversed: dark blue to dark red, safe for colour-blind readers.
_DIVERGING = ((5, 48, 97), (67, 147, 195), (255, 255, 255), (214, 96, 77), (103, 0, 31))
_SEQUENTIAL = {"viridis": cv2.COLORMAP_VIRIDIS, "inferno": cv2.COLORMAP_INFERNO}


@functools.cache
def color_table(name: str) -> np.ndarray:
    """A colour map, lowest value first.

    Parameters
    ----------
    name : {"viridis", "inferno", "gray", "diverging"}
        ``diverging`` is blue, white, red, with white in the middle.

    Returns
    -------
    ndarray of uint8, (255, 3)
        RGB.
    """
    if name == "diverging":
        stops = np.linspace(0, 254, len(_DIVERGING))
        channels = [np.interp(np.arange(255), stops, x) for x in zip(*_DIVERGING, strict=True)]
        table = np.rint(np.stack(channels, axis=1)).astype(np.uint8)
    else:
        grey = np.rint(np.linspace(0, 255, 255)).astype(np.uint8)[:, None]
        if name == "gray":
            return grey.repeat(3, axis=1)
        table = cv2.applyColorMap(grey, _SEQUENTIAL[name])[:, 0, ::-1].copy()  # OpenCV's are BGR
    table.flags.writeable = False
    return table


def colored(values: np.ndarray, name: str, low: float, high: float) -> np.ndarray:
    """Map values to colours: `low` and below to the first, `high` and above to the last.

    Parameters
    ----------
    values : ndarray of float, (...)
        NaN becomes the first colour.
    name : str
        As in `color_table`.
    low, high : float
        low < high.

    Returns
    -------
    ndarray of uint8, (..., 3)
    """
    place = np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0, 1)
    return color_table(name)[np.rint(place * 254).astype(np.uint8)]
