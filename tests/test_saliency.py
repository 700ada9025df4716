"""Saliency maps: gradients that are right, at the right place, in the right colours."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import EXAMPLE_PHOTOS
from reference import forward, relative_error

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES, Conv
from tf_alexnet.errors import InputError, LayerError, UsageError
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.visualize import Explainer, SaliencyMap, overlay, saliency_map
from tf_alexnet.visualize.colors import color_table
from tf_alexnet.visualize.explainer import Graphs
from tf_alexnet.visualize.geometry import Placement
from tf_alexnet.visualize.saliency import METHODS, Task
from tf_alexnet.weights import LayerArrays, WeightArrays, read_weights

CHELSEA = EXAMPLE_PHOTOS / "chelsea.jpg"
BVLC, COMPACT = ARCHITECTURES["bvlc_alexnet"], ARCHITECTURES["compact"]


def headed(table, classes=4, seed=0):
    """Random weights of a network with its classifier on pool5: without the large dense layers."""
    return synthetic_weights(table.with_head("pool5", classes), seed)


@pytest.fixture(scope="module")
def bvlc():
    return Explainer(headed(BVLC))


@pytest.fixture(scope="module")
def embedded(example_photos):
    """The embedded trained convolutions, and a classifier fitted to the example photos."""
    arrays = read_weights(ta.weights.find_weights("torchvision-convs"))
    extractor = ta.FeatureExtractor(arrays, "pool5", engine="tensorflow")
    rows = extractor.from_images(example_photos[:4])["pool5"].reshape(4, -1).astype(np.float64)
    kernel = np.linalg.pinv(rows) * 8  # each photo's own class gets 8, the others 0
    head = LayerArrays(kernel.astype(np.float32), np.zeros(4, np.float32))
    return Explainer(WeightArrays({**arrays.layers, "fc8": head}, "torchvision"))


@pytest.fixture(scope="module")
def photo():
    return ta.load_image(CHELSEA)


def test_scores_are_the_logits(photo):
    arrays = synthetic_weights(BVLC.with_head("pool5", 3))
    explainer = Explainer(arrays)
    x = explainer.preprocess(photo)
    blobs = forward(explainer.table, arrays, x.transpose(0, 3, 1, 2))
    assert relative_error(explainer.scores(x), blobs["fc8"]) < 1e-5
    found = saliency_map(explainer, photo, "gradient")
    assert found.class_index == blobs["fc8"].argmax()
    assert found.score == pytest.approx(blobs["fc8"].max(), rel=1e-5)


def thin(table):
    """The same network with few channels, which NumPy computes quickly."""
    layers = (
        replace(layer, filters=4 * layer.groups) if isinstance(layer, Conv) else layer
        for layer in table.with_head("pool5", 3).layers[:-1]
    )
    return replace(table, layers=tuple(layers))


@pytest.mark.parametrize(
    "name", ["bvlc_alexnet", pytest.param("torchvision", marks=pytest.mark.slow)]
)
def test_gradients_equal_numeric_differences_at_50_pixels(name):
    import tensorflow as tf

    table = thin(ARCHITECTURES[name])
    arrays, size = synthetic_weights(table), table.input_size
    variables = {layer: tuple(map(tf.constant, pair)) for layer, pair in arrays.layers.items()}
    graphs = Graphs(table, variables, "fc8")
    generator = np.random.default_rng(0)
    x = (100 * generator.standard_normal((1, size, size, 3))).astype(np.float32)
    gradient = graphs.gradient(x, 2).numpy()[0]
    places = [(*generator.integers(30, size - 30, 2), generator.integers(3)) for _ in range(50)]
    step, expected = 1e-4, []
    for some in (places[start : start + 10] for start in range(0, 50, 10)):
        moved = x.astype(np.float64).repeat(2 * len(some), axis=0)
        for number, place in enumerate(some):
            moved[(2 * number, *place)] += step
            moved[(2 * number + 1, *place)] -= step
        scores = forward(table, arrays, moved.transpose(0, 3, 1, 2))["fc8"][:, 2]
        expected.extend((scores[::2] - scores[1::2]) / (2 * step))
    found = [gradient[place] for place in places]
    assert relative_error(np.array(found), np.array(expected)) < 1e-4


def test_gradcam_is_the_formula_on_keras_own_gradients(bvlc, photo):
    import tensorflow as tf

    arrays = headed(BVLC)
    model = ta.AlexNet(arrays)
    outputs = ta.features(model, ["conv5", "fc8"])
    x = tf.constant(bvlc.preprocess(photo))
    tail = [model.get_layer(name) for name in ("pool5", "flatten", "fc8")]
    with tf.GradientTape(persistent=True) as tape:
        blob = outputs(x)["conv5"]
        tape.watch(blob)
        y = blob
        for layer in tail:
            y = layer(y)
        scores = tf.unstack(y[0])
    drawn = 0
    for index, score in enumerate(scores):
        weights = tape.gradient(score, blob).numpy()[0].astype(np.float64).mean(axis=(0, 1))
        expected = np.maximum((blob.numpy()[0] * weights).sum(axis=-1), 0)
        found = saliency_map(bvlc, photo, "gradcam", index)
        np.testing.assert_allclose(found.cells, expected, atol=1e-4 * (expected.max() or 1))
        drawn += expected.any()
    assert drawn
    assert found.cells.shape == (13, 13)
    np.testing.assert_array_equal(found.rows, 17 + 16 * np.arange(13))


def test_smoothgrad_is_the_mean_of_absolute_gradients_of_noisy_photos(bvlc, photo):
    x = bvlc.preprocess(photo)
    noise = np.random.default_rng(7).standard_normal((3, *x.shape[1:]), np.float32)
    copies = x + 0.15 * (x.max() - x.min()) * noise
    each = [np.abs(bvlc.gradient(copy[None], 2)[0]) for copy in copies]
    found = saliency_map(bvlc, photo, "smoothgrad", 2, samples=3, seed=7)
    assert relative_error(found.cells, np.mean(each, axis=0).max(axis=-1)) < 1e-5
    again = saliency_map(bvlc, photo, "smoothgrad", 2, samples=3, seed=7)
    np.testing.assert_array_equal(found.values, again.values)


def test_guided_gradients_pass_positive_ones_only(bvlc, photo):
    import tensorflow as tf

    arrays, x = headed(BVLC), bvlc.preprocess(photo)
    model = ta.AlexNet(arrays)
    y, tapes = tf.constant(x), []
    for layer in BVLC.with_head("pool5", 4).layers[:-1]:
        if layer.name.startswith("drop"):
            continue
        with tf.GradientTape() as tape:
            tape.watch(y)
            before = y
            if layer.name == "fc8":
                before = y
                y = model.get_layer("fc8")(tf.reshape(y, (1, -1)))
            else:
                y = model.get_layer(layer.name)(y)
        tapes.append((tape, before, y, layer.name.startswith("conv")))
    above = tf.one_hot([3], 4)
    for tape, before, after, has_relu in reversed(tapes):
        above = tf.nn.relu(above) if has_relu else above
        above = tape.gradient(after, before, output_gradients=above)
    found = saliency_map(bvlc, photo, "guided", 3)
    assert relative_error(found.cells, np.abs(above.numpy()[0]).max(axis=-1)) < 1e-4


@pytest.mark.parametrize("network", ["trained", pytest.param("random", marks=pytest.mark.slow)])
def test_integrated_gradients_add_up_to_the_score(network, embedded, bvlc, photo):
    explainer = embedded if network == "trained" else bvlc
    found = saliency_map(explainer, photo, "integrated")
    x = explainer.preprocess(photo)
    ends = explainer.scores(np.concatenate([np.zeros_like(x), x]))[:, found.class_index]
    assert found.completeness_gap < 0.02
    assert found.cells.sum() == pytest.approx(ends[1] - ends[0], rel=0.021)
    assert found.cells.min() < 0 < found.cells.max()


def test_baselines_of_integrated_gradients(embedded, photo):
    for baseline in ("black", "blur"):
        found = saliency_map(embedded, photo, "integrated", 1, baseline=baseline, steps=32)
        assert found.completeness_gap < 0.05
    few = saliency_map(embedded, photo, "integrated", 1, steps=1)
    assert few.completeness_gap > 0.05
    black = Task(baseline="black")._start(embedded, photo, embedded.preprocess(photo))
    mean = np.float32([0.485, 0.456, 0.406]) / np.float32([0.229, 0.224, 0.225])
    np.testing.assert_allclose(black[0, 0, 0], -mean, rtol=1e-5)


def test_occlusion_equals_a_loop(bvlc, photo):
    patch, stride, told = 40, 60, []
    found = saliency_map(
        bvlc, photo, "occlusion", 1, patch=patch, stride=stride,
        progress=lambda *about: told.append(about),
    )  # fmt: skip
    x = bvlc.preprocess(photo)
    starts = [*range(0, 227 - patch, stride), 227 - patch]
    covered = [x[0]]
    for top in starts:
        for left in starts:
            covered.append(x[0].copy())
            covered[-1][top : top + patch, left : left + patch] = 0  # the mean colour
    extractor = ta.FeatureExtractor(headed(BVLC), "fc8", engine="openvino")
    whole, *scores = extractor(np.stack(covered))["fc8"][:, 1].astype(np.float64)
    expected = (whole - np.array(scores)).reshape(len(starts), len(starts))
    np.testing.assert_allclose(found.cells, expected, atol=2e-5 * abs(whole))
    np.testing.assert_allclose(found.rows, np.array(starts) + (patch - 1) / 2)
    assert told[-1] == ("occlusion", len(starts) ** 2, len(starts) ** 2, {})


def test_occlusion_covers_every_pixel_by_default(bvlc, photo):
    calls = []
    real = bvlc.scores
    try:
        bvlc.scores = lambda batch: calls.append(len(batch)) or np.zeros((len(batch), 4))
        found = saliency_map(bvlc, photo, "occlusion", 0)
    finally:
        bvlc.scores = real
    assert found.cells.shape == (28, 28)
    assert found.rows[0] == 7.5
    assert found.rows[-1] == 226 - 7.5
    assert max(calls) == 64


def detector(table):
    """A network that looks for bright things: one channel is the picture, blurred by conv1."""
    layers = {}
    for name, (shape, size) in table.with_head("pool5", 2).parameter_shapes().items():
        kernel = np.zeros(shape, np.float32)
        if name == "conv1":
            kernel[..., 0] = 1 / kernel[..., 0].size
        elif name == "fc8":
            kernel[:: table.convolutions[-1].filters, 1] = 1
        else:
            kernel[shape[0] // 2, shape[1] // 2, 0, 0] = 1
        layers[name] = LayerArrays(kernel, np.zeros(size, np.float32))
    return WeightArrays(layers, table.name)


@pytest.mark.parametrize("name", ["bvlc_alexnet", "torchvision"])
def test_the_peak_of_gradcam_is_where_the_object_is(name):
    table = ARCHITECTURES[name]
    explainer = Explainer(detector(table))
    size, (height, width) = table.input_size, (400, 600)
    place = Placement.of(height, width, explainer.preset, size)
    scale = np.array([height, width]) / place.resized
    y, x = np.mgrid[:height, :width]
    corners = [(i, j) for i in (19, size - 20) for j in (19, size - 20)]
    stretched = []
    for spot in [*corners, *np.random.default_rng(5).integers(19, size - 20, (16, 2))]:
        row, column = place.to_photo(*spot)
        distance = ((y - row) / scale[0]) ** 2 + ((x - column) / scale[1]) ** 2
        bright = np.rint(255 * np.exp(-distance / (2 * 9**2))).astype(np.uint8)
        image = bright[..., None].repeat(3, axis=-1)
        found = saliency_map(explainer, image, "gradcam", 1)
        # Neighbours have the same value where their pooling windows share the brightest place.
        cells = np.argwhere(found.cells >= found.cells.max() * (1 - 1e-5))
        peak = place.to_photo(found.rows[cells[:, 0]].mean(), found.columns[cells[:, 1]].mean())
        assert (np.abs(np.subtract(peak, (row, column))) <= 8 * scale).all(), (spot, peak)
        nearest = tuple(np.rint(peak).astype(int))
        assert found.values[nearest] >= 0.99 * np.nanmax(found.values)
        wide = (cells.mean(axis=0) + 0.5) * size / len(found.cells) - 0.5
        stretched.append(np.abs(wide - spot).max())
    assert max(stretched) > 9, "a map stretched over the input is further off"


def test_a_network_without_classes_explains_channels(photo):
    explainer = Explainer("torchvision-convs")
    assert (explainer.score_layer, explainer.classes) == ("pool5", 256)
    x = explainer.preprocess(photo)
    rows = ta.FeatureExtractor("torchvision-convs", "pool5", engine="tensorflow")(x)["pool5"]
    assert relative_error(explainer.scores(x), rows.mean(axis=(1, 2))) < 1e-5
    found = saliency_map(explainer, photo)
    assert found.class_index == rows.mean(axis=(1, 2))[0].argmax()
    labels, index = explainer.labels(), found.class_index
    assert explainer.title(index, labels) == f"channel {index} of pool5"


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_map_is_plain_and_says_so(method, photo):
    arrays = headed(COMPACT)
    layers = {**arrays.layers, "fc8": LayerArrays(*map(np.zeros_like, arrays.layers["fc8"]))}
    explainer = Explainer(WeightArrays(layers, "compact"))
    found = saliency_map(explainer, photo, method, 1, samples=2, steps=2, patch=112, stride=112)
    assert found.constant
    assert not np.isnan(found.values).any()  # compact crops nothing
    np.testing.assert_array_equal(overlay(photo, found), photo)
    if method == "integrated":
        assert found.completeness_gap == 0


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 900, 3), (700, 2, 3)])
def test_photos_of_odd_shapes(shape, bvlc):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for method in ("gradcam", "gradient"):
        found = saliency_map(bvlc, image, method)
        assert found.values.shape == shape[:2]
        assert np.isfinite(found.values).any()
        assert overlay(image, found).shape == shape
    assert saliency_map(bvlc, image, target="crop").values.shape == (227, 227)


def test_calls_that_can_not_work(bvlc, photo):
    for settings, error, line in (
        ({"method": "lime"}, UsageError, "Use one of gradcam, gradient"),
        ({"target_class": 4}, InputError, "the network has 4 classes. Give a number from 0 to 3"),
        ({"layer": "fc8"}, LayerError, "no such layer with height and width"),
        ({"layer": "conv5_preact"}, LayerError, "no such layer with height and width"),
        ({"method": "integrated", "baseline": "white"}, UsageError, "Use one of mean, black, blur"),
        ({"method": "smoothgrad", "samples": 0}, UsageError, "samples=0: not positive"),
        ({"target": "mars"}, UsageError, "Use photo or crop"),
    ):
        with pytest.raises(error, match=line):
            saliency_map(bvlc, photo, **settings)
    with pytest.raises(LayerError, match="it does not lie between the input and pool5"):
        saliency_map("torchvision-convs", photo, layer="pool5")
    sized = Explainer(headed(COMPACT), preset="compact.anysize")
    with pytest.raises(InputError, match="does not resize, and the network takes 224x224"):
        saliency_map(sized, photo)


def test_colors_are_matplotlibs_and_zero_is_white():
    import matplotlib

    for name in ("viridis", "inferno"):
        expected = matplotlib.colormaps[name](np.linspace(0, 1, 255))[:, :3] * 255
        assert np.abs(color_table(name).astype(float) - expected).max() < 3
    assert color_table("diverging").shape == (255, 3)
    assert color_table("diverging")[127].tolist() == [255, 255, 255]
    assert color_table("diverging")[0].tolist() == [5, 48, 97]  # blue speaks against


def test_overlay_mixes_half_and_half_up_to_the_99th_percentile():
    values = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    values[0, 0] = np.nan
    image = np.full((20, 20, 3), 100, np.uint8)
    found = SaliencyMap(values, 0, 1.0, None, "gradient")
    mixed = overlay(image, found)
    assert mixed[0, 0].tolist() == [100, 100, 100]
    high = np.nanpercentile(values, 99)
    assert found.limits == (0, pytest.approx(high))
    table = color_table("viridis").astype(float)
    assert mixed[-1, -1].tolist() == np.rint(0.5 * 100 + 0.5 * table[254]).tolist()
    middle = table[round(values[10, 0] / high * 254)]
    np.testing.assert_allclose(mixed[10, 0], 0.5 * 100 + 0.5 * middle, atol=1)
    signed = overlay(image, np.where(values > 0.5, 1, -1) * (values > 0.2), alpha=1.0)
    assert signed[1, 0].tolist() == [255, 255, 255]
    assert signed[-1, -1].tolist() == color_table("diverging")[-1].tolist()
    with pytest.raises(InputError, match="the map has 20x20 pixels"):
        overlay(image[1:], found)
