"""AlexNet() and features() as a Keras user meets them."""

import functools
from dataclasses import replace

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from conftest import model_of, weights_of
from training import narrow

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import InputError, LayerError, UsageError, WeightsError
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.weights import LayerArrays, WeightArrays, find_weights

RNG = np.random.default_rng(1)


def batch(n, size=227):
    return RNG.uniform(-120, 130, size=(n, size, size, 3)).astype(np.float32)


@functools.cache
def convs():
    """The convolutions of bvlc_alexnet."""
    return synthetic_weights(ARCHITECTURES["bvlc_alexnet"].until("pool5"))


def compact_model(**kwargs):
    return ta.AlexNet(weights_of("compact"), **kwargs)


def test_layers_bear_caffes_names_and_hold_their_own_weights():
    model = model_of("bvlc_alexnet")
    before = "data preset_caffe conv1 norm1 pool1 conv2 norm2 pool2 conv3 conv4 conv5 pool5 flatten"
    dense = "fc6 drop6 fc7 drop7 fc8 prob"
    assert [layer.name for layer in model.layers] == f"{before} {dense}".split()
    assert model.count_params() == 60_965_224
    assert model.get_layer("fc7").output.shape == (None, 4096)
    assert model.get_layer("conv2").kernel.shape == (5, 5, 48, 256)
    assert type(model) is keras.Model or model.__class__.__name__ == "Functional"


def test_the_batch_size_hardly_changes_a_row():
    """TensorFlow's own sums of few rows differ; FeatureExtractor evens that out (see its test)."""
    multi = ta.features(model_of("bvlc_alexnet"), ["conv5", "fc7", "prob"])
    x = batch(7)
    whole = multi.predict(x, batch_size=7, verbose=0)
    for size in (1, 3):  # 7 = 3 + 3 + 1
        parts = multi.predict(x, batch_size=size, verbose=0)
        for name in ("conv5", "fc7"):
            error = np.abs(parts[name] - whole[name]).max() / whole[name].max()
            assert error < 1e-5, name  # observed 2.7e-6
    np.testing.assert_allclose(whole["prob"].sum(axis=1), 1, atol=1e-6)


def test_feature_extract_is_fc7():
    x = batch(2, 224) / 60
    extractor = compact_model(feature_extract=True)
    assert extractor.layers[-1].name == "fc7"
    fc7 = extractor.predict(x, verbose=0)
    expected = ta.features(compact_model(), ["fc7_preact", "fc7"]).predict(x, verbose=0)
    assert fc7.shape == (2, 2048)
    assert fc7.min() == 0, "post-ReLU"
    np.testing.assert_array_equal(fc7, expected["fc7"])
    before = expected["fc7_preact"]
    assert before.min() < 0
    assert np.abs(np.maximum(before, 0) - fc7).max() / fc7.max() < 1e-6


def test_unknown_blob_lists_the_known_ones():
    with pytest.raises(LayerError, match=r"layer 'fc9': .*Use one of: data, conv1, .*fc7_preact"):
        ta.features(model_of("bvlc_alexnet"), ["fc9"])
    with pytest.raises(LayerError, match="not a list of names"):
        ta.features(model_of("bvlc_alexnet"), "fc7")


def test_save_and_load_give_the_same_model(tmp_path):
    model = ta.features(compact_model(), ["pool5", "fc6_preact", "fc7"])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = batch(2, 224)
    for name, expected in model.predict(x, verbose=0).items():
        found = loaded.predict(x, verbose=0)[name]
        assert reference.relative_error(found, expected) < 1e-5  # observed 0
    assert ta.preset_of(loaded) == "compact"


