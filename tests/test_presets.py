"""Each preset against its formula written out, and every wrong argument against its message."""

import ast
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tf_alexnet.architectures import preset_layer
from tf_alexnet.errors import InputError, PresetError, UsageError
from tf_alexnet.images import (
    PRESETS,
    Preset,
    preprocess_input,
    preset_mismatch,
    preset_named,
    recorded_name,
    vary,
)

RNG = np.random.default_rng(1)
TALL = RNG.integers(0, 256, (301, 202, 3), dtype=np.uint8)
WIDE = RNG.integers(0, 256, (180, 333, 3), dtype=np.uint8)
MEAN_IMAGE = RNG.uniform(90, 130, (3, 256, 256))


def squashed(image, side):
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR).astype(np.float64)


def caffe(image):
    out = np.empty((227, 227, 3))
    crop = squashed(image, 256)[14:241, 14:241]
    out[..., 0] = crop[..., 2] - 104.00698793
    out[..., 1] = crop[..., 1] - 116.66876762
    out[..., 2] = crop[..., 0] - 122.67891434
    return out


def caffe_mean_image(image):
    planes = squashed(image, 256).transpose(2, 0, 1)[[2, 1, 0]] - MEAN_IMAGE
    return planes[:, 14:241, 14:241].transpose(1, 2, 0)


def squash(image):
    red, green, blue = np.moveaxis(squashed(image, 227), 2, 0)
    return np.dstack([blue - 104.00698793, green - 116.66876762, red - 122.67891434])


def kratzert(image):
    red, green, blue = np.moveaxis(squashed(image, 227), 2, 0)
    return np.dstack([blue - 104, green - 117, red - 124])


def udacity(image):
    pixels = squashed(image, 227)
    return pixels - pixels.sum() / (227 * 227 * 3)


def antialiased(image, height, width):
    # Widths, then heights: Pillow's order up to version 12.
    across = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(across.resize((width, height), Image.Resampling.BILINEAR), np.float64)


