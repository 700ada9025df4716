"""One contract for every photo: its pixels by hand-made files, its refusals by damaged ones."""

import functools
import http.server
import importlib.util
import io
import os
import struct
import threading
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
from PIL import Image, ImageFile

from tf_alexnet.errors import ImageError, InputError, UsageError
from tf_alexnet.extraction.reader import PhotoReader
from tf_alexnet.images import decode, load_image, preprocess_input

SHARED = Path(__file__).parents[1].parent / "shared" / "data"

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)

UPRIGHT = {
    1: RGB,
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.transpose(1, 0, 2),
    6: np.rot90(RGB, -1),
    7: RGB.transpose(1, 0, 2)[::-1, ::-1],
    8: np.rot90(RGB),
}


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, bits, colour, rows, *chunks):
    """A PNG written by hand; `rows` are its packed, unfiltered rows."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", body), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(tags, data, order="<"):
    """A one-strip TIFF written by hand, from {tag: short}."""
    offset = 8 + 2 + 12 * (len(tags) + 2) + 4
    shorts = {tag: struct.pack(order + "HIHxx", 3, 1, value) for tag, value in tags.items()}
    longs = {273: offset, 279: len(data)}
    rows = {**shorts, **{t: struct.pack(order + "HII", 4, 1, v) for t, v in longs.items()}}
    body = b"".join(struct.pack(order + "H", tag) + rows[tag] for tag in sorted(rows))
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HIH", 42, 8, len(rows))
    return head + body + bytes(4) + data


def grey(*values):
    return np.repeat(np.array([values], np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "LZW", "WEBP"])
def test_exif_orientation_is_applied_once(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"LZW": {"compression": "tiff_lzw"}, "WEBP": {"lossless": True}}.get(kind, {})
    data = saved(RGB, "TIFF" if kind == "LZW" else kind, exif=exif.tobytes(), **options)
    np.testing.assert_array_equal(load_image(data), UPRIGHT[orientation])


def test_jpeg_orientation_turns_clockwise():
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, turned = saved(RGB, "JPEG"), saved(RGB, "JPEG", exif=exif.tobytes())
    np.testing.assert_array_equal(load_image(turned), np.rot90(load_image(plain), -1))


@pytest.mark.parametrize(
    "exif",
    [
        b"garbage",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\x7f\x08\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
    ],
)
def test_broken_exif_counts_as_none(exif, capfd):
    data = saved(RGB, "JPEG")
    marked = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    np.testing.assert_array_equal(load_image(marked), load_image(data))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "TGA"])
def test_alpha_is_laid_over_white(kind):
    alpha = np.linspace(0, 255, 35).astype(np.uint8).reshape(5, 7, 1)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    got = load_image(saved(np.concatenate([RGB, alpha], axis=2), kind, **options))
    weight = alpha / 255.0
    # Pillow blends in integers: half a level beside exact rounding.
    np.testing.assert_allclose(got, RGB * weight + 255 * (1 - weight), atol=1.0)
    assert (got[0, 0] == 255).all()
    assert (got[-1, -1] == RGB[-1, -1]).all()


def test_grey_with_alpha_is_laid_over_white():
    pixels = np.array([[[0, 0], [0, 255], [100, 255], [100, 51]]], np.uint8)
    got = load_image(saved(Image.fromarray(pixels, "LA"), "PNG"))
    np.testing.assert_array_equal(got, grey(255, 0, 100, 224))  # 100 * 0.2 + 255 * 0.8
    deep = png(2, 1, 16, 4, [struct.pack(">4H", 0x1234, 0xFFFF, 0x1234, 0)])
    np.testing.assert_array_equal(load_image(deep), grey(0x12, 255))


def test_palettes_and_their_transparency():
    colours = chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]))
    opaque = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    row = [bytes([0, 1, 2])]
    np.testing.assert_array_equal(load_image(png(3, 1, 8, 3, row, colours)), [opaque])
    one = png(3, 1, 8, 3, row, colours, chunk(b"tRNS", b"\xff\x00"))
    np.testing.assert_array_equal(load_image(one), [[opaque[0], [255] * 3, opaque[2]]])
    partly = png(3, 1, 8, 3, row, colours, chunk(b"tRNS", bytes([51, 0, 255])))
    np.testing.assert_array_equal(load_image(partly), [[[255, 204, 204], [255] * 3, opaque[2]]])


@pytest.mark.parametrize(
    ("bits", "row", "key", "expected"),
    [
        (1, b"\x40", 1, (0, 255, 0)),
        (1, b"\x40", 0, (255, 255, 255)),
        (2, b"\x18", 1, (0, 255, 170)),
        (4, b"\x1a\x50", 10, (17, 255, 85)),
        (8, b"\x01\x0a\x50", 10, (1, 255, 80)),
        (16, b"\x0a\x00\x0a\x01\x50\xff", 0x0A01, (10, 255, 80)),
    ],
)
def test_colour_key_of_grey(bits, row, key, expected):
    data = png(3, 1, bits, 0, [row], chunk(b"tRNS", struct.pack(">H", key)))
    np.testing.assert_array_equal(load_image(data), grey(*expected))


def test_colour_key_of_rgb():
    key = chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))
    data = png(3, 1, 8, 2, [bytes([1, 2, 3, 1, 2, 4, 3, 2, 1])], key)
    np.testing.assert_array_equal(load_image(data), [[[255] * 3, [1, 2, 4], [3, 2, 1]]])
    key = chunk(b"tRNS", struct.pack(">3H", 0x1011, 0x2022, 0x3033))
    row = struct.pack(">6H", 0x1011, 0x2022, 0x3033, 0x9911, 0x2022, 0x3033)
    got = load_image(png(2, 1, 16, 2, [row], key))
    np.testing.assert_array_equal(got, [[[255] * 3, [0x99, 0x20, 0x30]]])


def test_grey_gif_with_a_transparent_colour():
    pixels = np.array([[0, 60, 120]], np.uint8)
    data = saved(pixels, "GIF", transparency=60)
    np.testing.assert_array_equal(load_image(data), grey(0, 255, 120))


SIXTEEN = np.array([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
SIXTEEN_EXPECTED = grey(0, 0, 1, 0x12, 255)


@pytest.mark.parametrize(
    "data",
    [
        saved(SIXTEEN, "PNG"),
        saved(SIXTEEN, "TIFF"),
        saved(SIXTEEN, "TIFF", compression="tiff_lzw"),
        saved(Image.frombytes("I;16B", (5, 1), SIXTEEN.astype(">u2").tobytes()), "TIFF"),
        b"P5 5 1 65535\n" + SIXTEEN.astype(">u2").tobytes(),
        b"P2 5 1 65535\n0 255 256 4660 65535\n",
    ],
    ids=["png", "tiff", "tiff-lzw", "tiff-big-endian", "pgm", "pgm-plain"],
)
def test_sixteen_bit_grey_keeps_the_high_byte(data):
    np.testing.assert_array_equal(load_image(data), SIXTEEN_EXPECTED)


SAMPLES = np.array([[0, 255, 256, 0x1234, 0xFFFF], [1, 0x80FF, 0x7F00, 5, 0xFEDC]], np.uint16)


def grey_tiff(order, white, bits, packed, predicted=False, samples=SAMPLES):
    """A grey TIFF, or bytes of a whole number of bits a sample; `packed`: TIFF's compression."""
    kind = np.dtype(f"{order}u{bits // 8}")
    samples = samples >> 16 - bits
    if predicted:
        samples = np.diff(samples, axis=1, prepend=0)
    data = samples.astype(kind).tobytes()
    if packed == 8:
        data = zlib.compress(data)
    elif packed == 32773:
        data = bytes([len(data) - 1]) + data
    tags = {256: 5, 257: 2, 258: bits, 259: packed, 262: white, 277: 1, 278: 2}
    return tiff({**tags, 317: 2} if predicted else tags, data, order)