def test_grouped_layers_survive_saving_bit_by_bit(tmp_path):
    model = ta.AlexNet(convs(), include_top=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for before, after in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert [x.name for x in loaded.layers] == [x.name for x in model.layers]
    assert ta.preset_of(loaded) == "caffe"


def test_fine_tuning_leaves_frozen_weights_as_they_are():
    base = compact_model(include_top=False, pooling="avg")
    for layer in base.layers:
        layer.trainable = layer.name in ("conv5",)
    model = keras.Sequential([base, keras.layers.Dense(3, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    before = {x.name: x.get_weights() for x in base.layers}
    model.fit(batch(4, 224) / 60, np.array([0, 1, 2, 0]), epochs=1, verbose=0)
    for layer in base.layers:
        same = [
            np.array_equal(a, b)
            for a, b in zip(before[layer.name], layer.get_weights(), strict=True)
        ]
        assert all(same) == (layer.name != "conv5"), layer.name
    assert ta.preset_of(model) == "compact"


def test_the_well_known_recipe_trains_the_last_layers_and_no_other():
    base = ta.AlexNet(weights="torchvision-convs", include_top=False)
    x = keras.layers.Flatten()(base.output)
    x = keras.layers.Dense(16, activation="relu")(x)
    x = keras.layers.Dropout(0.5, seed=0)(x)
    model = keras.Model(base.input, keras.layers.Dense(5, activation="softmax")(x))
    for layer in model.layers[:-10]:
        layer.trainable = False
    frozen = [layer for layer in model.layers if layer.weights and not layer.trainable]
    assert [layer.name for layer in frozen] == ["conv1"]
    before = [[*map(np.array, layer.get_weights())] for layer in model.layers]
    # Weight decay and momentum would show on weights that only lack a gradient.
    optimizer = keras.optimizers.SGD(1e-2, momentum=0.9, weight_decay=1e-2)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = batch(6, 224) / 60, np.array([0, 1, 2, 3, 4, 0])
    history = model.fit(x, y, validation_data=(x, y), epochs=2, batch_size=3, verbose=0)
    assert np.isfinite(history.history["val_loss"]).all()
    for layer, arrays in zip(model.layers, before, strict=True):
        for old, new in zip(arrays, layer.get_weights(), strict=True):
            assert (old.tobytes() == new.tobytes()) == (layer in frozen), layer.name
    arrays = ta.read_weights(find_weights("torchvision-convs"))
    assert frozen[0].kernel.numpy().tobytes() == arrays.layers["conv1"].kernel.tobytes()


def test_mixed_precision_policy(request):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    request.addfinalizer(lambda: keras.mixed_precision.set_global_policy("float32"))
    model = ta.AlexNet(convs(), include_top=False)
    assert model.get_layer("conv1").kernel.dtype == "float32"
    assert model.get_layer("conv1").compute_dtype == "bfloat16"
    out = np.asarray(model(batch(1)), np.float32)
    assert out.shape == (1, 6, 6, 256)
    assert np.isfinite(out).all()


def test_include_top_false_takes_any_size_with_caffes_pooling():
    base = ta.AlexNet(convs(), include_top=False, input_shape=(231, 300, 3))
    # Caffe rounds pooled sizes up: 231 -> 56 -> 28 -> 14 -> 7; 300 -> 73 -> 36 -> 18 -> 9
    assert base.output_shape == (None, 7, 9, 256)
    assert base(batch(1, 300)[:, :231]).shape == (1, 7, 9, 256)
    pooled = ta.AlexNet(convs(), include_top=False, pooling="max")
    assert pooled.output_shape == (None, 256)


def test_a_hanging_pooling_window_equals_the_reference():
    table = ARCHITECTURES["bvlc_alexnet"].until("pool5")
    base = ta.AlexNet(convs(), include_top=False, input_shape=(231, 240, 3))
    x = batch(1, 240)[:, :231]
    expected = reference.forward(table, convs(), x.transpose(0, 3, 1, 2))
    ours = base.predict(x, verbose=0).transpose(0, 3, 1, 2)
    assert reference.relative_error(ours, expected["pool5"]) < 1e-5  # observed 2e-6


def test_dense_layers_take_one_size_only_unless_the_caller_insists():
    with pytest.raises(InputError, match=r"were trained on 224x224.*or pass allow_resize=True"):
        compact_model(input_shape=(227, 227, 3))
    reason = "pool5 would be 7x7, and the .* take 6x6, that is inputs of 223 to 254 pixels a side"
    for allowed in (False, True):
        with pytest.raises(InputError, match=reason):
            compact_model(input_tensor=keras.Input((256, 256, 3)), allow_resize=allowed)
    resized = compact_model(input_shape=(227, 250, 3), allow_resize=True)
    assert resized.predict(np.zeros((1, 227, 250, 3)), verbose=0).shape == (1, 1000)
    assert ta.preset_of(resized) == "compact.anysize"


def test_input_tensor_and_logits():
    tensor = keras.Input((224, 224, 3), name="photo")
    model = compact_model(input_tensor=tensor, classifier_activation=None, name="mine")
    assert model.input is tensor
    assert model.name == "mine"
    assert model.layers[-1].name == "fc8"


def convolutions(**settings):
    """The convolutions of compact for images of 64x64, or as `settings` say."""
    arrays = synthetic_weights(ARCHITECTURES["compact"].until("pool5"))
    return ta.AlexNet(arrays, include_top=False, **{"input_shape": (64, 64, 3), **settings})


def test_what_comes_before_input_tensor_stays():
    photo = keras.Input((80, 80, 3), dtype="uint8", name="photo")
    x = keras.layers.Rescaling(1 / 127.5, -1)(keras.layers.CenterCrop(64, 64)(photo))
    model = convolutions(input_tensor=x, input_shape=None)
    assert model.input is photo
    images = RNG.integers(0, 256, (2, 80, 80, 3), dtype=np.uint8)
    expected = convolutions().predict(images[:, 8:-8, 8:-8] / np.float32(127.5) - 1, verbose=0)
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, rtol=1e-4, atol=1e-4)
    assert ta.preset_of(model) == "compact.size64"
    two = [keras.Input((64, 64, 3), name=name) for name in ("left", "right")]
    both = convolutions(input_tensor=keras.layers.Average()(two), input_shape=None)
    assert [x.name for x in both.inputs] == ["left", "right"]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (lambda: np.zeros((1, 64, 64, 3)), "ndarray is not a Keras tensor"),
        (lambda: [keras.Input((64, 64, 3))], "list is not a Keras tensor"),
        (lambda: keras.Input((64, 64, 3), dtype="uint8"), "uint8 of shape .* Pass floats"),
        (lambda: keras.Input((64, 64)), r"float32 of shape \(None, 64, 64\)"),
        (lambda: keras.Input((64, 64, 6)), r"not \(height, width, 3\). Images have 3 channels"),
        (lambda: keras.Input((64, 64, None)), "Images have 3 channels"),
        (lambda: keras.Input((80, 80, 3)), r"input_tensor is \(None, 80, 80, 3\). Pass one"),
    ],
)
def test_other_input_tensors_are_refused_in_one_line(tensor, message):
    shape = (64, 64, 3) if "Pass one" in message else None
    with pytest.raises(UsageError, match=message):
        convolutions(input_tensor=tensor(), input_shape=shape)


SHAPES = [(2, 66, 66, 3), (2, 3, 64, 64), (2, 32, 128, 3), (2, 64, 64, 6), (2, 64, 64, 1)]


@pytest.mark.parametrize(
    "call",
    [
        "predict",
        "fit",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("evaluate", "predict compiled by XLA")),
    ],
)
def test_another_size_fails_also_after_right_ones(call):
    """Keras traces a second shape with all axes open, and its own check passes everything then."""
    base = convolutions(pooling="avg")
    model = keras.Sequential([base, keras.layers.Dense(2, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile="XLA" in call)
    labels = [] if "predict" in call else [np.array([0, 1])]
    run = getattr(model, call.split()[0])
    for shape in [(2, 64, 64, 3), *SHAPES]:
        try:
            run(np.zeros(shape, np.float32), *labels, verbose=0)
        except (ValueError, tf.errors.InvalidArgumentError):
            assert shape != (2, 64, 64, 3)
        else:
            assert shape == (2, 64, 64, 3)
    run(np.zeros((2, 64, 64, 3), np.float32), *labels, verbose=0)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_the_guard_passes_right_images_unchanged(policy, request):
    keras.mixed_precision.set_global_policy(policy)
    request.addfinalizer(lambda: keras.mixed_precision.set_global_policy("float32"))
    x = tf.constant(RNG.uniform(-150, 150, (3, 67, 75, 3)).astype(np.float32))
    for shape in ((67, 75, 3), (None, None, 3), (67, None, 3), (None, 75, 3)):
        guard = convolutions(input_shape=shape).get_layer("preset_compact.anysize")
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = guard(x)
        np.testing.assert_array_equal(y, tf.cast(x, guard.compute_dtype))
        np.testing.assert_array_equal(tape.gradient(y, x), np.ones_like(x))
        odd = tf.constant([np.nan, np.inf, -np.inf])[:, None, None, None] * tf.ones_like(x)
        np.testing.assert_array_equal(tf.cast(guard(odd), tf.float32), odd)


def test_an_open_size_still_needs_three_channels():
    model = convolutions(input_shape=(None, None, 3), pooling="avg")
    for side in (64, 100, 67):
        assert model.predict(np.zeros((1, side, side, 3)), verbose=0).shape == (1, 128)
    for shape in ((1, 64, 64, 6), (1, 64, 64, 4), (1, 3, 64, 64)):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            model.predict(np.zeros(shape), verbose=0)


def test_any_size_without_weights_and_never_an_open_one_with_the_top():
    model = ta.AlexNet(None, architecture="compact", input_shape=(100, 64, 3), classes=2)
    assert model.predict(np.zeros((1, 100, 64, 3)), verbose=0).shape == (1, 2)
    for weights in (None, weights_of("compact")):
        with pytest.raises(InputError, match="dense layers need a fixed height and width"):
            ta.AlexNet(weights, architecture="compact", input_shape=(None, 224, 3))
    with pytest.raises(InputError, match="it is too small for layer pool1"):
        convolutions(input_shape=(12, 300, 3))


def test_a_seed_gives_the_same_fresh_weights():
    def made(**settings):
        model = ta.AlexNet(None, include_top=False, **settings)
        return [w.copy() for w in model.get_weights()]

    for name in ("bvlc_alexnet", "torchvision", "compact"):
        one, same, other = (made(architecture=name, seed=seed) for seed in (1, 1, 2))
        assert all(map(np.array_equal, one, same))
        kernels = [(x, y) for x, y in zip(one, other, strict=True) if x.ndim == 4]
        assert not any(np.array_equal(x, y) for x, y in kernels)
    assert not np.array_equal(one[4].ravel()[:99], one[6].ravel()[:99])
    with pytest.raises(UsageError, match="seed=-1: not a whole number >= 0"):
        made(seed=-1)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda: False, r"AlexNet\(False\): weights come first.*Pass include_top=False"),
        (lambda: keras.Input((224, 224, 3)), r"Pass input_tensor=tensor, or call the model"),
        (lambda: tf.zeros((1, 224, 224, 3)), r"Pass input_tensor=tensor, or call the model"),
        (lambda: {"conv1": 1}, "dict is not a kind of weights"),
    ],
)
def test_other_first_arguments_are_told_what_to_do(weights, message):
    with pytest.raises(UsageError, match=message):
        ta.AlexNet(weights())
    with pytest.raises(UsageError, match="is not a kind of weights"):
        ta.FeatureExtractor(weights())


