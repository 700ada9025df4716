"""Decoding JPEGs with OpenCV, in two thirds of Pillow's time, if it gives the same pixels.

OpenCV and Pillow each bundle libjpeg, not necessarily the same version. Once per process, both
decode some test pictures, and OpenCV is used only if all pixels are equal. It then decodes only
files of the kinds that were compared, and only complete ones: OpenCV fills missing parts with grey,
and lets libjpeg write warnings to stderr, so it is used only in decoder processes, which have none.
"""

from __future__ import annotations

import functools
import re
from io import BytesIO

import cv2
import numpy as np
from PIL import Image

KINDS = ("JPEG", "MPO")

# Sampling factors (horizontal, vertical) of each component: 4:4:4, 4:2:2, 4:2:0, grey.
_SAMPLINGS = (((1, 1),) * 3, ((2, 1), (1, 1), (1, 1)), ((2, 2), (1, 1), (1, 1)), ((1, 1),))

# ITU-T T.81, table B.1, without stuffed bytes and restart markers.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_PROGRESSIVE, _SCAN, _END = 0xC2, 0xDA, 0xD9
# Frames (baseline, extended, progressive), tables, scan, restart interval, application data,
# comment.
_KNOWN = {0xC0, 0xC1, _PROGRESSIVE, 0xC4, 0xDB, _SCAN, 0xDD, *range(0xE0, 0xF0), 0xFE}
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # EXIF 2.32, table 4, as codes of cv2.flip

# Mode, and options for Pillow's encoder, of the test pictures.
_COMPARED = (
    *(("RGB", {"subsampling": s, "progressive": p}) for s in (0, 1, 2) for p in (False, True)),
    *(("L", {}), ("RGB", {"quality": 30}), ("RGB", {"quality": 98, "restart_marker_blocks": 2})),
)

# OpenCV before 4.11 decodes to BGR only, which never equals Pillow's pixels.
_READ = cv2.IMREAD_IGNORE_ORIENTATION | getattr(cv2, "IMREAD_COLOR_RGB", cv2.IMREAD_COLOR)


def opencv_pixels(image: Image.Image, data: bytes) -> np.ndarray | None:
    """The pixels that Pillow would decode, or None if they might differ.

    Parameters
    ----------
    image : PIL image
        Opened, but not loaded.
    data : bytes
        Its file.

    Returns
    -------
    ndarray of uint8, (height, width, 3), or None
        RGB, without the EXIF orientation applied.
    """
    if image.format not in KINDS or image.mode not in ("RGB", "L") or image.bits != 8:
        return None
    sampling = tuple(layer[1:3] for layer in image.layer)
    if sampling not in _SAMPLINGS or not (_is_whole(data) and _opencv_agrees()):
        return None
    rgb = _by_opencv(data)
    return rgb if rgb is not None and rgb.shape[1::-1] == image.size else None


def turned(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation from 1 to 8."""
    if orientation in (5, 6, 7, 8):
        rgb = cv2.transpose(rgb)
    return cv2.flip(rgb, _FLIPS[orientation]) if orientation in _FLIPS else rgb


def _is_whole(data: bytes) -> bool:
    """Whether all segments up to the end of the picture are complete, and of known kinds."""
    place, seen = 2, set()
    while marker := _MARKER.search(data, place):
        kind, place = data[marker.end() - 1], marker.end()
        if kind == _END:
            return _SCAN in seen
        length = int.from_bytes(data[place : place + 2], "big")
        place += length
        if kind not in _KNOWN or length < 2 or place > len(data):
            return False
        if _SCAN in seen and _PROGRESSIVE not in seen:
            return False  # OpenCV ignores what follows the last line of pixels
        seen.add(kind)
    return False


def _by_opencv(data: bytes) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), _READ)
    except cv2.error:
        return None


@functools.cache
def _opencv_agrees() -> bool:
    """Whether OpenCV and Pillow decode test pictures of all kinds alike."""
    steps = np.arange(37 * 51 * 3, dtype=np.uint64).reshape(37, 51, 3)
    noise = (steps * steps * 2654435761 >> 21).astype(np.uint8)  # numpy.random is slow to import
    smooth = cv2.resize(noise[:5, :7], (51, 37), interpolation=cv2.INTER_CUBIC)
    for pixels in (noise, smooth):
        picture = Image.fromarray(pixels)
        for mode, options in _COMPARED:
            file = BytesIO()
            picture.convert(mode).save(file, "JPEG", **options)
            data = file.getvalue()
            wanted = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
            got = _by_opencv(data)
            if got is None or not np.array_equal(got, wanted):
                return False
    return True