@pytest.mark.parametrize("packed", [1, 8, 32773, "predicted"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("white", [0, 1])
@pytest.mark.parametrize("order", ["<", ">"])
def test_grey_tiffs_are_opencvs(order, white, bits, packed):
    predicted = packed == "predicted"
    data = grey_tiff(order, white, bits, 8 if predicted else packed, predicted)
    got = load_image(data)
    np.testing.assert_array_equal(got, cv2.imdecode(np.frombuffer(data, np.uint8), 1))
    high = (SAMPLES >> 8).astype(np.uint8)
    np.testing.assert_array_equal(got[..., 0], high if white else 255 - high)


@pytest.mark.parametrize("kind", ["tiled", "BigTIFF", "PNG"])
def test_deep_grey_of_other_shapes(kind):
    noise = RNG.integers(0, 65536, (40, 50), dtype=np.uint16)
    options = {"tiled": {"tiffinfo": {322: 16, 323: 16}}, "BigTIFF": {"big_tiff": True}}
    data = saved(noise, "PNG" if kind == "PNG" else "TIFF", **options.get(kind, {}))
    np.testing.assert_array_equal(
        load_image(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    )


def test_twelve_bits_a_sample():
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 277: 1, 278: 1}
    data = tiff(tags, b"\xff\xf1\x23")
    # OpenCV shifts them up to 16 bits.
    deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(deep, [[0xFFF0, 0x1230]])
    np.testing.assert_array_equal(load_image(data), grey(0xFF, 0x12))


@pytest.mark.parametrize(
    ("values", "depth", "expected", "note"),
    [
        (
            [0, 256, 3071],
            "auto",
            [0, 1, 11],
            "max value 3071: looks like 12 bits; depth=12 (--depth 12) would",
        ),
        ([0, 256, 3071], "12", [0, 16, 191], None),
        ([0, 256, 3071], "16", [0, 1, 11], None),
        (
            [0, 17, 250],
            "auto",
            [0, 0, 0],
            "max value 250: looks like 8 bits; depth=8 (--depth 8) would use",
        ),
        ([0, 17, 250], "8", [0, 17, 250], None),
        ([0, 17, 4096], "8", [0, 17, 255], None),
        ([0, 17, 4096], "12", [0, 1, 255], None),
        ([0, 17, 4096], "auto", [0, 0, 16], None),
        ([0, 0, 0], "auto", [0, 0, 0], None),
    ],
)
def test_depth_of_sixteen_bit_grey(values, depth, expected, note, caplog):
    samples = np.array([values], np.uint16)
    files = [saved(samples, "PNG"), saved(samples, "TIFF")]
    tags = {256: 3, 257: 1, 258: 16, 259: 1, 262: 1, 277: 1, 278: 1}
    files.append(tiff(tags, samples.astype(">u2").tobytes(), ">"))
    for data in files:
        np.testing.assert_array_equal(load_image(data, depth=depth), grey(*expected))
        number = int(depth) if depth.isdigit() else depth
        np.testing.assert_array_equal(decode.decode_photo(data, depth=number), grey(*expected))
        inverted = tiff({**tags, 262: 0}, samples.astype("<u2").tobytes())
        np.testing.assert_array_equal(
            load_image(inverted, depth=depth), grey(*(255 - np.array(expected)))
        )
    notes = [record.getMessage() for record in caplog.records]
    assert len(notes) == (9 if note else 0)
    assert all(note in text for text in notes)
    with pytest.raises(UsageError, match=r"depth='10': not a depth\. Use auto, 16, 12, 8\."):
        load_image(files[0], depth="10")


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_heic(monkeypatch, tmp_path):
    pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(np.kron(RGB, np.ones((16, 16, 1), np.uint8)), "HEIF", exif=exif.tobytes())
    (tmp_path / "photo.heic").write_bytes(data)
    got = load_image(tmp_path / "photo.heic")
    assert got.shape == (7 * 16, 5 * 16, 3)
    centres = got[8::16, 8::16].astype(int) - np.rot90(RGB, -1)
    assert np.abs(centres).mean() < 30, "coded with loss"
    with PhotoReader("caffe", workers=1) as reader:
        (batch,) = reader.batches([str(tmp_path / "photo.heic")], 1)
    expected = preprocess_input([got], "caffe")
    np.testing.assert_array_equal(batch.pixels, expected)
    with pytest.raises(ImageError):
        load_image(data[: len(data) // 2])


def test_heic_without_its_reader(monkeypatch):
    formats = tuple(name for name in decode.FORMATS if name != "HEIF")
    monkeypatch.setattr(decode, "FORMATS", formats)
    with pytest.raises(ImageError, match=r"it is a HEIC photo\. .* pip install 'tf-alexnet\[heic"):
        load_image(HEIC)


def test_sixteen_bit_colour_keeps_the_high_byte():
    row = struct.pack(">6H", 0x00FF, 0x0100, 0xFFFF, 0x1234, 0x80FF, 0x7F00)
    np.testing.assert_array_equal(
        load_image(png(2, 1, 16, 2, [row])), [[[0, 1, 255], [0x12, 0x80, 0x7F]]]
    )


def test_pgm_is_scaled_from_its_maximum():
    ten_bits = b"P5 3 1 1023\n" + struct.pack(">3H", 0, 512, 1023)
    np.testing.assert_array_equal(
        load_image(ten_bits), grey(0, round(512 / 1023 * 65535) >> 8, 255)
    )
    np.testing.assert_array_equal(load_image(b"P5 3 1 15\n\x00\x07\x0f"), grey(0, 119, 255))


def test_sixteen_bit_pictures_are_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 8
    got = load_image(saved(SIXTEEN, "PNG", exif=exif.tobytes()))
    np.testing.assert_array_equal(got, np.rot90(SIXTEEN_EXPECTED))


def test_one_bit():
    bits = np.array([[True, False, True]])
    np.testing.assert_array_equal(load_image(saved(bits, "PNG")), grey(255, 0, 255))
    np.testing.assert_array_equal(load_image(b"P1 3 1\n0 1 0\n"), grey(255, 0, 255))


def test_cmyk():
    ink = RNG.integers(0, 256, (4, 6, 4), dtype=np.uint8)
    got = load_image(saved(Image.fromarray(ink, "CMYK"), "TIFF"))
    light = 1 - ink / 255.0
    np.testing.assert_allclose(got, 255 * light[..., :3] * light[..., 3:], atol=1.0)
    # A JPEG stores its inks inverted; a slip would turn this light red into dark cyan.
    patch = Image.new("CMYK", (16, 16), (0, 200, 200, 20))
    got = load_image(saved(patch, "JPEG", quality=100))
    np.testing.assert_allclose(got[8, 8], [235, 51, 51], atol=4)


def test_the_first_picture_of_several():
    other = Image.fromarray(255 - RGB)
    several = {"save_all": True, "append_images": [other]}
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(load_image(saved(RGB, kind, **several)), RGB)
    webp = saved(RGB, "WEBP", lossless=True, **several)
    np.testing.assert_array_equal(load_image(webp), RGB)
    frames = {"save_all": True, "append_images": [Image.new("L", (3, 1), 9)]}
    first = np.array([[0, 60, 120]], np.uint8)
    np.testing.assert_array_equal(load_image(saved(first, "GIF", **frames)), grey(0, 60, 120))
    mpo = saved(RGB, "MPO", **several)
    np.testing.assert_array_equal(load_image(mpo), load_image(saved(RGB, "JPEG")))


def test_path_and_bytes_give_the_same_fresh_array(tmp_path):
    path = tmp_path / "wrong suffix.txt"
    data = saved(RGB, "BMP")
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data), memoryview(data)):
        got = load_image(source)
        np.testing.assert_array_equal(got, RGB)
        assert got.dtype == np.uint8
        assert got.flags.writeable
        assert got.flags.c_contiguous


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (saved(Image.new("F", (3, 3), 0.5), "TIFF"), "floating-point pixels"),
        (saved(Image.new("I", (3, 3), 70000), "TIFF"), "32-bit or signed pixels"),
        (saved(Image.new("LAB", (3, 3)), "TIFF"), "Lab pixels"),
        (b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5), "floating-point pixels|no image of a kind"),
    ],
    ids=["float", "int32", "lab", "pfm"],
)
def test_pixels_without_an_obvious_range_are_refused(data, reason):
    with pytest.raises(ImageError, match=reason):
        load_image(data)