def test_a_prototxt_names_network_preset_and_classes(tmp_path, monkeypatch):
    from tf_alexnet.weights.deploy import deploy_prototxt as prototxt

    for name in ("bvlc_alexnet", "caffenet"):
        monkeypatch.setitem(ARCHITECTURES, name, narrow(ARCHITECTURES[name]))
    table = ARCHITECTURES["caffenet"].with_head("fc7", 3)
    data = 'layer { type: "Data" top: "data" transform_param { crop_size: 227 %s } }\n'
    means = " ".join(f"mean_value: {mean}" for mean in (104, 117, 123))
    path = tmp_path / "train_val.prototxt"
    path.write_text(prototxt(table).replace("layer {", data % means + "layer {", 1))
    model = ta.AlexNet(None, architecture=str(path))
    assert (model.name, model.output_shape) == ("caffenet", (None, 3))
    assert ta.preset_of(model) == "caffe.mean104-117-123"
    unknown = WeightArrays(synthetic_weights("bvlc_alexnet").layers)
    with pytest.raises(WeightsError, match="it has 1000 classes, but the prototxt 3"):
        ta.AlexNet(unknown, architecture=str(path))
    path.write_text(prototxt(table.with_classes(1000)))
    assert ta.AlexNet(unknown, architecture=path, feature_extract=True).name == "caffenet"
    path.write_text(prototxt(replace(table, input_size=224)))
    with pytest.raises(InputError, match=r"its input has 224 pixels a side.*allow_resize=True"):
        ta.AlexNet(None, architecture=path)


