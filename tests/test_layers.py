"""GroupedConv2D and LocalResponseNormalization against plain NumPy, and their saving."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

from tf_alexnet.architectures import LRN
from tf_alexnet.errors import InputError
from tf_alexnet.layers import GroupedConv2D, LocalResponseNormalization

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_convolution_equals_caffes_formula(groups):
    x = RNG.normal(size=(2, 9, 10, 8)).astype(np.float32)
    layer = GroupedConv2D(12, (3, 3), padding="same", groups=groups, bias_initializer="normal")
    ours = layer(x).numpy().transpose(0, 3, 1, 2)
    kernel, bias = (np.float64(w) for w in layer.get_weights())
    assert kernel.shape == (3, 3, 8 // groups, 12)
    theirs = reference.convolve(
        x.transpose(0, 3, 1, 2).astype(np.float64), kernel.transpose(3, 2, 0, 1), bias, 1, 1, groups
    )
    assert reference.relative_error(ours, theirs) < 1e-6  # observed 2e-7


def test_groups_do_not_see_each_other():
    layer = GroupedConv2D(4, 1, groups=2, use_bias=False)
    x = np.zeros((1, 1, 1, 4), np.float32)
    x[..., :2] = 1  # the first half of the channels only
    out = layer(x).numpy().ravel()
    assert np.all(out[:2] != 0)
    assert np.all(out[2:] == 0)


def test_groups_that_do_not_fit_are_refused():
    """TensorFlow takes 8 channels for a kernel of 2 as four groups, without a word."""
    with pytest.raises(ValueError, match="filters"):
        GroupedConv2D(5, 3, groups=2)
    layer = GroupedConv2D(4, 3, groups=2)
    layer.build((None, 5, 5, 4))
    with pytest.raises(InputError, match=r"the input has 8 channels, the kernel takes 4"):
        layer.convolution_op(tf.zeros((1, 5, 5, 8)), layer.kernel)
    with pytest.raises(InputError, match=r"3 filters can't be split into 2 groups"):
        layer.convolution_op(tf.zeros((1, 5, 5, 4)), tf.zeros((3, 3, 2, 3)))

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, None))])
    def of_any_shape(x):
        return layer.convolution_op(x, layer.kernel)

    assert of_any_shape(tf.zeros((1, 5, 5, 4))).shape == (1, 3, 3, 4)
    with pytest.raises(tf.errors.InvalidArgumentError):
        of_any_shape(tf.zeros((1, 5, 5, 8)))


@pytest.mark.parametrize("channels", [3, 96])
def test_lrn_equals_caffes_formula(channels):
    x = RNG.uniform(0, 500, size=(2, 4, 5, channels)).astype(np.float32)
    ours = LocalResponseNormalization()(x).numpy().transpose(0, 3, 1, 2)
    theirs = reference.normalize(x.transpose(0, 3, 1, 2).astype(np.float64), LRN("norm1"))
    assert reference.relative_error(ours, theirs) < 5e-6  # observed 1.2e-6


def test_lrn_of_the_paper_has_k_2():
    x = np.full((1, 1, 1, 1), 10, np.float32)
    out = LocalResponseNormalization(5, 5e-4, 0.75, k=2.0)(x).numpy().item()
    assert out == pytest.approx(10 / (2 + 1e-4 * 100) ** 0.75, rel=1e-6)


def test_lrn_refuses_an_even_window():
    with pytest.raises(ValueError, match=r"local_size is 4\. Give an odd number"):
        LocalResponseNormalization(4)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_layers_save_load_and_run_in_mixed_precision(policy, tmp_path):
    inputs = keras.Input((7, 7, 8))
    x = GroupedConv2D(8, 3, groups=2, activation="relu", name="conv", dtype=policy)(inputs)
    x = LocalResponseNormalization(3, 2e-4, 0.5, 2.0, name="norm", dtype=policy)(x)
    model = keras.Model(inputs, x)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    image = RNG.uniform(0, 400, size=(2, 7, 7, 8)).astype(np.float32)
    before, after = model(image), loaded(image)
    assert before.dtype == {"float32": tf.float32}.get(policy, before.dtype)
    np.testing.assert_array_equal(tf.cast(before, tf.float32), tf.cast(after, tf.float32))
    assert loaded.get_layer("norm").get_config() == model.get_layer("norm").get_config()
    assert loaded.get_layer("conv").groups == 2


def test_half_precision_squares_do_not_overflow():
    x = tf.constant(np.full((1, 1, 1, 5), 300, np.float16))  # 300^2 is beyond float16
    out = LocalResponseNormalization(dtype="float16")(x).numpy()
    expected = 300 / (1 + 2e-5 * 300**2 * np.array([3, 4, 5, 4, 3])) ** 0.75
    np.testing.assert_allclose(out.ravel(), expected, rtol=1e-3)


def test_gradient_flows_through_both_layers():
    conv = GroupedConv2D(4, 3, groups=2)
    x = tf.constant(RNG.normal(size=(1, 5, 5, 4)).astype(np.float32))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(LocalResponseNormalization()(conv(x)) ** 2)
    gradient = tape.gradient(loss, conv.trainable_weights[0]).numpy()
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0