WRITERS = {
    "JPEG": {},
    "PNG": {},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
    "TIFF ": {"compression": "tiff_lzw"},
    "WEBP": {},
    "PPM": {},
    "PCX": {},
    "TGA": {},
    "JPEG ": {"progressive": True},
    **{kind: {} for kind in ("JPEG2000", "AVIF") if kind in decode.FORMATS},
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("tolerant", [False, True])
def test_truncated_data_is_never_accepted(kind, tolerant, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    noise = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    data = saved(noise, kind.strip(), **WRITERS[kind])
    assert load_image(data).shape == (40, 50, 3)
    for part in (0.1, 0.5, 0.9, 0.98):
        with pytest.raises(ImageError, match="image of"):
            load_image(data[: int(part * len(data))])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is tolerant


@pytest.mark.parametrize(
    ("width", "height"), [(50000, 50000), (50001, 1000), (2**31 - 1, 2**31 - 1)]
)
def test_a_bomb_is_refused_by_its_header(width, height, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="more than 50,000,000"):
        load_image(png(width, height, 8, 0, [b""]))


def test_fifty_megapixels_are_allowed_by_the_header():
    with pytest.raises(ImageError, match="can't be decoded"):  # there are no pixels in it
        load_image(png(50_000, 1_000, 8, 0, [b""]))


def test_a_bomb_inside_an_icon_is_refused():
    inner = png(9000, 6000, 1, 0, [bytes(1125)] * 6000)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    with pytest.raises(ImageError, match="9000x6000 pixels"):
        load_image(struct.pack("<HHH", 0, 1, 1) + entry + inner)


def test_only_known_photo_formats_are_opened(monkeypatch):
    monkeypatch.setattr(os, "system", lambda *a: pytest.fail("a program was started"))
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a program was started"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    psd = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 1, 1, 8, 3) + bytes(12) + bytes(5)
    for data in (eps, psd, saved(RGB, "SGI"), b"<html>404 Not Found</html>", bytes(1000)):
        with pytest.raises(ImageError, match="not an image format we read"):
            load_image(data)
    assert not {"EPS", "PSD", "FITS", "WMF", "PDF"} & set(decode.FORMATS)


@pytest.mark.parametrize(
    "error",
    [
        *(OSError, ValueError, SyntaxError, IndexError, TypeError, NotImplementedError),
        *(struct.error, MemoryError, RecursionError, EOFError, KeyError, zlib.error),
        *(Image.DecompressionBombError, AttributeError, OverflowError, AssertionError),
    ],
)
def test_whatever_pillow_raises_becomes_one_error(error, monkeypatch):
    def fail(self):
        raise error("two\nlines")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ImageError) as caught:
        load_image(saved(RGB, "BMP"))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("copy, or leave it out.")


def test_files_that_cannot_be_read(tmp_path):
    def refusal(path):
        with pytest.raises(ImageError) as caught:
            load_image(path)
        return str(caught.value)

    (tmp_path / "empty.jpg").touch()
    os.mkfifo(tmp_path / "pipe.jpg")
    assert ": it is empty. " in refusal(tmp_path / "empty.jpg")
    assert ": it is a folder. " in refusal(tmp_path)
    assert ": it is not a regular file. " in refusal(tmp_path / "pipe.jpg")
    assert refusal(tmp_path / "no\nsuch.jpg").count("\n") == 0
    assert ": there is no such file. " in refusal(tmp_path / "none.jpg")
    assert "can't be read" in refusal("nul\0character.jpg")
    assert "can't be read (File name too long)" in refusal("x" * 5000)
    with pytest.raises(ImageError, match="image of 0 bytes: it is empty"):
        load_image(b"")


@pytest.mark.parametrize("times", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("change", ["grows", "shrinks", "is rewritten", "is replaced"])
def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, monkeypatch, change, times):
    path, contents = tmp_path / "a", []

    def put(data, seconds):
        # Its times would be the same, or not, by chance.
        other = tmp_path / "b"
        other.write_bytes(data)
        os.utime(other, (seconds, seconds))
        contents.append(data)
        if change == "is replaced":
            other.rename(path)
        else:
            path.write_bytes(other.read_bytes())
            os.utime(path, (seconds, seconds))

    def opened(*args):
        if len(contents) <= times:
            count = {"grows": 10 + len(contents), "shrinks": 30 - len(contents)}.get(change, 20)
            put(bytes([len(contents)]) * count, len(contents))
        return open(*args)

    put(b"first", 77)
    monkeypatch.setattr(decode, "open", opened, raising=False)
    data, found = decode.read_file(os.fspath(path))
    if times < 3:
        assert (data, found) == (contents[-1], path.stat())
    else:
        assert found is None
        assert data
        assert contents[3].startswith(data)
    assert len(contents) == min(times, 3) + 1


def test_no_permission(tmp_path, monkeypatch):
    path = tmp_path / "secret.jpg"
    path.write_bytes(saved(RGB, "JPEG"))
    path.chmod(0)

    def deny(*args):
        raise PermissionError(13, "Permission denied")

    if os.geteuid() == 0:  # root reads everything
        monkeypatch.setattr("builtins.open", deny)
    with pytest.raises(ImageError, match="no permission to read it") as caught:
        load_image(path)
    assert caught.value.code == "no_permission"
    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(ImageError, match="the folder can't be read") as caught:
        load_image(tmp_path)
    assert caught.value.code == "no_permission"


def test_an_oversized_file_is_not_read(tmp_path):
    path = tmp_path / "huge.jpg"
    with open(path, "wb") as file:
        file.truncate(decode.MAX_BYTES + 1)
    with pytest.raises(ImageError, match="536,870,913 bytes, more than 536,870,912"):
        load_image(path)


class Stream(io.RawIOBase):
    """What can't be wound back, as an HTTP response."""

    def __init__(self, data):
        self._data = data

    def read(self, size=-1):
        part, self._data = self._data[:size], self._data[size:]
        return part


def test_open_files(tmp_path):
    data = saved(RGB, "PNG")
    (tmp_path / "photo").write_bytes(data)
    written = io.BytesIO()
    Image.fromarray(RGB).save(written, "PNG")  # stands at its end now
    with open(tmp_path / "photo", "rb") as file:
        for source in (file, written, io.BytesIO(data), Stream(data), bytearray(data)):
            np.testing.assert_array_equal(load_image(source), RGB)
    refusals = {"closed file": file, "it is empty": io.BytesIO()}
    refusals["it can't be decoded"] = io.BytesIO(data[:-40])
    for match, source in refusals.items():
        with pytest.raises(ImageError, match=match):
            load_image(source)
    with (
        open(tmp_path / "photo", encoding="latin-1") as file,
        pytest.raises(ImageError, match=f"{tmp_path}/photo: it is open as text. Open it with"),
    ):
        load_image(file)


def test_what_is_no_source_of_a_photo():
    for source in (7, None, RGB, ["a.jpg"]):
        with pytest.raises(InputError, match=f"photo of type {type(source).__name__}: not a path"):
            load_image(source)


def test_pillows_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(RGB, "PNG", exif=exif.tobytes())
    turned = np.rot90(RGB, -1)
    (tmp_path / "photo").write_bytes(data)
    with Image.open(tmp_path / "photo") as lazy:
        np.testing.assert_array_equal(load_image(lazy), turned)
        np.testing.assert_array_equal(load_image(lazy), turned)  # loaded now
    alpha = Image.fromarray(np.dstack([RGB, np.full(RGB.shape[:2], 128, np.uint8)]))
    np.testing.assert_array_equal(load_image(alpha), load_image(saved(alpha, "PNG")))
    row = [bytes([1, 2, 3, 1, 2, 4])]
    data = png(2, 1, 8, 2, row, chunk(b"tRNS", struct.pack(">3H", 1, 2, 3)))
    keyed, expected = Image.open(io.BytesIO(data)), load_image(data)
    before = dict(keyed.info)
    for _ in range(2):
        np.testing.assert_array_equal(load_image(keyed), expected)
    assert keyed.info == before
    palette = Image.fromarray(RGB).convert("P")
    np.testing.assert_array_equal(load_image(palette), palette.convert("RGB"))
    np.testing.assert_array_equal(load_image(Image.fromarray(SIXTEEN)), SIXTEEN_EXPECTED)
    with pytest.raises(ImageError, match=r"PIL image of 9x9 pixels: it holds floating-point"):
        load_image(Image.new("F", (9, 9)))
    with pytest.raises(ImageError, match="more than 50,000,000"):
        load_image(Image.new("1", (50_001, 1_000)))
    cut = Image.open(io.BytesIO(saved(RGB, "PNG")[:-40]))
    with pytest.raises(ImageError, match="it can't be decoded"):
        load_image(cut)


def test_urls(monkeypatch):
    files = fsspec.filesystem("memory")
    files.pipe("/decode/photo.png", saved(RGB, "PNG"))
    np.testing.assert_array_equal(load_image("memory://decode/photo.png"), RGB)
    with pytest.raises(ImageError, match=r"none\.png: there is no such file") as seen:
        load_image("memory://decode/none.png")
    assert seen.value.code == "missing"
    monkeypatch.setattr(decode, "MAX_BYTES", 100)
    with pytest.raises(ImageError, match="the file has more than 100 bytes"):
        load_image("memory://decode/photo.png")
    with pytest.raises(UsageError, match="nosuch"):
        load_image("nosuch://a.png")


def test_http(tmp_path):
    if importlib.util.find_spec("aiohttp") is None:
        with pytest.raises(UsageError, match=r"Install it: pip install 'fsspec\[http\]'\."):
            load_image("https://127.0.0.1/photo.png")
        return
    (tmp_path / "photo.png").write_bytes(saved(RGB, "PNG"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        np.testing.assert_array_equal(load_image(f"{url}/photo.png"), RGB)
        with pytest.raises(ImageError, match="there is no such file"):
            load_image(f"{url}/none.png")
        server.shutdown()


def noisy_png():
    """A picture about which Pillow warns: an APNG control chunk that says nothing."""
    data = saved(RGB, "PNG")
    return data[:33] + chunk(b"acTL", bytes(8)) + data[33:]


def test_pillows_warnings_stay_inside(capfd):
    with pytest.warns(UserWarning, match="Invalid APNG"), Image.open(io.BytesIO(noisy_png())):
        pass
    before = list(warnings.filters)
    np.testing.assert_array_equal(load_image(noisy_png()), RGB)
    assert capfd.readouterr().err == ""
    assert warnings.filters == before


def test_many_threads_at_once(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    before = list(warnings.filters)
    good = saved(RGB, "PNG")
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        for _ in range(30):
            np.testing.assert_array_equal(load_image(noisy_png()), RGB)
            with pytest.raises(ImageError):
                load_image(good[: 40 + 5 * number])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert warnings.filters == before
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.skipif(not SHARED.exists(), reason="the shared pictures are not here")
def test_odd_pictures_of_the_wild():
    refused = set()
    for path in sorted((SHARED / "odd_images").glob("*/*.*")):
        try:
            assert path.suffix == ".txt" or load_image(path).std() >= 0
        except ImageError:
            refused.add(path.name)
    # PngSuite calls its damaged files x*, among them one whose pixels are whole (xcsn0g01: only
    # the checksum is wrong, which Pillow does not look at); monkey12 is a JPEG of 12 bits.
    damaged = {path.name for path in (SHARED / "odd_images" / "pngsuite").glob("x*.png")}
    assert refused == damaged - {"xcsn0g01.png"} | {"monkey12.jpg"}
    folder = SHARED / "odd_images" / "exif_orientation"
    for shape in ("Landscape", "Portrait"):
        first = load_image(folder / f"{shape}_1.jpg").astype(int)
        for number in range(2, 9):
            turned = load_image(folder / f"{shape}_{number}.jpg")
            assert np.abs(turned - first).mean() < 12, (shape, number)


@pytest.mark.parametrize(
    "data",
    [
        saved(RGB, "PNG"),
        saved(Image.fromarray(RGB).convert("RGBA"), "PNG"),
        saved(np.dstack([RGB, RGB[..., 0]]), "WEBP", lossless=True),
        saved(Image.fromarray(RGB).convert("P"), "PNG", transparency=3),
        saved(RGB[..., 0], "PNG", transparency=int(RGB[3, 1, 0])),
        saved(RGB[..., 0].astype(np.uint16) * 257, "PNG"),
        saved(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
        saved(Image.fromarray(RGB[..., 0]).convert("1"), "TIFF"),
    ],
    ids=["rgb", "rgba", "webp", "palette", "key", "deep", "cmyk", "bits"],
)
def test_strips_change_no_pixel(data, monkeypatch):
    whole = load_image(data)
    for pixels in (1, 3 * whole.shape[1], whole.size // 3 - 1):
        monkeypatch.setattr(decode, "_STRIP", pixels)
        np.testing.assert_array_equal(load_image(data), whole)


def test_a_large_picture_is_not_there_many_times(monkeypatch):
    data = saved(Image.new("RGBA", (2000, 2000), (1, 2, 3, 100)), "PNG")
    tracemalloc.start()
    assert load_image(data).shape == (2000, 2000, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.6 * 12e6, "the result is 12 MB"
