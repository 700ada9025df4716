"""The two bilinear resizes in common use, which give different pixels.

OpenCV interpolates the four nearest pixels at any scale; Pillow, and torchvision on Pillow images,
averages over all pixels that an output pixel covers (antialiasing).
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image


def resize_opencv(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resize without antialiasing, as in Caffe (`cv::resize` in ``util/io.cpp``).

    Pixel centres are at half-integers, coefficients in 11-bit fixed point.

    Parameters
    ----------
    rgb : ndarray of uint8, (H, W, 3)
        Pixels in any channel order.
    height, width : int
        Size of the result.

    Returns
    -------
    ndarray of uint8, (height, width, 3)
    """
    return cv2.resize(np.ascontiguousarray(rgb), (width, height), interpolation=cv2.INTER_LINEAR)


def resize_pillow(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resize with antialiasing, as torchvision resizes Pillow images.

    Parameters and shapes are those of `resize_opencv`. Coefficients are in 22-bit fixed point. The
    width is resized first, rounded to uint8, then the height.
    """
    image = Image.fromarray(np.ascontiguousarray(rgb))
    # Pillow 13 chooses the cheaper order, which gives other pixels. Before 12 it was always width
    # first, as when the networks were trained. Two calls ensure this in any version.
    across = image.resize((width, image.height), Image.Resampling.BILINEAR)
    return np.array(across.resize((width, height), Image.Resampling.BILINEAR))


def shorter_side_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width with the shorter side resized to `side`, as in torchvision.

    The longer side is truncated, not rounded (``_compute_resized_output_size``).
    """
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side
