"""Files that Keras saves: fine-tuned networks around AlexNet, and networks of other kinds."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from weight_seeds import ask_here

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import WeightsError
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.weights import read_weights
from tf_alexnet.weights.formats import hdf5_file, read_file

SUFFIXES = [".weights.h5", ".h5", ".keras"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """HDF5 files opened right here."""
    monkeypatch.setattr(hdf5_file, "_ask_child", ask_here)


@pytest.fixture(scope="module")
def layers():
    import keras

    return keras.layers


def body(layers, *more, classes=None):
    """A network with the names of AlexNet's layers; `more` layers follow conv1."""
    import keras

    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv1")(x)
    for layer in more:
        x = layer(x)
    x = layers.Dense(6, name="fc7")(layers.Flatten()(x))
    if classes:
        x = layers.Dense(classes, name="fc8")(x)
    return keras.Model(inputs, x)


def saved(model, path, suffix):
    path = path / f"net{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (model.save_weights if suffix == ".weights.h5" else model.save)(path)
    return path


def chain(*parts):
    import keras

    model = keras.Sequential(parts)
    model.build((None, 8, 8, 3))
    return model


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_fine_tuned_network(tmp_path, layers, suffix):
    """The new layer is the classifier, whatever its name."""
    base = body(layers)
    head = layers.Dense(3, name="dense_7")
    augmented = layers.RandomFlip("horizontal")
    model = chain(augmented, base, layers.Dropout(0.5), head)
    found = read_weights(saved(model, tmp_path, suffix))
    assert list(found.layers) == ["conv1", "fc7", "fc8"]
    assert found.metadata["renamed"] == "dense_7 -> fc8"
    for name, layer in (("conv1", base.get_layer("conv1")), ("fc8", head)):
        for array, expected in zip(found.layers[name], layer.get_weights(), strict=True):
            np.testing.assert_array_equal(array, expected, strict=True)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_layers_of_a_class_of_ones_own(tmp_path, layers, suffix):
    import keras

    class Tuned(keras.Model):
        def __init__(self):
            super().__init__()
            self.base = body(layers)
            self.head = layers.Dense(3, name="flowers")

        def call(self, x):
            return self.head(self.base(x))

    model = Tuned()
    model(np.zeros((1, 8, 8, 3)))
    found = read_file(saved(model, tmp_path, suffix))
    assert set(found.layers) == {"conv1", "fc7", "flowers"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_name_in_both_models(tmp_path, layers, suffix):
    """Keras demands unique names within a model only."""
    import keras

    base = body(layers, layers.Conv2D(4, 1, name="extra"))
    inner = keras.Model(base.inputs, layers.Dense(5, name="same")(base.output))
    outer = layers.Dense(3, name="same")
    found = read_file(saved(chain(inner, outer), tmp_path, suffix))
    assert len(found.layers) == 5
    assert {"conv1", "fc7", "extra"} < set(found.layers)
    shapes = {found.layers[name].kernel.shape for name in found.set_aside if name != "extra"}
    assert shapes == {(6, 5), (5, 3)}


FOREIGN = {
    "batch normalisation": lambda x: x.BatchNormalization(),
    "batch normalisation ": lambda x: x.BatchNormalization(scale=False, center=False),
    "PReLU": lambda x: x.PReLU(),
    "PReLU ": lambda x: x.PReLU(shared_axes=[1, 2]),
    "normalisation": lambda x: x.LayerNormalization(),
    "normalisation ": lambda x: x.GroupNormalization(2),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", FOREIGN)
def test_networks_of_other_kinds_are_named(tmp_path, layers, suffix, kind):
    path = saved(body(layers, FOREIGN[kind](layers)), tmp_path, suffix)
    with pytest.raises(WeightsError, match=rf"a network with {kind.strip()} \(layer ") as caught:
        read_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("not AlexNet. Use the weights of an AlexNet.")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_learnt_statistics_of_the_input_are_named(tmp_path, layers, suffix):
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("f4"))
    path = saved(chain(layer, body(layers)), tmp_path, suffix)
    with pytest.raises(WeightsError, match=r"with normalisation \(layer "):
        read_file(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_layers_that_are_left_out_are_named(tmp_path, layers, suffix):
    others = (
        layers.Conv2D(4, 1, use_bias=False, name="plain"),
        layers.SeparableConv2D(4, 1, name="separable"),
        layers.Conv2DTranspose(5, 1, name="transposed"),
    )
    path = saved(body(layers, *others), tmp_path, suffix)
    with pytest.warns(UserWarning, match="left out: (plain|separable|transposed)") as caught:
        assert set(read_file(path).layers) == {"conv1", "fc7"}
    assert len(caught) == 3
    ours = chain(layers.Conv2D(4, 3, use_bias=False, name="conv1"), layers.Flatten())
    with pytest.raises(WeightsError, match=r"layer conv1 has arrays of shape \(3, 3, 3, 4\)"):
        read_file(saved(ours, tmp_path, suffix))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("network", ["bvlc_alexnet", "caffenet"])
def test_a_model_s_own_layers_tell_preset_and_network(tmp_path, network, suffix):
    """The order of norm1 and pool1 is listed in files of the whole model only."""
    import tf_alexnet as ta

    table = ARCHITECTURES[network].with_head("pool5", 2)
    arrays = synthetic_weights(table)
    model = ta.AlexNet(replace(arrays, metadata={"preset": "squash"}))
    found = read_file(saved(model, tmp_path, suffix))
    assert found.metadata["preset"] == "squash"
    assert found.architecture == (None if suffix == ".weights.h5" else network)
    assert found.digest == arrays.digest
