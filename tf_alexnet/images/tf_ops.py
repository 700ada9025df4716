"""The preset pipeline as TensorFlow ops, for `tf.data` and exported graphs.

`tf.image.resize` computes in floating point and gives other pixels than OpenCV and Pillow, which
changes fc7 in the third digit. Here the integer arithmetic of both libraries is reimplemented, so
that the uint8 pixels are the same, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tf_alexnet.errors import InputError
from tf_alexnet.images.presets import MEAN_IMAGE, OWN_MEAN, Preset


def apply_preset(images: Any, preset: Preset, mean_image: np.ndarray | None = None) -> tf.Tensor:
    """`preprocess_input` as TensorFlow ops.

    Parameters
    ----------
    images : tensor of numbers, (N, H, W, 3) or (H, W, 3); of any shape for preset "raw"
        RGB, 0..255; sizes may be unknown. Floats are rounded if the preset resizes.
    preset, mean_image : Preset, ndarray of float32 (S, S, 3) or None
        From `resolve`.

    Returns
    -------
    tensor of float32, (N, size, size, 3) or (size, size, 3)
        Same as `preprocess_input` up to float32 rounding; the resized uint8 pixels are identical.

    Raises
    ------
    InputError
        If rank, channels or dtype are wrong.
    tf.errors.InvalidArgumentError
        If values are outside 0..255 or in 0..1. Raised when the graph runs.
    """
    images = tf.convert_to_tensor(images)
    if preset.is_raw:
        return tf.cast(images, tf.float32)
    check_input(images.shape, images.dtype)
    images = tf.ensure_shape(images, (*(None,) * (images.shape.rank - 1), 3))
    if images.dtype != tf.uint8:
        images = _in_range(tf.cast(images, tf.float32))
    if preset.size is None:
        return normalised(images, mean_image, preset)
    images = images if images.dtype == tf.uint8 else tf.cast(tf.round(images), tf.uint8)
    if mean_image is not None and len(mean_image) != preset.size:
        window = slice(start := round((preset.resized - preset.size) / 2), start + preset.size)
        mean_image = mean_image[window, window]
    return normalised(_resized_centre(images, preset), mean_image, preset)


def check_input(shape: tf.TensorShape | tuple, dtype: tf.DType | str = tf.uint8) -> None:
    """Raise an InputError if shape or dtype are not those of photos."""
    shape, dtype = tf.TensorShape(shape), tf.as_dtype(dtype)
    advice = "Give RGB photos in 0..255, (N, H, W, 3) or (H, W, 3)."
    if shape.rank is None:
        advice = "Set it: tf.io.decode_image(..., expand_animations=False), or x.set_shape(...)."
        raise InputError("preprocessing", "got a tensor of unknown rank", advice)
    if shape.rank not in (3, 4) or shape[-1] not in (None, 3):
        raise InputError("preprocessing", f"got a tensor of shape {tuple(shape)}", advice)
    if not (dtype.is_floating or dtype.is_integer):
        raise InputError("preprocessing", f"got a tensor of {dtype.name}", advice)


def _in_range(images: tf.Tensor) -> tf.Tensor:
    """`images`, with an assertion that they are photos in 0..255."""
    low, high = tf.reduce_min(images), tf.reduce_max(images)
    photos = (low >= 0) & (high <= 255) & ((high > 1) | (high <= 0))  # all black is a photo too
    message = "preprocessing takes pixels in 0..255, not in 0..1 or preprocessed; got values from"
    check = tf.debugging.Assert(photos, [message, low, "to", high])
    with tf.control_dependencies([check] if check is not None else []):
        return tf.identity(images)


def _resized_centre(images: tf.Tensor, preset: Preset) -> tf.Tensor:
    """The centre crop of the resized photos, uint8. Only pixels inside it are computed."""
    sides = tf.unstack(tf.shape(images)[-3:-1])
    to_sides = [tf.constant(preset.resized)] * 2
    if preset.keep_aspect:
        # As in shorter_side_size: multiply, divide, truncate.
        shorter = tf.cast(tf.minimum(*sides), tf.float64)
        longer = [tf.cast(preset.resized * side, tf.float64) for side in sides]
        to_sides = [tf.cast(side / shorter, tf.int32) for side in longer]
    wanted = []
    for side, to_side in zip(sides, to_sides, strict=True):
        # tf.round rounds half to even, like Python's round in centre_offset.
        start = tf.cast(tf.round(tf.cast(to_side - preset.size, tf.float64) / 2), tf.int32)
        wanted.append((side, to_side, start + tf.range(preset.size)))
    resize = resize_pillow_ops if preset.antialias else resize_opencv_ops
    pixels = resize(images, *wanted)
    return tf.ensure_shape(pixels, (*images.shape[:-3], preset.size, preset.size, 3))


# (side of the photo, side of the resized photo, rows or columns to compute): two int32 scalars and
# an int32 vector.
Axis = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def resize_opencv_ops(images: tf.Tensor, rows: Axis, columns: Axis) -> tf.Tensor:
    """`resize_opencv` of uint8 (..., H, W, 3) in integers (``resize.cpp`` of OpenCV 2.4 to 4)."""

    def fixed(weight: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.round(weight * 2048.0), tf.int32)  # 11 bits, rounded half to even

    left, fraction = _opencv_positions(columns)
    last = columns[0] - 1
    # Beyond the outermost centres OpenCV repeats the edge: along a row with a fraction of 0, along
    # a column by reading the edge row twice, which rounds differently.
    fraction = tf.where((left < 0) | (left >= last), 0.0, fraction)
    near, far = fixed(1.0 - fraction), fixed(fraction)
    left = tf.clip_by_value(left, 0, last)
    right = tf.minimum(left + 1, last)

    above, fraction = _opencv_positions(rows)
    top, bottom = fixed(1.0 - fraction), fixed(fraction)
    last = rows[0] - 1

    def blended(index: tf.Tensor) -> tf.Tensor:
        lines = tf.gather(images, tf.clip_by_value(index, 0, last), axis=-3)
        first = tf.cast(tf.gather(lines, left, axis=-2), tf.int32) * near[:, None]
        return first + tf.cast(tf.gather(lines, right, axis=-2), tf.int32) * far[:, None]

    shift = tf.bitwise.right_shift
    upper = shift(top[:, None, None] * shift(blended(above), 4), 16)
    lower = shift(bottom[:, None, None] * shift(blended(above + 1), 4), 16)
    return tf.cast(shift(upper + lower + 2, 2), tf.uint8)


def _opencv_positions(axis: Axis) -> tuple[tf.Tensor, tf.Tensor]:
    """Source index to the left of each output pixel's centre, and the float32 fraction beyond."""
    side, to_side, wanted = axis
    # As in OpenCV, which computes the inverse of the scale and inverts it.
    scale = 1.0 / (tf.cast(to_side, tf.float64) / tf.cast(side, tf.float64))
    place = tf.cast((tf.cast(wanted, tf.float64) + 0.5) * scale - 0.5, tf.float32)
    floor = tf.floor(place)
    return tf.cast(floor, tf.int32), place - floor


