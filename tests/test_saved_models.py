"""Models that leave the process come back: every check runs in a process that did not make them."""

import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import relative_error
from test_preprocessing import OWN, PHOTOS, arguments
from training import class_folders

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import UsageError, WeightsError
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.weights import WeightArrays

WANTED = ["conv5_preact", "norm1", "pool5"]
LAYERS = {"caffe": "caffe.size224.mean104-117-123", "image": "caffe-mean-image", "own": OWN}
CHECK = """
import numpy as np, tensorflow as tf, pathlib, pickle
folder = pathlib.Path(sys.argv[1])
x, expected = np.load(folder / "x.npy"), dict(np.load(folder / "expected.npz"))
def check(model, random=False):
    assert ta.preset_of(model) == "squash.size67", ta.preset_of(model)
    out = model(x)
    for name, values in expected.items():
        assert out[name].shape == values.shape
        assert random or np.array_equal(out[name], values), name
    assert ta.preset_of(ta.features(model, ["norm1"])) == "squash.size67"
"""


def convolutions(name, **metadata):
    """The convolutions of `name`, small to save."""
    table = ARCHITECTURES[name].until("pool5")
    layers = synthetic_weights(table).layers
    return WeightArrays(layers, name, "synthetic", metadata)


def fresh(code, *arguments, **environment):
    """Run `code` in another process."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


THREADS = """
import pathlib, pickle, sys, threading, time
import tf_alexnet

def begin(event, arguments):
    if event == "import" and arguments[0].startswith("keras.") and not threads:
        threads.append(threading.Thread(target=__import__, args=["tf_alexnet.layers"]))
        threads[0].start()
        time.sleep(1)

threads = []
sys.addaudithook(begin)
import keras
threads[0].join()
assert keras.saving.get_registered_object("tf_alexnet>GroupedConv2D")
model = pickle.loads(pathlib.Path(sys.argv[1], "model.pickle").read_bytes())
assert tf_alexnet.preset_of(model) == "squash.size67"
"""


@pytest.mark.slow
def test_layers_that_another_thread_imports_while_keras_is_imported(saved):
    """As an extractor does; it was a deadlock. Keras, imported later, knows the layers."""
    fresh(THREADS, saved)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model with all our layers, saved in every way that Keras knows."""
    folder = tmp_path_factory.mktemp("saved")
    base = ta.AlexNet(
        convolutions("bvlc_alexnet", preset="squash"), include_top=False, input_shape=(67, 67, 3)
    )
    model = ta.features(base, WANTED)
    x = np.random.default_rng(0).uniform(-120, 130, (2, 67, 67, 3)).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.savez(folder / "expected.npz", **model(x))
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    (folder / "model.json").write_text(model.to_json())
    (folder / "model.pickle").write_bytes(pickle.dumps(model))
    model.export(folder / "saved_model", verbose=False)
    np.save(folder / "photos.npy", PHOTOS)
    for name, preset in LAYERS.items():
        layer = ta.Preprocessing(preset, **arguments(preset), name="pixels")
        model = keras.Sequential([keras.Input((None, None, 3), dtype="uint8"), layer])
        model.save(folder / f"{name}.keras")
        np.save(folder / f"{name}.npy", model(PHOTOS))
    return folder


