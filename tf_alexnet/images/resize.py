"""The two bilinear resizes the field's pipelines use. They give different pictures.

OpenCV's looks at the four nearest pixels whatever the scale; Pillow's averages over all pixels that
one output pixel covers (antialiasing), and so does torchvision's on Pillow images.
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image


def resize_opencv(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear without antialiasing, as Caffe resizes (`cv::resize` in ``util/io.cpp``).

    Parameters
    ----------
    rgb : ndarray of uint8, (H, W, 3)
        Any channel order.
    height, width : int
        Size of the result.

    Returns
    -------
    ndarray of uint8, (height, width, 3)
        Half-pixel centres, coefficients in 11-bit fixed point.
    """
    return cv2.resize(np.ascontiguousarray(rgb), (width, height), interpolation=cv2.INTER_LINEAR)


def resize_pillow(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with antialiasing, as torchvision resizes Pillow images.

    Parameters and shapes are those of `resize_opencv`. Coefficients are in 22-bit fixed point;
    widths are changed first, then, after rounding to uint8, heights.
    """
    image = Image.fromarray(np.ascontiguousarray(rgb))
    # Pillow 13 takes the cheaper order, which gives other pixels; before 12 it was always widths
    # first, as when today's networks were trained. Two calls are that in any version.
    across = image.resize((width, image.height), Image.Resampling.BILINEAR)
    return np.array(across.resize((width, height), Image.Resampling.BILINEAR))


def shorter_side_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width after the shorter side became `side`, by torchvision's rule.

    The longer side is cut, not rounded, to a whole number (``_compute_resized_output_size``).
    """
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side
