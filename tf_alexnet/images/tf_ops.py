"""The presets' pipeline as TensorFlow ops, for `tf.data` and exported graphs.

`tf.image.resize` works in floating point and gives other pixels than OpenCV and Pillow do; fc7 is
then off in the third digit. Here both libraries' integer arithmetic is written out, so that the
uint8 pixels are theirs, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike

import numpy as np
import tensorflow as tf

from tf_alexnet.images.presets import (
    MEAN_IMAGE,
    OWN_MEAN,
    Preset,
    centre_offset,
    load_mean_image,
    preset_named,
)


def tf_preprocess(
    preset: str = "caffe", *, mean_image: np.ndarray | str | PathLike | None = None
) -> Callable[[tf.Tensor], tf.Tensor]:
    """`preprocess_input` for one picture, as TensorFlow ops.

    Parameters
    ----------
    preset : str
        A name in `PRESETS`.
    mean_image : ndarray (3, 256, 256), or path to such an array as .npy
        BGR, 0..255. Needed by "caffe-mean-image", refused by the others.

    Returns
    -------
    callable
        From a uint8 RGB tensor (H, W, 3), whose height and width may be unknown, to float32
        (size, size, 3): the resized pixels are bit for bit those of `preprocess_input`, the result
        differs by float32 rounding at most. Preset "raw": any tensor as float32.

    Raises
    ------
    PresetError
        If there is no such preset, or `mean_image` does not go with it.
    InputError
        If `mean_image` is not what it should be.
    """
    record = preset_named(preset)
    mean = load_mean_image(record, mean_image)
    if record.size is None:
        return lambda image: tf.cast(image, tf.float32)
    if mean is not None:
        start = centre_offset(record.resized, record.size)
        mean = mean[start : start + record.size, start : start + record.size]

    def preprocess(image: tf.Tensor) -> tf.Tensor:
        image = tf.ensure_shape(tf.convert_to_tensor(image, tf.uint8), (None, None, 3))
        return normalised(_resized_centre(image, record), mean, record)

    return preprocess


def _resized_centre(image: tf.Tensor, preset: Preset) -> tf.Tensor:
    """The centre crop of the resized picture, uint8; pixels outside of it are never computed."""
    sides = tf.unstack(tf.shape(image)[:2])
    to_sides = [tf.constant(preset.resized)] * 2
    if preset.keep_aspect:
        # As in shorter_side_size: multiplied first, then divided, then cut.
        shorter = tf.cast(tf.minimum(*sides), tf.float64)
        to_sides = [
            tf.cast(tf.cast(preset.resized * side, tf.float64) / shorter, tf.int32)
            for side in sides
        ]
    wanted = []
    for side, to_side in zip(sides, to_sides, strict=True):
        # tf.round sends ties to the even number, as Python's round in centre_offset does.
        start = tf.cast(tf.round(tf.cast(to_side - preset.size, tf.float64) / 2), tf.int32)
        wanted.append((side, to_side, start + tf.range(preset.size)))
    resize = resize_pillow_ops if preset.antialias else resize_opencv_ops
    pixels = resize(image, *wanted)
    return tf.ensure_shape(pixels, (preset.size, preset.size, 3))


Axis = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def resize_opencv_ops(image: tf.Tensor, rows: Axis, columns: Axis) -> tf.Tensor:
    """`resize_opencv` as integer ops (``resize.cpp`` of OpenCV 2.4 to 4).

    Parameters
    ----------
    image : tensor of uint8, (H, W, 3)
        Any channel order.
    rows, columns : tuple of (int32 scalar, int32 scalar, int32 vector)
        Side of `image`, side of the resized picture, and which of its rows or columns to compute.

    Returns
    -------
    tensor of uint8, (len of the rows, len of the columns, 3)
    """
    left, fraction = _opencv_positions(columns)
    last = columns[0] - 1
    # Beyond the outermost centres OpenCV repeats the edge: along a row by a fraction of 0, along
    # a column by reading the edge row twice, which rounds otherwise.
    fraction = tf.where((left < 0) | (left >= last), 0.0, fraction)
    near, far = _opencv_coefficients(fraction)
    left = tf.clip_by_value(left, 0, last)
    right = tf.minimum(left + 1, last)

    above, fraction = _opencv_positions(rows)
    top, bottom = _opencv_coefficients(fraction)
    last = rows[0] - 1

    def blended(index: tf.Tensor) -> tf.Tensor:
        lines = tf.gather(image, tf.clip_by_value(index, 0, last))
        first = tf.cast(tf.gather(lines, left, axis=1), tf.int32) * near[:, None]
        return first + tf.cast(tf.gather(lines, right, axis=1), tf.int32) * far[:, None]

    shift = tf.bitwise.right_shift
    upper = shift(top[:, None, None] * shift(blended(above), 4), 16)
    lower = shift(bottom[:, None, None] * shift(blended(above + 1), 4), 16)
    return tf.cast(shift(upper + lower + 2, 2), tf.uint8)


def _opencv_positions(axis: Axis) -> tuple[tf.Tensor, tf.Tensor]:
    """Source index left of each wanted pixel's centre, and the float32 way on to the next."""
    side, to_side, wanted = axis
    # OpenCV computes the inverse of the scale and inverts it again.
    scale = 1.0 / (tf.cast(to_side, tf.float64) / tf.cast(side, tf.float64))
    place = tf.cast((tf.cast(wanted, tf.float64) + 0.5) * scale - 0.5, tf.float32)
    floor = tf.floor(place)
    return tf.cast(floor, tf.int32), place - floor


