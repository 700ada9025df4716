"""Photos decoded in a graph have the pixels of `load_image`, and a broken one costs its own row."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_alexnet.errors import ImageError
from tf_alexnet.export.decoding import decode_batch, decode_photo
from tf_alexnet.images import load_image

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
RNG = np.random.default_rng(0)
SMOOTH = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((90, 70))
)
ALPHA = RNG.integers(0, 256, (70, 90, 1), dtype=np.uint8)


def saved(pixels, kind, mode=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation, order="<", code=3):
    """EXIF written by hand, with another tag before the orientation."""
    form = {1: "B3x", 3: "H2x", 4: "I"}[code]
    tags = struct.pack(order + "HHIHxx", 0x0100, 3, 1, 6)
    tags += struct.pack(order + "HHI" + form, 0x0112, code, 1, orientation)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return b"Exif\0\0" + head + struct.pack(order + "IH", 8, 2) + tags + bytes(4)


def with_segment(jpeg, segment, before=b""):
    parts = [b"\xff\xe1" + struct.pack(">H", len(x) + 2) + x for x in (before, segment) if x]
    return jpeg[:2] + b"".join(parts) + jpeg[2:]


JPEG = saved(SMOOTH, "JPEG")
RGBA = np.concatenate([SMOOTH, ALPHA], axis=2)
FILES = {
    "4:4:4": saved(SMOOTH, "JPEG", subsampling=0, quality=90),
    "4:2:0": saved(SMOOTH, "JPEG", subsampling=2, quality=60),
    "progressive": saved(SMOOTH, "JPEG", progressive=True),
    "grey": saved(SMOOTH, "JPEG", "L"),
    "CMYK": saved(SMOOTH, "JPEG", "CMYK"),
    "PNG": saved(SMOOTH, "PNG"),
    "PNG with alpha": saved(RGBA, "PNG"),
    "grey PNG with alpha": saved(RGBA, "PNG", "LA"),
    "palette": saved(SMOOTH, "PNG", "P"),
    "transparent palette": saved(SMOOTH, "PNG", "P", transparency=3),
    "colour key": saved(SMOOTH, "PNG", transparency=tuple(SMOOTH[3, 4].tolist())),
    "1 bit": saved(SMOOTH, "PNG", "1"),
    "16 bits": saved(RNG.integers(0, 65536, (20, 30), dtype=np.uint16), "PNG"),
    "GIF": saved(SMOOTH, "GIF"),
    "BMP": saved(SMOOTH, "BMP"),
    "WebP": saved(SMOOTH, "WEBP", lossless=True),
    "lossy WebP": saved(SMOOTH, "WEBP"),
    **{
        f"{kind} turned by {n}": saved(SMOOTH, kind, exif=exif(n), **options)
        for n in (3, 6)
        for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}))
    },
    **{f"turned by {n}": with_segment(JPEG, exif(n, "<>"[n % 2])) for n in range(10)},
    "not turned, as BYTE": with_segment(JPEG, exif(6, "<", 1)),
    "turned, as LONG": with_segment(JPEG, exif(8, ">", 4)),
    "behind another APP1": with_segment(JPEG, exif(6), b"http://ns.adobe.com/xap/1.0/\0<x/>"),
    "damaged EXIF": with_segment(JPEG, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "EXIF without a header": with_segment(JPEG, b"Exif\0\0" + bytes(20)),
    "EXIF of another type": with_segment(
        JPEG,
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\x7f\x08\0\0\0",
    ),
}


@pytest.fixture(scope="module")
def decode():
    return tf.function(
        decode_photo, input_signature=[tf.TensorSpec((), tf.string)], autograph=False
    )


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_load_image(decode, name):
    np.testing.assert_array_equal(decode(FILES[name]).numpy(), load_image(FILES[name]))


def test_orientations_differ(decode):
    seen = {decode(FILES[f"turned by {n}"]).numpy().tobytes() for n in range(1, 9)}
    assert len(seen) == 8


# What TensorFlow's decoders do otherwise.
UNLIKE = {
    "pngsuite": set(),
}


@pytest.mark.parametrize("folder", ["exif_orientation", "libjpeg_turbo", "pngsuite"])
def test_odd_pictures(decode, folder):
    place = SHARED / "odd_images" / folder
    if not place.is_dir():
        pytest.skip("no folder of odd pictures beside the repository")
    unlike, refused, equal = set(), set(), 0
    for path in sorted(place.iterdir()):
        data = path.read_bytes()
        try:
            ours = load_image(data)
        except ImageError:
            continue
        try:
            theirs = decode(data).numpy()
        except tf.errors.OpError:
            refused.add(path.name)
            continue
        if theirs.shape == ours.shape and (theirs == ours).all():
            equal += 1
        else:
            unlike.add(path.name)
    print(folder, equal, "unlike", sorted(unlike), "refused", sorted(refused))
    assert unlike == UNLIKE.get(folder, set())


BROKEN = {
    b"": b"empty",
    b"\xff": b"not_an_image",
    b"hello, world": b"not_an_image",
    saved(SMOOTH, "TIFF"): b"not_an_image",
    b"\xff\xd8\xff\xe0" + bytes(40): b"damaged",
    JPEG[: len(JPEG) // 2]: b"damaged",
    FILES["PNG"][:-40]: b"damaged",
    FILES["PNG"][:9]: b"damaged",
    b"GIF89a": b"damaged",
    b"RIFF\x10\0\0\0WEBPVP8 ": b"damaged",
    b"RIFF\xff\xff\xff\xff" + bytes(30): b"damaged",
    b"BM" + bytes(60): b"damaged",
}


@pytest.fixture(scope="module")
def batch():
    def prepare(pixels):
        return tf.cast(tf.image.resize(tf.cast(pixels, tf.float32), (4, 4)), tf.float32)

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False)
    def run(photos):
        return decode_batch(photos, prepare, (4, 4, 3))

    return run


def test_a_broken_photo_costs_its_own_row(batch):
    good = FILES["PNG"]
    for broken, status in BROKEN.items():
        rows, found = batch([good, broken, good])
        assert found.numpy().tolist() == [b"ok", status, b"ok"], broken[:20]
        rows = rows.numpy()
        assert (rows[0] == rows[2]).all()
        assert rows[0].any()
        assert not rows[1].any()


def test_order_survives_among_many_broken(batch):
    photos = [saved(np.full((8, 8, 3), 10 + i, np.uint8), "PNG") for i in range(20)]
    for place in (0, 3, 4, 19):
        photos[place] = b"GIF8 is not all"
    rows, status = batch(photos)
    wanted = [0 if x != b"ok" else 10 + i for i, x in enumerate(status.numpy())]
    assert [i for i, x in enumerate(wanted) if not x] == [0, 3, 4, 19]
    np.testing.assert_allclose(rows.numpy()[:, 0, 0, 0], wanted)


@pytest.mark.parametrize("photos", [[], [b""], [b"x", b"y"]])
def test_batches_without_a_good_photo(batch, photos):
    rows, status = batch(tf.constant(photos, tf.string, (len(photos),)))
    assert rows.shape == (len(photos), 4, 4, 3)
    assert b"ok" not in status.numpy()
    assert not rows.numpy().any()


def test_damaged_headers_end_in_a_row(batch):
    """Bytes changed at random in the part that holds EXIF and sizes."""
    generator = np.random.default_rng(1)
    for name in ("turned by 6", "PNG turned by 3", "WEBP turned by 6"):
        photos = []
        for _ in range(64):
            data = bytearray(FILES[name])
            for place in generator.integers(0, 90, 3):
                data[place] = generator.integers(0, 256)
            photos.append(bytes(data))
        rows, status = batch(photos)
        assert np.isfinite(rows.numpy()).all()
        assert set(status.numpy()) <= {b"ok", b"damaged", b"not_an_image"}
