"""Augmentation against formulas written out in NumPy."""

import numpy as np
import pytest

import tf_alexnet as ta
from tf_alexnet.errors import PresetError, UsageError
from tf_alexnet.images.presets import PRESETS
from tf_alexnet.training.augment import augmented, check_augmentation, components, part_of

COVARIANCE = np.array([[0.07, 0.05, 0.04], [0.05, 0.06, 0.05], [0.04, 0.05, 0.08]])


class Draws:
    """A generator whose numbers are given: places of the crop, mirror, colours."""

    def __init__(self, top=0, left=0, mirror=0.9, colours=(0, 0, 0)):
        self.places, self.mirror, self.colours = (top, left), mirror, np.array(colours)

    def integers(self, high, size):
        assert size == 2
        return np.array(self.places)

    def random(self):
        return self.mirror

    def normal(self, mean, deviation, size):
        assert (mean, deviation, size) == (0, 0.1, 3)
        return deviation * self.colours


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)


def plain(pixels):
    """Preset `caffe` of pixels of the final size."""
    means = np.array([104.00698793, 116.66876762, 122.67891434])
    return pixels[..., ::-1].astype(np.float64) - means


@pytest.mark.parametrize("top", [0, 7, 29])
@pytest.mark.parametrize("mirror", [0.4999, 0.5])
def test_crops_are_those_of_the_draws(photo, top, mirror):
    found = augmented(photo, "light", PRESETS["caffe"], Draws(top, 13, mirror))
    wanted = plain(photo[top : top + 227, 13 : 13 + 227])
    wanted = wanted[:, ::-1] if mirror < 0.5 else wanted
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_crops_are_anywhere_and_half_are_mirrored(photo):
    ramp = np.zeros((256, 256, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(256)[:, None], np.arange(256)
    tops, lefts, mirrored = set(), set(), 0
    for number in range(400):
        x = augmented(ramp, "light", PRESETS["caffe"], np.random.default_rng(number))
        green = np.rint(x[..., 1] + 116.66876762)
        tops.add(int(np.rint(x[0, 0, 2] + 122.67891434)))
        lefts.add(int(green.min()))
        mirrored += green[0, 0] > green[0, -1]
    assert (min(tops), max(tops)) == (min(lefts), max(lefts)) == (0, 29)
    assert 160 < mirrored < 240


def test_colour_noise_is_that_of_the_paper(photo):
    values, vectors = components(COVARIANCE)
    draws = np.array([1.3, -0.2, 2.1])
    found = augmented(photo, "paper", PRESETS["caffe"], Draws(3, 5, 0.9, draws), COVARIANCE)
    # [p1, p2, p3][a1 l1, a2 l2, a3 l3]^T, section 4.1; a = 0.1 N(0, 1).
    shift = sum(vectors[:, k] * (0.1 * draws[k]) * values[k] for k in range(3))
    wanted = plain(photo[3:230, 5:232]) + 255 * shift[::-1]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_noise_reaches_the_network_in_its_own_channel_order():
    picture = np.full((256, 256, 3), 100, np.uint8)
    red = np.diag([1.0, 0, 0])  # red alone varies
    draws = Draws(colours=(2, 5, 5))
    blue, green, red = augmented(picture, "paper", PRESETS["caffe"], draws, red)[100, 100]
    assert blue == pytest.approx(100 - 104.00698793, abs=1e-3)
    assert green == pytest.approx(100 - 116.66876762, abs=1e-3)
    assert red == pytest.approx(100 - 122.67891434 + 255 * 0.1 * 2, abs=1e-3)


def test_components_are_the_covariances():
    values, vectors = components(COVARIANCE)
    assert values[0] > values[1] > values[2] > 0
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, COVARIANCE, atol=1e-12)
    assert (vectors.max(axis=0) == np.abs(vectors).max(axis=0)).all()


@pytest.mark.parametrize("name", ["caffe", "squash", "torchvision", "compact"])
def test_a_crop_of_the_centre_is_what_prediction_sees(name):
    preset = PRESETS[name]
    photo = np.random.default_rng(3).integers(0, 256, (300, 400, 3), np.uint8)
    margin = (256 - preset.size) // 2
    found = augmented(photo, "paper", preset, Draws(margin, margin), COVARIANCE)
    assert found.shape == (preset.size, preset.size, 3)
    if preset.resized == 256:  # else the picture is a larger one than prediction's
        wanted = ta.preprocess_input([photo], name)[0]
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    np.testing.assert_array_equal(
        augmented(photo, "none", preset, Draws()), ta.preprocess_input([photo], name)[0]
    )


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


def test_the_part_is_resized_to_the_networks_size():
    photo = np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8)
    preset = PRESETS["compact"]
    generator = np.random.default_rng(2)
    found = augmented(photo, "light", preset, generator)
    top, left, height, width = part_of(300, 400, again := np.random.default_rng(2))
    part = photo[top : top + height, left : left + width]
    wanted = ta.preprocess_input([part], "compact")[0]
    mirrored = again.random() < 0.5
    np.testing.assert_allclose(found, wanted[:, ::-1] if mirrored else wanted, atol=1e-6)


def test_what_can_not_be_trained_with_is_refused():
    with pytest.raises(UsageError, match=r"^augmentation 'heavy': .*none, light, paper"):
        check_augmentation("heavy", "caffe")
    for name in ("raw", "udacity", "caffe-mean-image"):
        with pytest.raises(PresetError, match="Presets to train with are: caffe, squash"):
            check_augmentation("light", name)
