"""Decode photos inside a TensorFlow graph, to the same pixels as `load_image`.

Stock operations only. JPEG (with ``INTEGER_ACCURATE``, without which TensorFlow's pixels differ
from Pillow's by up to 11), PNG, GIF, BMP and WebP; upright by EXIF orientation (EXIF 2.32; JPEG,
PNG and WebP), with alpha over white.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

_ORIENTATION = 0x0112
_JPEG, _PNG, _RIFF = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF"
_PNG_COLOUR = 25  # offset of the colour type, in which 4 is the bit for alpha
_KINDS = (_JPEG, _PNG, b"GIF8", b"BM", _RIFF)
OK, EMPTY, NOT_AN_IMAGE, DAMAGED = "ok", "empty", "not_an_image", "damaged"

Decode = Callable[[tf.Tensor], tf.Tensor]


def decode_batch(
    photos: tf.Tensor, prepare: Decode, shape: tuple[int, int, int]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decode and prepare each photo of a batch; a photo that fails affects its own row only.

    Parameters
    ----------
    photos : tensor of str, (N,)
        Contents of image files.
    prepare : callable
        From uint8 (H, W, 3) to float32 of `shape`.
    shape : tuple of int
        Height, width and channels of the network's input.

    Returns
    -------
    batch : tensor of float32, (N, *shape)
        Zeros where a photo could not be decoded.
    status : tensor of str, (N,)
        "ok", "empty", "not_an_image" (unknown format) or "damaged".
    """
    count = tf.size(photos, tf.int64)
    numbered = tf.data.Dataset.range(count)

    def load(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return number, tf.ensure_shape(prepare(decode_photo(photos[number])), shape)

    # A failing operation aborts its graph; only a dataset can skip an element.
    good = numbered.map(load, tf.data.AUTOTUNE).ignore_errors()
    # A last element, so that there is a batch even if every photo fails.
    end = tf.data.Dataset.from_tensors((count, tf.zeros(shape)))
    places, rows = good.concatenate(end).batch(count + 1).get_single_element()
    places, rows = places[:-1, None], rows[:-1]
    batch = tf.scatter_nd(places, rows, tf.concat([count[None], tf.constant(shape, tf.int64)], 0))
    done = tf.scatter_nd(places, tf.ones_like(places[:, 0], tf.int32), count[None]) > 0
    known = tf.reduce_any([_begins(photos, kind) for kind in _KINDS], axis=0)
    fault = tf.where(known, DAMAGED, tf.where(tf.strings.length(photos) > 0, NOT_AN_IMAGE, EMPTY))
    return tf.ensure_shape(batch, (None, *shape)), tf.where(done, OK, fault)


def decode_photo(data: tf.Tensor) -> tf.Tensor:
    """One image file as uint8 RGB, (H, W, 3), upright."""

    def jpeg() -> tf.Tensor:
        pixels = tf.io.decode_jpeg(data, 3, dct_method="INTEGER_ACCURATE")
        return _turned(pixels, _orientation(data, _jpeg_exif))

    def png() -> tf.Tensor:
        octets = _octets(data)
        # For images without alpha of less than 8 bits, TensorFlow would make up a wrong one.
        alpha = (octets[_PNG_COLOUR] & 4 > 0) | (_png_chunk(octets, b"tRNS") > 0)
        pixels = tf.cond(
            alpha,
            lambda: _over_white(tf.io.decode_png(data, 4)),
            lambda: tf.io.decode_png(data, 3),
        )
        return _turned(pixels, _orientation(data, _png_exif))

    def webp() -> tf.Tensor:
        return _turned(_any(data), _orientation(data, _webp_exif))

    def bitmap() -> tf.Tensor:
        return _any(data)

    cases = [(_begins(data, _JPEG), jpeg), (_begins(data, _PNG), png)]
    cases += [(_begins(data, _RIFF), webp)]
    return tf.ensure_shape(tf.case(cases, bitmap), (None, None, 3))


def _any(data: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(tf.io.decode_image(data, 3, expand_animations=False), (None, None, 3))


def _begins(data: tf.Tensor, start: bytes) -> tf.Tensor:
    """Whether byte strings begin with `start`."""
    long = tf.strings.length(data) >= len(start)
    # `substr` fails on shorter strings.
    padded = tf.where(long, data, b"\0" * len(start))
    return tf.strings.substr(padded, 0, len(start)) == start


def _over_white(rgba: tf.Tensor) -> tf.Tensor:
    """RGBA over white, in the integer arithmetic of Pillow's ``AlphaComposite.c``."""
    alpha = tf.cast(rgba[..., 3:], tf.int32) * 128
    total = tf.cast(rgba[..., :3], tf.int32) * alpha + 255 * (255 * 128 - alpha) + 128 * 128
    shift = tf.bitwise.right_shift
    return tf.cast(shift(shift(shift(total, 8) + total, 8), 7), tf.uint8)


def _turned(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Pixels (H, W, 3) made upright by EXIF orientation 1 to 8; other values are ignored."""

    def turn() -> tf.Tensor:
        across = (orientation >= 5) & (orientation <= 8)
        x = tf.cond(across, lambda: tf.transpose(pixels, (1, 0, 2)), lambda: pixels)
        flips = [
            tf.reduce_any(orientation == tf.constant(values))
            for values in ((3, 4, 7, 8), (2, 3, 6, 7))
        ]
        return tf.reverse(x, tf.boolean_mask(tf.constant([0, 1]), flips))

    x = tf.cond((orientation >= 2) & (orientation <= 8), turn, lambda: pixels)
    return tf.ensure_shape(x, (None, None, 3))


def _orientation(data: tf.Tensor, find: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """The EXIF orientation of an image; 1 if it has none."""
    octets = _octets(data)
    start = find(octets)
    return tf.cond(start > 0, lambda: _tagged(octets, start), lambda: tf.constant(1))


def _octets(data: tf.Tensor) -> tf.Tensor:
    """The bytes as uint8 (length + 32,), padded with zeros for reads near the end."""
    return tf.concat([tf.io.decode_raw(data, tf.uint8), tf.zeros(32, tf.uint8)], 0)


def _number(octets: tf.Tensor, place: tf.Tensor, size: int, little: tf.Tensor | bool) -> tf.Tensor:
    """An unsigned integer of `size` bytes, as int32; offsets past the end read the last bytes."""
    place = tf.clip_by_value(place, 0, tf.size(octets) - size)
    parts = tf.cast(octets[place : place + size], tf.int32)
    parts = tf.where(little, parts[::-1], parts)
    return tf.reduce_sum(parts * tf.constant([256**i for i in range(size)][::-1]))


def _tagged(octets: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """The orientation in the first directory of a TIFF structure (TIFF 6.0, section 2)."""
    little = _is_at(octets, start, b"II*\0")
    sound = little | _is_at(octets, start, b"MM\0*")
    directory = start + _small(octets, start + 4, little)
    entries = tf.where(sound, _number(octets, directory, 2, little), 0)
    last = tf.size(octets) - 12

    def look(entry: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        place = directory + 2 + 12 * entry
        tag, kind = (_number(octets, place + x, 2, little) for x in (0, 2))
        ours = (tag == _ORIENTATION) & (_small(octets, place + 4, little) == 1)
        short, long = _number(octets, place + 8, 2, little), _small(octets, place + 8, little)
        found = tf.where(ours & (kind == 3), short, found)
        return entry + 1, tf.where(ours & (kind == 4), long, found)

    def more(entry: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
        return (entry < entries) & (directory + 2 + 12 * entry <= last)

    return tf.while_loop(more, look, (tf.constant(0), tf.constant(1)))[1]


def _small(octets: tf.Tensor, place: tf.Tensor, little: tf.Tensor | bool) -> tf.Tensor:
    """An unsigned integer of 4 bytes, at most 2**30."""
    place = tf.clip_by_value(place, 0, tf.size(octets) - 4)
    parts = tf.cast(octets[place : place + 4], tf.int64)
    parts = tf.where(little, parts[::-1], parts)
    total = tf.reduce_sum(parts * tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64))
    return tf.cast(tf.minimum(total, 1 << 30), tf.int32)


def _is_at(octets: tf.Tensor, place: tf.Tensor, text: bytes) -> tf.Tensor:
    place = tf.clip_by_value(place, 0, tf.size(octets) - len(text))
    return tf.reduce_all(octets[place : place + len(text)] == tf.constant(list(text), tf.uint8))


def _walk(
    octets: tf.Tensor,
    begin: int,
    step: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
) -> tf.Tensor:
    """Walk a file's segments, and return the offset of its EXIF data, or 0.

    `step` takes the offset of a segment, and returns the offset of its EXIF data, or 0, and that of
    the next segment; an offset that does not increase ends the walk.
    """

    def more(place: tf.Tensor, before: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
        return (found == 0) & (place > before) & (place + 24 < tf.size(octets))

    def look(place: tf.Tensor, before: tf.Tensor, found: tf.Tensor):
        found, after = step(place)
        return after, place, found

    return tf.while_loop(more, look, (tf.constant(begin), tf.constant(0), tf.constant(0)))[2]


def _jpeg_exif(octets: tf.Tensor) -> tf.Tensor:
    """Marker segments up to the scan (ITU-T T.81, annex B); EXIF is in APP1."""

    def step(place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        kind = octets[place + 1]
        sound = (octets[place] == 0xFF) & (kind != 0xDA)
        exif = sound & (kind == 0xE1) & _is_at(octets, place + 4, b"Exif\0\0")
        after = tf.where(kind == 0xFF, place + 1, place + 2 + _number(octets, place + 2, 2, False))
        return tf.where(exif, place + 10, 0), tf.where(sound, after, 0)

    return _walk(octets, 2, step)


def _png_exif(octets: tf.Tensor) -> tf.Tensor:
    return _png_chunk(octets, b"eXIf")


def _png_chunk(octets: tf.Tensor, name: bytes) -> tf.Tensor:
    """Offset of the data of a PNG chunk, or 0 (PNG, section 5)."""

    def step(place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        found = _is_at(octets, place + 4, name)
        return tf.where(found, place + 8, 0), place + 12 + _small(octets, place, False)

    return _walk(octets, 8, step)


def _webp_exif(octets: tf.Tensor) -> tf.Tensor:
    """Chunks of even length; EXIF is in chunk ``EXIF``, and may begin as in a JPEG."""

    def step(place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        exif = _is_at(octets, place, b"EXIF")
        start = place + 8 + tf.where(_is_at(octets, place + 8, b"Exif\0\0"), 6, 0)
        size = _small(octets, place + 4, True)
        return tf.where(exif, start, 0), place + 8 + size + size % 2

    return _walk(octets, 12, step)