def _opencv_coefficients(fraction: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Weights of the two neighbours in 11-bit fixed point, each rounded half to even."""
    return (
        tf.cast(tf.round((1.0 - fraction) * 2048.0), tf.int32),
        tf.cast(tf.round(fraction * 2048.0), tf.int32),
    )


def resize_pillow_ops(image: tf.Tensor, rows: Axis, columns: Axis) -> tf.Tensor:
    """`resize_pillow` as integer ops (``Resample.c`` of Pillow); arguments as its neighbour's."""
    across = _pillow_pass(image, columns, axis=1)
    return _pillow_pass(across, rows, axis=0)


def _pillow_pass(image: tf.Tensor, along: Axis, axis: int) -> tf.Tensor:
    """One direction: a weighted sum of neighbours in 22-bit fixed point, rounded to uint8."""
    first, weights = _pillow_weights(along)
    last = along[0] - 1
    shape = tf.concat([tf.shape(image)[:axis], tf.shape(first), tf.shape(image)[axis + 1 :]], 0)

    def add(tap: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        index = tf.minimum(first + tap, last)
        pixels = tf.cast(tf.gather(image, index, axis=axis), tf.int32)
        weight = weights[tap][:, None]
        return tap + 1, total + pixels * (weight if axis == 1 else weight[:, None])

    taps = tf.shape(weights)[0]
    half = tf.fill(shape, 1 << 21)
    start = (tf.constant(0), tf.ensure_shape(half, (None, None, 3)))
    _, total = tf.while_loop(lambda tap, _: tap < taps, add, start)
    return tf.cast(tf.clip_by_value(tf.bitwise.right_shift(total, 22), 0, 255), tf.uint8)


def _pillow_weights(axis: Axis) -> tuple[tf.Tensor, tf.Tensor]:
    """First source index (pixels,) and the weights (taps, pixels) of each wanted pixel."""
    side, to_side, wanted = axis
    scale = tf.cast(side, tf.float64) / tf.cast(to_side, tf.float64)
    support = tf.maximum(scale, 1.0)
    centre = (tf.cast(wanted, tf.float64) + 0.5) * scale
    first = tf.maximum(tf.cast(centre - support + 0.5, tf.int32), 0)
    end = tf.minimum(tf.cast(centre + support + 0.5, tf.int32), side)
    taps = tf.range(tf.reduce_max(end - first))[:, None]
    distance = (tf.cast(taps + first, tf.float64) - centre + 0.5) * (1.0 / support)
    weights = tf.where(taps < end - first, tf.maximum(1.0 - tf.abs(distance), 0.0), 0.0)
    # A running sum adds in Pillow's order; another order may round otherwise.
    weights /= tf.cumsum(weights, axis=0)[-1]
    return first, tf.cast(weights * (1 << 22) + 0.5, tf.int32)


def normalised(cropped: tf.Tensor, mean_image: np.ndarray | None, preset: Preset) -> tf.Tensor:
    """uint8 pixels as float32, in the network's channel order and range."""
    pixels = cropped[..., ::-1] if preset.channels == "BGR" else cropped
    out = tf.cast(pixels, tf.float32)
    if preset.divisor != 1:
        out /= preset.divisor
    if preset.mean == MEAN_IMAGE:
        out -= mean_image
    elif preset.mean == OWN_MEAN:
        # Summed as integers: a float32 sum of this length is off in the sixth digit.
        total = tf.reduce_sum(tf.cast(pixels, tf.int64))
        count = tf.size(pixels, out_type=tf.int64)
        out -= tf.cast(total / count, tf.float32)
    else:
        out -= tf.constant(preset.mean, tf.float32)
    return out / tf.constant(preset.std, tf.float32) if preset.std else out
