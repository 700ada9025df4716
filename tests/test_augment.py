"""Augmentation against formulas written out in NumPy."""

import keras
import numpy as np
import pytest

import tf_alexnet as ta
from tf_alexnet.errors import PresetError, UsageError
from tf_alexnet.images.presets import PRESETS
from tf_alexnet.training.augment import (
    ColourNoise,
    CropAndMirror,
    augmentation,
    check_augmentation,
    components,
    generator_of,
    part_of,
    training_picture,
)

COVARIANCE = np.array([[0.07, 0.05, 0.04], [0.05, 0.06, 0.05], [0.04, 0.05, 0.08]])


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (5, 256, 256, 3), np.uint8)


def cropped(pictures, draws, size):
    """The crops, a picture at a time."""
    crops = []
    for picture, (top, left, mirror) in zip(pictures, draws, strict=True):
        y = int(np.floor(top * (picture.shape[0] - size + 1)))
        x = int(np.floor(left * (picture.shape[1] - size + 1)))
        crop = picture[y : y + size, x : x + size]
        crops.append(crop[:, ::-1] if mirror < 0.5 else crop)
    return np.stack(crops)


def test_crops_are_those_of_the_formula(pictures):
    draws = np.random.default_rng(1).random((5, 3)).astype(np.float32)
    draws[0], draws[1] = [0, 0, 0.5], np.nextafter(np.float32(1), 0)  # both ends
    found = CropAndMirror(227)(pictures, draws).numpy()
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, cropped(pictures, draws, 227))
    assert {x < 0.5 for x in draws[:, 2]} == {True, False}


def test_a_crop_without_draws_is_the_centre_or_random(pictures):
    layer = CropAndMirror(227, seed=3)
    np.testing.assert_array_equal(layer(pictures)[:], pictures[:, 14:241, 14:241])
    some, others = (layer(pictures, training=True).numpy() for _ in range(2))
    assert some.shape == (5, 227, 227, 3)
    assert not np.array_equal(some, others)


def test_colour_noise_is_that_of_the_paper(pictures):
    values, vectors = components(COVARIANCE)
    draws = np.random.default_rng(2).standard_normal((5, 3)).astype(np.float32)
    found = ColourNoise(values, vectors)(pictures, draws).numpy()
    for picture, draw, noisy in zip(pictures, draws, found, strict=True):
        # [p1, p2, p3][a1 l1, a2 l2, a3 l3]^T, section 4.1; a = 0.1 N(0, 1).
        shift = sum(vectors[:, k] * (0.1 * draw[k]) * values[k] for k in range(3))
        np.testing.assert_allclose(noisy, picture + 255 * shift, atol=1e-4)
    np.testing.assert_array_equal(ColourNoise(values, vectors)(pictures), pictures)
    assert np.ptp(ColourNoise(values, vectors, seed=1)(pictures, training=True) - pictures) > 1


def test_components_are_the_covariances():
    values, vectors = components(COVARIANCE)
    assert values[0] > values[1] > values[2] > 0
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, COVARIANCE, atol=1e-12)
    assert (vectors.max(axis=0) == np.abs(vectors).max(axis=0)).all()


@pytest.mark.parametrize(
    "layer", [CropAndMirror(227, seed=5), ColourNoise([3, 2, 1], np.eye(3), 0.2, 1.0, 7)]
)
def test_layers_are_saved_with_a_model(layer, tmp_path, pictures):
    inputs = keras.Input((256, 256, 3))
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, *layer(pictures).shape[1:])
    model.save(tmp_path / "model.keras")
    same = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(same(pictures), model(pictures))
    assert same.layers[-1].get_config() == layer.get_config()


