"""Cells stand at their receptive-field centres, and the input where the preset cut it out."""

import numpy as np
import pytest

from tf_alexnet.architectures import ARCHITECTURES, Conv, MaxPool
from tf_alexnet.errors import LayerError
from tf_alexnet.images import preset_named
from tf_alexnet.visualize.geometry import Placement, cell_centres, crop_of


def traced_centre(table, layer, index):
    """The middle of the input pixels that one output depends on, by walking back."""
    names = [x.name for x in table.layers]
    first = last = index
    for step in reversed(table.layers[: names.index(layer) + 1]):
        if isinstance(step, Conv | MaxPool):
            first = first * step.stride - step.pad
            last = last * step.stride - step.pad + step.kernel - 1
    return (first + last) / 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cells_stand_at_the_centres_of_their_receptive_fields(name):
    table = ARCHITECTURES[name]
    for row in table.rows():
        if len(row.output_shape) == 3 and row.name != "data":
            expected = [traced_centre(table, row.name, i) for i in range(row.output_shape[0])]
            np.testing.assert_array_equal(cell_centres(table, row.name), expected)


def test_conv5_of_the_caffe_networks_is_at_17_and_every_16_pixels():
    centres = cell_centres(ARCHITECTURES["bvlc_alexnet"], "conv5")
    np.testing.assert_array_equal(centres, 17 + 16 * np.arange(13))
    with pytest.raises(LayerError, match=r"no such layer with height and width\. Use one of conv1"):
        cell_centres(ARCHITECTURES["bvlc_alexnet"], "fc7")


def by_pixel(values, points, placement):
    """`Placement.onto_photo`, one row and one column at a time."""
    weights = []
    for axis in (0, 1):
        side, to, start = placement.photo[axis], placement.resized[axis], placement.corner[axis]
        parts = max(1, -(-to // side))
        lines = []
        for x in range(side):
            places = [(x + (p + 0.5) / parts) * to / side - 0.5 - start for p in range(parts)]
            seen = [p for p in places if -0.5 <= p < placement.size - 0.5]
            hats = [np.interp(seen, points, one) for one in np.eye(len(points))]
            lines.append(np.mean(hats, axis=1) if seen else np.full(len(points), np.nan))
        weights.append(np.array(lines))
    return weights[0] @ values @ weights[1].T


@pytest.mark.parametrize(
    ("preset", "shape"),
    [
        ("caffe", (40, 60)),
        ("caffe", (1, 1)),
        ("caffe", (300, 3)),
        ("torchvision", (30, 48)),
        ("torchvision", (5, 60)),
        ("squash.size224", (25, 31)),
    ],
)
def test_values_land_on_the_photo_where_the_preset_took_them(preset, shape):
    record = preset_named(preset)
    placement = Placement.of(*shape, record, record.size)
    points = 17 + 16.0 * np.arange(13)
    values = np.random.default_rng(0).standard_normal((13, 13))
    found = placement.onto_photo(values, points, points)
    expected = by_pixel(values, points, placement)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("preset", ["caffe", "torchvision", "squash", "compact"])
def test_a_position_of_the_input_is_found_again_on_the_photo(preset):
    record = preset_named(preset)
    height, width = 480, 640
    y, x = np.mgrid[:height, :width]
    image = np.stack([y / height * 255, x / width * 255, 0 * x], axis=-1).astype(np.uint8)
    crop = crop_of(image, record, record.size)
    placement = Placement.of(height, width, record, record.size)
    for row, column in ((20, 200), (113, 57), (200, 30)):
        top, left = placement.to_photo(row, column)
        expected = crop[row, column, :2] / 255 * (height, width)
        np.testing.assert_allclose((top, left), expected, atol=3.5)  # a level is 2.5 pixels wide


def test_a_crop_has_the_same_pixels_and_a_photo_of_any_size_is_not_cropped():
    crop = Placement.of_crop(227)
    points = np.arange(227.0)
    values = np.random.default_rng(0).standard_normal((227, 227))
    np.testing.assert_allclose(crop.onto_photo(values, points, points), values, atol=1e-6)
    image = np.zeros((50, 70, 3), np.uint8)
    anywhere = preset_named("caffe.anysize")
    assert crop_of(image, anywhere, 227).shape == (50, 70, 3)
    assert Placement.of(50, 70, anywhere, 227).corner == (0, 0)


def test_a_strip_of_many_pixels_takes_little_memory():
    record = preset_named("torchvision")
    placement = Placement.of(2, 20_000, record, 224)
    points = 15 + 16.0 * np.arange(13)
    found = placement.onto_photo(np.ones((13, 13)), points, points)
    assert np.nanmin(found) == pytest.approx(1)
    assert np.isfinite(found).sum() == 2 * round(224 / 256 * 2)