def torchvision(image):
    # 301x202 -> 381x256 and 180x333 -> 256x473 (473.6 cut); margins 157 and 249, ties to even.
    if image is TALL:
        crop = antialiased(image, 381, 256)[78:302, 16:240]
    else:
        crop = antialiased(image, 256, 473)[16:240, 124:348]
    return (crop / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


def compact(image):
    return antialiased(image, 224, 224) / 127.5 - 1


FORMULAS = {
    "caffe": caffe,
    "caffe-mean-image": caffe_mean_image,
    "squash": squash,
    "kratzert": kratzert,
    "udacity": udacity,
    "torchvision": torchvision,
    "compact": compact,
}


def arguments(preset):
    return {"mean_image": MEAN_IMAGE} if preset == "caffe-mean-image" else {}


def test_every_preset_has_a_formula_here():
    assert [*FORMULAS, "raw"] == list(PRESETS)


@pytest.mark.parametrize("preset", FORMULAS)
def test_preset_follows_its_formula(preset):
    before = TALL.copy(), WIDE.copy()
    got = preprocess_input([TALL, WIDE], preset, **arguments(preset))
    expected = np.stack([FORMULAS[preset](image) for image in (TALL, WIDE)])
    assert got.dtype == np.float32
    # Values reach 150: float32 rounds them by up to 8e-6. Observed: 7.7e-6.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1.6e-5)
    np.testing.assert_array_equal((TALL, WIDE)[0], before[0])
    np.testing.assert_array_equal((TALL, WIDE)[1], before[1])
    # The bound is tight enough for what it is there for: swapped channels, a shifted crop.
    assert np.abs(got[..., ::-1] - expected).mean() > 0.1
    assert np.abs(np.roll(got, 1, axis=1) - expected).mean() > 0.01


@pytest.mark.parametrize("preset", ["caffe", "kratzert", "torchvision"])
def test_a_red_picture_says_where_red_is(preset):
    red = np.zeros((1, 300, 300, 3), np.uint8)
    red[..., 0] = 255
    got = preprocess_input(red, preset)[0, 100, 100]
    expected = {
        "caffe": [-104.00698793, -116.66876762, 132.32108566],
        "kratzert": [-104, -117, 131],
        "torchvision": [0.515 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
    }[preset]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_caffe_mean_is_that_of_the_mean_image_and_not_vggs():
    black = preprocess_input(np.zeros((1, 9, 9, 3), np.uint8))[0, 0, 0]
    assert black.tolist() == np.float32([-104.00698793, -116.66876762, -122.67891434]).tolist()


@pytest.mark.parametrize("preset", FORMULAS)
def test_a_batch_equals_its_pictures_one_by_one(preset):
    batch = np.stack([TALL, TALL[::-1], TALL[:, ::-1]])
    frozen = batch.copy()
    frozen.flags.writeable = False
    got = preprocess_input(frozen, preset, **arguments(preset))
    np.testing.assert_array_equal(frozen, batch)
    size = PRESETS[preset].size
    assert got.shape == (3, size, size, 3)
    for number, image in enumerate(batch):  # views with negative strides among them
        alone = preprocess_input((image,), preset, **arguments(preset))
        np.testing.assert_array_equal(got[number], alone[0])


def test_raw_is_float32_of_what_came_in():
    values = RNG.normal(size=(2, 5, 4, 6))
    got = preprocess_input(values, "raw")
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, values.astype(np.float32))
    same = np.ones((1, 2, 2, 3), np.float32)
    assert not np.shares_memory(preprocess_input(same, "raw"), same)
    np.testing.assert_array_equal(preprocess_input([TALL, TALL], "raw"), np.stack([TALL, TALL]))


def test_ten_crops_of_caffe():
    got = preprocess_input([TALL, WIDE], "caffe-mean-image", mean_image=MEAN_IMAGE, crops="ten")
    assert got.shape == (20, 227, 227, 3)
    for number, image in enumerate((TALL, WIDE)):
        # A pixel's mean belongs to its place in the 256 picture, mirrored or not.
        planes = squashed(image, 256).transpose(2, 0, 1)[[2, 1, 0]] - MEAN_IMAGE
        centred = planes.transpose(1, 2, 0)
        for k, (top, left) in enumerate([(0, 0), (0, 29), (29, 0), (29, 29), (14, 14)]):
            crop = centred[top : top + 227, left : left + 227]
            np.testing.assert_allclose(got[10 * number + k], crop, rtol=0, atol=1.6e-5)
            np.testing.assert_array_equal(got[10 * number + 5 + k], got[10 * number + k][:, ::-1])


def test_ten_crops_of_torchvision():
    got = preprocess_input([WIDE], "torchvision", crops="ten")
    pixels = antialiased(WIDE, 256, 473) / 255
    normal = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    corners = [(0, 0), (0, 249), (32, 0), (32, 249), (16, 124)]
    for k, (top, left) in enumerate(corners):
        crop = normal[top : top + 224, left : left + 224]
        np.testing.assert_allclose(got[k], crop, rtol=0, atol=1e-6)
        np.testing.assert_allclose(got[5 + k], crop[:, ::-1], rtol=0, atol=1e-6)


def test_preset_refusals():
    with pytest.raises(PresetError, match=r"preset 'cafe': .* Use one of: caffe, caffe-mean-image"):
        preprocess_input([TALL], "cafe")
    for preset in ("squash", "kratzert", "udacity", "compact", "raw"):
        with pytest.raises(PresetError, match=r"does not crop.*: caffe, caffe-mean-image, torchv"):
            preprocess_input([TALL], preset, crops="ten")
    with pytest.raises(PresetError, match="crops='five': unknown"):
        preprocess_input([TALL], crops="five")
    with pytest.raises(AttributeError):
        preset_named("caffe").size = 224


BATCH = TALL[None]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            BATCH / np.float32(255),
            "preprocess_input: got float32 with values in 0..1. "
            "Give uint8 RGB in 0..255: (x * 255).round().astype('uint8').",
        ),
        (TALL / 255, "preprocess_input: got float64 with values in 0..1."),
        (BATCH.astype(int) - 1, "got int64 with values in -1..254. They look already preprocessed"),
        (BATCH / 127.5 - 1, "got float64 with values in -1..1. They look already preprocessed."),
        (BATCH * np.nan, "They look already preprocessed."),
        (BATCH > 9, "got dtype bool. Give uint8 RGB in 0..255."),
        (BATCH.astype(object), "got dtype object."),
        (BATCH[None], "Give uint8 RGB of shape (N, H, W, 3)."),
        (TALL[..., 0], "Repeat grey in three channels: x[..., None].repeat(3, axis=-1)."),
        (TALL[..., :1], "preprocess_input: got an array of shape (301, 202, 1). Repeat grey"),
        (TALL.transpose(2, 0, 1), "Channels come last: x.transpose(1, 2, 0)."),
        (iter([TALL]), "got an array of shape ()."),
        ([[[1], [2, 3]]], "got list, not an array."),
        (BATCH.transpose(0, 3, 1, 2), "Channels come last: x.transpose(0, 2, 3, 1)."),
        (BATCH[..., 0], "Repeat grey in three channels: x[..., None].repeat(3, axis=-1)."),
        (BATCH[..., :1], "Repeat grey in three channels: x.repeat(3, axis=-1)."),
        (BATCH[..., [0, 1, 2, 2]], "drop it: x[..., :3]."),
        (BATCH[:0], "got an empty array of shape (0, 301, 202, 3)."),
        (BATCH[:, :0], "got an empty array"),
        ([], "preprocess_input: got no image. Give at least one."),
        (7, "got an array of shape ()."),
        ([TALL, WIDE[..., 0]], "preprocess_input, images[1]: got an array of shape (180, 333)."),
        ([TALL.transpose(2, 0, 1)], "Channels come last: x.transpose(1, 2, 0)."),
        ([BATCH], "images[0]: got an array of shape (1, 301, 202, 3). That is a batch;"),
        ([TALL, TALL / 255], "images[1]: got float64 with values in 0..1."),
    ],
)
def test_wrong_images_are_named(images, message):
    with pytest.raises(InputError) as caught:
        preprocess_input(images)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([TALL, WIDE], "images of different sizes"),
        (TALL, r"got uint8 of shape \(301, 202, 3\)"),
        (np.array([[[["a"]]]]), "got <U1 of shape"),
        (BATCH * 1j, "got complex128"),
        (BATCH[:0], r"of shape \(0, 301"),
    ],
)
def test_wrong_images_for_raw(images, message):
    with pytest.raises(InputError, match=message):
        preprocess_input(images, "raw")