@pytest.mark.parametrize("name", ["caffe", "squash", "torchvision", "compact"])
def test_a_crop_of_the_centre_is_what_prediction_sees(name):
    preset = PRESETS[name]
    photo = np.random.default_rng(3).integers(0, 256, (300, 400, 3), np.uint8)
    picture, draws = training_picture(photo, "paper", preset, generator_of(0, 1, 2))
    assert picture.shape == (256, 256, 3)
    margin = 256 - preset.size
    draws[:3] = (margin / 2 + 0.1) / (margin + 1), (margin / 2 + 0.1) / (margin + 1), 0.9
    draws[3:] = 0
    found = augmentation("paper", preset, COVARIANCE)(picture[None], draws[None])[0]
    if preset.resized == 256:  # else the picture is a larger one than prediction's
        wanted = ta.preprocess_input([photo], name)[0]
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    assert found.shape == (preset.size, preset.size, 3)


def test_every_draw_is_a_function_of_seed_epoch_and_photo():
    photo = np.zeros((10, 20, 3), np.uint8)

    def draws(*key):
        return training_picture(photo, "light", PRESETS["caffe"], generator_of(*key))[1]

    np.testing.assert_array_equal(draws(1, 2, 3), draws(1, 2, 3))
    others = [draws(*key) for key in ((0, 2, 3), (1, 1, 3), (1, 2, 0), (1, 3, 2))]
    assert all(not np.array_equal(draws(1, 2, 3), x) for x in others)


def test_the_recipe_of_compact_takes_parts_of_the_photo():
    generator = np.random.default_rng(0)
    shapes = [part_of(300, 400, generator) for _ in range(2000)]
    areas = np.array([h * w / 120_000 for _, _, h, w in shapes])
    ratios = np.array([w / h for _, _, h, w in shapes])
    assert all(t >= 0 and x >= 0 and t + h <= 300 and x + w <= 400 for t, x, h, w in shapes)
    assert 0.075 < areas.min() < 0.1
    assert 0.9 < areas.max() <= 1
    # An area is taken if it fits: up to 3/4 of the ratio here, each as likely.
    most = 0.75 * np.exp(np.linspace(np.log(3 / 4), np.log(4 / 3), 1001))
    wanted = (most**2 - 0.08**2).mean() / 2 / (most - 0.08).mean()
    assert areas.mean() == pytest.approx(wanted, abs=0.02)
    assert 0.73 < ratios.min() < 0.78
    assert 1.28 < ratios.max() < 1.36
    assert part_of(10, 1000, generator)[2:] == (10, 13)  # nothing else fits
    photo = np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8)
    picture, draws = training_picture(photo, "light", PRESETS["compact"], generator_of(0, 0, 0))
    assert picture.shape == (224, 224, 3)
    found = augmentation("light", PRESETS["compact"])(picture[None], draws[None])[0].numpy()
    plain = (picture.astype(np.float32) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(found, plain[:, ::-1] if draws[2] < 0.5 else plain, atol=1e-6)


def test_noise_reaches_the_network_in_its_own_channel_order():
    values, vectors = np.array([1.0, 0, 0]), np.eye(3)  # red alone varies
    picture = np.full((1, 256, 256, 3), 100, np.uint8)
    draws = np.array([[0, 0, 0.9, 2, 5, 5]], np.float32)
    found = augmentation("paper", PRESETS["caffe"], vectors @ np.diag(values) @ vectors.T)
    blue, green, red = found(picture, draws).numpy()[0, 100, 100]
    assert blue == pytest.approx(100 - 104.00698793, abs=1e-3)
    assert green == pytest.approx(100 - 116.66876762, abs=1e-3)
    assert red == pytest.approx(100 - 122.67891434 + 255 * 0.1 * 2, abs=1e-3)


def test_what_can_not_be_trained_with_is_refused():
    with pytest.raises(UsageError, match=r"^augmentation 'heavy': .*none, light, paper"):
        check_augmentation("heavy", "caffe")
    for name in ("raw", "udacity", "caffe-mean-image"):
        with pytest.raises(PresetError, match="Presets to train with are: caffe, squash"):
            check_augmentation("light", name)