def train(method, folder):
    """A RUN in `folder` by `train_head` or `train_network`, which write it in the same way."""
    data = class_folders(folder / "data", count=3, classes=2)
    cut = synthetic_weights(ARCHITECTURES["compact"].with_head("pool5", 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "preset 'torchvision' gives RGB")
        method(data, folder / "RUN", weights=cut, preset="torchvision", layer="pool5")
    return folder / "RUN"


CHECK_RUN = """
def run():
    import numpy as np
    models = [keras.models.load_model(sys.argv[2] + "/model.keras"), ta.load_model(sys.argv[2])]
    assert [ta.preset_of(x) for x in models] == ["torchvision"] * 2
    x = np.ones((1, 224, 224, 3), np.float32)
    assert np.allclose(*(model(x) for model in models))
"""


@pytest.fixture(scope="module")
def loaded_again(saved, tmp_path_factory):
    """Check -> what went wrong; both in one process, which imported Keras first."""
    from tf_alexnet.training import train_head

    code = """
import sys, json, keras, traceback
import tf_alexnet as ta
""" + CHECK + """
def models():
    check(keras.models.load_model(folder / "model.keras"))
    check(keras.models.load_model(folder / "model.h5"))
    check(keras.models.model_from_json((folder / "model.json").read_text()), random=True)
    check(pickle.loads((folder / "model.pickle").read_bytes()))
    check(keras.models.clone_model(keras.models.load_model(folder / "model.keras")), random=True)
    for name in ("model.keras", "model.h5"):
        check(ta.load_model(folder / name))
    check(ta.load_model(folder / "model.json"), random=True)
    exported = tf.saved_model.load(folder / "saved_model")
    assert ta.preset_of(exported) == "squash.size67"
    out = exported.signatures["serving_default"](tf.constant(x))
    assert all(np.abs(out[k] - expected[k]).max() < 1e-4 * expected[k].max() for k in expected)

def preprocessing():
    photos = np.load(folder / "photos.npy")
    for name in """ + str([*LAYERS]) + """:
        model = keras.models.load_model(folder / f"{name}.keras")
        for found in (model, keras.models.clone_model(model)):
            assert np.array_equal(found(photos), np.load(folder / f"{name}.npy")), name

""" + CHECK_RUN + """
found = {}
for test in (models, preprocessing, run):
    try:
        found[test.__name__] = test()
    except BaseException:
        found[test.__name__] = traceback.format_exc()
print(json.dumps(found))
"""  # fmt: skip
    run = train(train_head, tmp_path_factory.mktemp("head"))
    return json.loads(fresh(code, saved, run).splitlines()[-1])


def test_keras_loads_models_where_it_was_imported_first(loaded_again):
    assert loaded_again["models"] is None, loaded_again["models"]


def test_preprocessing_in_a_model_stays_the_same(loaded_again):
    assert loaded_again["preprocessing"] is None, loaded_again["preprocessing"]


def test_a_training_run_carries_its_preset(loaded_again):
    assert loaded_again["run"] is None, loaded_again["run"]


@pytest.mark.slow
def test_the_run_of_a_network_carries_its_preset(tmp_path):
    from tf_alexnet.training import train_network

    run = train(partial(train_network, epochs=1), tmp_path)
    fresh("import sys, keras, tf_alexnet as ta\n" + CHECK_RUN + "run()", "", run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import tf_alexnet as ta",
        "import tf_alexnet as ta, tensorflow as tf; tf.keras.layers",
    ],
)
def test_layers_are_registered_also_where_keras_is_imported_later(saved, imports):
    code = f"import sys, pickle\n{imports}\n" + CHECK + """
check(pickle.loads((folder / "model.pickle").read_bytes()))
"""  # fmt: skip
    fresh(code, saved)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision", "compact"])
def test_networks_of_keras_own_layers_load_without_this_package(name, tmp_path):
    model = ta.AlexNet(convolutions(name), include_top=False, input_shape=(96, 96, 3))
    x = np.random.default_rng(0).uniform(-2, 2, (1, 96, 96, 3)).astype(np.float32)
    np.savez(tmp_path / "xy.npz", x=x, y=model.predict(x, verbose=0))
    model.save(tmp_path / "model.keras")
    model.save(tmp_path / "model.h5")
    code = """
import sys, keras, numpy as np
for suffix in ("keras", "h5"):
    model = keras.models.load_model(f"{sys.argv[1]}/model.{suffix}")
    xy = np.load(f"{sys.argv[1]}/xy.npz")
    assert abs(model.predict(xy["x"], verbose=0) - xy["y"]).max() < 1e-5 * abs(xy["y"]).max()
assert "tf_alexnet" not in sys.modules
"""
    fresh(code, tmp_path)