def test_advice_leads_to_the_goal():
    expected = preprocess_input(BATCH)
    for wrong in (BATCH / np.float32(255), BATCH.transpose(0, 3, 1, 2)):
        with pytest.raises(InputError) as caught:
            preprocess_input(wrong)
        code = caught.value.advice.rsplit(": ", 1)[1].removesuffix(".")
        right = eval(code, {"x": wrong, "image": wrong})
        np.testing.assert_array_equal(preprocess_input(right), expected)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float32", "float64"])
def test_whole_numbers_of_any_dtype(dtype, recwarn):
    values = BATCH.astype(dtype)
    np.testing.assert_array_equal(preprocess_input(values), preprocess_input(BATCH))
    np.testing.assert_array_equal(preprocess_input([values[0]]), preprocess_input(BATCH))
    assert values.dtype == dtype
    black = np.zeros((1, 9, 9, 3), dtype)
    np.testing.assert_array_equal(preprocess_input(black), preprocess_input(black.astype("u1")))
    assert not recwarn.list


def test_a_single_photo_has_no_batch_axis():
    got = preprocess_input(TALL)
    assert got.shape == (227, 227, 3)
    np.testing.assert_array_equal(got, preprocess_input(BATCH)[0])
    assert preprocess_input(TALL, crops="ten").shape == (10, 227, 227, 3)
    turned = Image.fromarray(TALL)
    turned.getexif()[0x0112] = 8
    np.testing.assert_array_equal(preprocess_input(turned), preprocess_input(np.rot90(TALL)))
    np.testing.assert_array_equal(preprocess_input([turned])[0], preprocess_input(turned))


