"""Every blob of every network against the float64 reference, and faults that must be noticed.

A bound on the relative maximum error, because cosine similarity stays above 0.99 under each of the
faults planted here.
"""

import functools

import keras
import numpy as np
import pytest
import reference
from conftest import model_of, weights_of
from training import narrow

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.layers import LocalResponseNormalization
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.weights import LayerArrays, WeightArrays

# Observed, all blobs of all four networks on photos: at most 3e-6.
BOUND = 1e-5


def preprocessed_by_the_book(paths, channels="BGR"):
    """The Caffe presets' values after the resize, written out independently; N, C, H, W."""
    import cv2

    planes = []
    for path in paths:
        image = cv2.resize(cv2.imread(str(path)), (256, 256))[14:241, 14:241]  # cv2 reads BGR
        mean = (104.00698793, 116.66876762, 122.67891434)
        planes.append(image.astype(np.float64).transpose(2, 0, 1) - np.reshape(mean, (3, 1, 1)))
    return np.stack(planes)


def check_against_reference(model, expected, x):
    """Fail where a blob of `model` on `x` (N, H, W, C) leaves `expected` (blobs in N, C, H, W)."""
    names = [name for name in expected if name in {x.name for x in model.layers}]
    names += [name for name in expected if name.endswith("_preact")]
    assert "pool5" in names
    outputs = ta.features(model, names).predict(x, verbose=0)
    for name in names:
        ours = outputs[name]
        if ours.ndim == 4:
            ours = ours.transpose(0, 3, 1, 2)
        assert ours.shape == expected[name].shape, f"{name}: {ours.shape}"
        error = reference.relative_error(ours, expected[name])
        assert error < BOUND, f"{name} is {error:.1e} off"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_blob_equals_the_reference(name, example_photos):
    table = ARCHITECTURES[name]
    images = [ta.load_image(path) for path in example_photos[: 2 if name == "compact" else 1]]
    x = ta.preprocess_input(images, preset=table.preset)
    expected = reference.forward(table, weights_of(name), x.transpose(0, 3, 1, 2))
    assert set(expected) == {*table.blobs, *table.preacts}
    check_against_reference(model_of(name), expected, x)


def rebuilt(model, **changes):
    """A copy of `model` whose layers were changed: class -> function of the layer's config."""

    def clone(layer):
        config = layer.get_config()
        changes.get(type(layer).__name__, lambda config: None)(config)
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


NARROW = {name: narrow(ARCHITECTURES[name]) for name in ("bvlc_alexnet", "caffenet")}


@functools.cache
def weights():
    """Of the narrow network that faults are planted in."""
    return synthetic_weights(NARROW["bvlc_alexnet"])


def model():
    return ta.AlexNet(weights())


def unordered_rows():
    """The weights with fc6's rows left in Caffe's order: channel, height, width."""
    arrays = weights()
    kernel, bias = arrays.layers["fc6"]
    caffe_rows = kernel.reshape(6, 6, 256, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    return WeightArrays(
        {**arrays.layers, "fc6": LayerArrays(caffe_rows, bias)}, "bvlc_alexnet", "planted"
    )


def same_padding(config):
    if config["name"] == "conv1":
        config["padding"] = "same"


FAULTS = {
    "none": (model, False),
    "conv1 SAME": (lambda: rebuilt(model(), Conv2D=same_padding), False),
    "alpha 1e-4": (
        lambda: rebuilt(
            model(), LocalResponseNormalization=lambda config: config.update(alpha=5e-4)
        ),
        False,
    ),
    "CaffeNet order": (
        lambda: ta.AlexNet(
            WeightArrays(weights().layers, None, "planted"), architecture="caffenet"
        ),
        False,
    ),
    "fc6 rows unordered": (lambda: ta.AlexNet(unordered_rows()), False),
    "RGB for BGR": (model, True),
}


@pytest.fixture(scope="module")
def end_to_end(example_photos):
    """The reference's blobs of photos, decoded and preprocessed without this package."""
    x = preprocessed_by_the_book(example_photos[:1])
    return reference.forward(NARROW["bvlc_alexnet"], weights(), x)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_noticed(fault, end_to_end, example_photos, monkeypatch):
    for name, table in NARROW.items():
        monkeypatch.setitem(ARCHITECTURES, name, table)
    build, swapped = FAULTS[fault]
    model = build()
    images = [ta.load_image(path) for path in example_photos[:1]]
    if swapped:
        images = [image[..., ::-1] for image in images]
    x = ta.preprocess_input(images, preset="caffe")
    if fault == "none":
        check_against_reference(model, end_to_end, x)
        return
    with pytest.raises(AssertionError):
        check_against_reference(model, end_to_end, x)
    ours = ta.features(model, ["fc7"]).predict(x, verbose=0)["fc7"]
    error = reference.relative_error(ours, end_to_end["fc7"])
    assert error > 100 * BOUND, "the fault reaches fc7, far over the bound"


def test_lrn_layer_defaults_are_the_tables():
    convolutions = synthetic_weights(ARCHITECTURES["bvlc_alexnet"].until("pool5"))
    norm = ta.AlexNet(convolutions, include_top=False).get_layer("norm1")
    assert isinstance(norm, LocalResponseNormalization)
    assert (norm.local_size, norm.alpha, norm.beta, norm.k) == (5, 1e-4, 0.75, 1.0)