@pytest.mark.slow
def test_a_model_with_its_preprocessing_takes_photos_where_it_is_loaded(tmp_path):
    photos = keras.Input((80, 100, 3), dtype="uint8")
    base = ta.AlexNet(
        convolutions("compact"),
        include_top=False,
        input_tensor=ta.Preprocessing("compact")(photos),
        pooling="avg",
    )
    x = np.random.default_rng(0).integers(0, 256, (2, 80, 100, 3), dtype=np.uint8)
    np.savez(tmp_path / "xy.npz", x=x, y=base.predict(x, verbose=0))
    base.save(tmp_path / "model.keras")
    code = """
import sys, numpy as np, tf_alexnet as ta
model = ta.load_model(sys.argv[1] + "/model.keras")
xy = np.load(sys.argv[1] + "/xy.npz")
assert abs(model.predict(xy["x"], verbose=0) - xy["y"]).max() < 1e-5 * abs(xy["y"]).max()
assert ta.preset_of(model) == "compact"
"""
    fresh(code, tmp_path)


@pytest.mark.slow
def test_channels_first_in_keras_json_changes_nothing(saved, tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps({"image_data_format": "channels_first"}))
    code = """
import sys, keras
import tf_alexnet as ta
""" + CHECK + """
assert keras.config.image_data_format() == "channels_first"
check(keras.models.load_model(folder / "model.keras"))
from tf_alexnet.testing import synthetic_weights
for pooling in ("avg", "max"):
    base = ta.AlexNet(None, include_top=False, input_shape=(None, None, 3), pooling=pooling)
    assert base.output_shape == (None, 256)
    assert base(x).shape == (2, 256)
weights = synthetic_weights("compact")
model = ta.AlexNet(weights)
x = np.random.default_rng(0).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
fc7 = ta.features(model, ["fc7"]).predict(x, verbose=0)["fc7"]
fast = ta.FeatureExtractor(weights, ["fc7"])(x)["fc7"]
assert np.abs(fc7 - fast).max() < 1e-5 * fast.max()
"""  # fmt: skip
    fresh(code, saved, KERAS_HOME=str(tmp_path))