def test_fractions_are_rounded_and_remarked_on():
    shaken = BATCH + np.random.default_rng(0).uniform(-0.4, 0.4, BATCH.shape)
    shaken = shaken.clip(0, 255)
    with pytest.warns(UserWarning, match="not whole numbers: .* not as by preset 'caffe'") as seen:
        got = preprocess_input(shaken)
    assert seen[0].filename == __file__
    np.testing.assert_array_equal(got, preprocess_input(BATCH))


def test_any_size_keeps_size_and_fractions(recwarn):
    views = TALL[::-1, ::2]
    got = preprocess_input([views, views], "caffe.anysize")
    wanted = views[..., ::-1] - np.array(PRESETS["caffe"].mean)
    np.testing.assert_allclose(got, [wanted, wanted], atol=1.6e-5)
    half = preprocess_input(views + 0.25, "caffe.anysize") if views.max() < 255 else None
    half = preprocess_input(views * 0.5, "caffe.anysize") if half is None else half
    np.testing.assert_allclose(half, views[..., ::-1] * 0.5 - PRESETS["caffe"].mean, atol=1.6e-5)
    got = preprocess_input(BATCH, "torchvision.anysize")
    wanted = (BATCH / 255 - PRESETS["torchvision"].mean) / PRESETS["torchvision"].std
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    own = preprocess_input(BATCH[:, :99], "udacity.anysize")
    np.testing.assert_allclose(own, BATCH[:, :99] - BATCH[:, :99].mean(), atol=1.6e-5)
    with pytest.raises(InputError, match="images of different sizes"):
        preprocess_input([TALL, WIDE], "caffe.anysize")
    assert not recwarn.list


@pytest.mark.parametrize(
    ("name", "canonical", "size", "resized"),
    [
        ("caffe.size224", "caffe.size224", 224, 256),
        ("caffe.size300", "caffe.size300", 300, 300),
        ("caffe.size227", "caffe", 227, 256),
        ("squash.size64", "squash.size64", 64, 64),
        ("caffe.anysize", "caffe.anysize", None, 0),
        ("squash.anysize.size227", "squash", 227, 227),
        ("caffe.mean104-117-123.size224", "caffe.size224.mean104-117-123", 224, 256),
        ("caffe.mean104.50-117.0-123", "caffe.mean104.5-117-123", 227, 256),
        ("caffe.mean-1--0.00001-123", "caffe.mean-1--0.00001-123", 227, 256),
        ("caffe.mean104.00698793-116.66876762-122.67891434", "caffe", 227, 256),
        ("raw.anysize", "raw", None, 0),
        ("caffe-mean-image.size224", "caffe-mean-image.size224", 224, 256),
        ("torchvision.size64.mean0.5-0.5-0.5", "torchvision.size64.mean0.5-0.5-0.5", 64, 256),
    ],
)
def test_names_carry_variations(name, canonical, size, resized):
    preset = preset_named(name)
    assert (preset.name, preset.size, preset.resized) == (canonical, size, resized)
    assert preset_named(canonical) == preset
    assert recorded_name(name) == recorded_name(preset) == canonical
    assert re.fullmatch("[a-z0-9.-]+", canonical)


def test_what_variations_do():
    got = preprocess_input(TALL, "caffe.size224.mean104-117-123")
    wanted = squashed(TALL, 256)[16:240, 16:240, ::-1] - [104, 117, 123]
    np.testing.assert_allclose(got, wanted, atol=1.6e-5)
    own = Preset("own", size=50, channels="BGR", divisor=255, mean=(0.1, 0.2, 0.3), std=[1, 2, 4])
    wanted = (squashed(TALL, 50)[..., ::-1] / 255 - [0.1, 0.2, 0.3]) / [1, 2, 4]
    np.testing.assert_allclose(preprocess_input(TALL, own), wanted, atol=1e-6)
    assert vary("caffe", mean=(104, 117, 123)).name == "caffe.mean104-117-123"
    assert vary(vary("caffe", any_size=True), size=227).name == "caffe"
    assert recorded_name(replace(preset_named("caffe"), size=224)) == "caffe.size224"
    assert recorded_name(preset_named("kratzert")) == "kratzert"