def test_a_missing_classifier_starts_untrained_where_classes_are_asked_for():
    layers = {k: v for k, v in weights_of("compact").layers.items() if k != "fc8"}
    arrays = WeightArrays(layers, "compact", "headless.npy")
    with pytest.raises(WeightsError, match="fc8 is missing"):
        ta.AlexNet(arrays)
    with pytest.warns(UserWarning, match="fc8 is missing, but classes=48: fc8 starts"):
        assert ta.AlexNet(arrays, classes=48).output_shape == (None, 48)
    assert ta.AlexNet(arrays, feature_extract=True).output_shape == (None, 2048)


def test_another_number_of_classes_replaces_fc8_and_says_so():
    with pytest.warns(UserWarning, match="fc8 is for 1000 classes, but classes=5: fc8 starts"):
        model = compact_model(classes=5)
    assert model.output_shape == (None, 5)
    np.testing.assert_array_equal(
        model.get_layer("fc7").kernel.numpy(), weights_of("compact").layers["fc7"].kernel
    )


def test_a_file_with_other_classes_keeps_them():
    layers = dict(weights_of("compact").layers)
    layers["fc8"] = LayerArrays(layers["fc8"].kernel[:, :365], layers["fc8"].bias[:365])
    model = ta.AlexNet(WeightArrays(layers, "compact", "places"))
    assert model.output_shape == (None, 365)


