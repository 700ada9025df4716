"""OpenCV decodes JPEGs in place of Pillow only where nobody can tell."""

import io
import random

import numpy as np
import pytest
from PIL import Image
from test_hostile_photos import damaged

from tf_alexnet.errors import ImageError
from tf_alexnet.images import jpeg, load_image
from tf_alexnet.images.decode import decode_photo

OPTIONS = [
    {"subsampling": subsampling, "progressive": progressive, "optimize": True}
    for subsampling in (0, 1, 2)
    for progressive in (False, True)
]
OPTIONS += [{"restart_marker_blocks": 3}, {"quality": 100}, {"quality": 3}]


@pytest.fixture
def decoded(monkeypatch):
    """What OpenCV was given to decode."""
    if not jpeg._opencv_agrees():
        pytest.skip("this OpenCV and this Pillow have different libjpegs")
    given, decode = [], jpeg._by_opencv

    def by_opencv(data):
        given.append(data)
        return decode(data)

    monkeypatch.setattr(jpeg, "_by_opencv", by_opencv)
    return given


@pytest.fixture(scope="module")
def picture(example_photos):
    return Image.open(example_photos[0]).convert("RGB").resize((77, 53))


def saved(picture, kind="JPEG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def outcome(data, **options):
    try:
        return decode_photo(data, **options)
    except ImageError as error:
        return error.code, error.found


def check(data):
    wanted, got = outcome(data), outcome(data, opencv=True)
    assert isinstance(wanted, tuple) == isinstance(got, tuple), (wanted, got)
    np.testing.assert_array_equal(got, wanted)


def test_pixels_are_pillows(decoded, picture):
    for number, options in enumerate(OPTIONS):
        data = saved(picture, **options)
        check(data)
        assert decoded.pop() == data
        exif = Image.Exif()
        exif[0x0112] = number
        check(saved(picture, exif=exif.tobytes(), **options))
        assert decoded.pop()
        check(saved(picture.convert("L"), **options))
    check(data := saved(picture.convert("L"), subsampling=0))
    assert decoded.pop() == data
    got = decode_photo(data, opencv=True)
    assert got.flags.writeable
    assert got.flags.c_contiguous


def test_photos_of_the_repository(decoded, example_photos):
    for path in example_photos:
        np.testing.assert_array_equal(decode_photo(path, opencv=True), load_image(path))
    assert len(decoded) == len(example_photos)


def test_shared_photos(decoded, shared_photos):
    folder = shared_photos[0].parents[1]
    for path in [*folder.glob("odd_images/*/*.*"), *sorted(folder.glob("flowers/**/*.jpg"))[::8]]:
        check(path)
    assert len(decoded) > 100


def test_other_kinds_are_left_to_pillow(decoded, picture):
    several = {"save_all": True, "append_images": [picture.rotate(90)]}
    check(saved(picture, "MPO", **several))
    assert len(decoded) == 1
    data = saved(picture)
    for other in (
        saved(picture.convert("CMYK")),
        saved(picture, "PNG"),
        data[:-2],  # no end
        data[: len(data) // 2] + b"\xff\xd8" + data[len(data) // 2 :],  # a start in the middle
        data[:-2] + b"\xff\xdb\x00\x01\xff\xd9",  # a broken table that nobody needs
    ):
        check(other)
    assert len(decoded) == 1


def test_damaged_files_come_out_the_same(decoded, picture):
    random_ = random.Random(5)
    whole = [saved(picture, **options) for options in OPTIONS]
    whole += [saved(picture.convert("L")), saved(picture, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")]
    for number in range(3000):
        data = random_.choice(whole)
        place = random_.randrange(len(data) // 3, len(data) - 3)
        match number % 4:
            case 0:
                check(damaged(random_, data))
            case 1:
                check(damaged(random_, data) + b"\xff\xd9")
            case 2:  # the end is there, something before it is not
                check(data[:place] + data[min(place + random_.randrange(200), len(data) - 2) :])
            case 3:  # a marker where none should be
                marker = bytes([0xFF, random_.randrange(256)])
                check(data[:place] + marker + data[place + 2 :])
    assert len(decoded) > 1000


def test_an_opencv_with_another_libjpeg_is_not_used(picture, monkeypatch):
    decode = jpeg._by_opencv

    def slightly_off(data):
        pixels = decode(data)
        pixels[0, 0, 0] ^= 1
        return pixels

    monkeypatch.setattr(jpeg, "_by_opencv", slightly_off)
    monkeypatch.setattr(jpeg, "_opencv_agrees", jpeg._opencv_agrees.__wrapped__)
    check(saved(picture))


def test_large_jpegs_at_a_fraction_of_their_size(decoded, example_photos):
    photo = Image.open(example_photos[0]).convert("RGB").resize((1300, 1100))
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "MPO"):
        data = saved(photo, kind, exif=exif.tobytes(), quality=95)
        small = decode_photo(data, least=512, opencv=True)
        assert small.shape == (650, 550, 3)
        whole = Image.fromarray(load_image(data)).resize((550, 650), Image.Resampling.BOX)
        assert np.abs(small.astype(int) - np.asarray(whole)).mean() < 2  # observed 0.7
    assert decode_photo(data, least=560).shape == (1300, 1100, 3), "not less than asked for"
    assert decode_photo(saved(photo, "PNG"), least=512).shape == (1100, 1300, 3)
    assert not decoded
    assert decode_photo(data, least=560, opencv=True).shape == (1300, 1100, 3)
    assert len(decoded) == 1
    with pytest.raises(ImageError, match="truncated"):
        decode_photo(saved(photo)[:5000], least=512)