def test_refused_names_and_values():
    for name in ("", "caffe.", "caffe.size", "caffe.size224x", "caffe.mean1-2", "caffe.size2_4"):
        with pytest.raises(PresetError, match=r"there is no such preset\. Use one of: caffe, "):
            preset_named(name)
    with pytest.raises(PresetError, match="preset 'raw': it subtracts no mean"):
        preset_named("raw.mean1-2-3")
    with pytest.raises(PresetError, match=r"its pixels lie in 0\.\.1"):
        vary("torchvision", mean=(104, 117, 123))
    with pytest.raises(PresetError, match="can't be recorded by name"):
        recorded_name(Preset("own", size=50, divisor=2))
    with pytest.raises(PresetError, match="preset of type int: it is neither a name"):
        preprocess_input(BATCH, 7)
    wrong = [{"size": 0}, {"size": 9, "resized": 5}, {"size": True}, {"mean": (1, 2)}]
    wrong += [{"mean": "black"}, {"std": (0, 1, 1)}, {"channels": "GRB"}, {"divisor": 0}]
    for values in wrong:
        with pytest.raises(PresetError, match=r"^preset 'mine': .*Give ") as caught:
            Preset("mine", **values)
        assert list(values)[-1] in str(caught.value)


class Layer:
    def __init__(self, name, layers=(), preset=None):
        self.name, self.layers = name, layers
        if preset:
            self.preset = preset


def test_a_model_says_which_preset(tmp_path):
    """Told without Keras: see test_preprocessing.py for real models."""
    inner = Layer("bvlc_alexnet", [Layer("data"), Layer(preset_layer("squash"))])
    model = Layer("sequential", [inner, Layer("dense")])
    np.testing.assert_array_equal(preprocess_input(TALL, model), preprocess_input(TALL, "squash"))
    fully = Layer("open", [Layer(preset_layer("squash.anysize"))])
    assert preprocess_input(TALL, fully).shape == TALL.shape
    with pytest.raises(UsageError, match=r"model 'vgg': it records no preset\. Name the one"):
        preprocess_input(TALL, Layer("vgg", [Layer("conv1")]))
    whole = Layer("whole", [Layer("preprocessing", preset=PRESETS["caffe"]), inner])
    with pytest.raises(UsageError, match="'whole': it has a Preprocessing layer"):
        preprocess_input(TALL, whole)


def test_misfits():
    assert preset_mismatch(PRESETS["squash"], PRESETS["caffe"]) is None
    assert preset_mismatch(PRESETS["kratzert"], vary("caffe", mean=(104, 117, 123))) is None
    assert preset_mismatch(PRESETS["raw"], PRESETS["caffe"]) is None
    text = preset_mismatch(PRESETS["torchvision"], PRESETS["caffe"])
    assert "RGB values over a range of 4.42, but the network was trained on BGR" in text
    assert "range of 2," in preset_mismatch(PRESETS["compact"], PRESETS["torchvision"])
    assert "gives RGB" in preset_mismatch(PRESETS["udacity"], PRESETS["caffe"])


def test_a_picture_too_long_for_its_resize():
    strip = np.zeros((1, 2000, 3), np.uint8)
    with pytest.raises(
        InputError, match="image of 1x2000 pixels: preset 'torchvision' would enlarge"
    ):
        preprocess_input([strip], "torchvision")
    with pytest.raises(InputError, match="preset 'compact' would enlarge it"):
        preprocess_input([np.zeros((300_000, 1, 3), np.uint8)], "compact")
    assert preprocess_input([strip], "caffe").shape == (1, 227, 227, 3)


def test_this_room_does_not_import_tensorflow():
    code = "import sys, tf_alexnet.images; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_constants_stand_once():
    sources = (Path(__file__).parents[1] / "tf_alexnet" / "images").glob("*.py")
    numbers = [
        node.value
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, float)
    ]
    for constant in (104.00698793, 0.485, 0.229):
        assert numbers.count(constant) == 1