def resize_pillow_ops(images: tf.Tensor, rows: Axis, columns: Axis) -> tf.Tensor:
    """`resize_pillow` in integers (``Resample.c`` of Pillow); arguments as `resize_opencv_ops`."""
    return _pillow_pass(_pillow_pass(images, columns, axis=-2), rows, axis=-3)


def _pillow_pass(images: tf.Tensor, along: Axis, axis: int) -> tf.Tensor:
    """Resize along one axis: a weighted sum in 22-bit fixed point, rounded to uint8."""
    first, weights = _pillow_weights(along)
    last = along[0] - 1
    shape = tf.concat([tf.shape(images)[:axis], tf.shape(first), tf.shape(images)[axis + 1 :]], 0)

    def add(tap: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        index = tf.minimum(first + tap, last)
        pixels = tf.cast(tf.gather(images, index, axis=axis), tf.int32)
        weight = weights[tap][:, None]
        return tap + 1, total + pixels * (weight if axis == -2 else weight[:, None])

    taps = tf.shape(weights)[0]
    half = tf.fill(shape, 1 << 21)
    start = (tf.constant(0), tf.ensure_shape(half, (*(None,) * (images.shape.rank - 1), 3)))
    _, total = tf.while_loop(lambda tap, _: tap < taps, add, start)
    return tf.cast(tf.clip_by_value(tf.bitwise.right_shift(total, 22), 0, 255), tf.uint8)


def _pillow_weights(axis: Axis) -> tuple[tf.Tensor, tf.Tensor]:
    """First source index (pixels,) and weights (taps, pixels) of each output pixel."""
    side, to_side, wanted = axis
    scale = tf.cast(side, tf.float64) / tf.cast(to_side, tf.float64)
    support = tf.maximum(scale, 1.0)
    centre = (tf.cast(wanted, tf.float64) + 0.5) * scale
    first = tf.maximum(tf.cast(centre - support + 0.5, tf.int32), 0)
    end = tf.minimum(tf.cast(centre + support + 0.5, tf.int32), side)
    taps = tf.range(tf.reduce_max(end - first))[:, None]
    distance = (tf.cast(taps + first, tf.float64) - centre + 0.5) * (1.0 / support)
    weights = tf.where(taps < end - first, tf.maximum(1.0 - tf.abs(distance), 0.0), 0.0)
    # cumsum adds in Pillow's order; another order may round differently.
    weights /= tf.cumsum(weights, axis=0)[-1]
    return first, tf.cast(weights * (1 << 22) + 0.5, tf.int32)


def normalised(pixels: tf.Tensor, mean_image: np.ndarray | None, preset: Preset) -> tf.Tensor:
    """RGB pixels as float32 in the preset's channel order and range."""
    pixels = pixels[..., ::-1] if preset.channels == "BGR" else pixels
    out = tf.cast(pixels, tf.float32)
    if preset.divisor != 1:
        out /= preset.divisor
    if preset.mean == MEAN_IMAGE:
        out -= mean_image
    elif preset.mean == OWN_MEAN:
        # float64: a float32 sum of this length is off in the sixth digit.
        own = tf.reduce_mean(tf.cast(pixels, tf.float64), axis=(-3, -2, -1), keepdims=True)
        out -= tf.cast(own / preset.divisor, tf.float32)
    else:
        out -= tf.constant(preset.mean, tf.float32)
    return out / tf.constant(preset.std, tf.float32) if preset.std else out
