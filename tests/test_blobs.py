"""Blobs, arrays and presets of models that are cut, nested, shared, quantized or rebuilt."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from conftest import weights_of

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES, carried_preset, sized_preset
from tf_alexnet.errors import LayerError, UsageError
from tf_alexnet.model import arrays_of
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.weights import WeightArrays

RNG = np.random.default_rng(2)
SIDE = 96


def base_of(preset="squash", **settings):
    """Convolutions for small images."""
    table = ARCHITECTURES["bvlc_alexnet"].until("pool5")
    arrays = replace(synthetic_weights(table), metadata={"preset": preset})
    settings = {"include_top": False, "input_shape": (SIDE, SIDE, 3), **settings}
    return ta.AlexNet(arrays, **settings)


def batch(n=2):
    return RNG.uniform(-120, 130, (n, SIDE, SIDE, 3)).astype(np.float32)


def same(model, names, x, expected):
    found = ta.features(model, names).predict(x, verbose=0)
    for name in names:
        error = np.abs(found[name] - expected[name.split("/")[-1]]).max()
        assert error <= 1e-6 * np.abs(found[name]).max(), name


@pytest.fixture(scope="module")
def base():
    return base_of(pooling="avg")


@pytest.fixture(scope="module")
def blobs(base):
    """An input, and some blobs of `base`."""
    x = batch()
    names = ["data", "conv1_preact", "norm1", "conv5", "avg_pool"]
    return x, ta.features(base, names).predict(x, verbose=0)


def test_blobs_inside_other_models_are_found(base, blobs):
    x, expected = blobs
    names = ["conv1_preact", "norm1", "conv5", "avg_pool"]
    sequential = keras.Sequential([base, keras.layers.Dense(3, name="mine")])
    deep = keras.Sequential([keras.Input((SIDE, SIDE, 3)), keras.Sequential([base])])
    rows = keras.Sequential([keras.Input((SIDE, SIDE, 3)), *base.layers[1:-1]])  # called again
    cut = keras.Model(base.input, base.get_layer("conv5").output)
    doubled = keras.Input((SIDE, SIDE, 3))
    functional = keras.Model(
        doubled, keras.layers.Dense(2)(base(keras.layers.Rescaling(0.5)(doubled)))
    )
    for model, some in ((sequential, names), (deep, names), (rows, names[:3]), (cut, names[:3])):
        same(model, some, x, expected)
        assert ta.preset_of(model) == "squash.size96"
    same(functional, names, 2 * x, expected)
    mine = ta.features(sequential, ["mine", "norm1"]).predict(x, verbose=0)
    np.testing.assert_allclose(mine["mine"], sequential.predict(x, verbose=0), rtol=1e-5)
    again = ta.features(ta.features(sequential, ["conv5", "mine"]), ["norm1"])
    np.testing.assert_allclose(again.predict(x, verbose=0)["norm1"], expected["norm1"], rtol=1e-5)


def test_a_nested_network_is_computed_once(base):
    sequential = keras.Sequential([base, keras.layers.Dense(3, name="mine")])
    model = ta.features(sequential, ["mine", "norm1", "conv5_preact"])
    inner = [x for x in model.layers if isinstance(x, keras.Model)]
    assert [x.name for x in model.layers if x.weights] == [base.name, "mine"]
    assert len(inner) == 1
    assert all(w is v for w, v in zip(inner[0].weights, base.weights, strict=False))


def two_streams(left, right):
    a, b = keras.Input((SIDE, SIDE, 3), name="a"), keras.Input((SIDE, SIDE, 3), name="b")
    joined = keras.layers.Concatenate()([left(a), right(b)])
    return keras.Model([a, b], keras.layers.Dense(2)(joined))


def test_two_streams_need_the_name_of_one(blobs):
    x, expected = blobs
    model = two_streams(base_of(pooling="avg", name="left"), base_of(pooling="max", name="right"))
    assert ta.preset_of(model) == "squash.size96"
    for name in ("norm1", "conv5_preact"):
        with pytest.raises(LayerError, match=rf"has left/{name} and right/{name}\. Use one"):
            ta.features(model, [name])
    names = ["left/norm1", "right/conv1_preact", "avg_pool"]
    found = ta.features(model, names).predict([x, x], verbose=0)
    for name in names:
        np.testing.assert_allclose(found[name], expected[name.split("/")[-1]], rtol=1e-5)
    with pytest.raises(UsageError, match=r"several layers called conv1.*get_layer\('right'\)"):
        arrays_of(model)
    assert arrays_of(model.get_layer("left")).architecture == "bvlc_alexnet"
    mixed = two_streams(base_of(pooling="avg", name="l"), base_of(preset="kratzert", pooling="avg"))
    with pytest.raises(UsageError, match=r"different presets: kratzert\.size96, squash\.size96"):
        ta.preset_of(mixed)
    shared = base_of(pooling="avg", name="both")
    with pytest.raises(LayerError, match="calls both 2 times"):
        ta.features(two_streams(shared, shared), ["norm1"])


def test_a_clone_carries_the_preset(base):
    assert ta.preset_of(keras.models.clone_model(base)) == "squash.size96"
    assert ta.preset_of(ta.features(base, ["conv1"])) == "squash.size96"


def test_models_of_older_files_have_their_tables_preset(base):
    plain = keras.Sequential(
        [x for x in base.layers if not carried_preset(x) and "preset" not in x.name]
    )
    assert carried_preset(plain) is None
    assert ta.preset_of(plain) == "caffe"


def test_what_has_no_blobs_is_told_so():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    for stranger in (Subclassed(), keras.Sequential([keras.layers.Dense(2)]), 3):
        with pytest.raises(LayerError, match="it has no graph of layers to take blobs from"):
            ta.features(stranger, ["fc7"])
        with pytest.raises(UsageError, match="it contains no AlexNet"):
            ta.preset_of(stranger)
        with pytest.raises(UsageError, match="it contains no AlexNet"):
            arrays_of(stranger)


def test_presets_get_the_size_of_the_model():
    for preset, size, expected in (
        ("caffe", 227, "caffe"),
        ("caffe", 300, "caffe.size300"),
        ("caffe", None, "caffe.anysize"),
        ("caffe.mean104.5-117-123", 224, "caffe.size224.mean104.5-117-123"),
        ("caffe.size224.mean104.5-117-123", None, "caffe.anysize.mean104.5-117-123"),
        ("caffe.anysize.mean1-2-3", 227, "caffe.mean1-2-3"),
        ("caffe-mean-image.size224", 227, "caffe-mean-image"),
        ("raw", 300, "raw"),
    ):
        assert sized_preset(preset, size, 227) == expected
    assert ta.preset_of(base_of(input_shape=(96, 100, 3))) == "squash.anysize"
    assert ta.preset_of(base_of(input_shape=(None, None, 3))) == "squash.anysize"
    assert ta.preset_of(base_of(input_shape=None)) == "squash"


def test_the_arrays_of_a_model_are_those_it_was_built_from(base):
    arrays = arrays_of(base)
    assert (arrays.architecture, arrays.metadata) == ("bvlc_alexnet", {"preset": "squash"})
    assert arrays.digest == synthetic_weights(ARCHITECTURES["bvlc_alexnet"].until("pool5")).digest
    full = weights_of("compact")
    tuned = keras.Sequential(
        [ta.AlexNet(full, feature_extract=True), keras.layers.Dense(3, name="mine")]
    )
    arrays = arrays_of(tuned)
    assert (arrays.classes, arrays.classifier) == (3, "mine")
    assert list(arrays.layers) == list(full.layers)
    assert ta.AlexNet(tuned).output_shape == (None, 3)
    x = RNG.uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    found = ta.FeatureExtractor(tuned, ["mine", "fc7"])(x)
    np.testing.assert_allclose(found["mine"], tuned.predict(x, verbose=0), rtol=1e-3, atol=1e-3)
    assert found["fc7"].shape == (2, 2048)
    for layer in ("pool5", "fc6"):
        cut = synthetic_weights(ARCHITECTURES["compact"].with_head(layer, 5))
        cut = replace(cut, metadata={"head": layer})
        assert ta.AlexNet(ta.AlexNet(cut)).output_shape == (None, 5)
    odd = keras.Sequential([base, keras.layers.BatchNormalization(name="bn")])
    with pytest.raises(UsageError, match=r"layer 'bn': a BatchNormalization whose weights are not"):
        arrays_of(odd)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_preactivations_of_quantized_layers():
    model = ta.AlexNet(weights_of("compact"))
    x = RNG.uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    exact = ta.features(model, ["fc7_preact"]).predict(x, verbose=0)
    before = ta.features(model, ["fc7_preact", "fc7"])
    model.quantize("int8")
    for quantized in (before, ta.features(model, ["fc7_preact", "fc7"])):
        found = quantized.predict(x, verbose=0)
        np.testing.assert_array_equal(np.maximum(found["fc7_preact"], 0), found["fc7"])
        error = np.abs(found["fc7_preact"] - exact["fc7_preact"]).max()
        assert 0 < error < 0.05 * np.abs(exact["fc7_preact"]).max()  # observed 0.012
    with pytest.raises(
        UsageError, match=r"layer 'fc6': a Dense whose weights are not a floating-point kernel"
    ):
        arrays_of(model)


def test_the_files_own_classifier_is_known_by_its_name():
    arrays = synthetic_weights(ARCHITECTURES["compact"].with_head("pool5", 2))
    pair = arrays.layers["fc8"]
    convs = {name: x for name, x in arrays.layers.items() if name != "fc8"}
    mine = WeightArrays({**convs, "fc8_mine": pair}, "compact")
    x = RNG.uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    found = ta.FeatureExtractor(mine, ["fc8_mine", "fc8"])(x)
    np.testing.assert_array_equal(found["fc8_mine"], found["fc8"])
    two = WeightArrays(
        {**convs, "fc8_a": pair, "fc8_b": tuple(2 * part for part in pair)}, "compact"
    )
    with pytest.warns(UserWarning, match="compact has no layer fc8_a; left out"):
        model = ta.AlexNet(two, classifier="fc8_b")
    np.testing.assert_array_equal(model.get_layer("fc8").bias, 2 * pair.bias)