@pytest.mark.parametrize(
    "code",
    [
        "import tf_alexnet as ta; ta.catalog; ta.preprocess_input; ta.AlexNet",
        pytest.param(
            "import keras; keras.backend.backend = lambda: 'jax'; import numpy as np; "
            "import tf_alexnet as ta; e = ta.FeatureExtractor('torchvision-convs', 'conv1', "
            "engine='tensorflow'); e.from_images(np.zeros((9, 9, 3), 'u1'))",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_another_backend_is_named_in_one_line(code):
    backend = {} if "lambda" in code else {"KERAS_BACKEND": "jax"}
    code = f"""
try:
    {code}
except Exception as error:
    print(type(error).__name__, error)
"""
    assert fresh(code, **backend).startswith("UsageError Keras with the backend 'jax': the network")


def test_another_backend_of_a_keras_that_was_imported_first(monkeypatch):
    for name in ("layers", "blobs", "model"):
        monkeypatch.delitem(sys.modules, f"tf_alexnet.{name}", raising=False)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    ta._register_layers()
    with pytest.raises(UsageError, match=r"^Keras with the backend 'jax': the network"):
        ta.features  # noqa: B018


def test_what_is_no_model_is_called_what_it_is(saved, tmp_path):
    ta.AlexNet(convolutions("compact"), include_top=False).save_weights(tmp_path / "w.weights.h5")
    (tmp_path / "bad.keras").write_bytes(b"PK\3\4 not quite")
    (tmp_path / "bad.json").write_text("{")
    with zipfile.ZipFile(tmp_path / "cut.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}" * 100)
    with open(tmp_path / "cut.keras", "rb+") as file:
        file.seek(30 + len("config.json"))  # behind the member's header
        file.write(b"\xff\xff")
    (tmp_path / "w.npy").touch()
    for name, error, message in (
        ("none.keras", UsageError, "there is no such file"),
        ("w.npy", UsageError, r"pass it to AlexNet\(\)"),
        ("w.weights.h5", UsageError, r"it holds weights but no model\. Pass it to AlexNet\(\)"),
        ("bad.keras", WeightsError, "Keras can't load it: File is not a zip file"),
        ("bad.json", WeightsError, "Keras can't load it: Expecting property name"),
        ("cut.keras", WeightsError, "Keras can't load it: .*decompressing"),
        ("", UsageError, r"a folder without run\.json"),
    ):
        with pytest.raises(error, match=message):
            ta.load_model(tmp_path / name)
    with pytest.raises(UsageError, match=r"a SavedModel holds a graph.*tf\.saved_model\.load"):
        ta.load_model(saved / "saved_model")


@keras.saving.register_keras_serializable(package="stranger")
class Strange(keras.layers.Layer):
    """Registered in this process, and yet not ours."""


HOSTILE = {
    "Lambda": {"module": "keras.layers", "class_name": "Lambda", "config": {}},
    "Lambda of Keras 2": {"class_name": "Lambda", "config": {"function": ["4wEA", None, None]}},
    "TFSMLayer": {"module": "keras.layers", "class_name": "TFSMLayer", "config": {}},
    "TorchModuleWrapper": {"module": "keras.layers", "class_name": "TorchModuleWrapper"},
    "StringLookup": {"module": "keras.layers", "class_name": "StringLookup", "config": {}},
    "Strange": {"module": "x", "class_name": "Strange", "registered_name": "stranger>Strange"},
    "a class of ours that is none": {"class_name": "Path", "registered_name": "tf_alexnet>Path"},
    "Popen": {"module": "subprocess", "class_name": "Popen", "config": {"args": "true"}},
    "get_file": {"module": "keras.utils", "class_name": "get_file", "config": {}},
    "system": {"module": "os", "class_name": "function", "config": "system"},
    "eval": {"module": "builtins", "class_name": "function", "config": "eval"},
    "__lambda__": {"class_name": "__lambda__", "config": {"value": "4wEA"}},
    "not a name": {"module": "keras.layers", "class_name": ["Dense"], "config": {}},
}


@pytest.mark.parametrize("fault", HOSTILE)
@pytest.mark.parametrize("suffix", [".keras", ".h5", ".json"])
def test_strangers_are_refused_before_keras_sees_them(fault, suffix, saved, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("Keras was asked to load it")

    monkeypatch.setattr(keras.models, "load_model", never)
    monkeypatch.setattr(keras.models, "model_from_json", never)
    config = json.loads((saved / "model.json").read_text())
    config["config"]["layers"][3]["config"]["planted"] = [{"deep": HOSTILE[fault]}]
    path = tmp_path / f"model{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(config))
    elif suffix == ".keras":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps(config))
    else:
        import h5py

        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(WeightsError, match=r"model\.\w+:.*not a safe part of Keras or"):
        ta.load_model(path)


@pytest.mark.slow
def test_compiled_models_with_layers_and_operations_of_keras_load(tmp_path):
    base = ta.AlexNet(convolutions("compact"), include_top=False, input_shape=(64, 64, 3))
    x = keras.layers.Bidirectional(keras.layers.LSTM(2))(
        keras.layers.Reshape((-1, 128))(keras.ops.maximum(base.output, 0.1) * 2)
    )
    model = keras.Model(base.input, keras.layers.Dense(2, kernel_regularizer="l2")(x))
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.9)
    loss = keras.losses.sparse_categorical_crossentropy
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(np.ones((2, 64, 64, 3)), np.array([0, 1]), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = ta.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, keras.optimizers.Adam)
    x = np.ones((1, 64, 64, 3), np.float32)
    ours = model.predict(x, verbose=0)
    assert relative_error(loaded.predict(x, verbose=0), ours) < 1e-5  # observed 0


def test_exports_refuse_another_size(saved):
    serve = tf.saved_model.load(saved / "saved_model").signatures["serving_default"]
    serve(tf.zeros((3, 67, 67, 3)))
    for shape in ((1, 66, 66, 3), (1, 3, 67, 67), (1, 71, 67, 3), (2, 67, 67, 6)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"preset_squash\.size67"):
            serve(tf.zeros(shape))
