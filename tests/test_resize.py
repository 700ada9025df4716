"""The resizes and presets as TensorFlow ops: the same pixels as OpenCV and Pillow, bit for bit."""

from pathlib import Path

import cv2
import numpy as np
import PIL
import pytest
import tensorflow as tf
from PIL import Image

from tf_alexnet.errors import InputError, PresetError
from tf_alexnet.images import PRESETS, load_image, preprocess_input
from tf_alexnet.images.resize import resize_opencv, resize_pillow, shorter_side_size
from tf_alexnet.images.tf_ops import resize_opencv_ops, resize_pillow_ops

SHARED = Path(__file__).parents[1].parent / "shared" / "data"

SPEC = [
    tf.TensorSpec((None, None, 3), tf.uint8),
    tf.TensorSpec((), tf.int32),
    tf.TensorSpec((), tf.int32),
]

SPECIAL = [
    *((1, 1), (1, 2), (2, 1), (1, 700), (700, 1), (2, 3000), (3000, 2)),
    *((256, 256), (512, 512), (128, 128), (1024, 1024), (512, 300), (300, 512), (255, 257)),
    *((227, 227), (454, 454), (224, 224), (448, 448), (448, 224), (768, 256), (1500, 2000)),
]


def shapes(count):
    """Extremes, then seeded random ones: small, photo-like and long."""
    rng = np.random.default_rng(2)
    small = rng.integers(1, 16, (count // 3, 2))
    photos = rng.integers(16, 700, (count // 3, 2))
    long = np.stack([rng.integers(1, 9, count // 3), rng.integers(50, 1500, count // 3)], axis=1)
    long[::2] = long[::2, ::-1]
    return [*SPECIAL, *((int(h), int(w)) for h, w in np.concatenate([small, photos, long]))]


def noise(height, width):
    seed = np.random.default_rng(height * 10_000 + width)
    return seed.integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_function(ops):
    @tf.function(input_signature=SPEC)
    def resize(image, height, width):
        rows = (tf.shape(image)[0], height, tf.range(height))
        columns = (tf.shape(image)[1], width, tf.range(width))
        return ops(image, rows, columns)

    return resize


COUNTS = pytest.mark.parametrize("count", [40, pytest.param(300, marks=pytest.mark.slow)])


@COUNTS
def test_opencv_ops_equal_opencv(count):
    resize = as_function(resize_opencv_ops)
    targets = [(256, 256), (227, 227), (31, 50)]
    for number, shape in enumerate(shapes(count)):
        image, target = noise(*shape), targets[number % 3]
        expected = cv2.resize(image, target[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(resize_opencv(image, *target), expected)
        np.testing.assert_array_equal(resize(image, *target), expected, f"{shape} to {target}")


@COUNTS
def test_pillow_ops_equal_pillow(count):
    resize = as_function(resize_pillow_ops)
    targets = [(256, 341), (224, 224), (31, 50)]
    version = int(PIL.__version__.split(".")[0])
    for number, shape in enumerate(shapes(count)):
        image, target = noise(*shape), targets[number % 3]
        got = resize_pillow(image, *target)
        np.testing.assert_array_equal(resize(image, *target), got, f"{shape} to {target}")
        once = Image.fromarray(image).resize(target[::-1], Image.Resampling.BILINEAR)
        # Pillow 13, and 12 with very tall pictures, may do heights first: a level of rounding.
        tall = shape[0] > 100 * shape[1]
        atol = 1 if version >= 13 or (version == 12 and tall) else 0
        np.testing.assert_allclose(got.astype(int), np.asarray(once).astype(int), rtol=0, atol=atol)


def test_extreme_pixels_do_not_overflow():
    for value in (0, 255):
        image = np.full((700, 900, 3), value, np.uint8)
        for ops in (resize_opencv_ops, resize_pillow_ops):
            got = as_function(ops)(image, 123, 211)
            np.testing.assert_array_equal(got, np.full((123, 211, 3), value))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (500, 375, (341, 256)),  # 341.33
        (375, 500, (256, 341)),
        (180, 333, (256, 473)),  # 473.6: cut, not rounded
        (256, 256, (256, 256)),
        (1, 3, (256, 768)),
    ],
)
def test_shorter_side(height, width, expected):
    assert shorter_side_size(height, width, 256) == expected


def mean_image_for(preset):
    rng = np.random.default_rng(3)
    return rng.uniform(90, 130, (3, 256, 256)) if preset == "caffe-mean-image" else None


def compiled(preset):
    mean = mean_image_for(preset)
    return tf.function(
        lambda image: preprocess_input(image, preset, mean_image=mean), input_signature=SPEC[:1]
    )


def assert_same(ops, image, preset):
    expected = preprocess_input([image], preset, mean_image=mean_image_for(preset))[0]
    got = ops(image)
    assert got.dtype == tf.float32
    # Observed: 0 for Caffe's family, 7.2e-7 for the others (a constant divisor becomes a factor).
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5, err_msg=str(image.shape))


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "raw"])
def test_both_forms_of_a_preset_agree(preset):
    ops = compiled(preset)
    size = PRESETS[preset].size
    assert ops.get_concrete_function().output_shapes == (size, size, 3)
    for height, width in shapes(30) if preset in ("caffe", "torchvision") else shapes(30)[::4]:
        longest = max(height, width) / min(height, width)
        if PRESETS[preset].keep_aspect and longest > 100:
            continue
        assert_same(ops, noise(height, width), preset)


def traced(values, **arguments):
    return tf.function(lambda x: preprocess_input(x, **arguments))(tf.constant(values))


def test_raw_and_refusals():
    values = np.random.default_rng(4).normal(size=(2, 3, 4, 5))
    np.testing.assert_array_equal(traced(values, preset="raw"), values.astype(np.float32))
    photo = np.zeros((9, 9, 3), np.uint8)
    with pytest.raises(PresetError, match="preset 'vgg'"):
        traced(photo, preset="vgg")
    with pytest.raises(PresetError, match="needs a mean image"):
        traced(photo, preset="caffe-mean-image")
    with pytest.raises(PresetError, match="crops='ten' of a symbolic tensor"):
        traced(photo, crops="ten")
    for wrong in (np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9), np.uint8), photo > 0):
        with pytest.raises(InputError, match="preprocessing: got a tensor of"):
            traced(wrong)
    with pytest.raises(InputError, match=r"unknown rank. Set it: tf.io.decode_image\(\.\.\., "):
        tf.function(preprocess_input, input_signature=[tf.TensorSpec(None, tf.uint8)])(photo)


def test_saved_graph_gives_the_same(tmp_path):
    module = tf.Module()
    module.preprocess = compiled("torchvision")
    tf.saved_model.save(module, tmp_path / "saved")
    loaded = tf.saved_model.load(tmp_path / "saved")
    assert_same(loaded.preprocess, noise(333, 500), "torchvision")


def test_in_a_dataset():
    images = [noise(40, 50), noise(300, 200)]
    spec = tf.TensorSpec((None, None, 3), tf.uint8)
    dataset = tf.data.Dataset.from_generator(lambda: images, output_signature=spec)
    batch = next(iter(dataset.map(preprocess_input).batch(2)))
    np.testing.assert_array_equal(batch, preprocess_input(images))


@pytest.mark.skipif(not SHARED.exists(), reason="the shared pictures are not here")
@pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_photos(step):
    presets = {name: compiled(name) for name in ("caffe", "squash", "udacity", "torchvision")}
    paths = sorted((SHARED / "photos").iterdir())
    assert len(paths) > 30
    for path in paths[::step]:
        image = load_image(path)
        for preset, ops in presets.items():
            assert_same(ops, image, preset)