def test_fresh_weights_are_the_tables():
    model = ta.AlexNet(None, include_top=False)
    assert model.name == "bvlc_alexnet"
    assert model.get_layer("conv2").bias.numpy() == pytest.approx(0.1)
    assert model.get_layer("conv1").kernel.numpy().std() == pytest.approx(0.01, rel=0.05)


def test_no_random_values_are_drawn_for_loaded_weights(monkeypatch):
    def draw(*_, **__):
        raise AssertionError("random values for weights that are there already")

    for name in ("RandomNormal", "VarianceScaling", "RandomUniform"):
        monkeypatch.setattr(getattr(keras.initializers, name), "__call__", draw)
    compact_model()
    with pytest.raises(AssertionError, match="random values"):
        ta.AlexNet(None, architecture="compact")


def test_saved_configs_hold_initializers_not_arrays():
    config = model_of("bvlc_alexnet").get_layer("conv2").get_config()
    assert config["kernel_initializer"]["class_name"] == "RandomNormal"
    assert config["bias_initializer"]["config"]["value"] == 0.1


def broken(**changes):
    layers = dict(weights_of("compact").layers)
    for name, layer in changes.items():
        if layer is None:
            del layers[name]
        else:
            layers[name] = layer
    return WeightArrays(layers, "compact", "broken.npy")


def test_all_faults_of_the_arrays_are_listed_at_once():
    kernel, bias = weights_of("compact").layers["fc8"]
    nan = bias.copy()
    nan[3] = np.nan
    arrays = broken(
        conv2=None, fc9=LayerArrays(kernel, bias), fc7=LayerArrays(kernel, bias),
        fc8=LayerArrays(kernel, nan),
    )  # fmt: skip
    with pytest.raises(WeightsError) as caught:
        ta.AlexNet(arrays)
    text = str(caught.value)
    for part in (
        "broken.npy as compact: ",
        "conv2 is missing",
        "it also has fc9",
        "fc7 kernel has shape (2048, 1000), expected (2048, 2048)",
        "fc8 bias: 1 of 1000 values are NaN or infinite",
    ):
        assert part in text


def test_unknown_network_is_not_guessed():
    arrays = WeightArrays(convs().layers, None, "some.npy")
    with pytest.raises(WeightsError, match=r"some.npy: its shapes fit bvlc_alexnet and caffenet"):
        ta.AlexNet(arrays)
    assert ta.AlexNet(arrays, architecture="caffenet", include_top=False).name == "caffenet"


def test_caffenet_does_not_run_as_bvlc_alexnet():
    arrays = WeightArrays(convs().layers, "caffenet", "places.npy")
    with pytest.raises(WeightsError, match=r"places.npy as bvlc_alexnet: these are caffenet"):
        ta.AlexNet(arrays, architecture="bvlc_alexnet")


def test_convolutions_alone_have_no_top():
    with pytest.raises(WeightsError, match=r"it has only convolutions.*include_top=False"):
        ta.AlexNet("torchvision-convs")
    base = ta.AlexNet("torchvision-convs", include_top=False, pooling="avg")
    assert base.output_shape == (None, 256)
    assert ta.preset_of(base) == "torchvision"


def test_contradicting_arguments():
    for arguments in (
        {"pooling": "avg"},
        {"pooling": "mean", "include_top": False},
        {"feature_extract": True, "include_top": False},
        {"input_shape": (3, 227, 227)},
        {"classes": 0},
        {"architecture": "alexnet"},
    ):
        with pytest.raises(UsageError):
            ta.AlexNet(weights_of("compact"), **arguments)


def test_preset_of_a_stranger():
    stranger = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(UsageError, match=r"it contains no AlexNet"):
        ta.preset_of(stranger)
